"""A table as Markdown and CSV: ours beside the published figures, how it was made, and what is missing and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import atomic_path, write_text
from ..measurement.cohort import GROUPS
from ..measurement.slices import CONVENTIONS
from ..measurement.tables import Row as CsvRow
from ..measurement.tables import write_csv
from .catalog import Metric, Published, Row, Table
from .figures import Figure, Outcome, false_lesion, figures
from .planning import Options, chosen_rows, command, noise_name, reductions

_READINGS = {
    "probability": "probability map, mean over the 256 thresholds",
    "mask": "mask (probability above 0.5), mean over the 256 thresholds",
}
_NOTHING = "-"


def write_table(table: Table, options: Options, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write all files of a table.

    Returns:
        The files: the table (Markdown first, then CSV), its cells, and its lesion-size groups where it is on volumes.
    """
    found = figures(table, outcomes)
    paths = [options.output / f"{table.id}{ending}" for ending in (".md", ".csv", "-cells.csv")]
    grouped = figures(table, outcomes, grouped=True) if table.judged == "volumes" else []
    write_text(paths[0], _markdown(table, options, outcomes, found, grouped))
    write_csv(paths[1], [_csv_row(table, figure) for figure in found] + _missing_rows(table, outcomes))
    write_csv(paths[2], [row for outcome in outcomes for row in _cell_rows(table, outcome)])
    if table.curves:
        paths.append(options.output / f"{table.id}-curves.csv")
        write_csv(paths[-1], [row for outcome in outcomes for row in _curve_rows(table, outcome)])
        paths += _curve_picture(table, options, outcomes)
    if grouped:
        paths.append(options.output / f"{table.id}-groups.csv")
        write_csv(paths[-1], [_csv_row(table, figure) for figure in grouped])
    return paths


# ---- Markdown -----------------------------------------------------------------------------------------------------


def _markdown(
    table: Table, options: Options, outcomes: Sequence[Outcome], found: Sequence[Figure], grouped: Sequence[Figure]
) -> str:
    rows = chosen_rows(table, options)
    changes = reductions(table, options, rows)
    lines = [f"# {table.id}: {table.title}", "", f"Published: {table.source}. {table.published_note}".strip(), ""]
    if changes:
        lines += [f"**Not the paper's protocol: {', '.join(changes)}.**", ""]
    lines += [f"- {sentence}" for sentence in _made(table, outcomes)]
    lines += [f"- {note}" for note in table.notes]
    lines += _network_notes(rows)
    lines += ["", "Cells are mean ± standard deviation over the tested cases, the mean over the seeds.", ""]
    for noise in dict.fromkeys(figure.noise for figure in found) or [""]:
        for title, part in _sections([figure for figure in found if figure.noise == noise]):
            labels = (f"label errors {noise}" if noise else "given labels") if options.noises else ""
            heading = ", ".join(text for text in (labels, title) if text)
            lines += [f"## {heading[0].upper()}{heading[1:]}", ""] if heading else []
            lines += [*_figures_table(table, rows, part), ""]
            tests = _tests_table(table, part)
            lines += [*tests, ""] if tests else []
    if grouped:
        lines += _groups(table, rows, grouped)
    lines += _runs(outcomes)
    lines += _missing(table, options, outcomes)
    lines += ["## Command", "", "```", command(table, options), "```", ""]
    return "\n".join(lines)


def _made(table: Table, outcomes: Sequence[Outcome]) -> list[str]:
    done = [outcome.result for outcome in outcomes if outcome.result is not None]
    if not done:
        return ["No cell is filled yet."]
    phrases = [
        f"Data: {_joined(result['data'] for result in done)}.",
        f"Tested is the network of: {_joined(_network_kept(result) for result in done)}.",
        f"Seeds: {_joined(result['seed'] for result in done)}.",
        f"Hardware: {_joined(_hardware(result['hardware']) for result in done)}.",
        f"Library: {_joined(result['library'] for result in done)}.",
    ]
    if table.split_published:
        phrases.append(f"The paper's split: {table.split_published}.")
    return phrases


def _network_notes(rows: Sequence[Row]) -> list[str]:
    """What is known of each network, once, however many rows have it."""
    titles: dict[str, list[str]] = {}
    for row in rows:
        if row.network.note:
            titles.setdefault(row.network.note, []).append(row.title)
    return [
        f"- {'All rows' if len(same) == len(rows) > 1 else '; '.join(same)}: {note}" for note, same in titles.items()
    ]


def _network_kept(result: Mapping[str, Any]) -> str:
    return "the last step" if result["kept"] == "last step" else "the best validation"


def _hardware(hardware: Mapping[str, Any]) -> str:
    threads = f", {hardware['threads']} thread(s)" if hardware["device"] == "cpu" else ""
    return f"{hardware['name']}{threads}, {hardware['precision']}, PyTorch {hardware['torch']}"


def _sections(found: Sequence[Figure]) -> list[tuple[str, list[Figure]]]:
    """Figures by reading; conventions that give the same figures everywhere are one section."""
    readings = list(dict.fromkeys(figure.reading for figure in found))
    if readings in ([], [""]):
        return [("", list(found))]
    sections = []
    for what, described in _READINGS.items():
        parts = {
            name: [figure for figure in found if figure.reading == f"{what}/{name}"]
            for name in CONVENTIONS
            if f"{what}/{name}" in readings
        }
        values = {name: [(f.row.id, f.metric.key, repr(f.mean)) for f in part] for name, part in parts.items()}
        first = next(iter(parts), "")
        if first and all(value == values[first] for value in values.values()):
            sections.append(
                (f"{described}; the same figures by both conventions of slices without lesion", parts[first])
            )
            continue
        sections += [(f"{described}; convention {name}: {CONVENTIONS[name]}", part) for name, part in parts.items()]
    return sections


def _figures_table(table: Table, rows: Sequence[Row], found: Sequence[Figure]) -> list[str]:
    head = ["row"]
    for metric in table.metrics:
        head += [f"{metric.heading}, published", f"{metric.heading}, ours"]
    lines = [_line(head), _line("---" for _ in head)]
    ours = {(figure.row.id, figure.metric.key): figure for figure in found}
    for row in rows:
        cells = [row.title]
        for metric in table.metrics:
            star = "*" if metric.key in row.significant else ""
            cells.append(f"{row.published.get(metric.key, _NOTHING)}{star}")
            cells.append(_ours(ours.get((row.id, metric.key))))
        lines.append(_line(cells))
    if any(row.significant for row in rows):
        lines += ["", "* p < 0.05 against the first row, as published."]
    return lines


def _tests_table(table: Table, found: Sequence[Figure]) -> list[str]:
    tested = [figure for figure in found if figure.pairs > 1]
    if not tested:
        return []
    compared = table.row(table.compared_with).title
    head = [f"against {compared}: p of paired t-test / Wilcoxon", *(metric.title for metric in table.metrics), "cases"]
    lines = [_line(head), _line("---" for _ in head)]
    for row in dict.fromkeys(found.row.id for found in tested):
        here = {found.metric.key: found for found in tested if found.row.id == row}
        cells = [next(iter(here.values())).row.title]
        cells += [
            f"{_p(here[m.key].t_p)} / {_p(here[m.key].wilcoxon_p)}" if m.key in here else _NOTHING
            for m in table.metrics
        ]
        lines.append(_line([*cells, _joined(figure.pairs for figure in here.values())]))
    return lines


def _groups(table: Table, rows: Sequence[Row], grouped: Sequence[Figure]) -> list[str]:
    shown = f" ({table.groups} of the paper shows these as a graphic, without numbers)" if table.groups else ""
    lines = [f"## By lesion volume{shown}", ""]
    for noise in dict.fromkeys(figure.noise for figure in grouped):
        lines += [f"Label errors {noise}:" if noise else "Given labels:", ""] if any(f.noise for f in grouped) else []
        head = ["row", "group", "cases", *(metric.heading for metric in table.metrics)]
        lines += [_line(head), _line("---" for _ in head)]
        here = {(f.row.id, f.group, f.metric.key): f for f in grouped if f.noise == noise}
        for row in rows:
            for group, bounds in GROUPS.items():
                cells = [here.get((row.id, group, metric.key)) for metric in table.metrics]
                if any(cells):
                    count = next(cell.total // cell.seeds for cell in cells if cell is not None)
                    lines.append(_line([row.title, f"{group} ({bounds})", count, *map(_ours, cells)]))
        lines.append("")
    return lines


def _runs(outcomes: Sequence[Outcome]) -> list[str]:
    done = [outcome for outcome in outcomes if outcome.result is not None]
    if not done:
        return []
    head = ["run", "steps", "training [s]", "testing [s]", "remarks"]
    lines = ["## Runs", "", _line(head), _line("---" for _ in head)]
    for outcome in done:
        result = outcome.result or {}
        seconds = result["seconds"]
        cells = [outcome.cell.name, result["steps"], f"{seconds['training']:.0f}", f"{seconds['testing']:.0f}"]
        lines.append(_line([*cells, _remarks(result)]))
    return [*lines, ""]


def _remarks(result: Mapping[str, Any]) -> str:
    facts, remarks = result["facts"], []
    if result["kept"] != "last step":
        remarks.append(result["kept"])
    if "pseudo_labels_total" in facts:
        remarks.append(f"{facts['pseudo_labels_accepted']} of {facts['pseudo_labels_total']} pseudo-labels accepted")
    if "label_dice" in facts:
        remarks.append(f"Dice of the {facts['spoilt_cases']} spoilt labels to the given ones {facts['label_dice']:.3f}")
    false = false_lesion(result)
    if false:
        milliliters = ", ".join(f"{value:.1f}" for value in false)
        remarks.append(f"marked in {len(false)} volume(s) without lesion, which count in no figure: {milliliters} mL")
    return "; ".join(remarks)


def _missing(table: Table, options: Options, outcomes: Sequence[Outcome]) -> list[str]:
    """What is not there, a line for each row and reason with the command for all its seeds."""
    missing: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.result is None:
            key = (outcome.cell.row.title, noise_name(outcome.cell.noise), outcome.reason)
            missing.setdefault(key, []).append(outcome)
    if not missing:
        return []
    lines = ["## Missing cells", "", _line(["row", "seeds", "why", "filled by"]), _line(["---"] * 4)]
    for (title, noise, reason), found in missing.items():
        seeds = sorted({outcome.cell.seed for outcome in found})
        name = f"{title}, label errors {noise}" if noise else title
        filled = f"`{remedy(table, options, found)}`" if found[0].command else "nothing"
        lines.append(_line([name, ", ".join(map(str, seeds)), reason, filled]))
    return [*lines, ""]


def remedy(table: Table, options: Options, outcomes: Sequence[Outcome]) -> str:
    """One command for all of a row's missing cells: theirs with every seed, or what has to be installed first."""
    first = outcomes[0]
    if not first.command.startswith("covid-lesion-seg"):
        return first.command
    seeds = tuple(sorted({outcome.cell.seed for outcome in outcomes}))
    noises = (first.cell.noise,) if options.noises else ()
    return command(table, replace(options, rows=(first.cell.row.id,), seeds=seeds, noises=noises))


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _ours(figure: Figure | None) -> str:
    if figure is None:
        return _NOTHING
    metric = figure.metric
    text = f"{_number(figure.mean * metric.factor, metric)} ± {_number(figure.sd_cases * metric.factor, metric)}"
    if not math.isnan(figure.sd_seeds):
        text += f" (seeds ± {_number(figure.sd_seeds * metric.factor, metric)})"
    return text if figure.counted == figure.total else f"{text} ({figure.counted} of {figure.total} count)"


def _number(value: float, metric: Metric) -> str:
    return "undefined" if math.isnan(value) else f"{value:.{metric.decimals}f}"


def _p(value: float) -> str:
    return _NOTHING if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _joined(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values))


# ---- CSV ----------------------------------------------------------------------------------------------------------


def _csv_row(table: Table, figure: Figure) -> CsvRow:
    metric, published = figure.metric, figure.published
    return {
        "table": table.id,
        "row": figure.row.id,
        "label errors": figure.noise,
        "reading": figure.reading,
        "lesion volume group": figure.group,
        "metric": metric.key,
        "unit": metric.unit or "1",
        "published mean": float(published.mean) if published else None,
        "published SD over cases": _sd(published),
        "mean": figure.mean * metric.factor,
        "SD over cases": figure.sd_cases * metric.factor,
        "SD over seeds": figure.sd_seeds * metric.factor,
        "seeds": figure.seeds,
        "values counted": figure.counted,
        "values": figure.total,
        "compared with": table.compared_with if figure.pairs else "",
        "pairs": figure.pairs,
        "p (paired t-test)": figure.t_p,
        "p (Wilcoxon)": figure.wilcoxon_p,
        "missing because": "",
        "filled by": "",
    }


def _sd(published: Published | None) -> float | None:
    return float(published.sd) if published is not None and published.sd is not None else None


def _missing_rows(table: Table, outcomes: Sequence[Outcome]) -> list[CsvRow]:
    """Rows of which no seed is there, with the published figures and the reason."""
    filled = {outcome.cell.row.id for outcome in outcomes if outcome.result is not None}
    rows: list[CsvRow] = []
    for row, outcome in {outcome.cell.row.id: outcome for outcome in reversed(outcomes)}.items():
        if row in filled:
            continue
        for metric in table.metrics:
            published = outcome.cell.row.published.get(metric.key)
            rows.append(
                {
                    "table": table.id,
                    "row": row,
                    "metric": metric.key,
                    "unit": metric.unit or "1",
                    "published mean": float(published.mean) if published else None,
                    "published SD over cases": _sd(published),
                    "missing because": outcome.reason,
                    "filled by": outcome.command,
                }
            )
    return rows


def _curve_rows(table: Table, outcome: Outcome) -> list[CsvRow]:
    """One row an epoch: the mean training loss, and the testing loss after it where it was measured."""
    cell, result = outcome.cell, outcome.result or {"curve": [], "testing_curve": {}}
    return [
        {
            "table": table.id,
            "row": cell.row.id,
            "seed": cell.seed,
            "fold": cell.fold,
            "epoch": epoch,
            "training loss": loss,
            "testing loss": result["testing_curve"].get(str(epoch)),
        }
        for epoch, loss in enumerate(result["curve"], 1)
    ]


def _curve_picture(table: Table, options: Options, outcomes: Sequence[Outcome]) -> list[Path]:
    """Training and testing loss as a PNG, where matplotlib is installed; each row's curve is the mean of its runs."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return []
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for outcome in outcomes:
        if outcome.result is not None:
            runs.setdefault(outcome.cell.row.title, []).append(outcome.result)
    if not runs:
        return []
    canvas = Canvas(figsize=(11, 4.5), layout="constrained")
    canvas.suptitle(f"{table.title} ({table.id})")
    training, testing = canvas.subplots(1, 2, sharey=True)
    training.set(xlabel="epoch", ylabel="loss", title="training")
    testing.set(xlabel="epoch", title="testing")
    for title, results in runs.items():
        curves = [dict(enumerate(result["curve"], 1)) for result in results]
        _mean_curve(training, title, curves)
        _mean_curve(testing, title, [{int(k): v for k, v in result["testing_curve"].items()} for result in results])
    training.legend()
    path = options.output / f"{table.id}-curves.png"
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=120)
    return [path]


def _mean_curve(axes: Any, title: str, curves: Sequence[Mapping[int, float]]) -> None:
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    axes.plot(epochs, [sum(curve[epoch] for curve in curves) / len(curves) for epoch in epochs], label=title)


def _cell_rows(table: Table, outcome: Outcome) -> list[CsvRow]:
    """One row a cell and metric: what a single training gave."""
    result = outcome.result
    if result is None:
        return []
    hardware = result["hardware"]
    return [
        {
            "table": table.id,
            "row": figure.row.id,
            "seed": result["seed"],
            "fold": result["fold"],
            "label errors": figure.noise,
            "reading": figure.reading,
            "metric": figure.metric.key,
            "unit": figure.metric.unit or "1",
            "mean": figure.mean * figure.metric.factor,
            "SD over cases": figure.sd_cases * figure.metric.factor,
            "values counted": figure.counted,
            "values": figure.total,
            "steps": result["steps"],
            "kept": result["kept"],
            "training [s]": result["seconds"]["training"],
            "testing [s]": result["seconds"]["testing"],
            "device": hardware["name"],
            "threads": hardware["threads"],
            "precision": hardware["precision"],
            "PyTorch": hardware["torch"],
            "library": result["library"],
        }
        for figure in figures(table, [outcome])
    ]
