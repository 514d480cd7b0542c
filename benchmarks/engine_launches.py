"""What the launches of a step cost the host, on a driver that launches nothing; needs no GPU.

    OMP_NUM_THREADS=1 python benchmarks/engine_launches.py [--repeats 30] [--max-ms MS]

Tensors have no data and the driver runs no kernel, so that what is timed is Python: ours, and
Triton's own way from `kernel[grid](...)` to the driver. "Triton alone" is that way for one kernel
with the arguments of a product. A table is a row of addresses for each tensor of a launch. Copied
are the tables that go to the device in the first step, in one like it, and in one whose gradients
lie elsewhere, as after `zero_grad(set_to_none=True)`. Times are processor time, the minimum over
the repeats.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.fake_driver import fake_driver
from torch_specgd.triton_kernels import SCHEDULES, plan
from torch_specgd.triton_kernels.kernels import elementwise, launch, launch_small
from torch_specgd.triton_kernels.kernels.owned import Owned
from torch_specgd.triton_kernels.kernels.symmetric import symmetric_kernel

Shapes = list[tuple[int, int]]
MODELS: dict[str, Shapes] = {
    "GPT-2 small": 12 * [(2304, 768), (768, 768), (3072, 768), (768, 3072)],
    "192 LoRA factors": 96 * [(16, 1024), (1024, 16)],
    "Llama-3-8B": 32 * [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096),
                        (14336, 4096), (14336, 4096), (4096, 14336)],
}  # fmt: skip
ROUND = 1 << 29  # bytes of updates that exist at one time, as in Muon


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest time in milliseconds."""
    work()
    found = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        found = min(found, time.process_time() - start)
    return 1e3 * found


def rounds(shapes: Shapes) -> list[Shapes]:
    """Cut parameters, one shape after the other, where a round's updates are too large."""
    result: list[Shapes] = [[]]
    room = ROUND
    for shape in sorted(shapes):
        size = 4 * shape[0] * shape[1]
        if size > room and result[-1]:
            result.append([])
            room = ROUND
        result[-1].append(shape)
        room -= size
    return result


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def placed(shape: tuple[int, int], at: int) -> Tensor:
    """Return a tensor that lies so many elements into its memory: all memory here begins at 0."""
    return empty(at + shape[0] * shape[1])[at:].view(shape)


def orthogonalized(count: int, shape: tuple[int, int]) -> Callable[[], object]:
    """Return the launches of one batch: a kernel for all of it, or the products of its plan."""
    chosen = plan(shape, batch=count, device="cuda", arch="sm_90")
    n, m = chosen.shape
    if chosen.one_launch:
        x, config = empty(count, n, m), chosen.configs()["small"]
        return lambda: launch_small.orthogonalize_small(x, SCHEDULES["deep"], x, config)
    ops = launch.TritonProducts(chosen.configs())
    x = empty(count, n, m, dtype=chosen.dtype)

    def products() -> None:
        for _ in range(3):
            r = ops.gram(x)
            for _ in range(3):
                r = ops.symmetric(r, r, r, 1.0, 1.0, 1.0)
            ops.apply(r, x, x)

    return products


def step(shapes: Shapes, owned: Owned, place: list[int]) -> Callable[[], object]:
    """Return the launches of a step, whose gradients lie in one of two places: `place[0]`."""
    work: list[Callable[[], object]] = []
    for i, some in enumerate(rounds(shapes)):
        gradients = [[placed(x, 8 * i + at) for x in some] for at in (0, 4)]
        b, o = ([placed(x, 8 * i) for x in some] for _ in range(2))
        scales = [1.0] * len(some)
        work.append(
            lambda gs=gradients, b=b, o=o: elementwise.momentum(
                gs[place[0]], b, o, 0.95, owned=owned
            )
        )
        work += [orthogonalized(n, shape) for shape, n in Counter(some).items()]
        work.append(lambda w=b, o=o, s=scales: elementwise.update(w, o, s, 0.02, 0.1, owned=owned))

    def run() -> None:
        for one in work:
            one()

    return run


def triton_alone(repeats: int) -> float:
    """Return the time of one launch of Triton's, with the arguments of a product."""
    x, d = empty(12, 768, 768, dtype=torch.bfloat16), empty(12, 768, 768, dtype=torch.bfloat16)
    table = plan((768, 768), batch=12, device="cuda", arch="sm_90").configs()["symmetric"]
    config, numbers = {**table, "DESCRIPTOR": False, "HAS_C": True}, (1.0, 1.0, 1.0, 768, 768)
    launcher = symmetric_kernel[(252,)]
    return best(lambda: launcher(x, x, d, d, *numbers, *x.stride(), **config), 30 * repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--max-ms", type=float, help="exit with 1 if a step of GPT-2 takes longer")
    options = parser.parse_args()
    slowest = 0.0
    with fake_driver() as seen:
        print(f"Triton alone: {1e3 * triton_alone(options.repeats):.1f} us a launch")
        print("| model | launches | us a launch | ms a step | tables copied: first step | later "
              "| gradients moved |")  # fmt: skip
        print("|---|---:|---:|---:|---:|---:|---:|")
        for model, shapes in MODELS.items():
            owned, place, copies = Owned(), [0], [0]
            work = step(shapes, owned, place)
            for place[0] in (0, 0, 1):
                seen.launched.clear()
                work()
                copies.append(owned.copies)
            launches = len(seen.launched)
            found = best(work, options.repeats)
            if model == "GPT-2 small":
                slowest = found
            print(
                f"| {model} | {launches} | {1e3 * found / launches:.1f} | {found:.2f} "
                f"| {' | '.join(str(b - a) for a, b in pairwise(copies))} |"
            )
    return int(options.max_ms is not None and slowest > options.max_ms)


if __name__ == "__main__":
    sys.exit(main())
