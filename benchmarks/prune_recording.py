"""What recording costs: time of an update beside a training step, memory and files.

    python benchmarks/prune_recording.py step        # share of a ResNet-18 (CIFAR size) step
    python benchmarks/prune_recording.py memory      # bytes for ImageNet-1k
    python benchmarks/prune_recording.py storage     # 1e8 examples in mapped files

Prints JSON lines: device, versions, threads, trials, median. On a shared machine compare CPU
times, which are printed as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from data_prune import DualTracker


class Block(nn.Module):
    """Basic residual block."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(i, o, 3, stride, 1, bias=False),
            nn.Conv2d(o, o, 3, 1, 1, bias=False),
        )
        self.n, self.m = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.skip = (
            nn.Conv2d(i, o, 1, stride, bias=False) if stride != 1 or i != o else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two convolutions and the shortcut."""
        y = torch.relu(self.n(self.a(x)))
        return torch.relu(self.m(self.b(y)) + self.skip(x))


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no pooling, as on CIFAR."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    widths += [(256, 512, 2), (512, 512, 1)]
    blocks = [Block(*w) for w in widths]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(*stem, *blocks, *head)


def times(f: Callable[[], object], trials: int) -> dict[str, float]:
    f()
    wall, cpu = [], []
    for _ in range(trials):
        w, c = time.perf_counter(), time.process_time()
        f()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {"wall_ms": 1e3 * statistics.median(wall), "cpu_ms": 1e3 * statistics.median(cpu)}


def report(name: str, **values: object) -> None:
    about = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({"benchmark": name, **values, **about}), flush=True)


def step(trials: int) -> None:
    """An update of 128 examples beside the training step it belongs to."""
    model = resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    base = times(train, max(2, trials // 100))
    logits = torch.randn(128, 10)
    for peers in ((), ("dyn_unc", "el2n", "forgetting", "aum")):
        tracker = DualTracker(50_000, epochs=30, window=10, peers=peers)
        order = torch.randperm(50_000).split(128)
        batches = iter(order * (1 + trials // len(order)))
        label = torch.randint(10, (50_000,))

        def update(tracker=tracker, batches=batches, label=label) -> None:  # type: ignore[no-untyped-def]
            index = next(batches)
            tracker.update(index, logits[: len(index)], label[index])

        cost = times(update, min(trials, len(order) - 2))
        report(
            "update",
            peers=list(peers),
            step=base,
            update=cost,
            share_wall=cost["wall_ms"] / base["wall_ms"],
            share_cpu=cost["cpu_ms"] / base["cpu_ms"],
        )


def memory() -> None:
    """Arrays of a tracker of ImageNet-1k's size at J = 10, against all logits in float16."""
    n, classes, epochs = 1_281_167, 1000, 60
    tracker = DualTracker(n, epochs=epochs, window=10)
    tracker.update([0], torch.zeros(1, classes), torch.tensor([0]))
    size = sum(array.nbytes for array in tracker._store.arrays.values())
    report(
        "memory", examples=n, megabytes=size / 1e6, bytes_per_example=size / n,
        all_logits_fp16_gigabytes=n * classes * epochs * 2 / 1e9,
    )  # fmt: skip


def storage(examples: int, epochs: int, window: int) -> None:
    """Record and close epochs of many examples in mapped files; peak resident memory."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tracker = DualTracker(examples, epochs=epochs, window=window, storage=folder)
        opened = time.perf_counter() - start
        batch = 1 << 18
        recorded = closed = 0.0
        for _ in range(epochs):
            t = time.perf_counter()
            for first in range(0, examples, batch):
                index = np.arange(first, min(first + batch, examples))
                tracker.update_probability(index, rng.random(len(index), dtype=np.float32))
            u = time.perf_counter()
            tracker.end_epoch()
            recorded, closed = recorded + u - t, closed + time.perf_counter() - u
        t = time.perf_counter()
        tracker.to_parquet(f"{folder}/scores.parquet")
        report(
            "storage", examples=examples, epochs=epochs, window=window, open_s=opened,
            record_s=recorded, close_s=closed, write_s=time.perf_counter() - t,
            peak_resident_gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("step", "memory", "storage"))
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--examples", type=int, default=100_000_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--window", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "step":
        step(args.trials)
    elif args.what == "memory":
        memory()
    else:
        storage(args.examples, args.epochs, args.window)


if __name__ == "__main__":
    main()
