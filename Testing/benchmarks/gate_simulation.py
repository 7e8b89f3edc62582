"""How often the gate's rule passes a model that is truly worse, and refuses one that is truly better.

    python Testing/benchmarks/gate_simulation.py [--trials 4000] [--seed 0]

Draws validation patients with the spread of docs/models-record.md (eight patients kept out of training) and the
differences of paired models there, and lets ``cases.gate.decide`` decide, as it does in a store. Three spreads of the
difference from patient to patient: as between two trainings that differ in nothing but the machine and in more data, as
between other data or resolutions, and the middle of them. The differences' shape is that of the figures, not a normal
one.

Prints, for 2, 5, 10 and 20 validation patients, how often a model passes, fails, and is left to a person; then what ten
rounds do that are each a little worse than the one before, with and without a look back at the best so far. Ends with
status 1 if a model that is 0.02 worse passes in 10 % of trials or more from 10 patients on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from COVIDLesionSegLib.cases.gate import CaseFigures, GateRule, bounds, decide

# Dice of the eight patients kept out of training, COPLE-Net
PATIENTS = np.array([0.502, 0.803, 0.673, 0.867, 0.887, 0.788, 0.840, 0.741])
# pairs of models on the same patients: Dice of one, Dice of the other
PAIRS = {
    "trained once more, alike": ((0.502, 0.867, 0.887, 0.788), (0.483, 0.871, 0.877, 0.772)),
    "the same patients and 50 slices of others": ((0.502, 0.867, 0.887, 0.788), (0.483, 0.820, 0.835, 0.745)),
    "four patients and 50 slices for six patients": (
        (0.502, 0.803, 0.673, 0.867, 0.887, 0.788, 0.840, 0.741),
        (0.473, 0.843, 0.690, 0.806, 0.816, 0.757, 0.778, 0.675),
    ),
    "full resolution for resized slices": ((0.502, 0.887, 0.867, 0.788), (0.533, 0.875, 0.849, 0.709)),
}
SPREADS = (0.015, 0.03, 0.045)
COUNTS = (2, 5, 10, 20)
SHIFTS = (-0.02, 0.0, 0.02)
ROUNDS = 10


def residuals() -> NDArray[np.float64]:
    """The pairs' differences without their mean, each pair brought to a standard deviation of 1."""
    found = []
    for name, (first, second) in PAIRS.items():
        difference = np.subtract(second, first)
        spread = difference.std(ddof=1)
        print(f"{name}: {len(difference)} patients, mean {difference.mean():+.3f}, standard deviation {spread:.3f}")
        found.append((difference - difference.mean()) / spread)
    values = np.concatenate(found)
    return values / values.std()


def drawn(rng: np.random.Generator, shape: tuple[int, ...], source: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residuals of standard deviation 1: of the figures, a little blurred, since there are only twenty of them."""
    return (rng.choice(source, shape) + rng.normal(0, 0.3, shape)) / np.hypot(1, 0.3)


def verdict(old: NDArray[np.float64], new: NDArray[np.float64], rule: GateRule) -> str:
    """What the rule says about two models' Dice, one value a patient."""
    names = [f"case-{number:04d}" for number in range(len(old))]
    figures = {
        model: {name: CaseFigures(float(dice), 0.1, 4.0, 10.0, 10.0) for name, dice in zip(names, values, strict=True)}
        for model, values in (("old", old), ("new", new))
    }
    return decide("new", "old", "old", figures, {name: name for name in names}, rule=rule).verdict


def rates(
    count: int, shift: float, spread: float, trials: int, rule: GateRule, source: NDArray[np.float64], seed: int
) -> dict[str, float]:
    """Verdict -> fraction of trials, for so many patients and a true difference of the means."""
    rng = np.random.default_rng([seed, count, round(1000 * (shift + 1)), round(1000 * spread)])
    found = {"passed": 0, "failed": 0, "undecided": 0}
    for _ in range(trials):
        old = rng.choice(PATIENTS, count)
        new = old + shift + spread * drawn(rng, (count,), source)
        found[verdict(old, new, rule)] += 1
    return {name: number / trials for name, number in found.items()}


def alone(count: int, spread: float, trials: int, rule: GateRule, source: NDArray[np.float64], seed: int) -> float:
    """How often the interval alone, without the least number of patients, would pass a model that is 0.02 worse."""
    rng = np.random.default_rng([seed, count, round(1000 * spread)])
    differences = -0.02 + spread * drawn(rng, (trials, count), source)
    lows = [bounds(row.tolist(), rule.confidence, rule.resamples)[0] for row in differences]
    return float(np.mean([low >= -rule.dice_margin for low in lows]))


def drift(
    count: int, loss: float, spread: float, trials: int, rule: GateRule, source: NDArray[np.float64], seed: int
) -> dict[bool, tuple[float, float]]:
    """Whether the best so far is asked, too -> true mean loss after ten rounds, and that of the worst one in twenty."""
    found = {}
    for asks_best in (False, True):
        rng = np.random.default_rng([seed, count, round(1000 * loss)])
        ends = []
        for _ in range(trials):
            patients = rng.choice(PATIENTS, count)
            true, active = 0.0, patients + spread / np.sqrt(2) * drawn(rng, (count,), source)
            best = active
            for _ in range(ROUNDS):
                # two models' residuals are independent, so their difference has the spread
                new = patients + true - loss + spread / np.sqrt(2) * drawn(rng, (count,), source)
                if verdict(active, new, rule) != "passed" or (asks_best and verdict(best, new, rule) != "passed"):
                    continue
                true, active = true - loss, new
                if new.mean() >= best.mean():
                    best = new
            ends.append(-true)
        found[asks_best] = float(np.mean(ends)), float(np.quantile(ends, 0.95))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trials, seed = arguments.trials, arguments.seed
    # fewer resamples than the rule's: the bounds' own noise averages out over the trials
    rule = replace(GateRule.shipped(), resamples=2000)
    source = residuals()
    heads = (
        "patients",
        "spread",
        "truly 0.02 worse: passes",
        "fails / left to a person",
        "as good: passes",
        "truly 0.02 better: passes",
        "refused / left to a person",
    )
    print(f"\n| {' | '.join(heads)} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for count in COUNTS:
        for spread in SPREADS:
            worse, equal, better = (rates(count, shift, spread, trials, rule, source, seed) for shift in SHIFTS)
            worst = max(worst, worse["passed"]) if count >= 10 else worst
            print(
                f"| {count} | {spread:g} | {worse['passed']:.1%} | {worse['failed']:.0%} / {worse['undecided']:.0%} | "
                f"{equal['passed']:.0%} | {better['passed']:.1%} | {better['failed']:.1%} / {better['undecided']:.0%} |"
            )
    two = alone(2, SPREADS[1], trials, rule, source, seed)
    print(f"\nWith 2 patients the interval alone would pass a model that is 0.02 worse in {two:.0%} of trials.")
    print(
        f"\n| patients | each of {ROUNDS} rounds is worse by | loss, active model alone | loss, and the best so far |"
    )
    print("| --- | --- | --- | --- |")
    for count in (10, 20):
        for loss in (0.005, 0.01):
            ends = drift(count, loss, SPREADS[0], max(trials // 8, 1), rule, source, seed)
            shown = " | ".join(f"{ends[way][0]:.3f} (one in twenty: {ends[way][1]:.3f})" for way in (False, True))
            print(f"| {count} | {loss:g} | {shown} |")
    return 1 if worst >= 0.1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
