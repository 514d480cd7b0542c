"""What all experiments share: folders, result files that resume, Fashion-MNIST and figures.

One style holds for every figure, and a method has one colour on all pages (``color``).
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
FIGURES = ROOT / "docs" / "figures"
# Where Debian's package dataset-fashion-mnist puts the four IDX files.
FASHION = Path("/usr/share/datasets/fashion-mnist")

Row = Mapping[str, Any]


# --- result files


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: Sequence[Row], fields: Sequence[str] | None = None) -> None:
    """Add finished rows at once, so that an interrupted program goes on where it stopped.

    Args:
        path: The CSV file; made, with its header, if it is not there.
        rows: Some rows with the same keys.
        fields: Order of the columns (default: that of the first row).
    """
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(fields or rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({k: short(v) for k, v in row.items()} for row in rows)


def write(path: Path, rows: Sequence[Row], fields: Sequence[str] | None = None) -> None:
    """Replace a CSV file by these rows."""
    path.unlink(missing_ok=True)
    append(path, rows, fields)


def short(value: Any) -> Any:
    """A number with six digits, still a number; anything else as it is.

    Written as str() writes it, so that a program finds its own runs again by their settings.
    """
    return float(f"{value:.6g}") if isinstance(value, float) else value


def replace_between(page: Path, name: str, text: str) -> None:
    """Put a generated text between the two markers of that name on a page.

    Raises:
        ValueError: If the page lacks the markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = page.read_text()
    if begin not in whole or end not in whole:
        raise ValueError(f"{page} must hold the markers {begin!r} and {end!r}")
    before, rest = whole.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def lines(head: str, rows: list[list[str]], right: int = 0) -> str:
    """A Markdown table; ``right`` columns from the end are set to the right."""
    count = head.count("|") - 1
    rule = "|---" * (count - right) + "|---:" * right + "|"
    return "\n".join([head, rule, *(f"| {' | '.join(row)} |" for row in rows)])


def ranged(values: list[float], digits: int) -> str:
    """Mean, lowest and highest."""
    low, high = min(values), max(values)
    return f"{fmean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def command_line(text: str | None, own: Path) -> argparse.ArgumentParser:
    """The options of a program that runs what its CSV lacks, then rewrites tables of a page."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, default=own, help="another file leaves the page alone")
    parser.add_argument("--report", action="store_true", help="the tables alone")
    parser.add_argument("--quick", action="store_true", help="seconds, assertions, no files")
    return parser


def show(found: str, page: Path, name: str, write: bool = True) -> None:
    """Print a table, and put it between its markers on a page."""
    print(found)
    if write:
        replace_between(page, name, found)


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error; the error of one value is nan."""
    numbers = list(values)
    error = stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("nan")
    return fmean(numbers), error


# --- data


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (gzipped) as an array: four bytes of magic, one big-endian size per dimension."""
    raw = gzip.decompress(path.read_bytes())
    ndim = raw[3]
    shape = tuple(np.frombuffer(raw, ">i4", ndim, 4))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def fashion_mnist(split: str, folder: Path = FASHION) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (n, 28, 28), and labels, int64 (n,), of "train" or "t10k"."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing: apt-get install dataset-fashion-mnist")
    images, labels = (
        read_idx(folder / f"{split}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    return images, labels.astype(np.int64)


# --- figures

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY, BLACK, GRAY = "#56B4E9", "#000000", "#808080"
# Colours that stay apart in gray and for colour-blind readers; one for each method on all pages.
COLORS = {
    "AdamW": ORANGE,
    "Muon": PURPLE,
    "SpecGD": BLUE,
    "torch.optim.Muon": SKY,
    "GD": RED,
    "coupled": GREEN,
    "smoothed": GREEN,
    "theory": BLACK,
    "random": GRAY,
    "default": BLUE,
    "DUAL + Beta": PURPLE,
    "DUAL + Beta, auto, per class": RED,
    "DUAL top-k": "#882255",
    "Dyn-Unc": ORANGE,
    "EL2N": GREEN,
    "CCS": SKY,
    "AUM": "#999933",
    "forgetting": BLACK,
    "cold": BLACK,
    "warm": RED,
    "nothing": RED,
    "ideal": SKY,
    "DASH": BLUE,
    "DASH, shuffled factors": SKY,
    "DASH, wrong sign": PURPLE,
    "uniform": GREEN,
    "uniform, DASH's norms": GREEN,
}
DEPTHS = {2: BLUE, 3: RED, 4: GREEN, 5: ORANGE, 6: SKY, 10: PURPLE}
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 130,
    "svg.hashsalt": "torch-specgd",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def pyplot() -> Any:
    """matplotlib.pyplot, without a screen, in the style of all figures."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure: Any, name: str) -> None:
    """Write docs/figures/NAME.svg and NAME.png, the same bytes for the same figure."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    figure.savefig(FIGURES / f"{name}.png", metadata={"Software": None})
