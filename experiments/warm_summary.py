"""Expanding chunks, read back: tables, figure, and what held in all runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bed import COLORS, pyplot, read, save_figure

Group = dict[tuple[str, str], dict[str, dict[int, dict[str, str]]]]


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


def tables(rows: list[dict[str, str]]) -> str:
    """Markdown tables of every group."""
    out: list[str] = []
    for (purpose, net, lr), group in groups(rows).items():
        chunk = min(max(run) for runs in group.values() for run in runs.values())
        out.append(f"\n**{purpose}: net {net}, lr {lr}, {500 * chunk} examples at the end**\n")
        out.append("| method, floor | seeds | test % | mean over chunks | steps | mean steps |")
        out.append("|---|---|---|---|---|---|")
        out += lines_of(group, chunk)
    return "\n".join(out).strip()


def summary(path: Path, figure: str) -> None:
    """Print the tables, draw the figure, and assert what held in all of our runs."""
    rows = read(path)
    everything = groups(rows)
    print(tables(rows))
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


# What the figure shows, by the names that it prints; everything else stands in the tables.
SHOWN = {
    "cold": "cold start",
    "warm": "warm start",
    "uniform": "uniform shrink",
    "DASH": "DASH",
    "DASH, shuffled factors": "DASH, factors shuffled",
}
NETS = {
    ("grid", "norm", "0.01"): ("BatchNorm, lr 0.01, floor 0.3", "0.3"),
    ("grid", "plain", "0.03"): ("no normalization, lr 0.03, floor 0.7", "0.7"),
}


def plot(everything: dict[tuple[str, str, str], Group], name: str) -> None:
    """Draw accuracy and steps over the chunks for two nets, with standard errors."""
    shown = {k: g for k, g in everything.items() if k in NETS} or everything
    size = (5 * len(shown), 6.5)
    figure, axes = pyplot().subplots(2, len(shown), squeeze=False, sharex=True, figsize=size)
    for column, (key, group) in zip(axes.T, shown.items(), strict=True):
        title, floor = NETS.get(key, (" ".join(key), "1.0"))
        chunks = range(1, min(max(run) for g in group.values() for run in g.values()) + 1)
        for (method, own), runs in group.items():
            if method not in SHOWN or own not in (floor, "1.0"):
                continue
            for axis, quantity in zip(column, ("test_accuracy", "steps"), strict=True):
                values = [at(runs, k, quantity) for k in chunks]
                error = [v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
                axis.errorbar([500 * k for k in chunks], [v.mean() for v in values], error,
                              marker=".", capsize=2, label=SHOWN[method],
                              color=COLORS[method])  # fmt: skip
        column[0].set_title(title)
        column[1].set_xlabel("examples seen")
        for axis in column:
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy (%)")
    axes[1][0].set_ylabel("steps to 99.9 % train accuracy")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, name)
