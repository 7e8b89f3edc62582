"""One self-contained HTML page about the lesions of a CT, without patient data: figures, pictures, definitions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...errors import InputError
from ...imaging import Volume
from ...resources import resource
from .. import zones
from ..catalog import catalog, citations, consolidation_limit, display_unit, key_of, status_text
from ..evaluation import QUANTITIES, evaluate
from ..longitudinal import CHANGES, COUNTS, NEW, PERSISTING, RESOLVED, STATUSES, TimePoint, compare_timepoints
from ..quantification import Entries, quantify
from ..tables import plain
from . import charts, pictures
from ._html import Markup, bar, beside, joined, number, page, picture, section, table, tag, text, value_with_unit

# Lesions beyond these are counted in the page, and listed in the table and the JSON.
LISTED_LESIONS = 25
PICTURED_LESIONS = 4
# from the top of the right lung to the bottom of the left one
ZONES_SHOWN = tuple(f"{side}_{level}_zone" for side in zones.SIDES for level in reversed(zones.LEVELS))

_KEY_FIGURES = (
    "lesion_volume",
    "involvement",
    "severity_by_zones",
    "severity_by_lobes",
    "ground_glass_share",
    "consolidation_share",
    "mean_hu",
    "lesion_count",
)
_WHOLE = (
    "lung_volume",
    "lesion_free_lung_volume",
    "involvement",
    "lesion_to_lesion_free_lung",
    "lesion_outside_lungs",
    "mean_hu",
    "sd_hu",
)
_REGISTRATION = ("lung_dice", "lung_surface_distance", "common_coverage", "rotation", "translation", "volume_scale")


@dataclass
class Report:
    """What a report is made of, and the page made from it.

    Attributes:
        case: what the case is called; nothing of the patient.
        study: CT, lesion, lungs and lobes.
        reference: a second lesion mask on the CT's grid, to compare with.
        earlier: an earlier study of the patient.
        registration: "rigid" or "affine", of the earlier study.
        assume_same_patient: see :func:`.compare_timepoints`.
        lobe_map: see :func:`.zones.lobe_values`.
        consolidation_from: HU; None takes the catalog's.
        notes: sentences on what was odd about the input.
        record: the run record of the segmentation, if there is one.
        created: time of the report, UTC.
    """

    case: str
    study: TimePoint
    reference: NDArray[np.bool_] | None = None
    earlier: TimePoint | None = None
    registration: str = "rigid"
    lobe_map: str | Mapping[int, str] | None = None
    consolidation_from: float | None = None
    notes: Sequence[str] = ()
    record: Mapping[str, Any] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    assume_same_patient: bool = False

    quantities: Entries = field(init=False)
    lungs: zones.Lungs = field(init=False)
    evaluation: dict[str, Any] | None = field(init=False, default=None)
    comparison: dict[str, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        volume, lesion = self.study[:2]
        self.lungs, lobes = self.study.read(self.lobe_map)
        study = TimePoint(volume, lesion, self.lungs, lobes)
        self.quantities = quantify(*study, consolidation_from=self.consolidation_from)
        if self.lungs.quality is not None and self.lungs.is_doubtful:
            self.notes = [self.lungs.quality.line(), *self.notes]
        if self.reference is not None:
            self.evaluation = dict(evaluate(np.asarray(lesion) != 0, self.reference, volume.geometry.spacing_zyx))
        if self.earlier is not None:
            self.comparison = compare_timepoints(
                self.earlier,
                study,
                self.registration,
                lobe_map=self.lobe_map,
                consolidation_from=self.consolidation_from,
                assume_same_patient=self.assume_same_patient,
            )

    @property
    def threshold(self) -> float:
        """HU from which lesion counts as consolidation."""
        return consolidation_limit(self.consolidation_from)

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, as plain JSON values."""
        comparison = None
        if self.comparison is not None:
            comparison = {key: value for key, value in self.comparison.items() if key not in ("map", "later")}
        return plain(
            {
                "case": self.case,
                "created": self.created.isoformat(timespec="seconds"),
                "software": {"name": "COVIDLesionSeg", "version": __version__},
                "quantities": self.quantities,
                "lung_quality": None if self.lungs.quality is None else self.lungs.quality.to_json(),
                "evaluation": self.evaluation,
                "comparison": comparison,
                "notes": list(self.notes),
                "record": self.record,
            }
        )

    def to_html(self) -> str:
        """The page. Where matplotlib is not installed it has no pictures, and says so."""
        missing, shown = Markup(), None
        try:
            shown = _Pictures(self)
        except InputError as error:
            missing = tag("p", error, class_="notes")
        body = joined(
            _head(self),
            section("Key figures", _key_figures(self.quantities), _notes(self)),
            section("Pictures", missing, beside(shown.overlay, shown.lesions) if shown else ""),
            section(
                "Lungs, zones and lobes",
                _findings(self),
                beside(
                    _region_table(self.quantities),
                    joined(shown.zones if shown else "", _whole_table(self.quantities)),
                ),
            ),
            section("Density", beside(_density_table(self.quantities), shown.histogram if shown else Markup())),
            section("Lesions", _lesion_table(self.quantities)),
            _change_section(self.comparison, shown),
            _reference_section(self.evaluation, shown),
            _definitions(self),
            _run_record(self),
            tag("footer", f"COVIDLesionSeg {__version__}. Research use only; not for diagnosis."),
            by="\n",
        )
        style = resource("Report.css").read_text(encoding="utf-8")
        return page(f"Lung lesion report: {self.case}", style, body)


def _head(report: Report) -> Markup:
    when = report.created.strftime("%Y-%m-%d %H:%M UTC")
    use = tag("strong", "Research use only."), " Not a medical device; not for diagnosis or treatment."
    return tag(
        "header",
        tag("h1", f"Lung lesion report: {report.case}"),
        tag("p", f"Made {when} with COVIDLesionSeg {__version__}.", class_="muted"),
        tag("p", *use, class_="research"),
    )


def _key_figures(quantities: Entries) -> Markup:
    cards = []
    for name in _KEY_FIGURES:
        entry = quantities[name]
        if entry["status"] == "lobes_missing":
            continue
        note = status_text(entry["status"])
        shown = [value_with_unit(entry)]
        if name == "mean_hu" and entry["value"] is not None and not note:
            note = f"standard deviation {number(quantities['sd_hu']['value'], 0)} HU"
        if name.startswith("severity") and entry["value"] is not None:
            highest = catalog()["severity"][name.rpartition("_")[2]]["maximum"]
            shown += [text(" "), tag("span", f"of {highest}", class_="unit")]
        value = tag("dd", tag("span", *shown, class_="value"), tag("span", note, class_="note"))
        cards.append(tag("div", tag("dt", entry["title"]), value))
    return tag("dl", joined(*cards, by="\n"), class_="figures")


def _notes(report: Report) -> Markup:
    notes = list(report.notes)
    found = {entry["status"] for entry in report.quantities.values()}
    notes += [remark for status, remark in catalog()["remarks"].items() if status in found]
    if report.comparison is not None:
        notes += report.comparison["notes"]
    items = [tag("li", note) for note in dict.fromkeys(notes)]
    return tag("div", tag("ul", *items), class_="notes") if items else Markup()


def _findings(report: Report) -> Markup:
    """What makes the lungs doubtful; nothing where they are not."""
    quality = report.lungs.quality
    if quality is None or not quality.is_doubtful:
        return Markup()

    def shown(value: float | None, unit: str) -> str:
        return "" if value is None else f"{number(value, 2)} {display_unit(unit)}".rstrip()

    rows = [[one.sentence, shown(one.value, one.unit), shown(one.limit, one.unit)] for one in quality.findings]
    return table("Why the lung mask is doubtful.", ["Finding", "#Measured", "#Limit"], rows)


def _region_table(quantities: Entries) -> Markup:
    rows, kinds = [], []
    regions = ["whole"]
    for side, first in zip(zones.LUNG_REGIONS, (0, 3), strict=True):
        regions += [side, *ZONES_SHOWN[first : first + 3]]
    regions += [r for r in zones.LOBE_REGIONS if key_of("lobe_score", r) in quantities]
    for region in regions:
        lung, lesion, share = (
            quantities[key_of(name, region)]["value"] for name in ("lung_volume", "lesion_volume", "involvement")
        )
        scored = quantities.get(key_of("zone_score", region)) or quantities.get(key_of("lobe_score", region))
        score = number(scored["value"], 0) if scored else ""
        note = status_text(quantities[key_of("involvement", region)]["status"])
        # under its lung, a zone's own name is enough
        name = _region_title(region).rpartition(", ")[2].capitalize()
        label = joined(name, tag("span", Markup("<br>"), note, class_="muted") if note else "")
        rows.append([label, number(lung, 0), number(lesion, 1), joined(number(share, 1), bar(share)), score])
        kinds.append("part" if region.endswith("_zone") else "total" if not region.endswith("_lobe") else "")
    columns = ["Region", "#Lung [mL]", "#Lesion [mL]", "#Involved [%]", "#Score"]
    return table("Lesion in each lung and its zones; the lung's volume includes the lesion.", columns, rows, kinds)


def _remarked(entries: Mapping[str, Any], names: Sequence[str], signed: bool = False) -> list[list[str]]:
    """Rows of title, value and remark."""
    shown = [entries[name] for name in names]
    return [[one["title"], value_with_unit(one, signed), status_text(one["status"])] for one in shown]


def _whole_table(quantities: Entries) -> Markup:
    caption = "The whole study; a dash is what could not be measured."
    return table(caption, ["Quantity", "#Value", "Remark"], _remarked(quantities, _WHOLE))


def _density_table(quantities: Entries) -> Markup:
    names = ("ground_glass_volume", "ground_glass_share", "consolidation_volume", "consolidation_share", "mean_hu")
    rows = []
    for region in ("whole", *zones.LUNG_REGIONS):
        entries = [quantities[key_of(name, region)] for name in names]
        cells = [number(e["value"], catalog()["quantities"][e["name"]]["digits"]) for e in entries]
        rows.append([_region_title(region), *cells])
    columns = ["Region", "#GGO [mL]", "#GGO [%]", "#Cons. [mL]", "#Cons. [%]", "#Mean [HU]"]
    caption = (
        "Ground-glass opacity (GGO) and consolidation (cons.) by HU inside the lesion, not from a reader or a network."
    )
    return table(caption, columns, rows)


def _lesion_table(quantities: Entries) -> Markup:
    lesions = quantities["lesions"]["value"]
    if not lesions:
        return tag("p", "There is no lesion.")
    rows = [
        [
            one["index"],
            one["place"] or "not known",
            number(one["volume_ml"], 2),
            number(one["share_percent"], 1),
            number(one["mean_hu"], 0),
            ", ".join(number(value, 0) for value in one["centroid_lps_mm"]),
        ]
        for one in lesions[:LISTED_LESIONS]
    ]
    columns = ["#No.", "Place", "#Volume [mL]", "#Share [%]", "#Mean [HU]", "#Center L, P, S [mm]"]
    rest = lesions[LISTED_LESIONS:]
    total = number(sum(one["volume_ml"] for one in rest), 1)
    more = f"{len(rest)} smaller lesions, {total} mL together, are not listed here."
    return joined(table("Lesions by size.", columns, rows), tag("p", more, class_="muted") if rest else "")


def _change_section(comparison: Mapping[str, Any] | None, shown: _Pictures | None) -> Markup:
    if comparison is None:
        return Markup()
    changes = comparison["changes"]
    groups = sorted(comparison["lesions"], key=lambda one: STATUSES.index(one["status"]))
    columns = ["Status", "Place", "#Earlier [mL]", "#Later [mL]", "#Change [mL]"]
    lesion_rows = [
        [
            one["status"].replace("_", " "),
            one["place"] or "not known",
            *(number(one[key], 2) for key in ("earlier_ml", "later_ml", "change_ml")),
        ]
        for one in groups[:LISTED_LESIONS]
    ]
    more = len(groups) - LISTED_LESIONS
    rows = _remarked(changes, CHANGES, signed=True) + _remarked(changes, COUNTS)
    return section(
        "Change since the earlier study",
        tag("p", "Later minus earlier: positive means more at the later time.", class_="muted"),
        beside(
            table("What changed.", ["Quantity", "#Change", "Remark"], rows), shown.change_chart if shown else Markup()
        ),
        shown.change if shown else "",
        table("Lesions that belong together, by status.", columns, lesion_rows),
        tag("p", f"{more} more are not listed here.", class_="muted") if more > 0 else "",
        table(
            f"How well the lungs were brought together ({comparison['registration']['kind']} registration).",
            ["Quantity", "#Value", "Remark"],
            _remarked(changes, _REGISTRATION),
        ),
    )


def _reference_section(evaluation: Mapping[str, Any] | None, shown: _Pictures | None) -> Markup:
    if evaluation is None:
        return Markup()
    rows = []
    for name, entry in evaluation.items():
        unit = "" if entry["unit"] == "1" else f" {entry['unit']}"
        digits = 0 if name.endswith("_lesions") else 2 if unit else 3
        value = number(entry["value"], digits) + unit
        rows.append([QUANTITIES[name].title, value, status_text(entry["status"]), QUANTITIES[name].definition])
    return section(
        "Comparison with the reference",
        table("The lesion mask against the reference.", ["Measure", "#Value", "Remark", "Definition"], rows),
        shown.error if shown else "",
    )


def _definitions(report: Report) -> Markup:
    data = catalog()
    measured = list(report.quantities.values())
    if report.comparison is not None:
        measured += report.comparison["changes"].values()
    seen: dict[str, dict[str, Any]] = {}
    for entry in measured:
        seen.setdefault(entry["name"], entry)
    order = list(data["citations"])
    items = []
    for name, entry in seen.items():
        cited = data["quantities"][name].get("citations", [])
        marks = "".join(f" [{order.index(one) + 1}]" for one in cited)
        items += [tag("dt", entry["title"]), tag("dd", entry["definition"] + marks)]
    items += [tag("dt", "Lung zones"), tag("dd", data["zones"]["definition"])]
    sources = [tag("li", f"{one['text']} doi:{one['doi']}") for one in citations(order)]
    return section(
        "Definitions",
        tag("dl", joined(*items, by="\n"), class_="definitions"),
        tag("h3", "Sources"),
        tag("ol", *sources, class_="citations"),
    )


def _run_record(report: Report) -> Markup:
    volume = report.study.volume
    own = {
        "Software": f"COVIDLesionSeg {__version__}",
        "CT": f"{' x '.join(map(str, volume.geometry.size))} voxels of "
        f"{' x '.join(f'{value:.4g}' for value in volume.geometry.spacing)} mm",
        **{f"CT: {name}": value for name, value in volume.source.items() if value is not None},
        "Consolidation from": f"{report.threshold:g} HU",
    }
    if report.record is None:
        parts = [tag("p", "No run record of the segmentation was given.", class_="muted")]
    else:
        parts = [tag("h3", "Segmentation"), tag("pre", json.dumps(plain(report.record), indent=2))]
    return section("Run record", table("This report.", ["", ""], own.items()), *parts)


# Pictures of the page


class _Pictures:
    """The figures of a page, as markup; those that there is nothing to show for are empty.

    Raises:
        InputError: matplotlib is not installed.
    """

    def __init__(self, report: Report) -> None:
        volume, lesion = report.study[:2]
        mask = np.asarray(getattr(lesion, "array", lesion)) != 0
        lungs = report.lungs.array if report.lungs.status == "ok" else None

        reference = report.reference
        what = "Lesion outlined in yellow" + (", reference dashed in blue" if reference is not None else "")
        with tempfile.TemporaryDirectory() as folder:
            sheet = pictures.overlay_sheet(volume, mask, Path(folder) / "sheet.png", lungs, reference).read_bytes()
        self.overlay = picture(sheet, f"{what}, on the planes that hold most of it.", "wide")
        self.lesions = self._lesions(volume, mask, lungs)
        self.histogram = self._histogram(volume, mask, report.threshold)
        self.zones = self._zones(report.quantities)
        self.change, self.change_chart, self.error = Markup(), Markup(), Markup()
        if report.comparison is not None:
            self.change = self._change(volume, report.comparison["map"], lungs)
            self.change_chart = self._change_chart(report.comparison)
        if reference is not None:
            png = pictures.error_map_picture(volume, mask, reference, lungs)
            self.error = picture(png, "Agreement on the slice that holds most of both masks.", "wide")

    @staticmethod
    def _lesions(volume: Volume, mask: NDArray[np.bool_], lungs: NDArray[Any] | None) -> Markup:
        found = pictures.lesion_pictures(volume, mask, lungs, PICTURED_LESIONS)
        return tag("div", joined(*(picture(one.png, one.caption) for one in found), by="\n"), class_="pictures")

    @staticmethod
    def _histogram(volume: Volume, mask: NDArray[np.bool_], limit: float) -> Markup:
        if not mask.any():
            return Markup()
        png = charts.histogram_picture(volume.array[mask], volume.geometry.voxel_ml, {"consolidation from": limit})
        return picture(png, "HU of the lesion voxels; the outermost bins hold what lies beyond.", "chart")

    @staticmethod
    def _zones(quantities: Entries) -> Markup:
        values = {_region_title(region): quantities[key_of("involvement", region)]["value"] for region in ZONES_SHOWN}
        if all(value is None for value in values.values()):
            return Markup()
        return picture(charts.zone_chart(values), "Share of each lung zone that is lesion.", "chart")

    @staticmethod
    def _change(volume: Volume, change_map: NDArray[np.uint8], lungs: NDArray[Any] | None) -> Markup:
        if not change_map.any():
            return Markup()
        now = (change_map == PERSISTING) | (change_map == NEW)
        before = (change_map == PERSISTING) | (change_map == RESOLVED)
        png = pictures.error_map_picture(volume, now, before, lungs, names=("persisting", "new", "resolved"))
        return picture(png, "Change on the slice of the later CT that holds most lesion of both times.", "wide")

    @staticmethod
    def _change_chart(comparison: Mapping[str, Any]) -> Markup:
        bars = {}
        for name in ("earlier", "later"):
            entries = comparison[name]
            bars[name] = {"Whole study": entries["lesion_volume"]["value"]} | {
                _region_title(region): entries[key_of("lesion_volume", region)]["value"] for region in ZONES_SHOWN
            }
        png = charts.change_chart(bars["earlier"], bars["later"], "mL of lesion", ("earlier", "later"))
        return picture(png, "Lesion volume at both times.", "chart")


def _region_title(region: str) -> str:
    """A region as words."""
    return catalog()["regions"][region]["title"]
