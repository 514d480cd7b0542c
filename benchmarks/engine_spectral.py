"""How far functions of spectra are off, and what they cost: powers and inverse roots.

    python benchmarks/engine_spectral.py            # errors
    python benchmarks/engine_spectral.py --hard     # largest results

Errors are largest singular values of the difference to float64 decompositions, of values from 1e-3
on, over twelve spectra of 96 x 128: relative where a function is above one, absolute below. Hard
are 160,000 matrices of two to twelve dimensions, those of `engine_rounding`, in float32 for roots
and in emulated bfloat16 for powers: the largest result, over what it ought to be at most.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from torch_specgd.triton_kernels.iterate.iteration import direct
from torch_specgd.triton_kernels.iterate.normalize import begin
from torch_specgd.triton_kernels.iterate.products import TorchProducts
from torch_specgd.triton_kernels.iterate.roots import inverse_root_of
from torch_specgd.triton_kernels.spectral import power_schedule, root_schedule

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import spectral as truth
from reference.polar import few_dimensions, schatten, spectra, with_spectrum
from reference.rounded import RoundedProducts
from reference.search import rotations

POWERS = (0.5, 0.25, 0.1, -0.1, -0.25)


def families() -> list[Tensor]:
    """The 160,000 hard matrices."""
    torch.manual_seed(0)
    return [rotations(40_000), *(few_dimensions(n, 20_000) for n in (2, 3, 4, 6, 8, 12))]


def powered(x: Tensor, power: float, dtype: torch.dtype) -> Tensor:
    """What the steps make of a batch, in units of its Schatten-4 norms."""
    schedule, ops = power_schedule(power), RoundedProducts()
    if dtype == torch.float64:
        ops = TorchProducts()
    return direct(begin(x, dtype, schedule.normalization, ops), schedule, ops)


def power_error(power: float, dtype: torch.dtype) -> float:
    """The largest error over spectra, of singular values from 1e-3 on."""
    worst = 0.0
    for values in spectra(96).values():
        x = with_spectrum(values, 96, 128).to(dtype)
        u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
        s = s / schatten(x, 4)
        kept = s >= 1e-3
        found = u.mT[kept] @ powered(x[None], power, dtype)[0].double() @ vh.mT[:, kept]
        error = (found - torch.diag(s[kept] ** power)) / (s[kept] ** power).clamp(min=1.0)
        worst = max(worst, float(torch.linalg.matrix_norm(error, 2)))
    return worst


def root_error(root: int) -> float:
    """The largest relative error over spectra that end at 1e-3."""
    q = with_spectrum(torch.ones(96), 96, 96)
    worst = 0.0
    for values in spectra(96).values():
        a = (q * values.clamp(min=1e-3)) @ q.T
        worst = max(worst, float(against(inverse(a[None].float(), root), a[None], root, 1.0)))
    return worst


def inverse(a: Tensor, root: int) -> Tensor:
    return inverse_root_of((a + a.mT) / 2, root_schedule(root), TorchProducts())


def against(z: Tensor, a: Tensor, root: int, one: float) -> Tensor:
    """The largest singular value of A^(1/2r) Z A^(1/2r) less one, or of all of it."""
    half = truth.root((a + a.mT) / 2, 2 * root)
    eye = torch.eye(a.shape[-1], dtype=torch.float64)
    return torch.linalg.matrix_norm(half @ z.double() @ half - one * eye, 2).max()


def errors() -> None:
    print("| function | FLOPs, n x n | error, float64 or 32 | error, bfloat16 |")
    print("|---|---:|---:|---:|")
    for power in POWERS:
        wide, narrow = (power_error(power, kind) for kind in (torch.float64, torch.bfloat16))
        cubes = power_schedule(power).flops(1, 1)
        print(f"| s^{power:g} | {cubes} n^3 | {wide:.4f} | {narrow:.3f} |", flush=True)
    for root in (2, 4, 8):
        # A^2, the polynomials, and a carried step's M and Z: a general product counts twice.
        small = sum({2: 0, 3: 1, 5: 2}[len(s)] for s in root_schedule(root).steps)
        cubes = 1 + small + (len(root_schedule(root)) - 1) * (root.bit_length() + 2)
        print(f"| A^(-1/{root}) | {cubes} n^3 | {root_error(root):.0e} | |", flush=True)


def hard() -> None:
    print("| function | largest result, over what it ought to be |\n|---|---:|")
    some = families()
    for power in POWERS:
        tops = [torch.linalg.matrix_norm(powered(x, power, torch.bfloat16).float(), 2).max()
                for x in some]  # fmt: skip
        largest = max(1.0, 1e-3**power)
        print(f"| s^{power:g} | {max(map(float, tops)) / largest:.3f} |", flush=True)
    for root in (2, 4, 8):
        grams = [x @ x.mT for x in some]
        top = max(float(against(inverse(a, root), a, root, 0.0)) for a in grams)
        print(f"| A^(-1/{root}) | {top:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hard", action="store_true")
    torch.set_num_threads(1)
    (hard if parser.parse_args().hard else errors)()


if __name__ == "__main__":
    main()
