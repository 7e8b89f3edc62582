"""Cancel, close and kill: what the client does with the child and with what is open."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from worker_world import HELLO, VOLUME, World

from COVIDLesionSegLib.worker import protocol as p

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


# ---- cancel ---------------------------------------------------------------------------------------------------------


def test_a_child_that_stops_by_itself_stays_warm(world):
    request = world.ready()
    request.cancel()
    world.run(0.1)
    assert p.Cancel(request.number) in world.process.heard and not world.errors
    world.process.say(p.Failure(request.number, "cancelled", "The run was cancelled."))
    assert world.error.kind == "cancelled" and world.client.running and not world.process.killed
    world.run(5)
    assert world.client.running


def test_a_child_that_does_not_stop_is_killed_within_half_a_second(world):
    request = world.ready()
    request.cancel()
    request.cancel()
    world.run(0.5)
    assert world.error.kind == "cancelled" and world.process.killed and not world.client.running
    # what comes late is nobody's business
    world.process.say(p.Result(request.number, {}))
    world.process.end(-9)
    assert len(world.errors) == 1 and not world.replies


def test_a_result_that_crosses_with_cancel_is_dropped(world):
    request = world.ready()
    request.cancel()
    world.run(0.1)
    world.process.say(p.Result(request.number, {}))
    assert world.error.kind == "cancelled" and world.client.running


def test_cancel_of_a_request_that_waits_leaves_the_running_one_alone(world):
    first = world.ready()
    second = world.ask("lungs")
    second.cancel()
    assert not world.errors, "nothing is called inside cancel()"
    world.run()
    assert world.error.kind == "cancelled" and second.done and not first.done
    world.process.say(p.Result(first.number, {}))
    world.run()
    assert len(world.process.asked) == 1


def test_cancel_while_the_child_starts(world):
    request = world.ask()
    world.run()
    request.cancel()
    world.run(0.1)
    assert world.error.kind == "cancelled"
    world.process.say(HELLO)
    world.run()
    assert world.process.asked == [] and world.client.running, "it may stay for the next request"
    world.ready()
    assert len(world.processes) == 1


def test_a_child_that_is_there_between_cancel_and_the_next_turn_answers_nobody_else(world):
    cancelled = world.ask()
    world.run()
    cancelled.cancel()
    # the greeting was in the pipe already, and sends the request
    world.process.say(HELLO)
    waiting = world.ask("lungs")
    world.run(0.1)
    assert p.Cancel(cancelled.number) in world.process.heard and not waiting.done
    world.process.say(p.Result(cancelled.number, {"of": "the cancelled one"}))
    world.run(0.1)
    assert world.error.kind == "cancelled" and not waiting.done
    world.process.say(p.Result(waiting.number, {"of": "the next one"}))
    assert waiting.reply.values == {"of": "the next one"}


def test_cancel_before_anything_has_begun(world):
    request = world.ask()
    request.cancel()
    world.run()
    assert world.error.kind == "cancelled" and not world.processes


@pytest.mark.parametrize("transport", ["file", "pipe"])
def test_cancel_while_arrays_are_sent(transport):
    world = World(transport=transport)
    request = world.ask(arrays={"volume": np.zeros((64, 1 << 20), np.uint8)})
    world.run()
    world.process.waiting = 100 << 20
    world.process.say(HELLO)
    world.now += 0.001
    request.cancel()
    world.run(0.5)
    assert world.error.kind == "cancelled"
    if transport == "pipe":
        assert world.process.killed, "nobody can tell the rest of an array from the next message"
    else:
        assert world.client.running and world.process.asked == []
    world.client.kill()


def test_cancel_of_what_is_done_does_nothing(world):
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    request.cancel()
    world.run(2)
    assert not world.errors and p.Cancel(request.number) not in world.process.heard


# ---- the end --------------------------------------------------------------------------------------------------------


def test_close_is_polite_and_cancels_what_is_open(world):
    world.ready()
    waiting = world.ask()
    world.client.close()
    assert [error.kind for error in world.errors] == ["cancelled", "cancelled"] and waiting.done
    assert p.Close() in world.process.heard and world.process.input_closed and not world.process.killed
    world.run(3)
    assert world.process.killed, "a child that does not listen is killed"
    assert not world.client.running and not world.client.busy


def test_kill_is_at_once(world):
    world.ready(arrays={"volume": VOLUME})
    folder = Path(world.process.asked[0].folder)
    world.client.kill()
    assert world.error.kind == "cancelled" and world.process.killed and not folder.exists()


def test_a_client_that_is_forgotten_leaves_no_files(world):
    forgotten = World()
    forgotten.ready(arrays={"volume": VOLUME})
    folder = Path(forgotten.process.asked[0].folder)
    assert folder.is_dir()
    del forgotten
    gc.collect()
    assert not folder.exists()
