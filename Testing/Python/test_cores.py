"""How many cores and threads are used: affinity, a container's quota, the environment."""

from __future__ import annotations

import os
import threading

import pytest

from COVIDLesionSegLib import cores


@pytest.fixture
def eight_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "usable"),
    [(None, 8), ("max 100000", 8), ("250000 100000", 2), ("20000 100000", 1), ("1600000 100000", 8), ("odd", 8)],
)
def test_a_containers_quota_counts(eight_cores, quota, usable):
    if quota is not None:
        eight_cores.write_text(quota)
    assert cores.usable_cores() == cores.usable_threads() == usable


def test_without_affinity_the_machines_cores_count(eight_cores, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores.usable_cores() == 3


@pytest.mark.parametrize(
    ("asked", "threads"), [("2", 2), ("2,1", 2), (" 3 ", 3), ("64", 8), ("0", 8), ("", 8), ("many", 8)]
)
@pytest.mark.usefixtures("eight_cores")
def test_the_environment_may_ask_for_fewer_threads(monkeypatch, asked, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cores.usable_threads() == threads
    assert cores.usable_cores() == 8


@pytest.mark.parametrize(("asked", "most"), [("1", 1), ("2", 2)])
@pytest.mark.usefixtures("eight_cores")
def test_results_come_in_the_order_of_the_jobs_from_no_more_threads_than_asked(monkeypatch, asked, most):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    found = cores.run_all([lambda number=number: (number, threading.get_ident()) for number in range(20)])
    assert [number for number, _ in found] == list(range(20))
    assert len({thread for _, thread in found}) <= most
