"""A paper's claims against result files: one row each, with a verdict that the rows decide.

A claim about two methods is judged by paired runs: it holds if the 95 % interval of the mean
difference (Student) lies on its side of zero, fails if it lies on the other side, and is undecided
otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from bed import RESULTS, read

from data_prune.report.evaluate import compare

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "**fails**", "**undecided**", "not run"
Rows = list[dict[str, str]]


class Outcome(NamedTuple):
    """What came out, whether the claim holds there, and of how many seeds that was seen."""

    verdict: str
    text: str
    seeds: str = ""


class Claim(NamedTuple):
    """One row of a page: what is claimed, by which program, where, and how to judge it."""

    claim: str
    program: str
    setting: str
    judge: Callable[[], Outcome]


class Missing(Exception):
    """A result file has no rows for a claim yet."""


@functools.cache
def whole(name: str) -> Rows:
    """All rows of a result file."""
    return read(RESULTS / f"{name}.csv")


def rows(name: str, **where: object) -> Rows:
    """Rows of a result file whose columns have these values.

    Raises:
        Missing: If there are none.
    """
    wanted = {key: str(value) for key, value in where.items()}
    found = [row for row in whole(name) if wanted.items() <= row.items()]
    if not found:
        raise Missing(f"{name}.csv has no such rows yet")
    return found


def by_seed(found: Iterable[Mapping[str, str]], column: str) -> dict[str, float]:
    """One number for each seed; the last row of a seed counts."""
    return {row["seed"]: float(row[column]) for row in found}


def paired(
    one: Mapping[str, float], other: Mapping[str, float], unit: str = "", sign: int = 1,
    margin: float = 0.0, digits: int = 1,
) -> Outcome:  # fmt: skip
    """Judge "one is above the other" (sign -1: below) on the seeds that both have.

    With a margin: "one is above the other or no further below it".
    """
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return Outcome(NOT_RUN, "fewer than two pairs of runs")
    pair = compare([one[s] for s in seeds], [other[s] for s in seeds])
    low, high = (end + margin for end in sorted((sign * pair.low, sign * pair.high)))
    verdict = HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED
    half = (pair.high - pair.low) / 2
    text = f"{pair.difference:+.{digits}f} ± {half:.{digits}f}{unit}"
    return Outcome(verdict, text, str(len(seeds)))


def together(parts: Mapping[str, Outcome]) -> Outcome:
    """Judge a claim in several places: it holds if it holds in all, fails if it fails in one."""
    verdicts = [part.verdict for part in parts.values() if part.verdict != NOT_RUN]
    text = "; ".join(f"{name}: {part.text}" for name, part in parts.items())
    counts = sorted({part.seeds for part in parts.values() if part.seeds}, key=int)
    seeds = " to ".join(dict.fromkeys((*counts[:1], *counts[-1:])))
    order = (FAILS, UNDECIDED, HOLDS)
    return Outcome(min(verdicts, key=order.index, default=NOT_RUN), text, seeds)


def likely_below(cells: int, rate: float = 0.025) -> int:
    """The count that chance alone does not exceed in 95 of 100 grids of so many cells."""
    total, count = 0.0, -1
    while total < 0.95:
        count += 1
        total += math.comb(cells, count) * rate**count * (1 - rate) ** (cells - count)
    return count


def in_cells(
    cells: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]],
    sign: int = 1,
    least: int = 3,
) -> Outcome:
    """Judge "one is above the other" (sign -1: below) in many cells, by the seeds of each.

    It holds if every interval lies on its side, and fails if more lie on the other than chance
    would put there: one in forty where the two are equal.

    Args:
        cells: Name to the points of both, by seed.
        sign: -1 if less is claimed.
        least: Seeds that a cell needs.
    """
    found, counts = {}, []
    for name, (one, other) in cells.items():
        if len(seeds := sorted(one.keys() & other.keys())) >= least:
            found[name] = compare([one[s] for s in seeds], [other[s] for s in seeds])
            counts.append(len(seeds))
    if not found:
        return Outcome(NOT_RUN, f"no cell with {least} seeds")
    above, below = (sum(p.low > 0 for p in found.values()), sum(p.high < 0 for p in found.values()))
    for_it, against = (above, below) if sign > 0 else (below, above)
    worst = min(found, key=lambda name: sign * found[name].difference)
    text = (
        f"{len(found)} cells: above in {above}, below in {below}, "
        f"mean {np.mean([p.difference for p in found.values()]):+.1f} points, "
        f"worst {found[worst].difference:+.1f} ({worst})"
    )
    verdict = HOLDS if for_it == len(found) else UNDECIDED
    seeds = " to ".join(dict.fromkeys(map(str, (min(counts), max(counts)))))
    return Outcome(
        FAILS if against > likely_below(len(found)) else verdict, text, f"{seeds} a cell"
    )


def numbers(found: Sequence[Mapping[str, str]], column: str) -> list[float]:
    """A column as numbers."""
    return [float(row[column]) for row in found]


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))


def decided(holds: bool, text: str, seeds: int | str = "") -> Outcome:
    """A claim that its numbers decide without an interval: laws, counts and orders."""
    return Outcome(HOLDS if holds else FAILS, text, str(seeds))


def not_run(why: str) -> Callable[[], Outcome]:
    """Where the paper's setting is not here, or cannot be recovered."""
    return lambda: Outcome(NOT_RUN, why)


def table(claims: Iterable[Claim]) -> str:
    """The rows, and how many have each verdict."""
    lines = ["| claim | program | setting | seeds | what came out | verdict |", "|---" * 6 + "|"]
    count: dict[str, int] = {}
    for claim in claims:
        try:
            outcome = claim.judge()
        except Missing as why:
            outcome = Outcome(NOT_RUN, str(why))
        count[outcome.verdict] = count.get(outcome.verdict, 0) + 1
        program = f"`{claim.program}`" if claim.program else ""
        lines.append(
            f"| {claim.claim} | {program} | {claim.setting} | {outcome.seeds} | {outcome.text} | "
            f"{outcome.verdict} |"
        )
    verdicts = (HOLDS, FAILS, UNDECIDED, NOT_RUN)
    told = ", ".join(f"{count[v]} {v.strip('*')}" for v in verdicts if v in count)
    return f"{sum(count.values())} claims: {told}.\n\n" + "\n".join(lines)
