"""The quickstart's table and figure."""

from typing import Any

import numpy as np

from real_data import Split

Runs = dict[str, list[dict[str, Any]]]

PARTS = {
    "a.": "next byte of Python's documentation",
    "b.": "pruning, {wrong:.0%} of the labels redrawn",
    "c.": "the last quarter arrives (dot: converged)",
}
# Okabe and Ito's palette: told apart by colour-blind readers, the same on every page of the docs.
COLORS = {"Muon": "#CC79A7", "AdamW": "#E69F00", "by score": "#0072B2", "random": "#808080"}
COLORS |= {"all data": "#000000", "cold start": "#000000", "warm start": "#D55E00"}
COLORS |= {"dash_shrink": "#0072B2", "uniform_shrink": "#009E73"}


def print_table(runs: Runs, settings: dict[str, Any]) -> None:
    """Prints mean and standard deviation over the seeds, one row per run."""
    print(
        f"\n{settings['data']}: {settings['train_examples']} training images, "
        f"{settings['repeats']} seeds from {settings['seed']}, {settings['seconds']} s in all\n"
    )
    print(f"{'':26}{'test accuracy %':>18}{'steps':>9}{'images':>9}{'seconds':>10}")
    for prefix, title in PARTS.items():
        print(f"{prefix} {title.format(**settings)}")
        for name, results in runs.items():
            if name.startswith(prefix):
                print(
                    f"     {name[3:]:21}{spread([100 * r['test_accuracy'] for r in results])}"
                    f"{np.mean([r['steps'] for r in results]):9.0f}"
                    f"{results[0].get('examples', '-'):>9}"
                    f"{np.mean([r['seconds'] for r in results]):10.1f}"
                )
        print("".join(f"     {line}\n" for line in SAID[prefix](runs)), end="")
    print(f"\nfigure: {settings['figure']}")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):10.2f} ± {np.std(values):5.2f}"


def steps_to_the_goal(runs: Runs) -> list[str]:
    """How soon both optimizers reach AdamW's final accuracy for good."""
    pairs = list(zip(runs["a. AdamW"], runs["a. Muon"], strict=True))
    steps = [first_step(muon["curve"], adamw["test_accuracy"]) for adamw, muon in pairs]
    total = pairs[0][0]["steps"]
    reached = [s for s in steps if s is not None]
    if not reached:
        return [f"Muon does not reach AdamW's final accuracy in {total} steps"]
    text = f"Muon reaches AdamW's final accuracy after {np.mean(reached):.0f} of {total} steps"
    missing = len(steps) - len(reached)
    return [text + (f"; not at all in {missing} of {len(steps)} seeds" if missing else "")]


def first_step(curve: list[list[float]], goal: float) -> float | None:
    """Return the first step from which the accuracy stays at the goal or above, None without."""
    below = [i for i, (_, accuracy) in enumerate(curve) if accuracy < goal]
    after = below[-1] + 1 if below else 0
    return curve[after][0] if after < len(curve) else None


def labels_found(runs: Runs) -> list[str]:
    """What became of the wrong labels."""
    lines = []
    for name in ("random", "by score"):
        results = runs[f"b. {name}"]
        if not all(r["wrong"] for r in results):
            return ["no label is wrong"]
        out = [100 * r["wrong_left_out"] / r["wrong"] for r in results]
        kept = [100 * r["wrong_kept_share"] for r in results]
        found = f"{np.mean(out):.0f} ± {np.std(out):.0f} % of the wrong labels"
        lines.append(
            f"{name} leaves out {found}; of what it keeps, {np.mean(kept):.1f} % are wrong"
        )
    return lines


def against_cold(runs: Runs) -> list[str]:
    """What each way of going on gains and saves, seed by seed."""
    cold, lines = runs["c. cold start"], []
    for name in ("warm start", "dash_shrink", "uniform_shrink"):
        pairs = list(zip(runs[f"c. {name}"], cold, strict=True))
        gain = [100 * (r["test_accuracy"] - c["test_accuracy"]) for r, c in pairs]
        share = np.mean([r["steps"] / c["steps"] for r, c in pairs])
        lines.append(
            f"{name}: {np.mean(gain):+.2f} ± {np.std(gain):.2f} points against a cold start, "
            f"in {share:.2f} of its steps"
        )
    return lines


SAID = {"a.": steps_to_the_goal, "b.": labels_found, "c.": against_cold}


def draw_figure(runs: Runs, settings: dict[str, Any], path: str, images: Split) -> None:
    """Draws test accuracy over steps, one panel per part, and the labels that were found.

    ``images`` are those of the first seed, with the labels that part b was given.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[4.2, 1.4])
    for ax, (prefix, title) in zip(above.subplots(1, 3), PARTS.items(), strict=True):
        rows = {n[3:]: r for n, r in runs.items() if n.startswith(prefix)}
        for name, results in rows.items():
            (draw_each if prefix == "c." else draw_mean)(ax, name, results)
        lowest = min(r["curve"][-1][1] for results in rows.values() for r in results)
        highest = max(r["curve"][-1][1] for results in rows.values() for r in results)
        room = max(0.02, highest - lowest)
        ax.set_ylim(100 * max(0, lowest - 1.5 * room), 100 * min(1.005, highest + 0.3 * room))
        ax.set_title(f"{prefix} {title.format(**settings)}", fontsize=10)
        ax.set_xlabel("optimizer steps")
        ax.legend(loc="best" if prefix == "c." else "lower right", frameon=False)
        ax.grid(alpha=0.25)
    above.axes[0].set_ylabel("test accuracy, %")
    draw_least_believed(below, runs["b. by score"][0]["least_believed"], images)
    figure.suptitle(f"torch-specgd quickstart on {settings['data']}: mean and range over seeds")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_least_believed(figure: Any, indices: list[int], images: Split) -> None:
    """The images of part b that were left out and whose labels are least believed."""
    figure.suptitle(
        "b. left out, labels least believed: the label that each was given", fontsize=10
    )
    for ax, index in zip(figure.subplots(1, 12), indices, strict=False):
        picture = images.train_x[index].permute(1, 2, 0).numpy()
        picture = (picture - picture.min()) / max(float(np.ptp(picture)), 1e-6)
        ax.imshow(picture.squeeze(), cmap="gray_r")
        ax.set_title(f'"{int(images.train_y[index])}"', fontsize=10)
    for ax in figure.axes:
        ax.axis("off")


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
        label = name if i == 0 else None
        ax.plot(steps, 100 * accuracy, color=COLORS[name], lw=1, alpha=0.7)
        ax.plot(steps[-1:], 100 * accuracy[-1:], "o", color=COLORS[name], ms=6, label=label)
