"""Wrong labels among the kept examples, by the number of scoring epochs T.

A wrong label that is never learned has a probability near 0 throughout, so little uncertainty and
a low DUAL score. One that is learned late in a long recording has much of both: with T the score
may begin to choose wrong labels. One run of 40 epochs of a 60-epoch schedule feeds a tracker for
each T; nothing is retrained. One CSV; a minute on one thread.

    python experiments/prune_noise_epochs.py
"""

from __future__ import annotations

import argparse

import torch
from bed import RESULTS, write
from prune_fashion_mnist import METHODS, PACKAGED, PEERS, Trainer, load_idx, redraw_labels

from data_prune import DualTracker

EPOCHS = (5, 10, 20, 40)
RATIOS = (0.3, 0.5, 0.7, 0.8, 0.9)
SEEDS = (0, 1, 2)
NAMES = tuple(name for name in METHODS if name != "default")


def wrong_shares(
    seed: int, images: int = 6000, all_epochs: tuple[int, ...] = EPOCHS
) -> list[dict[str, object]]:
    """One scoring run on some images with 20 % of the labels redrawn; a row for each choice."""
    x, clean = (a[:images] for a in load_idx(PACKAGED)[:2])
    y = redraw_labels(clean, 0.2, seed)
    trainer = Trainer(60 * -(-len(x) // 128), seed)
    trackers = [DualTracker(len(x), epochs=t, window=5, peers=PEERS) for t in all_epochs]
    for _ in range(max(all_epochs)):
        for index in torch.randperm(len(x), generator=trainer.g).split(128):
            logits = trainer.step(x[index], y[index])
            for tracker in trackers:
                tracker.update(index, logits, y[index])
        for tracker in trackers:
            tracker.end_epoch()
    wrong = y != clean
    rows = []
    for epochs, tracker in zip(all_epochs, trackers, strict=True):
        table = tracker.table()
        for name in NAMES:
            for r in RATIOS:
                share = float(wrong[table.select(r, **METHODS[name])].float().mean())
                row = {"epochs": epochs, "method": name, "prune_ratio": r, "seed": seed}
                rows.append({**row, "wrong_labels": round(share, 4)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, assertions, no files")
    torch.set_num_threads(1)
    if parser.parse_args().quick:
        rows = wrong_shares(0, 1500, (5,))
        kept = {row["method"]: row["wrong_labels"] for row in rows if row["prune_ratio"] == 0.7}
        assert kept["DUAL + Beta"] < kept["random"] < kept["EL2N"], kept
        return
    rows = [row for seed in SEEDS for row in wrong_shares(seed)]
    write(RESULTS / "prune_noise_epochs.csv", rows)


if __name__ == "__main__":
    main()
