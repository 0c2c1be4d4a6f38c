"""The published claims: the sweep that tests each, what is compared on its trials, and what decides.

A claim says where some differences lie. It holds here if the intervals of all of them lie there, it does not hold if
one lies elsewhere as a whole, and else it is too small to tell. `MARGIN` is the least difference in mAP that matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joytag.core import settings
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.resampled import Resampled
from joytag.sweeps import statistics
from joytag.sweeps.claim_measures import (
    SCALER_START,
    break_even,
    constant,
    final,
    logged,
    lost_gradients,
    lowest_loss,
    on_source,
    on_training_images,
)
from joytag.sweeps.config import Sweep, Trial
from joytag.sweeps.ledger import Ledger

MARGIN = 0.01  # mAP
THRESHOLD_MARGIN = 0.05
DATA, WITHOUT = Path("data/openmoji"), Path("data/openmoji_alone")
MULTIPLIER = 128.0
HOLDS, FAILS, UNCLEAR = "holds here", "does not hold here", "too small to tell"
BASE = ""  # the label of the only point of a sweep without axes

Trials = Mapping[str, Trial]  # of one seed, by the label of their point on the sweep's axis
Measure = Callable[[Trials, Sequence[Trials]], Resampled]  # of a seed's trials, and of those of the other seeds


@dataclass(frozen=True)
class Comparison:
    """Differences of a subject from others, paired by seed, and the range in which the claim says that they lie.

    `sides` are measured on the trials of each seed; the first is the subject. `unit` is what they measure.
    """

    unit: str
    sides: Mapping[str, Measure]
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Claim:
    """A published claim, tested by the sweep `configs/sweeps/claims/NAME.yaml`."""

    name: str
    text: str
    comparisons: Sequence[Comparison]


@dataclass(frozen=True)
class Effect:
    """A difference between two sides, with its interval over seeds and images, and the claimed range."""

    unit: str
    sides: tuple[str, str]
    difference: Interval
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the difference lies in the claimed range."""
        if self.low < self.difference.low and self.difference.high < self.high:
            return HOLDS
        return FAILS if self.difference.high <= self.low or self.high <= self.difference.low else UNCLEAR


def at_end(*labels: str) -> dict[str, Measure]:
    """Compare points by the mAP of their trials."""
    return {label: _final(label) for label in labels}


def _final(label: str) -> Measure:
    return lambda trials, _: final(trials[label])


def _gain_at_high_rate(optimizer: str) -> Measure:
    return lambda trials, _: final(trials[f"{optimizer}_x4"]) - final(trials[optimizer])


def _gap(label: str) -> Measure:
    """How much better a model is on its training images than on validation images."""
    return lambda trials, _: on_training_images(trials[label], DATA) - final(trials[label])


def _lost(multiplier: float) -> Measure:
    return lambda trials, _: constant(100 * lost_gradients(trials[BASE].results, DATA, multiplier, SCALER_START)["all"])


def _at_best(name: str) -> Measure:
    """A logged metric where the validation loss of the other seeds is lowest: one's own would be lowest by chance."""
    label = WITHOUT.as_posix()
    return lambda trials, others: logged(trials[label], name, lowest_loss([of_seed[label] for of_seed in others]))


def _at_last(name: str) -> Measure:
    return lambda trials, _: logged(trials[WITHOUT.as_posix()], name)


def _samples_to_best(label: str) -> Measure:
    return lambda trials, _: constant(lowest_loss([trials[label]]) / 1000)


def _on_auxiliary(data: Path) -> Measure:
    return lambda trials, _: on_source(trials[data.as_posix()], DATA, "twemoji")


REGULARIZERS = {  # in the order of mixup's sweep
    "mixup": "mixup",
    "TrivialAugment": "trivial",
    "RandAugment": "rand",
    "label smoothing": "smoothing",
    "twice the stochastic depth": "depth",
}
RECIPE = ("base", "half_rate", "double_rate", "half_decay", "double_decay", "half_depth", "double_depth")
CLAIMS = (
    Claim(
        "stem",
        "A CNN stem helps much over plain patches.",
        [Comparison("mAP", at_end("cnn", "patches"), low=MARGIN)],
    ),
    Claim(
        "loss",
        "Focal loss and binary cross-entropy do not differ.",
        [Comparison("mAP", at_end("focal", "bce"), -MARGIN, MARGIN)],
    ),
    Claim(
        "weighting",
        "Weighting by tag frequency does not help.",
        [Comparison("mAP", at_end("weighted", "bce"), high=MARGIN)],
    ),
    Claim(
        "mixup",
        "Mixup regularizes most and ends lower.",
        [
            Comparison("mAP", at_end("mixup", "none"), high=0),
            Comparison(
                "gap to training images, mAP", {name: _gap(label) for name, label in REGULARIZERS.items()}, high=0
            ),
        ],
    ),
    Claim(
        "smoothing",
        "Label smoothing does not help.",
        [Comparison("mAP", at_end("0.01", "0.0"), high=MARGIN)],
    ),
    Claim(
        "augmentation",
        "TrivialAugment beats RandAugment and none.",
        [Comparison("mAP", at_end("trivial", "rand", "none"), low=0)],
    ),
    Claim(
        "optimizer",
        "AdamW is a little better and less stable than LAMB.",
        [
            Comparison("mAP", at_end("adamw", "lamb"), low=0),
            Comparison(
                "mAP gained by four times the rate",
                {name: _gain_at_high_rate(name) for name in ("adamw", "lamb")},
                high=0,
            ),
        ],
    ),
    Claim(
        "recipe",
        "Rate, weight decay and stochastic depth are near their optimum.",
        [Comparison("mAP", at_end(*RECIPE), low=-MARGIN)],
    ),
    Claim(
        "overfitting",
        "While a model overfits, F1 still rises as the validation loss worsens.",
        [
            Comparison("validation loss", {"end": _at_last("val_loss"), "lowest loss": _at_best("val_loss")}, low=0),
            Comparison("macro F1", {"end": _at_last("val_macro_f1"), "lowest loss": _at_best("val_macro_f1")}, low=0),
        ],
    ),
    Claim(
        "size",
        "A larger model overfits sooner at the same data.",
        [
            Comparison(
                "thousand samples to the lowest loss",
                {"width 128": _samples_to_best("whole"), "width 64": _samples_to_best("half")},
                high=0,
            )
        ],
    ),
    Claim(
        "restart",
        "The restart at the higher resolution pays.",
        [Comparison("mAP", at_end("restart", "low", "high", "going_on"), low=0)],
    ),
    Claim(
        "multiplier",
        "The loss multiplier is mandatory for fp16.",
        [Comparison("% of gradients lost", {"multiplier 1": _lost(1.0), "128": _lost(MULTIPLIER)}, low=1)],
    ),
    Claim(
        "auxiliary",
        "The small auxiliary set is what makes the model work outside the main domain.",
        [Comparison("mAP on Twemoji", {"with": _on_auxiliary(DATA), "without": _on_auxiliary(WITHOUT)}, low=MARGIN)],
    ),
    Claim(
        "threshold",
        "0.4 is where macro precision equals recall.",
        [
            Comparison(
                "threshold",
                {"break-even": lambda trials, _: break_even(trials[BASE]), "0.4": lambda *_: constant(0.4)},
                -THRESHOLD_MARGIN,
                THRESHOLD_MARGIN,
            )
        ],
    ),
)


def sweep(claim: Claim) -> Sweep:
    """Read the sweep that tests a claim. Raises SettingsError."""
    return Sweep(settings.find(f"claims/{claim.name}.yaml", "sweeps"))


def trials(of: Sweep) -> dict[int, dict[str, Trial]]:
    """Return the trials of a sweep of at most one axis: by seed, then by the label of their point."""
    labels = [{name: label} for name, axis in of.axes.items() for label in axis.choices] or [{}]
    points = {str(next(iter(label.values()), BASE)): of.point(label) for label in labels}
    return {seed: {name: point.search[i] for name, point in points.items()} for i, seed in enumerate(of.seeds)}


def effects(claim: Claim) -> list[Effect]:
    """Measure the differences that a claim is about. Raises ValueError unless all trials of its sweep are over."""
    of = sweep(claim)
    by_seed, ledger, found = trials(of), Ledger(of.output), list[Effect]()
    states = [ledger.state(trial.id) for of_seed in by_seed.values() for trial in of_seed.values()]
    if missing := sum(state not in ("done", "diverged") for state in states):
        raise ValueError(f"{of.path}: {missing} of its {len(states)} trials are not done")
    for comparison in claim.comparisons:
        measured = {
            side: {
                seed: measure(of_seed, [by_seed[other] for other in by_seed if other != seed])
                for seed, of_seed in by_seed.items()
            }
            for side, measure in comparison.sides.items()
        }
        subject, *others = comparison.sides
        findings = statistics.compare(measured, len(others))
        for other in others:
            is_less = findings[other].difference
            difference = Interval(-is_less.value, -is_less.high, -is_less.low)
            found.append(Effect(comparison.unit, (subject, other), difference, comparison.low, comparison.high))
    return found


def verdict(found: Sequence[Effect]) -> str:
    """Return whether a claim holds: it does if all of its differences are where it says, not if one is elsewhere."""
    verdicts = {effect.verdict for effect in found}
    return next(each for each in (FAILS, UNCLEAR, HOLDS) if each in verdicts)
