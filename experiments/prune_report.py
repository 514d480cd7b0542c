"""The report page of a selection as a browser shows it: docs/figures/prune_report.png.

4,000 images of Fashion-MNIST, a fifth of the labels redrawn, ten scoring epochs of the small conv
net, 70 % pruned by the default.

    python experiments/prune_report.py           # needs chromium
    python experiments/prune_report.py --quick   # the page of the digits, no picture
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from bed import FIGURES
from prune_bed import load, score

from data_prune.report.page import build_report

WIDTH, HEIGHT = 1280, 1780
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
           "Ankle boot")  # fmt: skip


def page(name: str) -> str:
    """The report on a fifth of the labels redrawn."""
    data = load(name, "redrawn", 0)
    title = {"fashion": "Fashion-MNIST", "digits": "Digits"}[name]
    table = score(name, data, 0)
    if name == "fashion":
        table.meta["label_names"] = list(CLASSES)
    return build_report(
        table,
        0.7,
        title=f"{title}, a fifth of the labels redrawn",
        data=list(zip(data.x, data.y.tolist(), strict=True)),
    )


def picture(html: str, path: Path) -> None:
    """Write what a browser shows of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium on the path: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(html)
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/u"]
        options += [f"--screenshot={path}", f"--window-size={WIDTH},{HEIGHT}", file.as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the digits, no picture")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    html = page("digits" if quick else "fashion")
    assert html.count("<img") > 3 or html.count("<svg") > 3, len(html)
    if not quick:
        picture(html, FIGURES / "prune_report.png")


if __name__ == "__main__":
    main()
