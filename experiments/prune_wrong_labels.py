"""How well likely wrong labels are ranked, beside cleanlab on the same predictions.

    python experiments/prune_wrong_labels.py           # under a minute; the page's CSV
    python experiments/prune_wrong_labels.py --quick   # one recording, assertions

Trains for ten epochs on digits and on 4,000 images of Fashion-MNIST with a fifth of the labels
redrawn (and, second, moved to one other class), records, and takes the precision at the true
number of wrong labels: the share of them among that many first places. cleanlab (pip install
cleanlab) ranks the same examples by the mean softmax of the same ten epochs. Nothing of the package
depends on it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
from importlib.util import find_spec

import numpy as np
import torch
from bed import RESULTS, write
from prune_bed import EPOCHS, SCORE_EPOCHS, WINDOW, Trainer, load

from data_prune import DualTracker, ScoreTable, wrong_labels

CSV = RESULTS / "prune_wrong_labels.csv"
SEEDS = (0, 1, 2)
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def record(name: str, damage: str, seed: int) -> tuple[ScoreTable, np.ndarray, np.ndarray]:
    """Return the table, the mean softmax of each example, and which labels are wrong."""
    data = load(name, damage, seed)
    count = len(data.y)
    steps = EPOCHS[name] * -(-count // 64)
    trainer = Trainer(name, "own", data, torch.arange(count)[None], steps, seed)
    tracker = DualTracker(count, epochs=SCORE_EPOCHS, window=WINDOW)
    total, seen = torch.zeros(count, trainer.classes), torch.zeros(count)
    for _ in range(SCORE_EPOCHS):
        for index, logits in trainer.epoch():
            tracker.update(index[0], logits[0], data.y[index[0]])
            total[index[0]] += logits[0].softmax(-1)
            seen[index[0]] += 1
        tracker.end_epoch()
    return tracker.table(), (total / seen[:, None]).numpy(), data.damaged.numpy()


def precision(ranked: np.ndarray, wrong: np.ndarray) -> float:
    """Return the share of wrong labels among as many first places as there are wrong labels."""
    return 100 * float(wrong[ranked[: wrong.sum()]].mean())


def main() -> None:
    """Write a row for each data set, damage, seed and ranking."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one recording, assertions")
    torch.set_num_threads(1)
    if parser.parse_args().quick:
        table, _, wrong = record("digits", "redrawn", 0)
        assert precision(wrong_labels(table, len(table)).rows, wrong) > 60
        return
    if find_spec("cleanlab") is None:
        print("cleanlab is missing, nothing is run: pip install cleanlab")
        return
    quality = importlib.import_module("cleanlab.rank").get_label_quality_scores
    found = []
    for name, damage, seed in itertools.product(
        ("digits", "fashion"), ("redrawn", "confused"), SEEDS
    ):
        table, softmax, wrong = record(name, damage, seed)
        ranked = {"ours": wrong_labels(table, len(table)).rows}
        for method in CLEANLAB:
            scores = quality(table.label, softmax, method=method)
            ranked[f"cleanlab, {method}"] = np.argsort(scores)
        head = {"data": name, "labels": damage, "seed": seed, "wrong": int(wrong.sum())}
        found += [
            {**head, "method": m, "precision": precision(r, wrong)} for m, r in ranked.items()
        ]
        print(*head.values(), flush=True)
    write(CSV, found)


if __name__ == "__main__":
    main()
