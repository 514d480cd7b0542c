"""The figures of a SpectrumTracker: one matrix mode by mode, or many by median and range."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specgd_common.optional import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .tracker import SpectrumTracker


def plot_spectrum(
    tracker: "SpectrumTracker", name: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw one matrix's singular values over the steps, or the median and range of many.

    Args:
        tracker: With at least one record.
        name: A recorded name; or a pattern of names; None: all adapters, or without adapters all
            weights.
        ax: Axes to draw into. None makes a figure, of many with a second panel: their spread.

    Returns:
        The axes; of two panels the upper one.

    Raises:
        ValueError: If nothing was recorded, or nothing of that name.
    """
    plt = needed("matplotlib.pyplot", "plot")
    if not tracker.records:
        raise ValueError("nothing recorded yet: call update() or record() first")
    names = _chosen(tracker, name)
    if len(names) == 1:
        ax = ax or plt.subplots(figsize=(7, 4.2), layout="constrained")[1]
        return _draw_modes(tracker, names[0], ax, plt.get_cmap("viridis"))
    if ax is None:
        panels = plt.subplots(
            2, 1, sharex=True, figsize=(7, 6), layout="constrained", height_ratios=(3, 2)
        )[1]
        _draw_spread(tracker, names, panels[1])
        _draw_growth(tracker, names, panels[0]).set_xlabel("")
        return panels[0]
    return _draw_growth(tracker, names, ax)


def _chosen(tracker: "SpectrumTracker", name: Any) -> list[str]:
    """Return the recorded names that a name, a pattern or None stands for."""
    recorded = tracker.names()
    if name is None:
        adapters = {r["name"] for r in tracker.records if r["kind"] == "lora"}
        return [n for n in recorded if n in adapters] or recorded
    if name in recorded:
        return [name]
    chosen = [n for n in recorded if isinstance(name, str) and fnmatchcase(n, name)]
    if not chosen:
        more = ", ..." if len(recorded) > 5 else ""
        raise ValueError(
            f"name must be a recorded one or a pattern of such, got {str(name)!r:.80}; recorded "
            f"are {', '.join(recorded[:5])}{more}. A file is written by "
            "plot().figure.savefig(path)"
        )
    return chosen


def _draw_modes(tracker: "SpectrumTracker", name: str, ax: "Axes", colormap: Any) -> "Axes":
    """Draw the square root of every singular value.

    With a known target it is sqrt(d_i) instead (equal growth makes the sorted singular values
    of the product nearly equal, so they cannot be told apart early on), a dashed line at
    each target, and a marker where theory predicts that the mode arrives.
    """
    known = name in tracker.targets
    steps, values = tracker.history(name, "modes" if known else "singular_values")
    goals = torch.linalg.svdvals(tracker.targets[name].double()).cpu() if known else None
    colors = colormap(torch.linspace(0, 0.9, values.shape[1]).tolist())
    for i, color in enumerate(colors):
        label = f"$\\sigma_{{{i + 1}}}^*$ = {goals[i]:.3g}" if goals is not None else None
        ax.plot(steps, values[:, i].clamp(min=0).sqrt(), color=color, label=label)
        if goals is not None:
            ax.axhline(float(goals[i].sqrt()), color=color, linestyle="--", linewidth=0.8)
    if goals is not None and name in tracker.pairs and tracker.optimizer is not None:
        hits = tracker.predicted_hits(name)[: values.shape[1]]
        ax.plot(hits, goals[: len(hits)].sqrt(), "kx", label="predicted hit")
    quantity = r"$\sqrt{u_i^\top W v_i}$" if known else r"$\sqrt{\sigma_i}$"
    ax.set(xlabel="step", ylabel=quantity, title=name)
    if goals is not None:
        ax.legend(fontsize="small")
    return ax


def _draw_growth(tracker: "SpectrumTracker", names: Sequence[str], ax: "Axes") -> "Axes":
    """Draw sqrt(sigma) of each matrix's largest, middle and smallest singular value."""
    for label, color, place in (
        ("largest", "tab:blue", lambda sigma: sigma[0]),
        ("middle", "tab:green", lambda sigma: sigma[len(sigma) // 2]),
        ("smallest", "tab:orange", lambda sigma: sigma[-1]),
    ):
        values = _over_steps(tracker, names, lambda r, at=place: at(r["singular_values"]) ** 0.5)
        _draw_band(ax, values, rf"{label} $\sqrt{{\sigma}}$", color)
    kinds = {r["kind"] for r in tracker.records if r["name"] in set(names)}
    what = "adapters" if kinds == {"lora"} else "matrices"
    title = f"{len(names)} {what}: median, and range over them"
    ax.set(xlabel="step", ylabel=r"growth: $\sqrt{\sigma}$", title=title, ylim=(0, None))
    ax.legend(fontsize="small")
    return ax


def _draw_spread(tracker: "SpectrumTracker", names: Sequence[str], ax: "Axes") -> None:
    """Draw how far each matrix's singular values lie apart: 1 where all are equal."""
    values = _over_steps(tracker, names, lambda record: record["sigma_ratio"])
    _draw_band(ax, values, "smallest / largest $\\sigma$", "tab:purple")
    ax.set(xlabel="step", ylabel=r"spread: $\sigma_r / \sigma_1$", ylim=(0, 1.05))
    ax.legend(fontsize="small")


def _over_steps(
    tracker: "SpectrumTracker", names: Sequence[str], quantity: Any
) -> dict[int, Tensor]:
    """Return the quantity's values by step, one for each matrix that was recorded there."""
    wanted, values = set(names), dict[int, list[float]]()
    for record in tracker.records:
        if record["name"] in wanted:
            values.setdefault(record["step"], []).append(quantity(record))
    return {step: torch.tensor(xs, dtype=torch.float64) for step, xs in sorted(values.items())}


def _draw_band(ax: "Axes", values: dict[int, Tensor], label: str, color: str) -> None:
    steps = list(values)
    low, median, high = (
        [float(torch.quantile(x, at)) for x in values.values()] for at in (0.0, 0.5, 1.0)
    )
    marker = "o" if len(steps) == 1 else None
    change = f"{label}: {median[0]:.3g} to {median[-1]:.3g}"
    ax.plot(steps, median, color=color, label=change, marker=marker)
    ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
