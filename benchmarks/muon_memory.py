"""What a step of Muon allocates beside parameters, gradients and state, by `max_batch_bytes`.

    python benchmarks/muon_memory.py        # two shapes on one thread, a few seconds

The profiler's allocations of one step, at their highest. A limit below one matrix takes the
matrices one by one.
"""

from __future__ import annotations

import torch
from muon_step import count
from torch import nn

from torch_specgd import Muon

SHAPES = (((768, 768), 24), ((768, 3072), 12), ((16, 1024), 192))
LIMITS = (1, 8 << 20, 32 << 20, 512 << 20)


def peak(shape: tuple[int, int], number: int, limit: int) -> int:
    """Bytes that the third step of `number` matrices of one shape holds at its highest."""
    params = [nn.Parameter(torch.randn(shape)) for _ in range(number)]
    optimizer = Muon(params, max_batch_bytes=limit)
    for p in params:
        p.grad = torch.randn_like(p)
    for _ in range(2):
        optimizer.step()
    return count(optimizer.step)[1]


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, MiB held by one step at its highest\n")
    heads = " | ".join(f"limit {x >> 20} MiB" if x >> 20 else "one by one" for x in LIMITS)
    print(f"| matrices | their MiB | {heads} |")
    print("|---|---:|" + "---:|" * len(LIMITS))
    for shape, number in SHAPES:
        own = 4 * number * shape[0] * shape[1] / 2**20
        row = " | ".join(f"{peak(shape, number, limit) / 2**20:.1f}" for limit in LIMITS)
        print(f"| {number} of {shape[0]} x {shape[1]} | {own:.1f} | {row} |", flush=True)


if __name__ == "__main__":
    main()
