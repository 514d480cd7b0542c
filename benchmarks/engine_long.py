"""Steps of degree 33 and 65 in bfloat16: what keeping the identity apart does, what gets through.

    python benchmarks/engine_long.py --threads 2

First the largest singular value after a first step over the largest that it has without rounding,
for matrices with singular vectors in all directions: as chains of squares (`step_polynomial`, what
shorter steps do), and with the identity's part as a number (`apart`). Then what
`orthogonalize(x, accuracy="training")` does in bfloat16 to matrices whose structure keeps errors
from averaging out: the schedules that they take, how many are done again, the largest singular
value.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from muon_models import spectrum
from torch import Tensor

from torch_specgd.triton_kernels import Schedule, orthogonalize
from torch_specgd.triton_kernels.apart import direct_apart
from torch_specgd.triton_kernels.normalize import begin
from torch_specgd.triton_kernels.products import TorchProducts, plus_identity
from torch_specgd.triton_kernels.schedules import LONG

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from reference.legs import legs_taken
from reference.rounded import largest_singular_value
from reference.structured import structured

SPECTRA = {"momentum": spectrum, "i^-0.6": lambda k: torch.arange(1.0, k + 1) ** -0.6}
ROWS = (320, 512, 768)


def whole(x: Tensor, schedule: Schedule) -> Tensor:
    """The first step with every square stored as it is."""
    ops = TorchProducts()
    start = begin(x, torch.bfloat16, "schatten8", ops)
    chain = schedule.chains[0]
    y = plus_identity(start.r, -chain.centre)
    s = y
    for alpha, beta, gamma in chain.links:
        s = ops.symmetric(s, s, y, alpha, beta, gamma)
    return ops.apply(s * start.factor.to(s.dtype), start.x)


def lift(x: Tensor, schedule: Schedule, apart: bool) -> float:
    """The largest singular value after the first step over the largest of the exact map."""
    first = replace(schedule, steps=schedule.steps[:1])
    if apart:
        start = begin(x, torch.bfloat16, "schatten8", TorchProducts())
        y = direct_apart(start, first, TorchProducts())
    else:
        y = whole(x, first)
    return float(torch.linalg.matrix_norm(y[0].double(), 2)) / first.range(1e-9)[1]


def lifts() -> None:
    print("| first step | spectrum | " + " | ".join(f"{n} rows" for n in ROWS) + " |")
    print("|---|---|" + "---:|" * len(ROWS))
    for schedule in (LONG[0], LONG[-1]):
        degree = 2 * schedule.chains[0].degree + 1
        for name, values in SPECTRA.items():
            for apart in (False, True):
                cells = []
                for n in ROWS:
                    u, v = (torch.linalg.qr(torch.randn(n, n))[0] for _ in range(2))
                    x = ((u * values(n)) @ v.T)[None]
                    cells.append(f"{lift(x, schedule, apart):.3f}")
                how = "apart" if apart else "whole"
                print(f"| degree {degree}, {how} | {name} | {' | '.join(cells)} |", flush=True)


def families(count: int) -> None:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    largest: dict[str, float] = defaultdict(float)
    for n in ROWS[:2] * count:
        size, wide = int(torch.randint(2, 100, ())), n + int(torch.randint(0, 300, ()))
        for family, x in structured(n, wide, size):
            with legs_taken() as names:
                y = orthogonalize(x, dtype=torch.bfloat16, accuracy="training")
            seen[family].update(names)
            largest[family] = max(largest[family], largest_singular_value(y[None]))
    kinds = ("flat", "long_33", "long_65", "long_65_steep", "deep", "again")
    print(f"\n| {count * 2} matrices each | {' | '.join(kinds)} | largest |")
    print("|---|" + "---:|" * (len(kinds) + 1))
    for family, counts in seen.items():
        numbers = " | ".join(str(counts[kind]) for kind in kinds)
        print(f"| {family} | {numbers} | {largest[family]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=150, help="of each family and number of rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    lifts()
    families(arguments.count)


if __name__ == "__main__":
    main()
