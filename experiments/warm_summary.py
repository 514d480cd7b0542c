"""Expanding chunks, read back: tables, figure, and what held in all runs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

Group = dict[tuple[str, str], dict[str, dict[int, dict[str, str]]]]


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def groups(rows: list[dict[str, str]]) -> dict[tuple[str, str, str], Group]:
    """(purpose, net, lr) -> (method, floor) -> seed -> chunk -> row."""
    out: dict[tuple[str, str, str], Group] = {}
    for r in rows:
        group = out.setdefault((r["purpose"], r["net"], r["lr"]), {})
        runs = group.setdefault((r["method"], r["floor"]), {})
        runs.setdefault(r["seed"], {})[int(r["chunk"])] = r
    return out


def at(runs: dict[str, dict[int, dict[str, str]]], chunk: int, column: str) -> np.ndarray:
    return np.array([float(runs[seed][chunk][column]) for seed in sorted(runs, key=int)])


def label(method: str, floor: str) -> str:
    """A method with its floor, if it has one."""
    if floor in ("1.0", "auto"):
        return method if floor == "1.0" else f"{method} auto"
    return f"{method} {float(floor):.3g}"


def lines_of(group: Group, chunk: int) -> list[str]:
    """One line per method: accuracy and steps at the last chunk and on average, mean of seeds."""
    out = []
    for (method, floor), runs in group.items():
        last, steps = at(runs, chunk, "test_accuracy"), at(runs, chunk, "steps")
        chunks = range(1, chunk + 1)
        mean = np.mean([at(runs, k, "test_accuracy") for k in chunks])
        mean_steps = np.mean([at(runs, k, "steps") for k in chunks])
        name = label(method, floor)
        out.append(
            f"| {name} | {len(runs)} | {last.mean():.1f} ({'/'.join(f'{v:.1f}' for v in last)}) "
            f"| {mean:.1f} | {steps.mean():.0f} | {mean_steps:.0f} |"
        )
    return out


def summary(path: Path, figure: Path) -> None:
    """Markdown tables of every group, the figure, and what held in all of our runs."""
    everything = groups(read(path))
    for (purpose, net, lr), group in everything.items():
        chunk = min(max(run) for runs in group.values() for run in runs.values())
        print(f"\n**{purpose}: net {net}, lr {lr}, {500 * chunk} examples at the end**\n")
        print("| method, floor | seeds | test % | mean over chunks | steps | mean steps |")
        print("|---|---|---|---|---|---|")
        print("\n".join(lines_of(group, chunk)))
    check(everything.get(("grid", "norm", "0.01"), {}))
    check_auto(everything)
    plot(everything, figure)


def check(group: Group) -> None:
    """The ordering on the normalized net at the small learning rate, after 2,000 examples."""
    cold, warm, dash_runs = (
        group.get(k) for k in (("cold", "1.0"), ("warm", "1.0"), ("DASH", "0.3"))
    )
    if cold is None or warm is None or dash_runs is None or len(cold) < 3:
        print("\nfewer than three seeds: nothing asserted")
        return
    accuracy = [at(runs, 4, "test_accuracy") for runs in (cold, warm, dash_runs)]
    steps = [at(runs, 4, "steps").mean() for runs in (cold, warm, dash_runs)]
    assert accuracy[1].mean() + 2 < accuracy[0].mean(), accuracy
    assert accuracy[2].mean() >= accuracy[0].mean(), accuracy
    assert steps[2] < 0.6 * steps[0], steps
    assert steps[1] < steps[2], steps
    print("\nheld: warm + 2 < cold, DASH >= cold, steps(warm) < steps(DASH) < 0.6 steps(cold)")


def check_auto(everything: dict[tuple[str, str, str], Group]) -> None:
    """``floor="auto"`` on nets and seeds that it was not chosen on: accuracy and steps of both."""
    for (purpose, net, _), group in everything.items():
        cold, auto = group.get(("cold", "1.0")), group.get(("DASH", "auto"))
        if purpose != "confirm" or cold is None or auto is None or len(auto) < 3:
            continue
        seeds = sorted(cold.keys() & auto.keys())
        cold, auto = ({s: runs[s] for s in seeds} for runs in (cold, auto))
        accuracy = [at(runs, 4, "test_accuracy").mean() for runs in (cold, auto)]
        steps = [at(runs, 4, "steps").mean() for runs in (cold, auto)]
        assert accuracy[1] >= accuracy[0], (net, accuracy)
        assert steps[1] < 0.5 * steps[0], (net, steps)
        print(f"held on {net}, {len(seeds)} seeds: auto >= cold, steps(auto) < 0.5 steps(cold)")


PANELS = 4  # side by side; more go below


def plot(everything: dict[tuple[str, str, str], Group], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = {k: g for k, g in everything.items() if k[0] not in ("explore", "ablation", "tune")}
    blocks = -(-len(shown) // PANELS)
    figure = Figure(figsize=(4.2 * PANELS, 6.5 * blocks), layout="constrained")
    axes = figure.subplots(2 * blocks, PANELS, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    names = list(dict.fromkeys(m for g in shown.values() for m, _ in g))
    for panel, ((purpose, net, lr), group) in enumerate(shown.items()):
        block, column = divmod(panel, PANELS)
        for row, quantity in enumerate(("test_accuracy", "steps")):
            axis = axes[2 * block + row][column]
            axis.set_visible(True)
            chunks = range(1, min(max(run) for g in group.values() for run in g.values()) + 1)
            drawn: list[str] = []
            for (method, floor), runs in group.items():
                # A second floor of a method has its color, and crosses.
                marker = "x" if method in drawn else "."
                drawn.append(method)
                y = [at(runs, k, quantity).mean() for k in chunks]
                style = "-" if method in ("cold", "warm", "DASH") else ":"
                axis.plot([500 * k for k in chunks], y, style, marker=marker,
                          label=label(method, floor), color=f"C{names.index(method)}")  # fmt: skip
            axis.set(xlabel="examples seen", ylabel=quantity.replace("_", " "),
                     title=f"{purpose}: {net}, lr {lr}" if row == 0 else "")  # fmt: skip
            axis.grid(alpha=0.3)
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8, frameon=False
        )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
