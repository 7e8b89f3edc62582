"""How a model does on the real data of the shared folder, through the library's own journey (lungs found, not given).

    python Testing/benchmarks/accuracy.py [--model ID|FILE] [--smooth-across-slices MM] [--threshold P] ...

Prints, for P001 (COVID-CT-MD), the agreement by slice with its label file (positive: above 20 mm2 of lesion) and the
fraction of the lesion in marks that a single slice has; that fraction and Dice for the demo's synthetic chest; for the
chests without COVID, the false milliliters; for the 48 test pictures of COVID-SemiSeg, Dice, on gray brought to HU; for
the whole CTs of COVID-19-CT-Seg, Dice, RVE and HD95 against the expert, and the Dice of the slices with lesion alone,
which is what others state. For a bundled model these last are training patients, and so is the normal chest: they prove
the path, not the accuracy.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from shared_data import DATA, NEGATIVES, ct_seg, ct_seg_names

from COVIDLesionSegLib.imaging import Geometry, Volume, read_labels, read_volume
from COVIDLesionSegLib.inference import PostProcessing, Predictor, apply_postprocessing
from COVIDLesionSegLib.learning.store import read_picture
from COVIDLesionSegLib.measurement import dice, hausdorff_distance_95, relative_volume_error
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.reproduction.pictures import normalize

POSITIVE_MM2 = 20.0
# how far from the lungs lesion counts; figures with and without it are told for networks whose card names no limit
NEAR_MM = 5.0
# at which a mask's Dice is also told where probabilities are asked for
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

# gray that pictures are normalized to, and the HU that CTs have there: aerated lung, soft tissue
GRAYS, UNITS = (30.0, 200.0), (-870.0, 39.0)


def near_lungs(mask: np.ndarray, volume: Volume, lungs: np.ndarray) -> np.ndarray:
    """What ``--keep-inside-lungs`` leaves of a mask."""
    settings = PostProcessing(keep_inside_lungs_mm=NEAR_MM)
    return apply_postprocessing(mask, volume.geometry.spacing_zyx, settings, lungs)


def fraction_in_single_slices(mask: NDArray[np.bool_]) -> float:
    """Fraction of a lesion mask (z, y, x) in components that no neighboring slice touches: marks of one slice alone."""
    from scipy import ndimage

    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    heights = np.array([place[0].stop - place[0].start for place in ndimage.find_objects(components)])
    return float(sizes[heights == 1].sum() / sizes.sum()) if count else 0.0


def demo_chest(predictor: Predictor, settings: PostProcessing) -> dict[str, float]:
    """The synthetic chest of ``covid-lesion-seg demo``."""
    chest = synthetic_chest(0)
    mask = predictor.segment(chest.volume, postprocessing=settings).mask
    voxel = chest.volume.geometry.voxel_ml
    return {
        "dice": dice(mask, chest.lesion),
        "lesion_ml": float(mask.sum() * voxel),
        "reference_ml": float(chest.lesion.sum() * voxel),
        "fraction_in_single_slices": fraction_in_single_slices(mask),
    }


def slices_of_p001(predictor: Predictor, settings: PostProcessing) -> dict[str, float]:
    """Sensitivity and specificity by slice against the radiologists' labels."""
    volume = read_volume(DATA / "covid-ct-md/dicom/covid_P001")
    result = predictor.segment(volume, postprocessing=settings)
    with (DATA / "covid-ct-md/covid_P001_slice_labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    view = volume.geometry.axial_view()
    infected = np.zeros(view.geometry.size[2], dtype=bool)
    infected[[int(row["nifti_k_from_feet"]) for row in rows]] = [row["infected"] == "1" for row in rows]
    figures: dict[str, float] = {"infected_slices": int(infected.sum()), "slices": len(infected)}
    figures["fraction_in_single_slices"] = fraction_in_single_slices(view.apply(result.mask))
    for name, mask in (("", result.mask), ("_near_lungs", near_lungs(result.mask, volume, result.lungs))):
        found = view.apply(mask).sum(axis=(1, 2)) * np.prod(view.geometry.spacing[:2]) > POSITIVE_MM2
        figures |= {
            f"sensitivity_by_slice{name}": float(found[infected].mean()),
            f"specificity_by_slice{name}": float((~found[~infected]).mean()),
            f"lesion_ml{name}": float(mask.sum() * volume.geometry.voxel_ml),
        }
    return figures | {f"seconds_{name}": value for name, value in result.record.seconds.items()}


def chest_without_covid(predictor: Predictor, name: str, settings: PostProcessing) -> dict[str, float]:
    """Milliliters of lesion found where there is none."""
    volume = read_volume(NEGATIVES[name])
    result = predictor.segment(volume, postprocessing=settings)
    near = near_lungs(result.mask, volume, result.lungs)
    voxel = volume.geometry.voxel_ml
    return {"false_ml": float(result.mask.sum() * voxel), "false_ml_near_lungs": float(near.sum() * voxel)}


def coronacase(
    predictor: Predictor, name: str, settings: PostProcessing, bins: np.ndarray | None = None
) -> dict[str, float]:
    """Against the expert's mask of a whole CT, in the lungs that are found.

    Args:
        predictor: with the model.
        name: of the case.
        settings: what is done after the network, besides the limit to the lungs.
        bins: (3, n); the voxels in the lungs are added to it, see :func:`count_in_bins`; and the Dice at each of
            :data:`THRESHOLDS` and the median HU of missed, extra and healthy voxels are told, too.
    """
    case = ct_seg(name)
    volume, reference = read_volume(case.ct), read_labels(case.lesion).mask()
    result = predictor.segment(volume, probability=bins is not None, postprocessing=settings)
    lungs, with_lesion = result.lungs != 0, reference.any(axis=(1, 2))
    # as the bundled models' cards say, also for a network whose card names no limit
    mask, voxel = near_lungs(result.mask, volume, lungs), volume.geometry.voxel_ml
    figures = {
        "dice": dice(mask, reference),
        "dice_of_slices_with_lesion": dice(mask[with_lesion], reference[with_lesion]),
        "rve": relative_volume_error(mask, reference),
        "hd95_mm": hausdorff_distance_95(mask, reference, volume.geometry.spacing_zyx),
        "lesion_ml": float(mask.sum() * voxel),
        "reference_ml": float(reference.sum() * voxel),
    }
    if bins is not None:
        count_in_bins(bins, result.probability[lungs], reference[lungs])
        masks = {cut: near_lungs(result.probability > cut, volume, lungs) for cut in THRESHOLDS}
        figures |= {f"dice_above_{cut}": dice(masks[cut], reference) for cut in THRESHOLDS}
        # what the two disagree on: haze or dense tissue
        parts = {"missed": reference & ~mask, "extra": mask & ~reference, "healthy": lungs & ~reference}
        figures |= {f"{part}_median_hu": float(np.median(volume.array[where])) for part, where in parts.items()}
    return figures


def picture_as_ct(image: Path, mask: Path) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A picture of COVID-SemiSeg as a CT of one slice, and its lesion, both (1, rows, columns).

    Its gray has no unit: aerated lung and soft tissue, two peaks of the histogram, are given the HU that they have in
    CTs. These pictures were cut to the lungs and lie on their side.
    """
    gray = normalize(read_picture(image), *GRAYS).astype(np.float64)
    hu = UNITS[0] + (gray - GRAYS[0]) / (GRAYS[1] - GRAYS[0]) * (UNITS[1] - UNITS[0])
    upright = [np.ascontiguousarray(np.rot90(array, -1))[None] for array in (np.rint(hu), read_picture(mask) > 127)]
    return upright[0].astype(np.int16), upright[1]


def pictures(predictor: Predictor) -> dict[str, float]:
    """Dice on the 48 test pictures of COVID-SemiSeg: the mean over pictures, and that of all pixels together."""
    folder = DATA / "covid-semiseg/test"
    each, pixels = [], np.zeros(3)
    for path in sorted((folder / "images").glob("*.jpg")):
        hu, lesion = picture_as_ct(path, folder / "masks" / f"{path.stem}.png")
        volume = Volume(hu, Geometry(hu.shape[::-1]), path.stem)
        mask = predictor.segment(volume, lungs=np.ones(hu.shape, dtype=bool)).mask
        each.append(dice(mask, lesion))
        pixels += [(mask & lesion).sum(), mask.sum(), lesion.sum()]
    both, marked, reference = pixels
    return {
        "dice": float(np.mean(each)),
        "pooled_dice": float(2 * both / (marked + reference)),
        "marked_of_reference": float(marked / reference),
        "pictures": len(each),
    }


def count_in_bins(bins: np.ndarray, probability: np.ndarray, reference: np.ndarray) -> None:
    """Add voxels to the bins of a reliability plot: their number, the sum of their probabilities, and their lesions.

    Args:
        bins: (3, n), changed in place; bin k holds probabilities from k / n up to (k + 1) / n.
        probability: (m,), in [0, 1].
        reference: (m,), bool.
    """
    count = bins.shape[1]
    place = np.minimum((probability * count).astype(int), count - 1)
    for row, weights in enumerate((None, probability, reference)):
        bins[row] += np.bincount(place, weights, count)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: the mean distance of a bin's probability and its share of lesion, by voxels."""
    total, probability, lesion = bins
    return float(np.abs(probability - lesion).sum() / total.sum())


def add_postprocessing(parser: argparse.ArgumentParser) -> None:
    """Declare ``--smooth-across-slices`` and ``--threshold``."""
    parser.add_argument("--smooth-across-slices", type=float, metavar="MM", help="instead of what the card says")
    parser.add_argument("--threshold", type=float, help="of the probability, instead of what the card says")


def postprocessing_of(arguments: argparse.Namespace) -> PostProcessing:
    """The settings after the network that were asked for."""
    return PostProcessing(smooth_across_slices_mm=arguments.smooth_across_slices, threshold=arguments.threshold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="id or file; the default model if absent")
    add_postprocessing(parser)
    parser.add_argument("--cases", type=int, default=8, help="how many cases of COVID-19-CT-Seg (default: 8)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    predictor, settings = Predictor(arguments.model), postprocessing_of(arguments)
    print(f"model {predictor.model.card.id}, {predictor.device.device}", flush=True)
    figures: dict[str, dict[str, float]] = {}

    def say(name: str, values: dict[str, float]) -> None:
        figures[name] = values
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)

    say("P001", slices_of_p001(predictor, settings))
    say("demo", demo_chest(predictor, settings))
    for name in NEGATIVES:
        say(name, chest_without_covid(predictor, name, settings))
    say("COVID-SemiSeg", pictures(predictor))
    names = ct_seg_names()[: arguments.cases]
    for name in names:
        say(name, coronacase(predictor, name, settings))
    if names:
        for key in ("dice", "dice_of_slices_with_lesion", "rve", "hd95_mm"):
            values = [figures[name][key] for name in names]
            print(f"mean {key}: {np.mean(values):.4g} +- {np.std(values):.4g} over {len(values)} cases")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
