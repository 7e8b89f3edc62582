"""The loop as a whole, with a network that learns in seconds: correct, fine-tune, gate, review, the next round."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_fixtures import PATIENTS, make_corrected_store, register_tiny_model, tiny_config, write_cases

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cases.gate import GateRule
from COVIDLesionSegLib.cases.running import mean_entropy
from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.codec import to_json
from COVIDLesionSegLib.errors import CancelledError, InputError, ModelError, ReadError
from COVIDLesionSegLib.imaging import read_labels
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.learning.config import KEPT_OF_BASE, RegularizationSettings
from COVIDLesionSegLib.models import read_card

ANY_MODEL = GateRule(dice_margin=1.0, minimum_patients=1, lesion_free_gain_ml=1e9)


def settings(**run: object) -> TrainingConfig:
    config = tiny_config(Path("unused"), data={"validation_patients": ()})
    return replace(config, run=replace(config.run, **{"steps": 4, "validation_interval": 2, **run}))


def expert(folder: Path, number: int) -> np.ndarray:
    return read_labels(folder / "data" / f"{PATIENTS[number - 1]}_lesion.nii.gz").mask()


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """An installation whose default model is a tiny network with random weights."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVIDLESIONSEG_MODELS", str(folder / "registry"))
        yield register_tiny_model(folder)


@pytest.fixture(scope="module")
def corrected(tmp_path_factory, registry) -> Path:
    """A folder with a store in which all four cases are corrected."""
    folder = tmp_path_factory.mktemp("corrected")
    make_corrected_store(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corrected):
    """The same after one round, and what the round returned."""
    folder = tmp_path_factory.mktemp("trained") / "copy"
    shutil.copytree(corrected, folder)
    store = Store(folder / "store")
    seen = []
    result = store.fine_tune(
        config=settings(), validation=["case-0004"], rule=ANY_MODEL, progress=lambda *event: seen.append(event)
    )
    return folder, result, seen


@pytest.fixture
def a_store(tmp_path, corrected) -> Store:
    shutil.copytree(corrected / "store", tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def a_trained_store(tmp_path, trained) -> Store:
    shutil.copytree(trained[0] / "store", tmp_path / "store")
    return Store(tmp_path / "store")


def test_a_round_trains_judges_decides_and_lists_doubtful_labels(trained):
    folder, result, seen = trained
    store = Store(folder / "store")
    judges = store.case("case-0004").patient
    assert [p for p, side in store.split.sides().items() if side == "validation"] == [judges]
    assert result.plan.cases == {f"case-000{n}": "validation" if n == 4 else "train" for n in (1, 2, 3, 4)}
    assert result.plan.fresh == ("case-0001", "case-0002", "case-0003")
    assert set(result.before["cases"]) == set(result.after["cases"]) == {"case-0004"}
    # judged by the predictor on the frozen case, and the default now
    assert set(result.gate.cases) == {"case-0004"}
    assert (result.gate.old, result.gate.new) == ("tiny", result.model.id)
    assert result.gate.passed
    assert store.models.default() == result.model.id
    assert {phase for phase, _, _ in seen} >= {
        "training",
        "validating",
        "validating tiny",
        f"validating {result.model.id}",
    }
    assert set(result.review) == set(store.review.items())
    assert all(item.case in result.plan.fresh and item.reason for item in result.review)
    (record,) = store.training.rounds()
    assert (record["status"], record["model"], record["base"]) == ("done", result.model.id, "tiny")
    assert record["labels"]["case-0001"]["sha256"] == store.case("case-0001").label_revision.sha256
    assert record["folder"] == "rounds/0001/run"
    run = store.folder / record["folder"]
    assert not (run / "slices").exists() and (run / "log.jsonl").is_file()
    # where CTs lie stands in private/ only
    assert not (run / "cases.csv").exists()
    assert store.check().findings == ()
    assert json.loads(json.dumps(result.to_json()))["gate"]["passed"] is True


def test_the_card_says_on_which_split_its_figures_stand_and_what_the_gate_said(trained):
    folder, result, _ = trained
    card = read_card(result.path)
    assert card.id == result.model.id
    assert card.name == "Tiny, fine-tuned"
    assert card.metrics["split"]["text"].startswith("Figures stand on 1 case of 1 patient kept from training since")
    assert card.metrics["split"]["validation_cases"] == ["case-0004"]
    assert card.metrics["split"]["train_patients"] == 3
    assert card.metrics["gate"]["verdict"] == "passed"
    assert card.metrics["gate"]["cases"]["case-0004"]["new"] == to_json(result.gate.cases["case-0004"]["new"])
    assert card.training_data[-1]["name"].startswith("3 corrected cases of the case store")
    assert card.weights_sha256 == result.model.weights_sha256
    # no folder of this machine, which may be called after somebody
    assert str(folder.parent) not in json.dumps(card.to_json())
    assert card.metrics["config"]["data"]["cases"] == "cases.csv"


def test_the_next_round_mixes_new_corrections_with_a_replay_of_earlier_cases(a_trained_store, corrected):
    store = a_trained_store
    assert store.training.plan().replayed == ()
    assert "No label is new since the last round; all cases are drawn alike." in store.training.plan().notes
    store.save_revision("case-0002", np.roll(expert(corrected, 2), 1, 1), "hans")
    plan = store.training.plan()
    assert (plan.fresh, plan.replayed) == (("case-0002",), ("case-0001", "case-0003"))

    run, lines = store.layout.rounds / "0002" / "run", []

    def watch(phase: str, *_: object) -> None:
        if phase == "training":
            lines[:] = [line.split(",")[0] for line in (run / "replay.csv").read_text().splitlines()[1:]]

    result = store.fine_tune(config=settings(batch_size=4), replay_share=0.25, rule=ANY_MODEL, progress=watch)
    config = json.loads((store.layout.rounds / "0002" / "round.json").read_text())["config"]
    assert (config["run"]["batch_size"], config["run"]["pseudo_batch_size"]) == (3, 1)
    assert lines == ["case-0001", "case-0003"]
    assert not (run / "replay.csv").exists()
    assert result.model.base == store.models.list()[0].id
    assert read_card(result.path).name == "Tiny, fine-tuned in 2 rounds"
    # the validation patient stayed where it was
    assert plan.cases["case-0004"] == "validation"
    assert result.gate.old == store.models.list()[0].id


def test_who_chooses_for_the_store_trains_nothing(a_store):
    a_store.split.freeze(["case-0004"])
    a_store.split.choose_by(["case-0002"], "chief")
    result = a_store.fine_tune(config=settings(), rule=ANY_MODEL)
    (record,) = a_store.training.rounds()
    chooser = a_store.case("case-0002").patient
    assert record["config"]["data"]["selection_patients"] == [chooser]
    assert {name: label["side"] for name, label in record["labels"].items()} == {
        "case-0001": "train",
        "case-0002": "selection",
        "case-0003": "train",
        "case-0004": "validation",
    }
    card = read_card(result.path)
    assert set(card.metrics["selection"]["cases"]) == {"case-0002"}
    trained = {a_store.case(name).ct.voxels_sha256 for name in ("case-0001", "case-0003")}
    assert card.training_images == trained
    # the network has not learned from it, so it is new when it trains again
    a_store.split.choose_by([], "chief")
    plan = a_store.training.plan()
    assert (plan.fresh, plan.replayed) == (("case-0002",), ("case-0001", "case-0003"))


def test_the_first_round_replays_what_its_base_was_trained_on(tmp_path, corrected, registry):
    config = tiny_config(write_cases(tmp_path / "base", ("anna", "bert", "dora")), run={"steps": 1})
    base = registry.import_file(Trainer(config, tmp_path / "run", tmp_path).run().model, "from-elsewhere").id
    store = Store.create(tmp_path / "store")
    # the same CTs and masks come to the store, and one more patient
    store.import_cases(corrected / "data", rater="expert")
    anna, bert, cleo, dora = (case.id for case in store.cases())
    store.split.freeze([dora])
    plan = store.training.plan(base)
    assert (plan.fresh, plan.replayed, plan.missing) == ((cleo,), (anna, bert), 0)
    assert f"{base} has learned from 2 cases of the store before." in plan.notes
    assert store.training.plan().replayed == ()
    # what was corrected here is new to the base
    store.save_revision(bert, np.roll(expert(corrected, 2), 1, 1), "hans")
    plan = store.training.plan(base)
    assert (plan.fresh, plan.replayed, plan.missing) == ((bert, cleo), (anna,), 1)
    holding = replace(settings(batch_size=4), regularization=RegularizationSettings(base_share=-1.0))
    # the rate of the other tests is too high for a network whose batch norms stay those of one step
    holding = replace(holding, optimizer=replace(holding.optimizer, learning_rate=1e-4))
    result = store.fine_tune(base, config=holding, rule=ANY_MODEL)
    config = store.training.rounds()[0]["config"]
    assert (config["run"]["batch_size"], config["run"]["pseudo_batch_size"]) == (2, 2)
    # half of what the base knows is replayed, so it stays in the weights as well
    assert config["regularization"]["base_share"] == KEPT_OF_BASE
    images = {store.case(name).ct.voxels_sha256 for name in (anna, bert, cleo)}
    assert read_card(result.path).training_images == images
    # from its own model the store goes on as before
    store.save_revision(cleo, np.roll(expert(corrected, 3), 1, 1), "hans")
    assert store.training.plan().missing == 0


def test_a_high_share_of_replay_leaves_room_for_new_labels(a_trained_store, corrected):
    store = a_trained_store
    store.save_revision("case-0002", np.roll(expert(corrected, 2), 1, 1), "hans")
    *_, config = store.training._started(None, settings(batch_size=2), 0.9, (), 0.2, "hans", None)
    assert (config.run.batch_size, config.run.pseudo_batch_size) == (1, 1)


def test_slices_marked_fix_it_are_not_drawn(a_trained_store):
    store = a_trained_store
    item = next(item for item in store.review.items() if item.case == "case-0001")
    store.review.decide(item.case, item.slice, "fix", "hans")
    result = store.fine_tune(config=settings(steps=6, batch_size=5), rule=ANY_MODEL)
    assert result.plan.excluded == ((item.case, item.slice),)
    with (store.folder / store.training.rounds()[-1]["folder"] / "doubtful_labels.csv").open() as rows:
        drawn = {tuple(row.split(",")[:2]) for row in rows.read().splitlines()[1:]}
    assert (item.case, str(item.slice)) not in drawn
    assert len([case for case, _ in drawn if case == item.case]) > 0


def test_a_label_called_right_is_not_asked_about_again(a_trained_store):
    store = a_trained_store
    for item in store.review.items():
        store.review.decide(item.case, item.slice, "right", "hans")
    labels = {case.id: case.label_revision.sha256 for case in store.cases()}
    rows = [{"case": i.case, "slice": i.slice, "score": 2, "reason": "x"} for i in store.review.items(decided=True)]
    assert store.review.add(rows, labels, 2) == []
    assert store.review.items() == []


def test_a_model_that_is_worse_does_not_become_the_default(a_trained_store, registry):
    store = a_trained_store
    model = store.models.default()
    nothing_may_change = GateRule(dice_margin=0.0, minimum_patients=1, lesion_free_gain_ml=0.0)
    store.models.set_default("tiny", "chief", "going back")
    figures = {name: store.validation.figures(name)["case-0004"].dice for name in ("tiny", model)}
    decision = store.validation.decide(model, rule=nothing_may_change)
    assert decision.passed is (figures[model] >= figures["tiny"])
    assert (store.models.default() == model) is decision.passed


def test_nothing_is_judged_twice(a_trained_store, monkeypatch, corrected):
    store = a_trained_store
    both = store.compare(["tiny", store.models.default()])
    assert set(both.mean_dice) == {"tiny", store.models.default()}
    assert [row["case"] for row in both.rows()] == ["case-0004", "case-0004"]
    assert json.loads(json.dumps(both.to_json()))["models"] == list(both.models)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the predictor ran again")

    with monkeypatch.context() as patch:
        patch.setattr("COVIDLesionSegLib.inference.predictor.Predictor.segment", refuse)
        assert store.compare(["tiny", store.models.default()]).cases == both.cases
        # another label is another question
        store.save_revision("case-0004", np.roll(expert(corrected, 4), 2, 1), "hans")
        with pytest.raises(AssertionError, match="ran again"):
            store.compare(["tiny"])
    again = store.compare(["tiny"])
    assert again.cases["case-0004"]["tiny"].reference_ml == both.cases["case-0004"]["tiny"].reference_ml


def test_a_cancelled_round_keeps_the_best_so_far_and_can_be_resumed(a_store):
    steps, kept = [], None
    for stop, ending in ((3, "-stopped"), (5, "-stopped-2")):
        with pytest.raises(CancelledError, match=r"Stopped at step .*; the state is saved. The best so far is kept as"):
            a_store.fine_tune(
                config=settings(steps=6),
                validation=["case-0004"] if kept is None else (),
                resume=kept is not None,
                progress=lambda phase, done, _: phase == "training" and steps.append(done),
                cancelled=lambda stop=stop: bool(steps and steps[-1] >= stop),
            )
        assert a_store.training.rounds()[-1]["status"] == "cancelled"
        later = a_store.models.list()[-1]
        assert later.id.endswith(f"-round-001{ending}") and later.gate is None
        assert kept is None or later.tensors_sha256 != kept.tensors_sha256
        kept = kept or later
    assert len(a_store.models.list()) == 2
    assert a_store.models.default() == "tiny"
    assert a_store.check().findings == ()
    # earlier versions named the folder from the root
    file = a_store.layout.rounds / "0001" / "round.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "folder": str(a_store.folder.resolve() / record["folder"])}))
    result = a_store.fine_tune(resume=True, rule=ANY_MODEL)
    assert result.round == 1 and result.model.id == kept.id.removesuffix("-stopped")
    assert a_store.training.rounds()[-1]["status"] == "done"
    assert result.plan.fresh == ("case-0001", "case-0002", "case-0003")
    # where nothing waits, the same command starts
    assert a_store.fine_tune(config=settings(), resume=True, rule=ANY_MODEL).round == 2
    # the slices of the first round have served the second one
    entries = {path: path.stat().st_mtime_ns for path in a_store.layout.slices.glob("*/images.i16")}
    assert len(entries) == 4 and max(entries.values()) < (a_store.layout.rounds / "0002").stat().st_ctime_ns
    assert a_store.check().findings == ()


def test_a_round_that_is_resumed_is_the_same_round(a_store):
    steps = []
    with pytest.raises(CancelledError):
        a_store.fine_tune(
            config=settings(),
            validation=["case-0004"],
            progress=lambda phase, done, _: phase == "training" and steps.append(done),
            cancelled=lambda: bool(steps and steps[-1] >= 2),
        )
    other = replace(settings(), loss=replace(settings().loss, name="dice"))
    with pytest.raises(InputError, match=r"loss\.name"):
        a_store.fine_tune(config=other, resume=True)
    # what was refused is not kept, and more steps extend the round
    result = a_store.fine_tune(resume=True, steps=6, rule=ANY_MODEL)
    (record,) = a_store.training.rounds()
    assert (result.round, record["config"]["run"]["steps"], record["config"]["loss"]["name"]) == (
        1,
        6,
        "noise_robust_dice",
    )


def test_models_answer_what_waits_with_their_uncertainty(a_trained_store, corrected, tmp_path):
    store = a_trained_store
    model = store.models.default()
    assert store.models.partner(model) is not None
    report = store.predict(cases=["case-0001", "case-0002"])
    assert set(report.done) == {"case-0001", "case-0002"} and not report.failed
    for prediction in report.done.values():
        assert prediction.model["weights_sha256"] == store.models.get(model).weights_sha256
        assert 0 <= prediction.uncertainty["tta_entropy"] <= 1
        assert 0 <= prediction.uncertainty["disagreement"] <= 1
    assert store.run_record("case-0001", 1)["model"]["id"] == model
    # by itself it takes what waits and was not answered by this model
    write_cases(tmp_path / "data", patients=("emil",), slices=5)
    case = store.add(tmp_path / "data" / "emil_ct.nii.gz", lungs=tmp_path / "data" / "emil_lungs.nii.gz")
    assert set(store.predict().done) == {case.id}
    assert store.predict().skipped == (case.id,)
    assert store.next("anna").case.id == case.id
    # one case that can't be read stops nobody
    (store.layout.case(case.id) / "ct.nrrd").write_bytes(b"damaged")
    report = store.predict(model="tiny", cases=[case.id, "case-0003"])
    assert set(report.failed) == {case.id} and set(report.done) == {"case-0003"}


def test_the_entropy_of_an_answer_does_not_depend_on_the_size_of_the_image():
    entropy, mask = np.zeros((4, 8, 8), np.float32), np.zeros((4, 8, 8), bool)
    assert mean_entropy(entropy, mask) == 0
    mask[1, 2:4, 2:4] = True
    entropy[1, 2:4, 2:4] = 0.5
    entropy[1, 5, 5] = 1.0
    entropy[2] = 0.05
    assert mean_entropy(entropy, mask) == pytest.approx((4 * 0.5 + 1.0) / 5)
    wide = np.pad(entropy, 8), np.pad(mask, 8)
    assert mean_entropy(*wide) == pytest.approx(mean_entropy(entropy, mask))


def test_cases_without_lesion_train_and_judge(a_store):
    empty = np.zeros(a_store.case("case-0003").ct.geometry.shape, bool)
    for case_id in ("case-0003", "case-0004"):
        a_store.save_revision(case_id, empty, "hans", no_lesion=True)
    manifest, seen = a_store.layout.rounds / "0001" / "run" / "cases.csv", set()
    result = a_store.fine_tune(
        config=settings(),
        validation=["case-0002", "case-0004"],
        rule=ANY_MODEL,
        # it is removed when the round is done
        progress=lambda phase, *_: phase == "training" and seen.add(manifest.read_text().count(",none,")),
    )
    assert seen == {2}
    assert result.gate.cases["case-0004"]["new"].lesion_free
    assert result.gate.cases["case-0004"]["new"].prediction_ml >= 0
    assert result.gate.mean_dice_new == result.gate.cases["case-0002"]["new"].dice


def test_a_consensus_trains_where_it_was_chosen_and_follows_its_raters(a_store, corrected):
    mask = expert(corrected, 1)
    for rater, shift in (("bert", 1), ("carl", -1)):
        a_store.save_revision("case-0001", np.roll(mask, shift, 1), rater)
    made = a_store.consensus("case-0001")
    case = a_store.case("case-0001")
    assert case.label_revision == made and made.rater == "consensus" and made.sources == (1, 2, 3)
    assert case.raters == ("hans", "bert", "carl")
    assert a_store.read_revision("case-0001").mask().sum() > 0
    a_store.split.freeze(["case-0004"])
    later = a_store.save_revision("case-0001", np.roll(mask, 2, 1), "carl")
    assert not a_store.case("case-0001").consensus_is_current
    plan = a_store.training.plan()
    assert plan.notes[0] == "The consensus of case-0001 was made anew from its raters' last revisions."
    assert a_store.case("case-0001").label_revision.sources == (1, 2, later.number)
    assert a_store.training.plan().notes[:1] != plan.notes[:1]


def test_an_estimate_comes_before_and_changes_nothing(a_store):
    before = sorted(a_store.folder.rglob("*"))
    short, long = (a_store.training.estimate(steps=steps, config=settings(), device="cpu") for steps in (10, 1000))
    assert 0 < short.total < long.total
    assert long.training == pytest.approx(1000 * long.seconds_per_step)
    assert long.total == pytest.approx(long.preparing + long.training + long.validating)
    assert "on cpu" in long.text and "s a step measured here" in long.text
    assert sorted(a_store.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"replay_share": 1.0}, InputError, "replay share is 1; it must be"),
        ({"base_model": "nobody"}, ModelError, "no model 'nobody'"),
        ({"validation": ["case-0009"]}, InputError, "neither a patient's key nor"),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_refused(a_store, arguments, error, words):
    with pytest.raises(error, match=words):
        a_store.fine_tune(config=settings(), **arguments)
    assert a_store.models.list() == []


def test_validation_patients_are_chosen_once(a_trained_store):
    with pytest.raises(InputError, match="frozen already, so validation patients can't be chosen"):
        a_trained_store.fine_tune(config=settings(), validation=["case-0001"])


def test_a_ct_that_changed_does_not_train(a_store):
    other = a_store.layout.case("case-0002") / "ct.nrrd"
    shutil.copyfile(other, a_store.layout.case("case-0001") / "ct.nrrd")
    with pytest.raises(InputError, match="image of case case-0001 changed"):
        a_store.fine_tune(config=settings(), validation=["case-0004"])
    assert a_store.training.rounds()[-1]["status"] == "failed"


@pytest.mark.parametrize("role", ["CT", "lesion"])
def test_a_file_that_changed_is_not_replayed(a_trained_store, corrected, role):
    store = a_trained_store
    store.save_revision("case-0002", np.roll(expert(corrected, 2), 1, 1), "hans")
    files = [store.layout.case(f"case-000{number}") / "ct.nrrd" for number in (1, 2)]
    if role == "lesion":
        files = [next(store.layout.revisions(f"case-000{number}").rglob("*.seg.nrrd")) for number in (1, 2)]
    shutil.copyfile(files[1], files[0])
    with pytest.raises(ReadError, match=f"The {role} of case-0001 is missing or has changed"):
        store.fine_tune(config=settings())


def test_the_command_fine_tunes_a_store_and_says_what_it_will_take(a_store, tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(settings().to_toml())
    common = ["fine-tune", str(a_store.folder), "--config", str(config)]
    assert main([*common, "--estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] > 0
    assert main([*common, "--validation", "case-0004", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert "s a step measured here" in shown.err
    assert "There is one validation patient" in shown.out
    assert "Validation can't decide between" in shown.out and "fewer than 5 patients count" in shown.out
    assert a_store.models.default() == "tiny"
    assert f"active: {a_store.models.default()}" in shown.out
    assert main(["cases", "rounds", str(a_store.folder)]) == 0
    assert capsys.readouterr().out.startswith("round 1: done, from tiny, 3 fresh and 0 replayed cases")
    assert main(["cases", "compare", str(a_store.folder), "tiny"]) == 0
    assert "tiny: mean Dice" in capsys.readouterr().out
    # what belongs to a store is refused elsewhere
    assert main(["fine-tune", str(tmp_path), "-o", str(tmp_path / "o"), "--replay", "0.5"]) == 2
    assert "needs a case store" in capsys.readouterr().err
    assert main(["fine-tune", str(tmp_path)]) == 2
    assert "-o" in capsys.readouterr().err


def test_the_whole_loop_in_twelve_lines(tmp_path, corrected, registry):
    data, loop = corrected / "data", tmp_path / "loop"
    config = settings()
    rows = [f"{p},{data}/{p}_ct.nii.gz,{data}/{p}_lesion.nii.gz,{data}/{p}_lungs.nii.gz" for p in PATIENTS[1:]]
    (tmp_path / "cases.csv").write_text("\n".join(["id,ct,lesion,lungs", *rows]))
    corrected_mask = expert(corrected, 1)

    store = Store.create(loop)
    store.import_cases(tmp_path / "cases.csv", rater="expert")
    case = store.add(data / "anna_ct.nii.gz", patient="anna", lungs=data / "anna_lungs.nii.gz")
    store.predict()
    suggestion = store.next("hans")
    with store.open(suggestion.case.id, "hans") as session:
        volume, mask = session.read_ct(), session.start_mask
        revision = session.save(corrected_mask)
    result = store.fine_tune(config=config, validation=["case-0003"])
    print(result.gate.text, store.review.items()[:3])
    store.models.set_default("tiny", "hans", "going back")

    assert suggestion.case.id == case.id == "case-0004"
    assert volume.array.shape == mask.array.shape
    assert revision.dice_to_prediction is not None
    assert store.models.default() == "tiny"
    assert store.check().is_sound


def test_the_whole_configuration_of_a_round_is_printed_and_read_back(a_store, tmp_path, capsys):
    words = ["fine-tune", str(a_store.folder), "--set", "optimizer.learning_rate=0.5", "--steps", "9"]
    assert main([*words, "--print-config"]) == 0
    (tmp_path / "round.toml").write_text(capsys.readouterr().out)
    config = TrainingConfig.from_toml(tmp_path / "round.toml")
    # the base's margin, and what a round that replays nothing keeps of it
    assert (config.data.margin, config.optimizer.learning_rate, config.run.steps) == (2, 0.5, 9)
    assert config.base_share == 0.85
    assert a_store.training.rounds() == []
    assert main(["fine-tune", str(a_store.folder), "--config", str(tmp_path / "round.toml"), "--print-config"]) == 0
    assert TrainingConfig.from_dict(tomllib.loads(capsys.readouterr().out)) == config
