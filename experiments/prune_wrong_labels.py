"""How well likely wrong labels are ranked, beside cleanlab on the same predictions.

    python experiments/prune_wrong_labels.py

Trains for ten epochs on digits and on 4,000 images of Fashion-MNIST with a fifth of the labels
redrawn (and, second, moved to one other class), records, and prints the precision at the true
number of wrong labels: the share of them among that many first places. cleanlab ranks the same
examples by the mean softmax of the same ten epochs; without it (pip install cleanlab) its columns
are empty. Nothing of the package depends on it.
"""

from __future__ import annotations

import argparse
import importlib
import statistics

import numpy as np
import torch
from prune_bed import EPOCHS, SCORE_EPOCHS, WINDOW, Trainer, load

from data_prune import DualTracker, ScoreTable, wrong_labels

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
    """Print one row for each data set and damage: mean and range over the seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one recording, assertions")
    torch.set_num_threads(1)
    if parser.parse_args().quick:
        table, _, wrong = record("digits", "redrawn", 0)
        assert precision(wrong_labels(table, len(table)).rows, wrong) > 60
        return
    try:
        quality = importlib.import_module("cleanlab.rank").get_label_quality_scores
    except ImportError:
        quality = None
    print(
        "| data | labels | wrong | ours | " + " | ".join(f"cleanlab, {m}" for m in CLEANLAB) + " |"
    )
    print("|---" * (4 + len(CLEANLAB)) + "|")
    for name in ("digits", "fashion"):
        for damage in ("redrawn", "confused"):
            found: dict[str, list[float]] = {}
            count = []
            for seed in SEEDS:
                table, softmax, wrong = record(name, damage, seed)
                count.append(int(wrong.sum()))
                rows = wrong_labels(table, len(table)).rows
                found.setdefault("ours", []).append(precision(rows, wrong))
                for method in CLEANLAB if quality else ():
                    ranked = np.argsort(quality(table.label, softmax, method=method))
                    found.setdefault(method, []).append(precision(ranked, wrong))
            cells = [
                f"{statistics.mean(found[m]):.1f} ({min(found[m]):.1f} to {max(found[m]):.1f})"
                if m in found
                else ""
                for m in ("ours", *CLEANLAB)
            ]
            print(f"| {name} | {damage} | {min(count)} to {max(count)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
