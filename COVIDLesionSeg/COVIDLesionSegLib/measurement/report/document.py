"""One self-contained HTML page about the lesions of a CT, without patient data: figures, pictures, definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...errors import InputError
from ...resources import resource
from .. import zones
from ..catalog import catalog, citations, consolidation_limit, display_unit, key_of, status_text
from ..evaluation import QUANTITIES, evaluate
from ..longitudinal import STATUSES, TimePoint, compare_timepoints
from ..quantification import Entries, quantify
from ..tables import plain
from . import _html as html
from ._document_pictures import ZONES_SHOWN, ReportPictures, region_title

# Lesions beyond these are counted in the page, and listed in the table and the JSON.
LISTED_LESIONS = 25

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
_CHANGES = (
    "lesion_volume_change",
    "lesion_volume_change_percent",
    "involvement_change",
    "ground_glass_volume_change",
    "consolidation_volume_change",
    "severity_by_zones_change",
)
_COUNTS = (
    "lesions_new",
    "lesions_grown",
    "lesions_stable",
    "lesions_shrunk",
    "lesions_resolved",
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
        try:
            shown: ReportPictures | None = ReportPictures(self)
        except InputError as error:
            shown = None
            missing = html.tag("p", html.text(error), class_="notes")
        else:
            missing = ""
        parts = [
            _head(self),
            html.section("Key figures", _key_figures(self.quantities), _notes(self)),
            html.section("Pictures", missing, html.beside(shown.overlay, shown.lesions) if shown else ""),
            html.section(
                "Lungs, zones and lobes",
                _findings(self),
                html.beside(
                    _region_table(self.quantities), (shown.zones if shown else "") + _whole_table(self.quantities)
                ),
            ),
            html.section("Density", html.beside(_density_table(self.quantities), shown.histogram if shown else "")),
            html.section("Lesions", _lesion_table(self.quantities)),
            _change_section(self.comparison, shown),
            _reference_section(self.evaluation, shown),
            _definitions(self),
            _run_record(self),
            html.tag("footer", f"COVIDLesionSeg {html.text(__version__)}. Research use only; not for diagnosis."),
        ]
        style = resource("Report.css").read_text(encoding="utf-8")
        return html.page(f"Lung lesion report: {self.case}", style, "\n".join(part for part in parts if part))


def _head(report: Report) -> str:
    when = report.created.strftime("%Y-%m-%d %H:%M UTC")
    return html.tag(
        "header",
        html.tag("h1", f"Lung lesion report: {html.text(report.case)}")
        + html.tag("p", f"Made {html.text(when)} with COVIDLesionSeg {html.text(__version__)}.", class_="muted")
        + html.tag(
            "p",
            "<strong>Research use only.</strong> Not a medical device; not for diagnosis or treatment.",
            class_="research",
        ),
    )


def _key_figures(quantities: Entries) -> str:
    cards = []
    for name in _KEY_FIGURES:
        entry = quantities[name]
        if entry["status"] == "lobes_missing":
            continue
        note = status_text(entry["status"])
        shown = html.value_with_unit(entry)
        if name == "mean_hu" and entry["value"] is not None and not note:
            note = f"standard deviation {html.number(quantities['sd_hu']['value'], 0)} HU"
        if name.startswith("severity") and entry["value"] is not None:
            highest = catalog()["severity"][name.rpartition("_")[2]]["maximum"]
            shown += f' <span class="unit">of {highest}</span>'
        value = html.tag("span", shown, class_="value") + (html.tag("span", html.text(note), class_="note"))
        cards.append(html.tag("div", html.tag("dt", html.text(entry["title"])) + html.tag("dd", value)))
    return html.tag("dl", "\n".join(cards), class_="figures")


def _notes(report: Report) -> str:
    notes = list(report.notes)
    found = {entry["status"] for entry in report.quantities.values()}
    notes += [remark for status, remark in catalog()["remarks"].items() if status in found]
    if report.comparison is not None:
        notes += report.comparison["notes"]
    items = "".join(html.tag("li", html.text(note)) for note in dict.fromkeys(notes))
    return html.tag("div", html.tag("ul", items), class_="notes") if items else ""


def _findings(report: Report) -> str:
    """What makes the lungs doubtful; nothing where they are not."""
    quality = report.lungs.quality
    if quality is None or not quality.is_doubtful:
        return ""

    def shown(value: float | None, unit: str) -> str:
        return "" if value is None else f"{html.number(value, 2)} {html.text(display_unit(unit))}".rstrip()

    rows = [
        [html.text(one.sentence), shown(one.value, one.unit), shown(one.limit, one.unit)] for one in quality.findings
    ]
    return html.table("Why the lung mask is doubtful.", ["Finding", "#Measured", "#Limit"], rows)


def _region_table(quantities: Entries) -> str:
    rows, kinds = [], []
    regions = ["whole"]
    for side, first in zip(zones.LUNG_REGIONS, (0, 3), strict=True):
        regions += [side, *ZONES_SHOWN[first : first + 3]]
    regions += [r for r in zones.LOBE_REGIONS if key_of("lobe_score", r) in quantities]
    for region in regions:
        lung, lesion, share = (
            quantities[key_of(name, region)] for name in ("lung_volume", "lesion_volume", "involvement")
        )
        scored = quantities.get(key_of("zone_score", region)) or quantities.get(key_of("lobe_score", region))
        score = html.number(scored["value"], 0) if scored else ""
        note = status_text(share["status"])
        # under its lung, a zone's own name is enough
        name = region_title(region).rpartition(", ")[2].capitalize()
        label = html.text(name) + (html.tag("span", f"<br>{html.text(note)}", class_="muted") if note else "")
        percent = html.number(share["value"], 1) + html.bar(share["value"])
        rows.append([label, html.number(lung["value"], 0), html.number(lesion["value"], 1), percent, score])
        kinds.append("part" if region.endswith("_zone") else "total" if not region.endswith("_lobe") else "")
    columns = ["Region", "#Lung [mL]", "#Lesion [mL]", "#Involved [%]", "#Score"]
    return html.table("Lesion in each lung and its zones; the lung's volume includes the lesion.", columns, rows, kinds)


def _whole_table(quantities: Entries) -> str:
    rows = [
        [
            html.text(quantities[name]["title"]),
            html.value_with_unit(quantities[name]),
            html.text(status_text(quantities[name]["status"])),
        ]
        for name in _WHOLE
    ]
    return html.table("The whole study; a dash is what could not be measured.", ["Quantity", "#Value", "Remark"], rows)


def _density_table(quantities: Entries) -> str:
    names = ("ground_glass_volume", "ground_glass_share", "consolidation_volume", "consolidation_share", "mean_hu")
    rows = []
    for region in ("whole", *zones.LUNG_REGIONS):
        entries = [quantities[key_of(name, region)] for name in names]
        cells = [html.number(e["value"], catalog()["quantities"][e["name"]]["digits"]) for e in entries]
        rows.append([html.text(region_title(region)), *cells])
    columns = ["Region", "#GGO [mL]", "#GGO [%]", "#Cons. [mL]", "#Cons. [%]", "#Mean [HU]"]
    return html.table(
        "Ground-glass opacity (GGO) and consolidation (cons.) by HU inside the lesion, not from a reader or a network.",
        columns,
        rows,
    )


def _lesion_table(quantities: Entries) -> str:
    lesions = quantities["lesions"]["value"]
    if not lesions:
        return html.tag("p", "There is no lesion.")
    rows = [
        [
            str(one["index"]),
            html.text(one["place"] or "not known"),
            html.number(one["volume_ml"], 2),
            html.number(one["share_percent"], 1),
            html.number(one["mean_hu"], 0),
            html.text(", ".join(html.number(value, 0) for value in one["centroid_lps_mm"])),
        ]
        for one in lesions[:LISTED_LESIONS]
    ]
    columns = ["#No.", "Place", "#Volume [mL]", "#Share [%]", "#Mean [HU]", "#Center L, P, S [mm]"]
    rest = lesions[LISTED_LESIONS:]
    more = ""
    if rest:
        total = html.number(sum(one["volume_ml"] for one in rest), 1)
        more = html.tag("p", f"{len(rest)} smaller lesions, {total} mL together, are not listed here.", class_="muted")
    return html.table("Lesions by size.", columns, rows) + more


def _change_section(comparison: Mapping[str, Any] | None, shown: ReportPictures | None) -> str:
    if comparison is None:
        return ""
    changes = comparison["changes"]

    def rows(names: Sequence[str], signed: bool = False) -> list[list[str]]:
        return [
            [
                html.text(changes[name]["title"]),
                html.value_with_unit(changes[name], signed=signed),
                html.text(status_text(changes[name]["status"])),
            ]
            for name in names
        ]

    groups = sorted(comparison["lesions"], key=lambda one: STATUSES.index(one["status"]))
    columns = ["Status", "Place", "#Earlier [mL]", "#Later [mL]", "#Change [mL]"]
    lesion_rows = [
        [
            html.text(one["status"].replace("_", " ")),
            html.text(one["place"] or "not known"),
            html.number(one["earlier_ml"], 2),
            html.number(one["later_ml"], 2),
            html.number(one["change_ml"], 2),
        ]
        for one in groups[:LISTED_LESIONS]
    ]
    more = len(groups) - LISTED_LESIONS
    return html.section(
        "Change since the earlier study",
        html.tag("p", "Later minus earlier: positive means more at the later time.", class_="muted"),
        html.beside(
            html.table("What changed.", ["Quantity", "#Change", "Remark"], rows(_CHANGES, True) + rows(_COUNTS)),
            shown.change_chart if shown else "",
        ),
        shown.change if shown else "",
        html.table("Lesions that belong together, by status.", columns, lesion_rows),
        html.tag("p", f"{more} more are not listed here.", class_="muted") if more > 0 else "",
        html.table(
            f"How well the lungs were brought together ({comparison['registration']['kind']} registration).",
            ["Quantity", "#Value", "Remark"],
            rows(_REGISTRATION),
        ),
    )


def _reference_section(evaluation: Mapping[str, Any] | None, shown: ReportPictures | None) -> str:
    if evaluation is None:
        return ""
    rows = []
    for name, entry in evaluation.items():
        unit = "" if entry["unit"] == "1" else f" {html.text(entry['unit'])}"
        digits = 0 if name.endswith("_lesions") else 2 if unit else 3
        quantity = QUANTITIES[name]
        value = html.number(entry["value"], digits)
        note = status_text(entry["status"])
        rows.append([html.text(quantity.title), value + unit, html.text(note), html.text(quantity.definition)])
    return html.section(
        "Comparison with the reference",
        html.table("The lesion mask against the reference.", ["Measure", "#Value", "Remark", "Definition"], rows),
        shown.error if shown else "",
    )


def _definitions(report: Report) -> str:
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
        items.append(html.tag("dt", html.text(entry["title"])))
        items.append(html.tag("dd", html.text(entry["definition"]) + marks))
    items.append(html.tag("dt", "Lung zones"))
    items.append(html.tag("dd", html.text(data["zones"]["definition"])))
    sources = "".join(
        html.tag("li", f"{html.text(one['text'])} doi:{html.text(one['doi'])}") for one in citations(order)
    )
    return html.section(
        "Definitions",
        html.tag("dl", "\n".join(items), class_="definitions"),
        html.tag("h3", "Sources"),
        html.tag("ol", sources, class_="citations"),
    )


def _run_record(report: Report) -> str:
    volume = report.study.volume
    own = {
        "Software": f"COVIDLesionSeg {__version__}",
        "CT": f"{' x '.join(map(str, volume.geometry.size))} voxels of "
        f"{' x '.join(f'{value:.4g}' for value in volume.geometry.spacing)} mm",
        **{f"CT: {name}": value for name, value in volume.source.items() if value is not None},
        "Consolidation from": f"{report.threshold:g} HU",
    }
    rows = [[html.text(name), html.text(value)] for name, value in own.items()]
    parts = [html.table("This report.", ["", ""], rows)]
    if report.record is not None:
        text = json.dumps(plain(report.record), indent=2)
        parts += [html.tag("h3", "Segmentation"), html.tag("pre", html.text(text))]
    else:
        parts.append(html.tag("p", "No run record of the segmentation was given.", class_="muted"))
    return html.section("Run record", *parts)
