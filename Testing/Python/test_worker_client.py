"""The client's state machine: requests, answers, progress, and a child that ends when it is idle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worker_world import HELLO, VOLUME, sentence

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.worker import protocol as p
from COVIDLesionSegLib.worker import transport

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


# ---- the normal path ------------------------------------------------------------------------------------------------


def test_a_request_starts_the_child_travels_and_is_answered(world):
    request = world.ask(parameters={"tta": True}, arrays={"volume": VOLUME, "lungs": VOLUME > 3})
    assert not world.processes, "nothing happens inside request()"
    assert world.client.busy and not world.client.running
    world.run()
    assert world.process.is_running and not world.process.heard, "the child speaks first"
    world.process.say(HELLO)
    world.run()
    (ask,) = world.process.asked
    assert (ask.id, ask.task, ask.parameters) == (request.number, "segment", {"tta": True})
    sent = {header.name: transport.read_array(Path(ask.folder), header) for header in ask.arrays}
    np.testing.assert_array_equal(sent["volume"], VOLUME)
    np.testing.assert_array_equal(sent["lungs"], VOLUME > 3)

    world.process.say(p.Started(request.number), p.ProgressMessage(request.number, "network", 1, 4))
    world.process.say(p.Note(request.number, "Padding was clipped."))
    mask = (VOLUME > 9).astype(np.uint8)
    header = p.ArrayHeader.of("mask", mask, "reply.npy")
    assert list(transport.write_array(Path(ask.folder) / header.file, mask))
    assert not request.done
    world.process.say(p.Result(request.number, {"summary": {"lesion_ml": 3.5}}, [header]))
    (reply,) = world.replies
    assert reply.values == {"summary": {"lesion_ml": 3.5}} and reply.messages == ("Padding was clipped.",)
    np.testing.assert_array_equal(reply.arrays["mask"], mask)
    assert request.done and request.reply is reply and not world.errors
    assert list(Path(ask.folder).iterdir()) == [], "nothing is left in the folder"
    assert not world.client.busy and world.client.running, "the child stays warm"


def test_the_child_stays_for_the_next_request(world):
    for number in (1, 2, 3):
        request = world.ready()
        world.process.say(p.Result(request.number, {"n": number}))
    assert [reply.values["n"] for reply in world.replies] == [1, 2, 3]
    assert len(world.processes) == 1 and world.client.generation == 1


def test_a_second_request_waits_its_turn(world):
    first = world.ready()
    second = world.ask("lungs")
    world.run(5)
    assert [ask.task for ask in world.process.asked] == ["segment"]
    world.process.say(p.Result(first.number, {}))
    world.run()
    assert [ask.task for ask in world.process.asked] == ["segment", "lungs"]
    world.process.say(p.Result(second.number, {}))
    assert len(world.replies) == 2


def test_late_words_about_an_earlier_request_change_nothing(world):
    first = world.ready()
    world.process.say(p.Result(first.number, {}))
    second = world.ready()
    world.process.say(
        p.ProgressMessage(first.number, "network", 1, 4),
        p.Result(first.number, {"late": True}),
        p.Failure(first.number, "internal", "late"),
    )
    assert not second.done and len(world.replies) == 1 and not world.errors


def test_progress_has_a_share_of_the_whole_that_never_falls_and_a_time_left(world):
    request = world.ready(arrays={"volume": VOLUME})
    for done in range(5):
        world.run(2)
        world.process.say(p.ProgressMessage(request.number, "lungs", done, 4))
    for done in range(11):
        world.run(2)
        world.process.say(p.ProgressMessage(request.number, "network", done, 10), p.Heartbeat())
    shares = [progress.fraction for progress in world.progress]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.2 and 0.9 < shares[-1] <= 1
    assert world.progress[0].phase == "starting"
    halfway = next(found for found in world.progress if (found.phase, found.done) == ("network", 5))
    assert 5 < halfway.seconds_left < 40
    world.process.say(p.Result(request.number, {}))

    # the second run knows what the first one took: half of the network's time is half of it
    request = world.ready()
    world.run(10)
    world.process.say(p.ProgressMessage(request.number, "lungs", 4, 4))
    world.run(10)
    world.process.say(p.ProgressMessage(request.number, "network", 5, 10))
    assert world.progress[-1].fraction == pytest.approx(0.65, abs=0.1)


def test_a_callback_that_raises_does_not_stop_the_next_request(world):
    def raises():
        raise RuntimeError("the panel has a bug")

    request = world.client.request("segment")
    request.subscribe(raises)
    world.run()
    world.process.say(HELLO)
    world.run()
    with pytest.raises(RuntimeError):
        world.process.say(p.Result(request.number, {}))
    second = world.ready()
    world.process.say(p.Result(second.number, {"ok": 1}))
    assert world.replies[0].values == {"ok": 1}


def test_what_can_not_be_sent_is_refused_at_once(world):
    with pytest.raises(InputError, match="object"):
        world.ask(arrays={"names": np.array(["a", None], dtype=object)})
    with pytest.raises(InputError, match="Path"):
        world.ask(parameters={"file": Path("x")})
    assert not world.client.busy


# ---- the idle end ---------------------------------------------------------------------------------------------------


def test_an_idle_child_ends_and_the_next_request_starts_another(world):
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    world.process.say(p.Bye("idle"))
    world.process.end(0)
    assert not world.client.running and not world.errors
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    assert len(world.processes) == 2 and len(world.replies) == 2


def test_a_request_that_crosses_with_the_idle_end_goes_to_a_new_child(world):
    first = world.ready()
    world.process.say(p.Result(first.number, {}))
    world.ask(arrays={"volume": VOLUME})
    world.run()
    assert len(world.process.asked) == 2
    world.process.say(p.Bye("idle"))
    world.process.end(0)
    world.run()
    assert len(world.processes) == 2
    world.process.say(HELLO)
    world.run()
    (ask,) = world.process.asked
    np.testing.assert_array_equal(transport.read_array(Path(ask.folder), ask.arrays[0]), VOLUME)
    world.process.say(p.Result(ask.id, {"ok": 1}))
    assert world.replies[-1].values == {"ok": 1} and not world.errors


def test_a_child_that_always_ends_at_once_is_given_up(world):
    world.ask()
    for _ in range(10):
        world.run()
        if world.errors:
            break
        world.process.say(HELLO)
        world.run()
        world.process.say(p.Bye("idle"))
        world.process.end(0)
    assert sentence(world.error).kind == "died" and len(world.processes) == 3
