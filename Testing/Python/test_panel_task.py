"""The driver of the panel's coroutines: what it waits for, what cancels it, and who hears of an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from worker_world import HELLO

from COVIDLesionSegLib.errors import DeviceError
from COVIDLesionSegLib.worker import protocol as p

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


@pytest.fixture
def room(slicer_gui):
    """The modules under test; they import qt."""
    from COVIDLesionSegLib.panel import messages, task

    return SimpleNamespace(noticeOf=messages.noticeOf, **vars(task))


@pytest.fixture
def turn(room):
    return room.turn


@pytest.fixture
def errors():
    return []


@pytest.fixture
def tasks(room, world, errors):
    return room.Tasks(world.timer, errors.append)


def test_each_turn_gives_the_event_loop_its_share(turn, world, tasks, errors):
    done = []

    async def work():
        done.append("one")
        await turn()
        done.append("two")
        await turn(500)
        done.append("three")

    task = tasks.start(work())
    assert not done and tasks.busy, "nothing happens inside start()"
    world.run()
    assert done == ["one", "two"] and not task.done
    world.run(1.0)
    assert done == ["one", "two", "three"] and task.done and not tasks.busy and not errors


def test_a_reply_resumes_the_coroutine_that_asked(world, tasks, errors):
    values = []

    async def ask():
        reply = await world.client.request("segment")
        values.append(reply.values["n"])
        reply = await world.client.request("segment")
        values.append(reply.values["n"])

    tasks.start(ask())
    world.run()
    world.process.say(HELLO)
    for number in (1, 2):
        world.run()
        world.process.say(p.Result(number, {"n": number}))
    assert values == [1, 2] and not tasks.busy and not errors


def test_a_request_that_was_done_before_it_is_awaited_is_not_waited_for(world, tasks, errors):
    request = world.ready()
    world.process.say(p.Result(request.number, {"n": 7}))
    values = []

    async def ask():
        values.append((await request).values["n"])

    tasks.start(ask())
    world.run()
    assert values == [7] and not errors


def test_an_error_of_the_child_is_raised_where_it_is_awaited_with_its_button(room, world, tasks, errors):
    seen = []

    async def ask():
        try:
            await world.client.request("segment")
        except DeviceError as error:
            seen.append(error)
            raise

    tasks.start(ask())
    world.run()
    world.process.say(HELLO)
    world.run()
    world.process.say(p.Failure(1, "device", "The GPU has too little memory.", "Use the CPU.", "", "use_cpu"))
    (error,) = errors
    assert seen == [error] and not tasks.busy
    notice = room.noticeOf(error)
    assert notice.action == "use_cpu" and notice.is_error and "too little memory" in notice.text


def test_cancel_ends_it_where_it_waits_and_cancels_the_request(world, tasks, errors):
    ended, request = [], world.ask()

    async def ask():
        try:
            await request
            ended.append("never")
        finally:
            ended.append("tidied")

    task = tasks.start(ask())
    world.run()
    task.cancel()
    task.cancel()
    assert ended == ["tidied"] and task.done and not tasks.busy
    world.run(1.0)
    assert request.done and request.error.kind == "cancelled" and not errors


def test_one_that_cancels_itself_ends_at_its_next_wait(turn, world, tasks, errors):
    done = []

    async def work():
        tasks.cancel()
        done.append("this piece")
        await turn()
        done.append("never")

    tasks.start(work())
    world.run(1.0)
    assert done == ["this piece"] and not tasks.busy and not errors


def test_an_owner_that_is_gone_starts_nothing(world, tasks, errors):
    done = []

    async def work():
        done.append("never")

    first = tasks.start(work())
    tasks.close()
    second = tasks.start(work())
    world.run(1.0)
    assert first.done and second.done and not done and not errors


def test_an_error_ends_one_and_leaves_the_others(turn, world, tasks, errors):
    done, own = [], []

    async def fails(text):
        await turn()
        raise ValueError(text)

    async def works():
        await turn()
        await turn()
        done.append(True)

    tasks.start(fails("to the owner"))
    tasks.start(fails("to whom it was given"), own.append)
    tasks.start(works())
    world.run(1.0)
    assert done == [True]
    assert [str(error) for error in errors] == ["to the owner"]
    assert [str(error) for error in own] == ["to whom it was given"]


def test_a_signal_is_waited_for_once(room, world, tasks, errors):
    signal, done = room.Signal(), []

    async def work():
        await room.until(signal)
        done.append(1)

    tasks.start(work())
    world.run(1.0)
    assert not done
    signal.emit("anything")
    signal.emit("anything")
    assert done == [1] and not errors

    cancelled = tasks.start(work())
    world.run(1.0)
    cancelled.cancel()
    signal.emit()
    assert done == [1] and not errors


def test_a_child_that_does_not_end_is_killed_after_five_seconds(slicer_gui):
    from COVIDLesionSegLib.panel.session import Session

    child = SimpleNamespace(is_running=True, waited=0, killed_after=None)

    def kill():
        child.is_running, child.killed_after = False, child.waited

    child.kill_tree = kill
    waiting, done = [], []
    session = Session(lambda *_: child, lambda milliseconds, call: waiting.append((milliseconds, call)))
    session.spawn([], {})
    session.whenEnded(lambda: done.append(child.is_running))
    while waiting and child.waited < 20_000:
        milliseconds, call = waiting.pop()
        child.waited += milliseconds
        call()
    assert child.killed_after == 5000 and done == [False]
