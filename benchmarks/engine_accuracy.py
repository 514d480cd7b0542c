"""Polar errors, restarts, resources and costs, computed; writes docs/engine_tables.md.

    python benchmarks/engine_accuracy.py [--write docs/engine_tables.md]

Errors: mean |sigma - 1| over the nonzero directions, in three precisions, products emulated
with 16-bit storage and float32 accumulation (what tensor cores do). Costs: counted launches, tiles,
FLOPs and bytes of one step's orthogonalizations on paper; no GPU was timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from torch_specgd.triton_kernels import SCHEDULES, plan
from torch_specgd.triton_kernels.iterate.iteration import direct, gram
from torch_specgd.triton_kernels.iterate.normalize import Start, begin
from torch_specgd.triton_kernels.workshop.aot import table_of
from torch_specgd.triton_kernels.workshop.cost import Cost, CountingProducts, cost_on_paper, counted

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.polar import few_dimensions, spectra, with_spectrum
from reference.rounded import MirroredProducts, RoundedProducts, largest_singular_value

RESOURCES = Path(__file__).parents[1] / "docs" / "engine_resources.json"
Form = tuple[int, ...] | None
METHODS: list[tuple[str, str, dict[torch.dtype, Form]]] = [
    ("torch.optim.Muon (Jordan)", "jordan", {}),
    ("Polar Express, 5 steps", "polar_express", {}),
    ("ours, default (deep)", "deep", {torch.float16: (1, 2), torch.float32: ()}),
    ("ours, flat spectra (flat)", "flat", {torch.float16: (1,), torch.float32: ()}),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MODELS: dict[str, list[tuple[int, int, int]]] = {
    "GPT-2 (124M)": [(12, 768, 768), (36, 768, 768), (12, 768, 3072), (12, 3072, 768)],
    "Llama-3-8B": [(64, 4096, 4096), (64, 1024, 4096), (96, 4096, 14336)],
    "64 experts, 2048 x 1408": [(192, 2048, 1408)],
}


def error(x: Tensor, name: str, dtype: torch.dtype, restarts: Form, rank: int) -> float:
    ops, schedule = RoundedProducts(), SCHEDULES[name]
    start = begin(x[None], dtype, schedule.normalization, ops)
    go_direct = restarts is None
    y = direct(start, schedule, ops) if go_direct else gram(start, schedule, ops, restarts or ())
    return float((torch.linalg.svdvals(y[0].double())[:rank] - 1).abs().mean())


def accuracy_table() -> list[str]:
    torch.manual_seed(0)
    n = 128
    inputs: dict[str, tuple[Tensor, int]] = {
        "Gaussian 128x128": (torch.randn(n, n), n),
        "Gaussian 128x512": (torch.randn(n, 4 * n), n),
    }
    for label, key in (
        ("decay to 1e-2", "log2"),
        ("decay to 1e-3", "log3"),
        ("1/i", "power_one"),
        ("rank 12", "low_rank"),
        ("rank 1", "rank_one"),
    ):
        values = spectra(n)[key]
        inputs[label] = (with_spectrum(values, n, 2 * n).float(), int((values > 1e-9).sum()))
    lines = [
        "| method | arithmetic | " + " | ".join(inputs) + " |",
        "|---" * (len(inputs) + 2) + "|",
    ]
    for label, name, forms in METHODS:
        for dtype in DTYPES:
            restarts = forms.get(dtype)
            form = "direct" if restarts is None else f"Gram, restarts {list(restarts)}"
            cells = [f"{error(x, name, dtype, restarts, r):.3f}" for x, r in inputs.values()]
            lines.append(f"| {label} | {str(dtype)[6:]}, {form} | " + " | ".join(cells) + " |")
    return lines


def newton_schulz(x: Tensor, ops: CountingProducts) -> None:
    """Five steps of degree 5 as the peers run them: cast, norm, and three products a step."""
    y = x.to(torch.bfloat16)
    y = y / torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True)
    for _ in range(5):
        r = ops.gram(y)
        y = ops.apply(ops.symmetric(r, r, r), y)


class AllSymmetric(CountingProducts):
    """gram-newton-schulz takes Q for symmetric as well, and computes half of it."""

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Note ``Q X``, for two n x n matrices as a symmetric product."""
        return self.symmetric(q, x) if q.shape == x.shape else super().apply(q, x, out)


def gram_newton_schulz(x: Tensor, ops: CountingProducts) -> None:
    """The Gram form of gram-newton-schulz, one restart; square matrices go the other way."""
    if x.shape[-2] == x.shape[-1]:
        return newton_schulz(x, ops)
    ops = AllSymmetric(ops.arch, ops.halved, launches=ops.launches)
    y = x.to(torch.float16)
    norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True)
    y = y / norm
    gram(Start(y, ops.gram(y), None, norm, norm), SCHEDULES["you"], ops, (2,))


RESTART_CHOICES = {
    "deep": [(), (1,), (2,), (1, 2)],
    "flat": [(), (1,), (2,), (1, 2)],
    "polar_express": [(), (2,), (3,), (1, 3), (2, 4)],
    "polar_express_8": [(), (5,), (1, 3, 6)],
}


def hard_matrices() -> list[Tensor]:
    """Few dimensions, few directions of many, and every spectrum of the tests."""
    torch.manual_seed(0)
    found = [few_dimensions(n, 800) for n in (2, 3, 5, 12)]
    for rank in (1, 2, 3, 8):
        for n, m in ((33, 130), (48, 48)):
            found.append(torch.randn(50, n, rank) @ torch.randn(50, rank, m))
    found += [with_spectrum(values, 48, 96).float()[None] for values in spectra(48).values()]
    return [*found, torch.randn(4, 48, 96), torch.randn(4, 48, 48)]


def largest(name: str, dtype: torch.dtype, restarts: Form, inputs: list[Tensor]) -> float:
    """Return the worst largest singular value, on mirrored triangles and a GPU's start."""
    ops, schedule, worst = MirroredProducts(), SCHEDULES[name], 0.0
    for x in inputs:
        start = begin(x, dtype, schedule.normalization, ops, look=False)
        if restarts is None:
            y = direct(start, schedule, ops)
        else:
            y = gram(start, schedule, ops, restarts)
        worst = max(worst, largest_singular_value(y))
    return worst


def restart_table() -> list[str]:
    """Every choice of restarts of the Gram form by its worst largest singular value."""
    inputs = hard_matrices()
    lines = [
        "| schedule | exact | restart before | float32 | float16 | bfloat16 | FLOPs | the rule's |",
        "|---" * 8 + "|",
    ]
    for name, choices in RESTART_CHOICES.items():
        schedule = SCHEDULES[name]
        for restarts in (None, *choices):
            form = "direct" if restarts is None else "gram"
            label = form if restarts is None else ", ".join(map(str, restarts)) or "none"
            worst = " | ".join(
                f"{largest(name, dtype, restarts, inputs):.4g}" for dtype in DTYPES[::-1]
            )
            cubes = schedule.flops(1, 1, form=form, restarts=restarts or ())
            squares = 3 * schedule.products(form, restarts or ())[0]
            ruled = ", ".join(
                str(d)[6:]
                for d in DTYPES[::-1]
                if restarts == schedule.restarts(torch.finfo(d).eps / 2)
            )
            lines.append(
                f"| {name} | {schedule.range(1e-9)[1]:.4f} | {label} | {worst} "
                f"| {squares} n^2 m + {cubes - squares} n^3 | {ruled} |"
            )
    return lines


# Which products compute one triangle; whether the matrices of a shape are one batch.
PEERS: dict[str, tuple[Callable[[Tensor, CountingProducts], None], tuple[str, ...], bool]] = {
    "torch.optim.Muon": (newton_schulz, (), False),
    "flash-muon (symmetric X X^T only)": (newton_schulz, ("gram",), False),
    "dion (symmetric, batched)": (newton_schulz, ("gram", "symmetric"), True),
    "gram-newton-schulz (restart 2)": (gram_newton_schulz, ("gram", "symmetric"), True),
}


def costs(batch: int, a: int, b: int, arch: str) -> dict[str, Cost]:
    """Return the cost of one shape group for every method."""
    n, m = sorted((a, b))
    found = {}
    for method, (run, halved, batched) in PEERS.items():
        x = torch.empty(batch if batched else 1, n, m, device="meta")
        cost = counted(partial(run, x), arch, halved=halved)
        found[method] = cost if batched else replace(cost, launches=cost.launches * batch)
    for label, accuracy in (("ours, default", "default"), ("ours, flat", "fast")):
        chosen = plan((a, b), batch=batch, device="cuda", accuracy=accuracy)
        found[label] = cost_on_paper(chosen, arch)
    return found


def cost_table() -> list[str]:
    lines = [
        "| model | method | TFLOP | in whole tiles | GB | launches: products | others "
        "| ms on H100 (paper) | ms on B200 (paper) |",
        "|---" * 9 + "|",
    ]
    for model, shapes in MODELS.items():
        total: dict[str, dict[str, Cost]] = {}
        for shape in shapes:
            for arch in ("sm_90", "sm_100"):
                for method, cost in costs(*shape, arch).items():
                    known = total.setdefault(method, {})
                    known[arch] = known[arch] + cost if arch in known else cost
        for method, known in total.items():
            one = known["sm_90"]
            products = sum(launch.tiles > 0 for launch in one.launches)
            times = " | ".join(f"{1e3 * cost.seconds:.3f}" for cost in known.values())
            lines.append(
                f"| {model} | {method} | {one.needed / 1e12:.3f} | {one.flops / 1e12:.3f} "
                f"| {one.moved / 1e9:.2f} | {products} | {len(one.launches) - products} "
                f"| {times} |"
            )
    return lines


def targets_table() -> list[str]:
    """Say what runs on which GPU, and what has been compiled for it, from the report."""
    report = json.loads(RESOURCES.read_text())
    compilers = [part for part in sorted(report) if part.startswith("Triton")]
    lines = ["| GPU | what runs | " + " | ".join(compilers) + " |", "|---|---|" + "---|" * 2]
    for arch, what in sorted(
        report["GPUs"].items(), key=lambda item: (item[0][:2], len(item[0]), item)
    ):
        counts = [sum(name.split()[0] == arch for name in report[part]) for part in compilers]
        lines.append(f"| {arch} | {what} | " + " | ".join(str(n or "") for n in counts) + " |")
    return lines


def resource_table() -> list[str]:
    """Summarize the newest compiler's part of the report, one row a kernel and target."""
    everything = json.loads(RESOURCES.read_text())["Triton 3.9"]
    groups: dict[tuple[str, str], list[dict]] = {}
    for name, entry in everything.items():
        arch, kernel, *_ = name.split()
        groups.setdefault((arch, kernel), []).append(entry)
    lines = [
        "| target | kernel | variants | registers | spilled bytes | shared KiB (limit) "
        "| blocks a processor | matrix instructions in inner loops | copies to shared memory |",
        "|---" * 9 + "|",
    ]
    for (arch, kernel), entries in groups.items():
        registers, occupancy = ([e[key] for e in entries] for key in ("registers", "occupancy"))
        loops = sorted({name for e in entries for loop in e["loops"] for name in loop})
        copies = sorted({name for e in entries for name in e["copies"]})
        shared = max(e["shared"] for e in entries) / 1024
        lines.append(
            f"| {arch} | {kernel} | {len(entries)} | {min(registers)} to {max(registers)} "
            f"| {max(e['spilled'] for e in entries)} "
            f"| {shared:.0f} ({table_of(arch)['shared_limit'] // 1024}) "
            f"| {min(occupancy)} to {max(occupancy)} | {', '.join(loops) or 'none'} "
            f"| {', '.join(copies) or 'none'} |"
        )
    return lines


def schedule_table() -> list[str]:
    lines = [
        "| schedule | steps | degree | safety | norm | output on [lower, 1] | slope | reach "
        "| diverges above |",
        "|---" * 9 + "|",
    ]
    for s in SCHEDULES.values():
        low, high = s.range()
        degrees = ",".join(str(2 * len(step) - 1) for step in s.steps)
        reach = "" if s.weights else f"{s.reach():.2g}"  # of what goes to one
        lines.append(
            f"| {s.name} | {len(s)} | {degrees} | {s.safety:g} | {s.normalization} | "
            f"[{s.lower:g}, 1] -> [{low:.4f}, {high:.4f}] | {s.slope:.4g} | {reach} | "
            f"{s.divergence_threshold:.4f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n".join(
        [
            "# Tables of the engine",
            "",
            "Written by `python benchmarks/engine_accuracy.py --write docs/engine_tables.md`.",
            "",
            "## Schedules (exact arithmetic)",
            "",
            *schedule_table(),
            "",
            "`reach`: the smallest normalized input from which on the output is 0.7 or more.",
            "",
            "## Polar error, mean |sigma - 1| over nonzero directions",
            "",
            *accuracy_table(),
            "",
            "## Restarts of the Gram form",
            "",
            "The largest singular value that came out, over 3,200 matrices of few dimensions, 400",
            "of few directions, and every spectrum of the tests, in emulated storage with mirrored",
            "triangles. The rule (`Schedule.restarts`): a segment ends before the square of its",
            "slope, by which it multiplies what should be zero in R, times the unit roundoff",
            "exceeds 0.12. The last column says in which precisions it makes this choice. In",
            "bfloat16 it restarts nearly every step, which is the direct form.",
            "",
            *restart_table(),
            "",
            "## What the compiled kernels take",
            "",
            "What runs on which GPU, and how many variants are compiled for it by which release;",
            "other AMD GPUs, and any without Triton 3.5 or later, take the vendor's library.",
            "",
            *targets_table(),
            "",
            "The range over all variants with Triton 3.9, of `engine_resources.json`, which",
            "`python -m torch_specgd.triton_kernels.workshop.aot --write",
            "docs/engine_resources.json` writes and `--check` compares in CI, with either release.",
            "",
            *resource_table(),
            "",
            "## Cost of one optimizer step, on paper",
            "",
            "Counted, not timed, by `cost_on_paper`: each method runs on float32 matrices",
            "without data over products that note what they launch. TFLOP: symmetric results count",
            "half where the method has a symmetric kernel. In whole tiles: with the padding of the",
            "tiles that our kernels choose on an H100, which all methods are granted. GB: every",
            "operand of every launch once, casts and norms included, nothing kept in a cache. A",
            "launch takes the longer of its waves of tiles at 65 % of the dense 16-bit peak and",
            "its bytes at the memory's rate (H100: 989 TFLOP/s, 3.35 TB/s; B200: 2250, 8.0);",
            "nothing is added for the launch itself. How many FLOPs a tile takes is compared with",
            "the machine code in `tests/engine/test_triton_aot.py`.",
            "",
            *cost_table(),
            "",
        ]
    )
    if options.write:
        options.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
