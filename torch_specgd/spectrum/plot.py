"""The figure of a SpectrumTracker."""

from typing import TYPE_CHECKING

import torch

from specgd_common.optional import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .tracker import SpectrumTracker


def plot_spectrum(
    tracker: "SpectrumTracker", name: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the square root of every singular value over the steps.

    With a known target it draws sqrt(d_i) instead (equal growth makes the sorted singular values
    of the product nearly equal, so they cannot be told apart early on), a dashed line at
    each target, and a marker where theory predicts that the mode arrives.

    Args:
        tracker: With at least one record.
        name: What to draw (default: the first thing recorded).
        ax: Axes to draw into (default: a new figure's).

    Returns:
        The axes.

    Raises:
        ValueError: If nothing was recorded.
    """
    plt = needed("matplotlib.pyplot", "plot")
    if not tracker.records:
        raise ValueError("nothing recorded yet: call update() or record() first")
    name = tracker.names()[0] if name is None else name
    known = name in tracker.targets
    steps, values = tracker.history(name, "modes" if known else "singular_values")
    if ax is None:
        ax = plt.subplots(figsize=(7, 4.2), layout="constrained")[1]
    goals = torch.linalg.svdvals(tracker.targets[name].double()).cpu() if known else None
    colors = plt.get_cmap("viridis")(torch.linspace(0, 0.9, values.shape[1]).tolist())
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
