"""The tables of ``docs/pruning_results.md`` from the rows of ``prune_grid.csv``.

    python experiments/prune_grid_report.py             # prints them, and rewrites the page

A cell's number is the mean over its seeds of the paired difference to random, in points of test
accuracy; it counts as below or above if the 95 % interval of that difference (Student) lies there.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bed import read as rows_of
from bed import replace_between
from prune_grid import CSV, DAMAGE, DATA, NETS, PAGE, RATIOS, Cell, cells, half_of
from prune_rules import DEFAULT, METHODS

from data_prune.report.evaluate import compare

Runs = dict[Cell, dict[str, dict[str, float]]]
EARLIER = ("default, first version", "default, second version")
HALVES = {"search": "search half", "confirm": "confirmation half"}
KIND = {
    "clean": "clean",
    "redrawn": "20 % of labels redrawn",
    "confused": "20 % moved to one class",
    "corrupted": "30 % of inputs corrupted",
}


def read(path: Path, half: str) -> Runs:
    """Accuracy in percent by cell, method and seed; "full" belongs to every ratio of its cell.

    The seeds of "again" and "third" are others than those of "confirm": pairs never mix them.
    """
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(path):
        if half_of(row["half"]) == half:
            cell = Cell(row["data"], row["damage"], float(row["ratio"]), row["budget"], row["net"])
            runs[cell][row["method"]][row["seed"]] = 100 * float(row["accuracy"])
    for cell, of in runs.items():
        if cell.ratio:
            of["full"] = runs.get(cell._replace(ratio=0.0), {}).get("full", {})
    return {cell: of for cell, of in runs.items() if cell.ratio}


def differences(
    runs: Runs, method: str, rival: str = "random"
) -> dict[Cell, tuple[float, float, float]]:
    """Cell -> mean paired difference to a rival, and the ends of its interval."""
    found = {}
    for cell, of in runs.items():
        seeds = sorted(of.get(method, {}).keys() & of.get(rival, {}).keys())
        if len(seeds) > 2:
            pair = compare([of[method][s] for s in seeds], [of[rival][s] for s in seeds])
            found[cell] = (pair.difference, pair.low, pair.high)
    return found


def rows_there(runs: Runs, half: str, methods: tuple[str, ...]) -> str:
    """How many cells of each data set and net have all three seeds of a rule and of random."""
    columns = list(itertools.product(DATA, NETS))
    whole = [sum((c.half, c.data, c.net) == (half, *column) for c in cells()) for column in columns]
    lines = [
        "| rows of | " + " | ".join(f"{data}, {net} net" for data, net in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in ("random", *methods):
        found = differences(runs, method)
        counts = [sum((c.data, c.net) == column for c in found) for column in columns]
        if any(counts):
            shown = [f"{n} of {total}" for n, total in zip(counts, whole, strict=True)]
            lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def verdicts(runs: Runs, methods: tuple[str, ...], rival: str = "random") -> str:
    """One row a method: how often it is above and below its rival, and its worst cell."""
    lines = [
        "| rule | cells | mean | above, in the mean | above by the interval | below by the "
        "interval | worst cell |",
        "|---" * 7 + "|",
    ]
    for method in methods:
        found = differences(runs, method, rival)
        if found:
            mean = np.array([d for d, _, _ in found.values()])
            worst, (low, _, _) = min(found.items(), key=lambda item: item[1][0])
            place = ", ".join(str(part) for part in worst)
            lines.append(
                f"| {method} | {len(found)} | {mean.mean():+.1f} | {(mean > 0).sum()} | "
                f"{sum(low > 0 for _, low, _ in found.values())} | "
                f"{sum(high < 0 for _, _, high in found.values())} | {low:+.1f} ({place}) |"
            )
    return "\n".join(lines)


def by_part(runs: Runs, methods: tuple[str, ...], parts: dict[str, Callable[[Cell], bool]]) -> str:
    """Mean difference and, in brackets, the lowest of any cell, for each part of the grid."""
    lines = ["| rule | " + " | ".join(parts) + " |", "|---" * (len(parts) + 1) + "|"]
    for method in methods:
        found = differences(runs, method)
        if not found:
            continue
        shown = []
        for chosen in parts.values():
            values = [d for cell, (d, _, _) in found.items() if chosen(cell)]
            shown.append(f"{np.mean(values):+.1f} ({min(values):+.1f})" if values else "not run")
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def parts_of(field: str, names: dict[str, str]) -> dict[str, Callable[[Cell], bool]]:
    return {
        title: lambda cell, name=name: str(getattr(cell, field)) == name
        for name, title in names.items()
    }


def losing(runs: Runs, methods: tuple[str, ...]) -> str:
    """The cells in which no selection is above random in the mean."""
    found = {method: differences(runs, method) for method in methods}
    rows = ["| cell | random | best selection | all the data |", "|---|---|---|---|"]
    for cell, of in sorted(runs.items()):
        best = max(((found[m][cell][0], m) for m in methods if cell in found[m]), default=None)
        if best is not None and best[0] <= 0:
            full = f"{np.mean(list(of['full'].values())):.1f}" if of["full"] else "not run"
            rows.append(
                f"| {', '.join(map(str, cell))} | {np.mean(list(of['random'].values())):.1f} | "
                f"{best[1]} {best[0]:+.1f} | {full} |"
            )
    return "\n".join(rows) if len(rows) > 2 else "None."


def tables(path: Path) -> str:
    """Everything between the marks of the page."""
    methods = tuple(m for m in ("full", *METHODS, *EARLIER) if m != "random")
    selections = tuple(m for m in methods if m not in ("full", "random, again"))
    text = []
    for half, title in HALVES.items():
        runs = read(path, half)
        if not runs:
            continue
        count = len(differences(runs, "random"))
        text += [f"### {title.capitalize()}: {count} cells", verdicts(runs, methods)]
        text += ["Cells of each data set and net in which all three seeds of a rule have run:"]
        text += [rows_there(runs, half, methods)]
        text += ["Against training on all the data instead of random:"]
        text += [verdicts(runs, ("random", *selections), "full")]
        for name, parts in (
            ("By damage", parts_of("damage", {d: KIND[d] for d in DAMAGE})),
            ("By prune ratio", parts_of("ratio", {str(r): str(r) for r in sorted(RATIOS)})),
            ("By budget", parts_of("budget", {"epochs": "passes", "400": "400", "1600": "1,600"})),
            ("By net", parts_of("net", {n: f"{n} net" for n in NETS})),
        ):
            text += [f"{name}, mean and (lowest cell):", by_part(runs, methods, parts)]
        text += ["Cells in which every selection is at or below random:"]
        text += [losing(runs, selections)]
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="make the tables, write no page")
    if parser.parse_args().quick:
        assert "confirmation half" in tables(CSV).lower()
        return
    found = tables(CSV)
    print(found)
    print(f"\nworst cells of {DEFAULT}:")
    for half in HALVES:
        worst = sorted(differences(read(CSV, half), DEFAULT).items(), key=lambda item: item[1])[:5]
        for cell, (mean, low, high) in worst:
            print(half, *cell, f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
    replace_between(PAGE, "grid", found)


if __name__ == "__main__":
    main()
