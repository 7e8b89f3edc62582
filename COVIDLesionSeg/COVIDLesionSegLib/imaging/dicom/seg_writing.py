"""DICOM Segmentation objects (DICOM PS3.3 A.51): write one beside its CT series.

Command and worker write with this module. highdicom encodes; what is decided here is what the object says: which slice
a frame belongs to, what the segments are called and coded, what made them, and whose they are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...errors import GeometryError, InputError, ReadError
from ...files import atomic_path
from ..geometry import Geometry
from ..segments import Code, SegmentStyle, segment_style, segment_styles
from ..writing import require_other_file
from .series import dicom_stack

# Whoever offers to write a DICOM SEG says this before it does.
PATIENT_NOTICE = (
    "A DICOM SEG carries the patient's name, ID and birth date from the CT, as DICOM demands; "
    "keep it as confidential as the CT."
)
PRIVATE_SCHEME = "99COVIDLESIONSEG"
_MAKER = "COVIDLesionSeg"
# What DICOM asks of a patient and a study, if only as an empty value; anonymizers leave some of it out.
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# A segment that has no codes of ours: something in a place, and no claim about what.
_UNKNOWN_CATEGORY = Code("SCT", "309825002", "Spatial and Relational Concept")
_UNKNOWN_TYPE = Code(PRIVATE_SCHEME, "NAMED", "Region named by the user")
_LONG_STRING = 64
_SERIES_NUMBER = 300
# Overlapping segments are handed to highdicom as one array of all of them.
_MOST_VOXELS_AT_ONCE = 2**32


@dataclass(frozen=True)
class SegmentAlgorithm:
    """What made a segment.

    Attributes:
        name: of the model or program; cut at 64 characters.
        version: its version.
        type: "AUTOMATIC", "SEMIAUTOMATIC" (a person corrected it) or "MANUAL".
        parameters: name and value of what is worth knowing, e.g. the hash of the weights; nothing about the patient.
    """

    name: str
    version: str = __version__
    type: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] = "AUTOMATIC"
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], edited: bool = False) -> SegmentAlgorithm:
        """The algorithm that a run record tells of.

        Args:
            record: a run record as JSON object (``RunRecord.to_json()``).
            edited: whether a person changed the result.
        """
        model = record["model"]
        parameters = {
            "weights_sha256": model.get("weights_sha256"),
            "threshold": record.get("postprocessing", {}).get("threshold"),
        }
        return cls(
            model["name"],
            str(model["version"]),
            "SEMIAUTOMATIC" if edited else "AUTOMATIC",
            {name: str(value) for name, value in parameters.items() if value not in (None, "")},
        )


@dataclass(frozen=True, eq=False)
class DicomSegment:
    """One segment to write.

    Attributes:
        name: what users read; cut at 64 characters.
        mask: (z, y, x), lesion where not 0.
        algorithm: what made it.
        style: its codes and color; found by the name if None.
    """

    name: str
    mask: NDArray[Any]
    algorithm: SegmentAlgorithm
    style: SegmentStyle | None = None


@dataclass(frozen=True, eq=False)
class SegSource:
    """The CT series that a DICOM SEG will refer to.

    Attributes:
        files: one a slice, in the order of axis z.
        geometry: grid of the series.
        headers: pydicom data sets without pixels, in the same order; they hold the patient's data.
        notes: sentences about what is odd but usable.
    """

    files: tuple[Path, ...]
    geometry: Geometry
    headers: tuple[Any, ...]
    notes: tuple[str, ...]


def read_seg_source(source: Path | str | Sequence[Path | str], series: str | None = None) -> SegSource:
    """Read what a DICOM SEG needs of its CT, and refuse early what it can't be written for.

    Args:
        source: folder of the CT, one of its files, or all of them (as Slicer's DICOM database lists them).
        series: SeriesInstanceUID, where there are several.

    Raises:
        InputError: pydicom or highdicom is not installed.
        ReadError: no CT series, damaged files, or headers without the identifiers to refer to.
        SeriesChoiceError: several series and no choice.
        GeometryError: slices missing, unevenly spaced, or in several frames of reference.
    """
    _require_packages()
    import pydicom

    stack = dicom_stack(source, series)
    with _no_patient_data_in_warnings():
        headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in stack.files]
        _refuse_without_identity(headers)
        notes = [*stack.warnings, *_complete(headers, stack.geometry)]
    return SegSource(stack.files, stack.geometry, tuple(headers), tuple(notes))


def write_dicom_seg(
    path: Path | str,
    segments: Sequence[DicomSegment],
    geometry: Geometry,
    source: SegSource,
    description: str = "COVID-19 lesions (COVIDLesionSeg)",
) -> tuple[str, ...]:
    """Write segments as one binary DICOM SEG that refers to the slices of its CT.

    The object carries the CT's patient and study, as DICOM demands: say :data:`PATIENT_NOTICE` before. Frames without a
    voxel are left out, as usual; without any voxel at all one empty frame is written.

    Args:
        path: file to make or replace.
        segments: at least one; they may overlap.
        geometry: the masks' grid: the voxels of the CT, in any order of axes and in any direction.
        source: the CT.
        description: of the new series; nothing about the patient.

    Returns:
        Sentences about what is odd but usable, those of the source among them.

    Raises:
        InputError: no segment, too many overlapping ones, or the output is one of the CT's files.
        GridMismatchError: the masks are not on the CT's grid.
        ReadError: the CT's headers hold values that DICOM does not allow.
        OutputError: the file can't be written; nothing half-written stays.
    """
    if not segments:
        raise InputError("There is no segment to write.")
    require_other_file(path, source.files)
    masks = [_on_source(segment.mask, geometry, source.geometry) for segment in segments]
    pixels = _merged(masks)
    notes, headers = list(source.notes), source.headers
    empty = [segment.name for segment, mask in zip(segments, masks, strict=True) if not mask.any()]
    if len(empty) == len(segments):
        notes.append("Nothing is segmented: the DICOM SEG holds one empty frame.")
        headers, pixels = headers[:1], pixels[:1]
    elif empty:
        notes.append(f"Segments without a voxel in the DICOM SEG: {', '.join(empty)}.")
    with _no_patient_data_in_warnings():
        dataset = _encoded(pixels, segments, headers, description)
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = f"{source.geometry.spacing[2]:.10g}"
        with atomic_path(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return tuple(notes)


def _require_packages() -> None:
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"DICOM SEG needs the packages pydicom and highdicom; {error.name} is not installed.",
            "Install covid-lesion-seg[dicom], or write .seg.nrrd.",
        ) from error


@contextlib.contextmanager
def _no_patient_data_in_warnings() -> Iterator[None]:
    """pydicom quotes values that it finds irregular; what must be regular is checked here, the rest is carried."""
    import pydicom

    with pydicom.config.disable_value_validation():
        yield


# What the headers lack


def _refuse_without_identity(headers: Sequence[Any]) -> None:
    for keyword in _IDENTIFIERS:
        lacking = sum(not header.get(keyword) for header in headers)
        if lacking:
            raise ReadError(
                f"{lacking} of {len(headers)} slices have no {keyword}, so a DICOM SEG can't refer to them.",
                "Write .seg.nrrd or .nii.gz instead.",
            )
    instances = len({str(header.SOPInstanceUID) for header in headers})
    if instances < len(headers):
        raise ReadError(
            f"The {len(headers)} slices have only {instances} different SOPInstanceUID, so a DICOM SEG can't refer to "
            "each of them.",
            "Write .seg.nrrd or .nii.gz instead.",
        )
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        different = len({header.get(keyword) for header in headers})
        if different > 1:
            raise GeometryError(
                f"The slices have {different} different values of {keyword}; a DICOM SEG needs one study and one "
                "frame of reference.",
                "Write .seg.nrrd or .nii.gz instead.",
            )


def _complete(headers: Sequence[Any], geometry: Geometry) -> list[str]:
    """Give the headers in memory what DICOM asks for, where it can be left empty or is known otherwise."""
    from pydicom.uid import generate_uid

    notes = []
    first = headers[0]
    for keyword in _MAY_BE_EMPTY:
        value = first.get(keyword)
        if value is None:
            setattr(first, keyword, "")
        elif value and not _is_valid(keyword, value):
            setattr(first, keyword, "")
            notes.append(f"The CT's {keyword} is not a value that DICOM allows; it is empty in the DICOM SEG.")
    if not first.get("FrameOfReferenceUID"):
        # the same for every SEG of the series, so that they lie over each other
        frame = generate_uid(entropy_srcs=[str(first.SeriesInstanceUID), "frame of reference"])
        for header in headers:
            header.FrameOfReferenceUID = frame
        notes.append("The CT names no frame of reference; the DICOM SEG has one of its own.")
    for header in headers:
        # some scanners write a distance that is not the one of the positions
        header.pop("SpacingBetweenSlices", None)
        if not header.get("SliceThickness"):
            header.SliceThickness = f"{geometry.spacing[2]:.10g}"
    return notes


def _is_valid(keyword: str, value: Any) -> bool:
    from pydicom.valuerep import DA, TM

    try:
        if keyword.endswith("Date"):
            DA(value)
        elif keyword.endswith("Time"):
            TM(value)
    except (ValueError, TypeError):
        return False
    return keyword != "PatientSex" or value in ("M", "F", "O")


# The voxels


def _on_source(mask: NDArray[Any], geometry: Geometry, source: Geometry) -> NDArray[np.bool_]:
    """The mask as the series counts its slices, rows and columns: bool (z, y, x)."""
    geometry.require_shape(mask, "mask")
    given, wanted = geometry.axial_view(), source.axial_view()
    hint = "A DICOM SEG can be written for the CT that was segmented only."
    given.geometry.require_same(wanted.geometry, "segmentation", "DICOM series", hint)
    return wanted.restore(given.apply(mask)) != 0


def _merged(masks: Sequence[NDArray[np.bool_]]) -> NDArray[Any]:
    """Labels (z, y, x) from 1 on, or, where masks overlap, all of them as (z, y, x, segment)."""
    labels = np.zeros(masks[0].shape, np.uint8 if len(masks) < 256 else np.uint16)
    for number, mask in enumerate(masks, start=1):
        if labels[mask].any():
            break
        labels[mask] = number
    else:
        return labels
    if len(masks) * labels.size > _MOST_VOXELS_AT_ONCE:
        raise InputError(
            f"{len(masks)} overlapping segments on {labels.shape} voxels are too many for one DICOM SEG.",
            "Write fewer at once, or remove the overlap.",
        )
    return np.stack(masks, axis=-1).view(np.uint8)


# The object


def _encoded(pixels: NDArray[Any], segments: Sequence[DicomSegment], headers: Sequence[Any], description: str) -> Any:
    import highdicom

    described = [_described(number, segment) for number, segment in enumerate(segments, start=1)]
    codes = highdicom.coding_schemes.CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME, name="Codes of COVIDLesionSeg"
    )
    arguments = {
        "pixel_array": pixels,
        "segmentation_type": highdicom.seg.SegmentationTypeValues.BINARY,
        "segment_descriptions": described,
        "series_instance_uid": highdicom.UID(),
        "series_number": _SERIES_NUMBER,
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "manufacturer": _MAKER,
        "manufacturer_model_name": _MAKER,
        "software_versions": __version__,
        "device_serial_number": "0",
        "content_label": "LESIONS",
        "content_description": description[:_LONG_STRING],
        "series_description": description[:_LONG_STRING],
        "content_qualification": highdicom.ContentQualificationValues.RESEARCH,
        "coding_schemes": [codes],
        "specific_character_set": "ISO_IR 192",
        "omit_empty_frames": bool(pixels.any()),
    }
    try:
        return highdicom.seg.Segmentation(headers, **arguments)
    except (ValueError, TypeError, AttributeError) as error:
        # its text may quote the patient's data
        raise ReadError(
            "The headers of the CT hold something that DICOM does not allow in a DICOM SEG.",
            "Write .seg.nrrd or .nii.gz instead.",
        ) from error


def _described(number: int, segment: DicomSegment) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    style = segment.style or _style_of(segment.name, number)
    algorithm = None
    if segment.algorithm.type != "MANUAL":
        algorithm = highdicom.AlgorithmIdentificationSequence(
            segment.algorithm.name[:_LONG_STRING],
            codes.cid7162.ArtificialIntelligence,
            segment.algorithm.version[:_LONG_STRING],
            parameters=dict(segment.algorithm.parameters) or None,
        )
    red, green, blue = (round(255 * part) for part in style.color)
    described = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=" ".join(segment.name.split())[:_LONG_STRING],
        segmented_property_category=_concept(style.category or _UNKNOWN_CATEGORY),
        segmented_property_type=_concept(style.type or _UNKNOWN_TYPE),
        algorithm_type=segment.algorithm.type,
        algorithm_identification=algorithm,
        anatomic_regions=[_concept(style.region)] if style.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(red, green, blue),
    )
    if style.modifier is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(style.modifier)]
    return described


def _style_of(name: str, number: int) -> SegmentStyle:
    """Codes by the name, also of "lesion 3 (2.1 mL)", "lesion_3" and "consolidation (from -150 HU)"."""
    style = segment_style(name, number)
    if style.id:
        return style
    for known in segment_styles():
        if re.fullmatch(rf"({known.id}|{re.escape(known.name)})[\s_]*\d*\s*(\(.*\))?", name, re.IGNORECASE):
            return replace(known, color=style.color)
    return style


def _concept(code: Code) -> Any:
    import highdicom

    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)
