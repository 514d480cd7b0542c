"""The quickstart's table and figure."""

from typing import Any

import numpy as np

Runs = dict[str, list[dict[str, Any]]]

PARTS = {
    "a.": "Muon against AdamW, equal steps",
    "b.": "pruning, a fifth of the labels redrawn",
    "c.": "new data arrives, trained to 99.9 % train accuracy",
}
# Okabe and Ito's palette: told apart by colour-blind readers. Blue is what this package adds.
COLORS = {"Muon": "#0072B2", "DUAL": "#0072B2", "dash_shrink": "#0072B2", "AdamW": "#E69F00"}
COLORS |= {"random": "#E69F00", "warm start": "#E69F00", "all data": "#777777"}
COLORS |= {"cold start": "#777777"}


def print_table(runs: Runs, settings: dict[str, Any]) -> None:
    """Prints mean and standard deviation over the seeds, one row per run."""
    print(
        f"\n{settings['data']}: {settings['train_examples']} training images, "
        f"{settings['repeats']} seeds from {settings['seed']}, {settings['seconds']} s in all\n"
    )
    print(f"{'':26}{'test accuracy %':>18}{'steps':>9}{'images':>9}{'seconds':>10}")
    for prefix, title in PARTS.items():
        print(f"{prefix} {title}")
        for name, results in runs.items():
            if name.startswith(prefix):
                accuracy = 100 * np.array([r["test_accuracy"] for r in results])
                print(
                    f"     {name[3:]:21}{accuracy.mean():10.2f} ± {accuracy.std():5.2f}"
                    f"{np.mean([r['steps'] for r in results]):9.0f}"
                    f"{results[0].get('examples', settings['train_examples']):9d}"
                    f"{np.mean([r['seconds'] for r in results]):10.1f}"
                )
    print(f"\nfigure: {settings['figure']}")


def draw_figure(runs: Runs, settings: dict[str, Any], path: str) -> None:
    """Draws test accuracy over steps, one panel per part, mean and range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    for ax, (prefix, title) in zip(axes, PARTS.items(), strict=True):
        rows = {n[3:]: r for n, r in runs.items() if n.startswith(prefix) and n != "c. before"}
        for name, results in rows.items():
            if prefix == "c.":
                draw_each(ax, name, results)
            else:
                draw_mean(ax, name, results)
        if prefix == "c.":
            before = np.mean([r["test_accuracy"] for r in runs["c. before"]])
            ax.axhline(100 * before, ls=":", color="black", lw=1)
            ax.plot([], [], ls=":", color="black", lw=1, label="before the new data")
        ax.set_title(f"{prefix} {title}", fontsize=10)
        ax.set_xlabel("optimizer steps")
        ax.legend(loc="lower right", frameon=False)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("test accuracy, %")
    lowest = min(r["curve"][-1][1] for results in runs.values() for r in results)
    axes[0].set_ylim(max(0, 100 * lowest - 12), 100.5)
    figure.suptitle(
        f"torch-specgd quickstart on {settings['data']}, "
        f"mean and range of {settings['repeats']} seeds"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_mean(ax: Any, name: str, results: list[dict[str, Any]]) -> None:
    """One method at equal steps: the mean as a line, the seeds' range as a band."""
    steps = [point[0] for point in results[0]["curve"]]
    accuracy = 100 * np.array([[point[1] for point in r["curve"]] for r in results])
    ax.plot(steps, accuracy.mean(0), color=COLORS[name], label=name)
    ax.fill_between(steps, accuracy.min(0), accuracy.max(0), color=COLORS[name], alpha=0.15, lw=0)


def draw_each(ax: Any, name: str, results: list[dict[str, Any]]) -> None:
    """One method until convergence: a line for each seed, a dot where it converged."""
    for i, r in enumerate(results):
        steps, accuracy = np.array(r["curve"]).T
        label = f"{name} (dot: converged)" if i == 0 else None
        ax.plot(steps, 100 * accuracy, color=COLORS[name], lw=1, alpha=0.7)
        ax.plot(steps[-1:], 100 * accuracy[-1:], "o", color=COLORS[name], ms=6, label=label)
