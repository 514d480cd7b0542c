"""Long runs: memory, threads and open files must stay flat.

    python benchmarks/soak.py --steps 10000 --epochs 1000

Ten times in each run it prints the resident memory, the largest it ever was, threads and open file
descriptors. It ends with status 1 if the last fifth of a run holds more of anything than the second
fifth did, by more than a megabyte of memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from data_prune import DualScoreSampler
from torch_specgd import Muon, SpecGD


class Held(NamedTuple):
    """What a process holds."""

    resident_mb: float
    threads: int
    files: int


def held() -> Held:
    """Reads /proc; the collector runs first, so that no cycle counts."""
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    megabytes = pages * resource.getpagesize() / 1e6
    return Held(megabytes, threading.active_count(), len(os.listdir("/proc/self/fd")))


def steps_of(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Iterator[None]:
    """Steps of a small model without end, with a checkpoint every hundred."""
    torch.manual_seed(0)
    shapes = ((32, 16), (16, 32), (8, 4, 3, 3), (32,), (80, 96))
    params = [nn.Parameter(torch.randn(s)) for s in shapes]
    optimizer = make(params)
    for i in range(1 << 30):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        if i % 100 == 0:
            optimizer.load_state_dict(optimizer.state_dict())
        yield


def epochs_of_sampling() -> Iterator[None]:
    """Epochs of a loader that scores three of them and prunes the others."""
    data = torch.utils.data.TensorDataset(torch.randn(256, 4), torch.arange(256) % 3)
    loader = torch.utils.data.DataLoader(data, 32, shuffle=True)
    scored = DualScoreSampler.wrap(loader, prune_ratio=0.5, score_epochs=3, window=2)
    while True:
        for _, y in scored:
            scored.record(torch.randn(len(y), 3), y)
        yield


def run(name: str, rounds: Iterator[None], count: int) -> bool:
    """Runs so many rounds and prints what is held; returns whether it stayed flat."""
    print(f"{name}\n{'round':>8}{'resident MB':>13}{'threads':>9}{'files':>7}")
    seen = []
    for i in range(1, count + 1):
        next(rounds)
        if i % max(1, count // 10) == 0:
            seen.append(held())
            print(f"{i:8}{seen[-1].resident_mb:13.1f}{seen[-1].threads:9}{seen[-1].files:7}")
    early, late = seen[len(seen) // 5], seen[-1]
    flat = late.resident_mb <= early.resident_mb + 1.0
    return flat and late.threads <= early.threads and late.files <= early.files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=1_000)
    arguments = parser.parse_args()
    runs = [
        ("Muon", steps_of(lambda p: Muon(p, lr=1e-3)), arguments.steps),
        (
            "Muon, state of bfloat16, NorMuon",
            steps_of(lambda p: Muon(p, lr=1e-3, state_dtype="bfloat16", neuron_beta=0.9)),
            arguments.steps,
        ),
        ("SpecGD", steps_of(lambda p: SpecGD(p, lr=1e-3, momentum=0.9)), arguments.steps),
        ("DualScoreSampler", epochs_of_sampling(), arguments.epochs),
    ]
    rising = [name for name, rounds, count in runs if not run(name, rounds, count)]
    print("flat" if not rising else f"rising: {', '.join(rising)}")
    sys.exit(1 if rising else 0)


if __name__ == "__main__":
    main()
