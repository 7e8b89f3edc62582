"""From corrected cases to a better model: what trains, what is replayed, the gate, and the review list."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..codec import from_json, to_json
from ..errors import CancelledError, COVIDLesionSegError, InputError, ModelError, ReadError
from ..files import sha256_file, write_json, write_text
from ..models import read_card
from .agreement import make_consensus
from .case_files import CaseFiles
from .gate import GateDecision, GateRule
from .layout import CONSENSUS, counted, now, numbered, read_json
from .records import Case, ReviewItem, Revision
from .review import ReviewList
from .running import Validation
from .split import StoreSplit, unnamed, usable
from .store_models import StoredModel, StoreModels

if TYPE_CHECKING:
    from ..learning import TrainingCallback, TrainingConfig
    from ..learning.estimate import TimeEstimate

Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]
REPLAY_SHARE = 0.5
# Slices that no training has asked for in so many days are those of labels that are no longer.
_KEPT_DAYS = 7.0


@dataclass(frozen=True)
class TrainingPlan:
    """What a round trains on.

    Attributes:
        cases: that train or validate, with their sides.
        fresh: ids of training cases whose label no earlier round has seen.
        replayed: ids of training cases that an earlier round has learned from, with the same label.
        excluded: (case id, axial slice) marked "fix it": no batch draws them.
        notes: what a person should know, one sentence each.
        choosers: training patients whose cases choose the step and student or teacher, and train nothing; empty: drawn.
        missing: how many CTs a base model from elsewhere is known to have learned from that are not replayed.
    """

    cases: Mapping[str, str]
    fresh: tuple[str, ...]
    replayed: tuple[str, ...]
    excluded: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()
    choosers: tuple[str, ...] = ()
    missing: int = 0


@dataclass(frozen=True)
class FineTuneResult:
    """What a round brought.

    Attributes:
        round: its number.
        model: the new model.
        path: its file.
        before: the training's own figures of the base model on the validation cases.
        after: the same of the new one.
        gate: the decision against the active model and the best so far.
        review: slices whose labels look doubtful, new on the review list.
        plan: what it trained on.
        seconds: that it took.
    """

    round: int
    model: StoredModel
    path: Path
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    gate: GateDecision
    review: tuple[ReviewItem, ...]
    plan: TrainingPlan
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "round": self.round,
            "model": self.model.id,
            "file": str(self.path),
            "before": dict(self.before),
            "after": dict(self.after),
            "gate": self.gate.told(),
            "review": len(self.review),
            "notes": list(self.plan.notes),
            "seconds": round(self.seconds, 1),
        }


class FineTuning:
    """The rounds of fine-tuning of a store.

    Args:
        files: the store's cases.
        split: which patients train and which validate.
        models: the store's models.
        review: its list of doubtful labels.
        validation: its models on the validation cases.
    """

    def __init__(
        self, files: CaseFiles, split: StoreSplit, models: StoreModels, review: ReviewList, validation: Validation
    ) -> None:
        self._files, self._split, self._models = files, split, models
        self._review, self._validation = review, validation

    def run(
        self,
        base_model: str | None = None,
        *,
        steps: int | None = None,
        replay_share: float = REPLAY_SHARE,
        validation: Sequence[str] = (),
        validation_share: float = 0.2,
        device: str | None = None,
        config: TrainingConfig | None = None,
        by: str = "fine-tuning",
        folder: Path | str | None = None,
        resume: bool = False,
        rule: GateRule | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        callbacks: Sequence[TrainingCallback] = (),
    ) -> FineTuneResult:
        """Go on training a model on the store's corrected cases, and validate the result.

        The first call freezes the split. Each call is a round: it trains on the labels as they are now, validates the
        new model and the active one on the frozen validation cases, makes the new one the active model if it passes,
        and puts doubtful labels on the review list. Under a launcher of several processes (``torchrun``) all of them
        call this, and it is one round; the main process does all but the training.

        Args:
            base_model: id of the model to start from; None takes the active one.
            steps: to train; None takes the configuration's (300).
            replay_share: fraction of each batch from cases that the base model or earlier rounds have learned from, so
                that the model does not forget them, in [0, 1).
            validation: validation patients (keys, or ids of their cases), for the first call; empty draws them.
            validation_share: fraction of the drawn patients.
            device: see ``TrainingConfig``.
            config: all other settings; None takes ``learning.fine_tuning.default_config``.
            by: who asks; recorded.
            folder: of the run (state, log, slices); None takes one in the store's ``rounds/``.
            resume: go on with the last round that was not finished, or with the one in ``folder``; start one where
                none waits.
            rule: of the gate; None takes ``Resources/Gate.json``.
            progress: called as progress(phase, done, total).
            cancelled: asked at each step. What was best so far is kept as a model that is not validated yet.
            callbacks: who follows the training.

        Raises:
            InputError: nothing to train on, no validation case, settings that are not allowed.
            ModelError, ReadError: a base model or CT that can't be used.
            CancelledError: asked to stop.
            OutputError: the disk is full or read-only.
        """
        from ..inference.devices import choose_device
        from ..learning import fine_tune
        from ..learning.distributed import process_group
        from ..learning.store import remove_unused

        start = time.perf_counter()
        wanted = configured(config, steps, device)
        # one round, whatever number of processes trains in it
        with process_group(choose_device(wanted.run.device).device) as ranks:
            number, record, plan, settings = ranks.on_main(
                lambda: (
                    (resume and self._resumed(folder, config, steps, device))
                    or self._started(base_model, wanted, replay_share, validation, validation_share, by, folder)
                )
            )
            run_folder = self._run_folder(record)
            file = self._files.layout.rounds / f"{number:04d}" / "round.json"
            # its slices serve the next round as well
            data = settings.data
            data = replace(data, cache=data.cache or self._relative(self._files.layout.slices, run_folder))
            try:
                loaded = fine_tune(
                    self._models.path(record["base"]),
                    run_folder / "cases.csv",
                    replace(settings, data=data),
                    run_folder,
                    resume=resume,
                    progress=progress,
                    cancelled=cancelled,
                    callbacks=callbacks,
                )
            except CancelledError as error:
                kept = ""
                if ranks.is_main:
                    kept = self._keep_best(record, run_folder, number)
                    write_json(file, {**record, "config": settings.to_dict(), "status": "cancelled"})
                raise CancelledError(str(error).split(" Go on with")[0], kept) from error
            except COVIDLesionSegError as error:
                if ranks.is_main:
                    write_json(file, {**record, "status": "failed", "error": str(error)})
                raise

            def finish() -> FineTuneResult:
                model = self._hand_in(record, run_folder, number, "")
                gate = self._validation.decide(model.id, None, settings.run.device, rule, progress, cancelled)
                labels = {case: label["sha256"] for case, label in record["labels"].items()}
                review = self._review.add(_doubtful(run_folder), labels, number)
                seconds = time.perf_counter() - start
                done = {"status": "done", "model": model.id, "passed": gate.passed, "seconds": round(seconds)}
                write_json(file, {**record, "config": settings.to_dict(), **done})
                remove_unused(self._files.layout.slices, _KEPT_DAYS)
                remove_place_lists(run_folder)
                path, metrics = self._models.path(model.id), loaded.card.metrics
                model = self._models.get(model.id)
                judged = metrics["base"], metrics["validation"]
                return FineTuneResult(number, model, path, *judged, gate, tuple(review), plan, seconds)

            return ranks.on_main(finish)

    def settings(
        self,
        base_model: str | None = None,
        steps: int | None = None,
        config: TrainingConfig | None = None,
        device: str | None = None,
    ) -> TrainingConfig:
        """The whole configuration of a round with these settings, but for what it makes of the cases.

        Raises:
            ModelError: no such model.
        """
        from ..learning.fine_tuning import for_base_model

        file = self._models.path(base_model or self._models.default())
        return for_base_model(configured(config, steps, device), read_card(file), file, self._files.folder)

    def plan(self, base_model: str | None = None) -> TrainingPlan:
        """What a fine-tuning would train on now; makes consensus labels anew where raters saved later revisions.

        Args:
            base_model: id of the model to start from; None takes the active one.

        Raises:
            InputError: nothing trains or nothing validates.
        """
        notes = []
        for case in self._usable_or_consensus():
            if case.label == CONSENSUS and not case.consensus_is_current:
                make_consensus(self._files, case.id)
                notes.append(f"The consensus of {case.id} was made anew from its raters' last revisions.")
        sides = self._split.sides()
        cases = {case.id: case for case in usable(self._files.cases())}
        placed = {name: sides.get(case.patient, "train") for name, case in cases.items()}
        choosers = self._split.choosers() & {cases[name].patient for name, side in placed.items() if side == "train"}
        train = [name for name, side in placed.items() if side == "train" and cases[name].patient not in choosers]
        if not any(not label_of(cases[name]).lesion_free for name in train):
            raise InputError(
                "No training case has a label with lesion; correct or approve some cases first.",
                "Cases of validation patients, and of those who choose, never train.",
            )
        if "validation" not in placed.values():
            raise InputError("No validation case has a label that counts; approve or include one.")
        seen, base = self._seen(), base_model or self._models.default()
        known, voxels = self._known_to(base), {name: case.ct.voxels_sha256 for name, case in cases.items()}
        # a label that was corrected here is new to the base, whatever it has learned of the CT
        remembered = [
            name
            for name in train
            if name not in seen and voxels[name] in known and label_of(cases[name]).kind == "import"
        ]
        replayed = [name for name in train if name in remembered or seen.get(name) == label_of(cases[name]).sha256]
        fresh = [name for name in train if name not in replayed]
        if remembered:
            notes.append(f"{base} has learned from {counted(len(remembered), 'case')} of the store before.")
        # a model of this store has been through this in its first round
        is_own = base in [model.id for model in self._models.list()]
        missing = 0 if is_own else len(known - {voxels[name] for name in replayed})
        excluded = [(item.case, item.slice) for name in train for item in cases[name].slices_to_fix()]
        # a set without any lesion can't be drawn from by itself: then all cases are drawn alike
        for part in (fresh, replayed):
            if part and not any(not label_of(cases[name]).lesion_free for name in part):
                fresh, replayed = train, []
                break
        if not fresh:
            fresh, replayed = train, []
            notes.append("No label is new since the last round; all cases are drawn alike.")
        if excluded:
            verb = "is" if len(excluded) == 1 else "are"
            notes.append(f"{counted(len(excluded), 'slice')} marked 'fix it' {verb} left out.")
        waiting = sum(len(case.open_reviews()) for case in cases.values())
        if waiting:
            notes.append(f"Doubtful slices that wait for a decision: {waiting}; until then they train as they are.")
        validating = [cases[name] for name, side in placed.items() if side == "validation"]
        if len({case.patient for case in validating}) == 1:
            notes.append("There is one validation patient; move more to validation for figures that mean more.")
        blind = self._split.to_read_blind(validating)
        if blind:
            notes.append(f"Validation cases that wait to be read blind: {', '.join(blind)}.")
        if warning := unnamed([cases[name] for name in placed]):
            notes.append(warning)
        return TrainingPlan(
            *(placed, tuple(fresh), tuple(replayed), tuple(excluded), tuple(notes)), tuple(sorted(choosers)), missing
        )

    def estimate(
        self,
        base_model: str | None = None,
        steps: int | None = None,
        config: TrainingConfig | None = None,
        device: str | None = None,
    ) -> TimeEstimate:
        """What a fine-tuning would take on this machine: a few steps are measured, nothing is changed.

        Raises:
            InputError, ModelError: no label yet, or no such model.
        """
        from ..learning.estimate import estimate
        from ..models import load_checkpoint

        card = load_checkpoint(self._models.path(base_model or self._models.default())).card
        settings = configured(config, steps, device)
        network = replace(settings.network, name=card.network, arguments=dict(card.network_arguments))
        cases = usable(self._files.cases())
        if not cases:
            raise InputError("No case has a label yet; correct some cases first.")
        sides = self._split.sides()
        slices = {case.id: case.ct.geometry.axial_view().geometry.size[2] for case in cases}
        validating = [case.id for case in cases if sides.get(case.patient) == "validation"]
        share = 1.0 if validating else settings.data.validation_share
        validation = sum(slices[name] for name in validating or slices)
        largest = max(
            (case.ct.geometry.axial_view().geometry.size for case in cases), key=lambda size: size[0] * size[1]
        )
        # lungs take about two thirds of a field of view in each direction
        box = card.preprocessing.resize or (max(16, largest[1] * 2 // 3), max(16, largest[0] * 4 // 5))
        return estimate(
            replace(settings, network=network), sum(slices.values()), round(validation * share), validation_size=box
        )

    def rounds(self) -> list[dict[str, Any]]:
        """The record of every round, oldest first: status, base model, labels, model, ..."""
        found = []
        for number in numbered(self._files.layout.rounds):
            file = self._files.layout.rounds / f"{number:04d}" / "round.json"
            if file.is_file():
                found.append(read_json(file))
        return found

    # --- inside ------------------------------------------------------------------------------------------------------

    def _started(
        self,
        base_model: str | None,
        settings: TrainingConfig,
        replay_share: float,
        validation: Sequence[str],
        validation_share: float,
        by: str,
        folder: Path | str | None,
    ) -> tuple[int, dict[str, Any], TrainingPlan, TrainingConfig]:
        """A new round: its number, its record, what it trains on, and how."""
        if not 0 <= replay_share < 1:
            raise InputError(f"The replay share is {replay_share:g}; it must be 0 or above, and below 1.")
        if not self._split.is_frozen:
            self._split.freeze(validation, validation_share, by=by)
        elif validation:
            raise InputError(
                "The split of this store is frozen already, so validation patients can't be chosen any more.",
                "Move single patients with `cases split --move` if you must; it is recorded.",
            )
        self._split.extend(by)
        base = base_model or self._models.default()
        self._models.path(base)
        plan = self.plan(base)
        number = self._claim()
        run_folder = Path(folder) if folder is not None else self._files.layout.rounds / f"{number:04d}" / "run"
        size = settings.run.batch_size
        replayed = min(round(size * replay_share), size - 1) if plan.replayed else 0
        if plan.replayed and not replayed:
            plan = replace(plan, fresh=(*plan.fresh, *plan.replayed), replayed=())
        settings = _fitted(settings, plan, replayed)
        cases = {case.id: case for case in self._files.cases() if case.id in plan.cases}
        self._write_inputs(run_folder, plan, cases)
        labels = {
            name: {
                "revision": label_of(case).number,
                "sha256": label_of(case).sha256,
                "side": "selection" if case.patient in plan.choosers else plan.cases[name],
            }
            for name, case in cases.items()
        }
        record = {
            "number": number,
            "status": "running",
            "started": now(),
            "by": by,
            "base": base,
            "folder": self._relative(run_folder, self._files.folder),
            "config": settings.to_dict(),
            "labels": labels,
            "plan": to_json(plan),
        }
        write_json(self._files.layout.rounds / f"{number:04d}" / "round.json", record)
        return number, record, plan, settings

    def _claim(self) -> int:
        """The next round's number; its folder is the claim."""
        self._files.layout.rounds.mkdir(exist_ok=True)
        while True:
            number = max(numbered(self._files.layout.rounds), default=0) + 1
            try:
                (self._files.layout.rounds / f"{number:04d}").mkdir()
            except FileExistsError:
                continue
            return number

    def _resumed(
        self, folder: Path | str | None, config: TrainingConfig | None, steps: int | None, device: str | None
    ) -> tuple[int, dict[str, Any], TrainingPlan, TrainingConfig] | None:
        """The last round that waits to be finished (in a folder), with the settings that are given now; or None.

        The trainer refuses those by which the round would be another one.
        """
        waiting = [record for record in self.rounds() if record["status"] != "done"]
        if folder is not None:
            waiting = [record for record in waiting if self._run_folder(record) == Path(folder).resolve()]
        if not waiting:
            return None
        record = waiting[-1]
        plan, settings = from_json(TrainingPlan, record["plan"]), _config(record["config"])
        if config is not None:
            settings = _fitted(config, plan, settings.run.pseudo_batch_size)
        given = {"steps": steps, "device": device}
        run = replace(settings.run, **{name: value for name, value in given.items() if value is not None})
        return int(record["number"]), record, plan, replace(settings, run=run)

    def _relative(self, place: Path, start: Path) -> str:
        """A place as it is named from another one where both lie in the store, which may move; else from the root."""
        root, place, start = self._files.folder.resolve(), place.resolve(), start.resolve()
        inside = place.is_relative_to(root) and start.is_relative_to(root)
        return Path(os.path.relpath(place, start)).as_posix() if inside else str(place)

    def _run_folder(self, record: Mapping[str, Any]) -> Path:
        # a path from the root, as earlier versions wrote it, stays what it is
        return (self._files.folder / record["folder"]).resolve()

    def _write_inputs(self, folder: Path, plan: TrainingPlan, cases: Mapping[str, Case]) -> None:
        """Write the files that the trainer reads: cases, those to replay, the split with hashes, slices left out.

        Args:
            folder: of the run.
            plan: what trains.
            cases: the plan's cases by id.

        Raises:
            InputError: a CT that the trainer can't read by itself.
            ReadError: a CT that changed or is missing.
        """
        first = [name for name in plan.cases if name not in plan.replayed]
        write_text(folder / "cases.csv", self._manifest([cases[name] for name in first]))
        if plan.replayed:
            for name in plan.replayed:
                # the trainer knows hashes of what stands in its split alone
                self._require_unchanged(cases[name])
            write_text(folder / "replay.csv", self._manifest([cases[name] for name in plan.replayed]))
        if plan.excluded:
            rows = "".join(f"{case},{index}\n" for case, index in plan.excluded)
            write_text(folder / "excluded.csv", "case,slice\n" + rows)
        sides = self._split.sides()
        hashes = {name: self._hashes(cases[name]) for name in first}
        write_json(
            folder / "split.json",
            {
                "version": 1,
                "patients": {cases[name].patient: sides.get(cases[name].patient, "train") for name in first},
                "sha256": {name: values for name, values in hashes.items() if values},
            },
        )

    def _manifest(self, cases: Sequence[Case]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "patient", "ct", "lesion", "lungs"])
        for case in cases:
            if self._files.ct_path(case)[1] is not None:
                raise InputError(
                    f"{case.id} refers to a DICOM folder with several series, which can't train; "
                    "add it again as a copy."
                )
            files = {role: path.resolve() for role, (path, _) in self._files_of(case).items()}
            writer.writerow(
                [case.id, case.patient, files["image"], files.get("lesion", "none"), files.get("lungs", "")]
            )
        return text.getvalue()

    def _files_of(self, case: Case) -> dict[str, tuple[Path, str]]:
        """Role -> file of a case that trains, with its hash; no lesion where the case is known to have none."""
        label = label_of(case)
        found = {"image": (self._files.ct_path(case)[0], case.ct.sha256)}
        if not label.lesion_free:
            found["lesion"] = self._files.revision_path(case, label), label.sha256
        if case.lungs is not None:
            found["lungs"] = self._files.layout.case(case.id) / case.lungs.file, case.lungs.sha256
        return found

    def _hashes(self, case: Case) -> dict[str, str]:
        """What the trainer compares the files with; a referenced DICOM folder it hashes in another way."""
        files = self._files_of(case)
        if files["image"][0].is_dir():
            self._require_unchanged(case)
            return {}
        return {role: sha256 for role, (_, sha256) in files.items()}

    def _require_unchanged(self, case: Case) -> None:
        for role, (path, sha256) in self._files_of(case).items():
            if not path.exists() or (folder_sha256(path) if path.is_dir() else sha256_file(path)) != sha256:
                what = "CT" if role == "image" else role
                raise ReadError(
                    f"The {what} of {case.id} is missing or has changed since it was saved.",
                    "Restore it, or add the changed CT as a new case.",
                )

    def _seen(self) -> dict[str, str]:
        """Case id -> the label that the last finished round which trained on it has seen."""
        seen: dict[str, str] = {}
        for record in self.rounds():
            if record["status"] == "done":
                seen |= {name: label["sha256"] for name, label in record["labels"].items() if label["side"] == "train"}
        return seen

    def _known_to(self, model: str) -> set[str]:
        """Hashes of the voxels of the CTs that a model was trained on, as far as it has a card that says so."""
        try:
            return self._models.card(model).training_images
        except ModelError:
            # a file of another program has no card
            return set()

    def _usable_or_consensus(self) -> list[Case]:
        """Cases that have a label, or would have one once their consensus is made."""
        return [
            c for c in self._files.cases() if not c.exclusion and (c.label_revision is not None or len(c.raters) > 1)
        ]

    def _hand_in(self, record: Mapping[str, Any], folder: Path, number: int, suffix: str) -> StoredModel:
        trained = [name for name, label in record["labels"].items() if label["side"] == "train"]
        return self._models.add(
            folder / "best.safetensors",
            record["base"],
            number,
            partner=folder / "partner.safetensors",
            suffix=suffix,
            split=self._split.statement(self._validation.cases()),
            trained_on={"name": f"{len(trained)} corrected cases of the case store {self._files.id}", "round": number},
        )

    def _keep_best(self, record: Mapping[str, Any], folder: Path, number: int) -> str:
        if not (folder / "best.safetensors").is_file():
            return "No model was validated yet, so none is kept; the round can be resumed."
        model = self._hand_in(record, folder, number, "-stopped")
        return f"The best so far is kept as {model.id}, not validated yet; the round can be resumed."


def configured(config: TrainingConfig | None, steps: int | None, device: str | None) -> TrainingConfig:
    """The settings of a fine-tuning: given ones, else the defaults, with this many steps on this device."""
    from ..learning.fine_tuning import default_config

    settings = config or default_config()
    given: dict[str, Any] = {}
    if steps is not None:
        given["steps"] = steps
        # a short run is validated on the way, too: what was best may be an earlier step
        given["validation_interval"] = max(1, min(settings.run.validation_interval, -(-steps // 3)))
    if device is not None:
        given["device"] = device
    return replace(settings, run=replace(settings.run, **given))


def _fitted(settings: TrainingConfig, plan: TrainingPlan, replayed: int) -> TrainingConfig:
    """Settings with the files that a plan is written to, and with so many slices of each batch for what is replayed."""
    from ..learning.config import KEPT_OF_BASE

    data = replace(settings.data, split="split.json", validation_patients=(), pseudo_cases="", excluded_slices="")
    if replayed:
        data = replace(data, pseudo_cases="replay.csv")
    if plan.excluded:
        data = replace(data, excluded_slices="excluded.csv")
    if plan.choosers:
        data = replace(data, selection_patients=tuple(sorted({*data.selection_patients, *plan.choosers})))
    if replayed and plan.missing and settings.regularization.base_share < 0:
        # a replay of part of what the base knows keeps that part alone
        settings = replace(settings, regularization=replace(settings.regularization, base_share=KEPT_OF_BASE))
    size = settings.run.batch_size
    run = replace(settings.run, batch_size=size - replayed, pseudo_batch_size=replayed)
    return replace(settings, data=data, run=run)


def label_of(case: Case) -> Revision:
    """The label of a case that has one."""
    label = case.label_revision
    assert label is not None  # noqa: S101  # usable cases have one
    return label


def remove_place_lists(folder: Path) -> None:
    """Remove those files of :func:`write_inputs` that say where CTs lie, once nothing reads them any more.

    A referenced CT may lie in a folder that is called after a patient, and only ``private/`` is to hold that.
    """
    for name in ("cases.csv", "replay.csv"):
        # a file that another program holds is no reason to fail a round that is done
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def folder_sha256(path: Path, series: str | None = None) -> str:
    """The hash of a DICOM series as ``imaging.read_volume`` makes it, without decoding a voxel."""
    from ..imaging import dicom_files

    return hashlib.sha256("\n".join(sorted(sha256_file(f) for f in dicom_files(path, series))).encode()).hexdigest()


def _config(values: Mapping[str, Any]) -> TrainingConfig:
    from ..learning import TrainingConfig

    return TrainingConfig.from_dict(values)


def _doubtful(folder: Path) -> list[dict[str, str]]:
    file = folder / "doubtful_labels.csv"
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))
