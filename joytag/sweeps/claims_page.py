"""Write what the claims' trials show into docs/claims.md, as a table, and docs/claims.png, as a figure."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from joytag.core import progress
from joytag.core.errors import ExitCode
from joytag.core.files import replacing, write_text
from joytag.core.terminal import print
from joytag.sweeps import claims
from joytag.sweeps.claim_measures import SCALER_START, lost_gradients
from joytag.sweeps.claims import CLAIMS, Claim, Effect

PAGE, FIGURE = Path("docs/claims.md"), Path("docs/claims.png")
BEGIN, END = "<!-- {}, by make claims -->", "<!-- end -->"
SCALES = (1.0, 1024.0, SCALER_START)
Results = Mapping[str, Sequence[Effect]]  # by the claim's name


def main() -> None:
    """Measure all claims, and replace the table and the figure."""
    results = {claim.name: claims.effects(claim) for claim in progress.track(CLAIMS, "Measure", len(CLAIMS), "claims")}
    page = PAGE.read_text(encoding="utf-8")
    page = fill(page, "results", table(CLAIMS, results))
    write_text(PAGE, fill(page, "gradients", gradients()))
    plot(results, FIGURE)
    print(f"Written: {PAGE}, {FIGURE}")


def fill(page: str, name: str, text: str) -> str:
    """Replace what stands between a pair of markers. Raises ValueError when one is missing."""
    before, begin, rest = page.partition(BEGIN.format(name))
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE}: lacks the line {BEGIN.format(name)} or, after it, {END}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def table(chosen: Sequence[Claim], results: Results) -> str:
    """Return a row for each claim: its text, its differences with their intervals, and the verdict."""
    lines = ["| | claim | difference (95 % interval) | claimed | verdict |", "|---|---|---|---|---|"]
    for number, claim in enumerate(chosen, 1):
        found = results[claim.name]
        columns = ("<br>".join(map(text, found)) for text in (describe, claimed))
        lines.append(f"| {number} | {claim.text} | {' | '.join(columns)} | {claims.verdict(found)} |")
    return "\n".join(lines)


def describe(effect: Effect) -> str:
    """Return a difference in words: `mAP, cnn - bce: +0.010 (-0.001 to +0.021)`."""
    digits = 3 if max(map(abs, _bounds(effect))) < 1 else 1
    value, low, high = (_signed(bound, digits) for bound in _bounds(effect))
    return f"{effect.unit}, {_difference(effect)}: {value} ({low} to {high})"


def claimed(effect: Effect) -> str:
    """Return where a difference is claimed to lie: `above +0.01`, `below 0`, `within ±0.01`."""
    if -effect.low == effect.high:
        return f"within ±{effect.high:g}"
    side, limit = ("above", effect.low) if math.isfinite(effect.low) else ("below", effect.high)
    return f"{side} {_signed(limit) if limit else '0'}"


def _signed(value: float, digits: int | None = None) -> str:
    text = f"{value:+g}" if digits is None else f"{value:+.{digits}f}"
    return text.replace("-", "−")


def _difference(effect: Effect) -> str:
    return " − ".join(side.replace("_", " ") for side in effect.sides)


def _bounds(effect: Effect) -> tuple[float, float, float]:
    return effect.difference.value, effect.difference.low, effect.difference.high


def gradients() -> str:
    """Return a table of the share of gradients that fp16 loses in each part of the model: means over the seeds."""
    multipliers = (1.0, claims.MULTIPLIER)
    columns = [(scale, multiplier) for scale in SCALES for multiplier in multipliers]
    trials = claims.trials(claims.sweep(next(claim for claim in CLAIMS if claim.name == "multiplier")))
    lost = [
        [lost_gradients(of_seed[claims.BASE].results, claims.DATA, multiplier, scale) for of_seed in trials.values()]
        for scale, multiplier in columns
    ]
    heads = [f"scale {scale:,.0f}, multiplier {multiplier:.0f}" for scale, multiplier in columns]
    lines = [f"| part | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    everything, *parts = lost[0][0]
    for part in (*parts, everything):
        shares = [np.mean([of_seed[part] for of_seed in column]) for column in lost]
        lines.append(f"| {part} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Draw all differences with their intervals, those of one unit on one axis, and shade where the claims say."""
    from matplotlib.figure import Figure  # not at the top, because importing matplotlib writes a font cache

    by_unit: dict[str, list[tuple[str, Effect]]] = {}
    for name, found in results.items():
        for effect in found:
            by_unit.setdefault(effect.unit, []).append((name, effect))
    heights = [len(rows) + 1.6 for rows in by_unit.values()]
    figure = Figure(figsize=(9, 0.27 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(by_unit), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (unit, rows) in zip(panels, by_unit.items(), strict=True):
        bounds = [bound for _, effect in rows for bound in (*_bounds(effect), effect.low, effect.high)]
        reach = 1.1 * max(abs(bound) for bound in bounds if math.isfinite(bound))
        for y, (_, effect) in enumerate(rows):
            value, low, high = _bounds(effect)
            shaded = np.clip((effect.low, effect.high), -reach, reach)
            axes.barh(y, np.ptp(shaded), 0.9, shaded[0], color="tab:green", alpha=0.15)
            axes.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color="tab:blue", capsize=3, ms=4)
        axes.axvline(0, color="black", lw=0.8)
        labels = [f"{name}: {_difference(effect)}" for name, effect in rows]
        axes.set(xlim=(-reach, reach), yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.4, -0.6))
        axes.set_xlabel(unit, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"claims_page: {error}; run: make claims", file=sys.stderr)
        raise SystemExit(ExitCode.USER_ERROR) from None
