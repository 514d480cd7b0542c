"""A score table and a selection -> the report's figures, as inline PNG, and what they say."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.optional import needed

from ..score.table import ScoreTable

# Okabe and Ito's colours: they stay apart for colour-blind readers.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8a8a8a"


# More classes than this make bars that nobody can tell apart: then each class is a dot.
MAX_BARS = 120
# Names of classes that fit below their bars, and letters of each that leave room for the bars.
MAX_NAMES, MAX_LETTERS = 30, 16


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many letters, without its middle where it is longer.

    Example:
        >>> shortened("a long name of a class", 12)
        'a long…class'
    """
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[len(text) + 1 + most // 2 - most :]


def inline_png(draw: Any, alt: str, width: float = 4.8, height: float = 3.2) -> str:
    """Return an inline PNG of what ``draw(axes)`` draws.

    Args:
        draw: Called with the axes.
        alt: What the figure says, for who does not see it.
        width: In inches.
        height: In inches.
    """
    canvas = needed("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg
    figure = needed("matplotlib.figure", "plot").Figure(
        figsize=(width, height), dpi=200, layout="constrained"
    )
    canvas(figure)
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return image_tag(buffer.getvalue(), alt)


def image_tag(png: bytes, alt: str, more: str = "") -> str:
    """Return the HTML of an image that lies inside the page."""
    data = base64.b64encode(png).decode()
    return f'<img{more} alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def quartiles(values: NDArray) -> str:
    """Return the middle half of some numbers in words."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return "unknown"
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    return f"{middle:.3g} (middle half {low:.3g} to {high:.3g})"


def say_map(table: ScoreTable, kept: NDArray[np.int64]) -> str:
    """Say what ``draw_map`` draws."""
    return (
        f"Map of {len(table):,} examples by mean probability of the label and DUAL score. "
        f"All: median probability {quartiles(table.mean_prob)}, median score "
        f"{quartiles(table.score)}. The {len(kept):,} kept: median probability "
        f"{quartiles(table.mean_prob[kept])}, median score {quartiles(table.score[kept])}."
    )


def say_beta(table: ScoreTable, kept: NDArray[np.int64], settings: dict[str, Any]) -> str:
    """Say what ``draw_beta`` draws."""
    said = (
        f"Histograms of the mean probability. All: median {quartiles(table.mean_prob)}. Kept: "
        f"median {quartiles(table.mean_prob[kept])}."
    )
    if "alpha" in settings:
        a, b = settings["alpha"], settings["beta"]
        said += f" The Beta density with parameters {a:.3g} and {b:.3g} has its mean at "
        said += f"{a / (a + b):.3g}; mu_D is {settings['mu_d']:.3g}."
    return said


def say_classes(classes: list[dict[str, Any]], target: float) -> str:
    """Say what ``draw_classes`` draws."""
    ordered = sorted(classes, key=lambda c: c["share"])
    least, most = ordered[0], ordered[-1]
    empty = sum(c["kept"] == 0 for c in classes)
    said = (
        f"Share kept of {len(classes):,} classes; {target:.1%} of all examples. Least: class "
        f"{least['label']} with {least['kept']:,} of {least['examples']:,}. Most: class "
        f"{most['label']} with {most['kept']:,} of {most['examples']:,}."
    )
    return said + (f" {empty:,} classes are empty." if empty else " No class is empty.")


def _legend_above(axes: Any, **options: Any) -> None:
    """Put the legend outside, where it hides no data."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, **options)


def draw_map(axes: Any, table: ScoreTable, kept: NDArray[np.int64]) -> None:
    """Draw all examples as density, a sample of the kept ones as dots."""
    known = ~np.isnan(table.score) & ~np.isnan(table.mean_prob)
    density, xs, ys = np.histogram2d(table.mean_prob[known], table.score[known], bins=80)
    density = np.ma.log10(density.T)  # cells without examples are masked
    mesh = axes.pcolormesh(xs, ys, density, cmap="Greys", vmin=-0.5, rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label="all examples, log10 of the count", pad=0.01)
    some = kept[:: max(1, len(kept) // 1500)]
    axes.plot(
        table.mean_prob[some], table.score[some], ".", ms=2.5, alpha=0.6, color=ORANGE,
        label=f"kept ({len(some):,} of {len(kept):,} shown)",
    )  # fmt: skip
    axes.set(xlabel="mean probability of the label", ylabel="DUAL score", xlim=(-0.01, 1.01))
    _legend_above(axes, markerscale=3)


def draw_beta(
    axes: Any, table: ScoreTable, kept: NDArray[np.int64], settings: dict[str, Any]
) -> None:
    """Draw histograms of the mean probability, and the Beta density that favours some of it."""
    bins = np.linspace(0, 1, 51)
    share = {"density": True, "bins": bins}
    p, mine = (values[~np.isnan(values)] for values in (table.mean_prob, table.mean_prob[kept]))
    if len(p):
        axes.hist(p, color=GREY, alpha=0.5, label="all examples", **share)
    if len(mine):
        axes.hist(mine, histtype="step", color=ORANGE, lw=1.8, label="kept", **share)
    if "alpha" in settings:
        from math import exp, lgamma

        a, b = settings["alpha"], settings["beta"]
        x = np.linspace(0.002, 0.998, 400)
        log_norm = lgamma(a + b) - lgamma(a) - lgamma(b)
        y = np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)) * exp(log_norm)
        axes.plot(x, y, color=BLUE, lw=2, label=f"Beta({a:.2f}, {b:.2f})")
        axes.axvline(settings["mu_d"], color=BLUE, ls=":", label=f"mu_D = {settings['mu_d']:.2f}")
    axes.set(xlabel="mean probability of the label", ylabel="density", xlim=(0, 1))
    axes.set_ylim(top=1.05 * min(axes.get_ylim()[1], 12))
    if axes.get_legend_handles_labels()[0]:
        _legend_above(axes, ncols=2, fontsize=8)


def draw_classes(axes: Any, classes: list[dict[str, Any]], target: float) -> None:
    """Draw the share kept of each class: bars, or dots over the size where classes are many.

    Empty classes stand out, and so do those with too few examples to be at the common share.
    """
    shares = np.array([c["share"] for c in classes])
    kept = np.array([c["kept"] for c in classes])
    sizes = np.array([c["examples"] for c in classes])
    rare = (sizes * target < 1) & (kept > 0)
    kinds = (
        (kept == 0, ORANGE, "empty"),
        (rare, GREY, "fewer examples than its share needs"),
        ((kept > 0) & ~rare, BLUE, "class"),
    )
    at = np.arange(len(classes)) if len(classes) <= MAX_BARS else sizes
    for some, colour, name in kinds:
        if not some.any():
            continue
        name = f"{name} ({some.sum():,})"
        if len(classes) <= MAX_BARS:
            axes.bar(at[some], shares[some], color=colour, width=0.8, label=name)
        else:
            axes.plot(at[some], shares[some], "o", ms=3, alpha=0.6, color=colour, label=name)
    axes.axhline(target, color="black", lw=1, ls="--", label=f"whole data set: {target:.1%}")
    if len(classes) > MAX_BARS:
        axes.set_xscale("log")
    for i in np.flatnonzero(kept == 0) if len(classes) <= MAX_BARS else ():
        axes.text(i, 0, "empty", rotation=90, ha="center", va="bottom", color=ORANGE)
    if len(classes) <= MAX_NAMES:
        names = [shortened(str(c["label"]), MAX_LETTERS) for c in classes]
        turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(len(classes)), names, **turned)
    axes.set(xlabel="class" if len(classes) <= MAX_BARS else "examples of the class")
    axes.set(ylabel="share kept", ylim=(-0.02 * max(shares.max(), target), None))
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    _legend_above(axes, ncols=2, fontsize=8)
