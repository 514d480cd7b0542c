"""A step of Muon on Llama-3-70B, sharded over the ranks of GPUs that are not here, on paper.

    python benchmarks/large_model.py [--ranks 8 16 64] [--arch sm_90] [--write docs/muon_results.md]

The planner is the optimizer's own: rounds, buckets, owners, plans and their launches, for tensors
without data, in bfloat16, divided by rows. Counted are, for the rank that does most: kernels, torch
operations and collectives; bytes that come from other ranks; FLOPs, and `cost_on_paper`'s time;
memory beside the activations. The host's time is at most the launches times what one of Triton's
takes (`engine_launches.py`): torch's own take less. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from torch_specgd.distributed.orthogonalize import BUCKET_BYTES
from torch_specgd.distributed.owners import balanced_owners, buckets, cost
from torch_specgd.step.batches import arrange
from torch_specgd.step.muon import MAX_BATCH_BYTES
from torch_specgd.triton_kernels import cost_on_paper, plan
from torch_specgd.triton_kernels.workshop.cost import Cost

Shape = tuple[int, int]
LAYER: tuple[Shape, ...] = (
    (8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192),
    (28672, 8192), (28672, 8192), (8192, 28672),
)  # fmt: skip
LAYERS, SIZE = 80, 2  # bytes of an element
HOST_US = 12.4  # of a launch, from benchmarks/engine_launches.py
GB = 1e9
MARK = "<!-- large_model.py -->"


class Paper(NamedTuple):
    """What a step comes to on the rank that does most.

    Attributes:
        ranks: How many there are.
        rounds: How often momentum and weights are moved on.
        buckets: How often matrices travel to their owners and back.
        work: FLOPs of the slowest rank of each bucket, of those of an even division.
        launches: Kernels, torch operations and collectives.
        received: Bytes.
        seconds: Of the iteration.
        kept: Bytes of weights, gradients and momentum.
        beside: Bytes that the step takes beside them at one time, at most.
    """

    ranks: int
    rounds: int
    buckets: int
    work: float
    launches: int
    received: float
    seconds: float
    kept: float
    beside: float


@lru_cache(maxsize=256)
def iteration(shape: Shape, count: int, arch: str) -> Cost:
    """Return the cost of one batch."""
    chosen = plan(shape, batch=count, dtype=torch.bfloat16, device="cuda", arch=arch)
    return cost_on_paper(chosen, arch)


def bucket_of(shapes: Sequence[Shape], owners: Sequence[int], ranks: int, arch: str) -> list[Cost]:
    """Return what each rank computes of a bucket."""
    result = []
    for rank in range(ranks):
        mine = Counter(s for s, owner in zip(shapes, owners, strict=True) if owner == rank)
        whole = Cost(arch, ())
        for shape, count in mine.items():
            whole += iteration(shape, count, arch)
        result.append(whole)
    return result


def step(ranks: int, arch: str) -> Paper:
    """Count a step."""
    shapes = LAYERS * LAYER
    params = [torch.empty(s, dtype=torch.bfloat16, device="meta") for s in shapes]
    bound = MAX_BATCH_BYTES * ranks  # a rank has a piece of each update
    rounds = arrange(params, params, ["auto"] * len(params), (None, None), bound, ranks)
    count = launches = needed = slowest = 0
    seconds = beside = 0.0
    for some in rounds:
        mine = [shapes[i] for i in some.members]
        costs, sizes = [cost(s, "auto") for s in mine], [SIZE * prod(s) for s in mine]
        launches += 2  # momentum, weights
        loads = [0] * ranks
        for ids in buckets(mine, costs, sizes, ranks, BUCKET_BYTES):
            owners = balanced_owners([costs[k] for k in ids], loads)
            own = bucket_of([mine[k] for k in ids], owners, ranks, arch)
            count += 1
            # Pieces for each rank side by side, the exchange, and each matrix put together; twice.
            exchange = 2 * (ranks + 2) + 2 * -(-len(ids) // ranks) if ranks > 1 else 0
            launches += max(len(one.launches) for one in own) + exchange
            needed += sum(one.needed for one in own)
            slowest += max(one.needed for one in own)
            seconds += max(one.seconds for one in own)
            share = sum(sizes[k] for k in ids) / ranks
            n = max(min(mine[k]) for k in ids)
            matrices = -(-len(ids) // ranks)
            # Two buckets under way: received, put together, and the result; the iteration's own
            # two of X's size and four squares. Of the round updates and results, in pieces.
            working = 2 * 3 * share + 2 * share + 4 * SIZE * matrices * n * n
            beside = max(beside, working + 2 * sum(sizes) / ranks)
    elements = sum(map(prod, shapes))
    return Paper(
        ranks, len(rounds), count, slowest * ranks / needed, launches,
        2 * SIZE * elements * (ranks - 1) / ranks**2, seconds,
        3 * SIZE * elements / ranks, beside,
    )  # fmt: skip


def table(ranks: Sequence[int], arch: str) -> list[str]:
    """Return the rows of all numbers of ranks."""
    lines = [
        "| ranks | rounds | buckets | work, 1 is even | launches | host ms, at most | GB received "
        "| iteration ms | GB of weights, gradients, momentum | GB beside them |",
        "|---:" * 10 + "|",
    ]
    for one in (step(n, arch) for n in ranks):
        lines.append(
            f"| {one.ranks} | {one.rounds} | {one.buckets} | {one.work:.2f} | {one.launches} "
            f"| {1e-3 * HOST_US * one.launches:.0f} | {one.received / GB:.1f} "
            f"| {1e3 * one.seconds:.0f} | {one.kept / GB:.1f} | {one.beside / GB:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 16, 64])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--write", type=Path, help="a page whose table to replace")
    options = parser.parse_args()
    lines = table(options.ranks, options.arch)
    print("\n".join(lines))
    if options.write:
        before, _, after = options.write.read_text().split(MARK)
        options.write.write_text(MARK.join((before, "\n" + "\n".join(lines) + "\n", after)))


if __name__ == "__main__":
    main()
