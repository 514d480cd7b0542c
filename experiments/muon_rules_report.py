"""What the runs of update rules say: a table for each bed, paired with a tuned torch.optim.Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torch_specgd import Eigenbasis
from torch_specgd.step.rule_state import rule_of

BASE = "torch.optim.Muon"
TITLES = {
    "width 96": "The transformer, width 96",
    "width 96 long": "The transformer, width 96, 1,600 steps",
    "width 256": "The transformer, width 256, 200 steps",
    "conv": "A small convolution net on 20,000 images of Fashion-MNIST",
    "lora": "Adapters of rank 8 on q and v of MiniLM, which classifies tweets, 200 steps",
}
Make = Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]


def p_value(gaps: Sequence[float]) -> float:
    """Return Student's two-sided p of paired differences, by Simpson's rule over the density.

    Example:
        >>> round(p_value([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    n, parts = len(gaps) - 1, 2000
    t = abs(fmean(gaps)) / (stdev(gaps) / math.sqrt(n + 1))
    scale = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
    weights = [1, *((4, 2) * (parts // 2))[:-1], 1]
    heights = [(1 + (t * i / parts) ** 2 / n) ** (-(n + 1) / 2) for i in range(parts + 1)]
    inside = sum(w * y for w, y in zip(weights, heights, strict=True)) * t / parts / 3
    return max(0.0, 1 - 2 * scale * inside)


def shapes_of(bed: str) -> list[tuple[int, int]]:
    """Return the shapes of the hidden matrices of a bed."""
    if bed == "conv":
        return [(32, 144), (64, 288), (128, 1024)]
    if bed == "lora":
        return 12 * [(8, 384), (384, 8)]
    width = int(bed.split()[1])
    return 2 * [*[(width, width)] * 4, (4 * width, width), (width, 4 * width)]


def flops(shapes: Sequence[tuple[int, int]], make: Make) -> float:
    """Return floating-point operations of a step, the mean over steps that hold one refresh.

    Products are counted as they run; a QR decomposition of an m x m matrix counts 8/3 m^3.
    """
    generator = torch.Generator().manual_seed(0)
    ps = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer, total = make(ps, 0.01, 0.95), 0.0
    rule = rule_of(optimizer.param_groups[0].get("precondition"))
    period = getattr(rule, "every", 1)
    for step in range(2 * period):
        for p in ps:
            p.grad = torch.randn(p.shape, generator=generator)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        total += counter.get_total_flops() / period if step >= period else 0.0
    each = 8 / 3 if isinstance(rule, Eigenbasis) else 0.0
    sides = [
        size[0]
        for shape in shapes
        for name, size in (rule.shapes(*shape) if each else {}).items()
        if name in ("left", "right")
    ]
    return total + sum(each * k**3 / rule.every for k in sides)


def section(
    known: Mapping[Any, Any],
    contenders: Mapping[str, tuple[Make, float]],
    times: Sequence[Mapping[str, str]],
) -> str:
    """Return the section of the page.

    Args:
        known: Results by run.
        contenders: Makers of optimizers by name.
        times: Rows of steps that were timed in turns.
    """
    parts: list[str] = []
    for bed, title in TITLES.items():
        mine = {run: x for run, x in known.items() if run.bed == bed}
        rows = _rows({run: x for run, x in mine.items() if run.seed > 0})
        if BASE in rows:
            parts += [f"### {title}", "", *_table(bed, rows, contenders, _ratios(times, bed)), ""]
            parts += [*_fewer(rows), ""]
            parts += [*_tuning({run: x for run, x in mine.items() if run.seed == 0}), ""]
    return "\n".join(parts)


def _ratios(times: Sequence[Mapping[str, str]], bed: str) -> dict[str, float]:
    """Return each contender's time of a step over the base's, the median of turns."""
    of: dict[str, dict[str, float]] = {}
    for row in times:
        if row["bed"] == bed.removesuffix(" long"):
            of.setdefault(row["contender"], {})[row["turn"]] = float(row["seconds"])
    return {k: median(v[t] / of[BASE][t] for t in v) for k, v in of.items()}


def _tuning(known: Mapping[Any, Any]) -> list[str]:
    """Return the table of what tuned: each contender's best run."""
    lines = ["| best on seed 0 | runs | tuned | held-out loss | gap |", "|---|---:|---|---:|---:|"]
    best: dict[str, list[Any]] = {}
    for run, result in known.items():
        best.setdefault(run.contender, []).append((result.held_out, run))
    base = min(best[BASE])[0]
    for name, runs in best.items():
        loss, run = min(runs)
        rates = f"{run.lr}, {run.momentum}, {run.adamw_lr}"
        lines.append(f"| {name} | {len(runs)} | {rates} | {loss:.4f} | {loss - base:+.4f} |")
    return lines


def _rows(known: Mapping[Any, Any]) -> dict[str, dict[int, dict[int, Any]]]:
    """Return (run, result) by contender, steps and seed."""
    rows: dict[str, dict[int, dict[int, Any]]] = {}
    for run, result in known.items():
        rows.setdefault(run.contender, {}).setdefault(run.steps, {})[run.seed] = run, result
    return rows


def _gaps(some: Mapping[int, Any], base: Mapping[int, Any]) -> list[float]:
    """Return differences of held-out losses, seed by seed."""
    return [some[seed][1].held_out - base[seed][1].held_out for seed in some if seed in base]


def _gap(gaps: Sequence[float]) -> str:
    if len(gaps) < 3:
        return f"{fmean(gaps):+.4f} |" if gaps else " |"
    p = p_value(gaps)
    shown = "< .0001" if p < 1e-4 else f"{p:.4f}".lstrip("0")
    return f"{fmean(gaps):+.4f} ± {stdev(gaps):.4f} | {shown}"


def _table(
    bed: str,
    rows: Mapping[str, Any],
    contenders: Mapping[str, tuple[Make, float]],
    ratios: Mapping[str, float],
) -> list[str]:
    full = max(rows[BASE])
    base = rows[BASE][full]
    step = flops(shapes_of(bed), contenders[BASE][0])
    accuracy = " accuracy, % |" if bed in ("conv", "lora") else ""
    lines = [
        f"| matrices by | tuned | held-out loss |{accuracy} gap | p | FLOPs | seconds | n |",
        "|---|---|---:|" + ("---:|" if accuracy else "") + "---:|---:|---:|---:|---:|",
    ]
    for name in contenders:
        some = rows.get(name, {}).get(full, {})
        if len(some) < 2:
            continue
        run, _ = next(iter(some.values()))
        losses = [result.held_out for _, result in some.values()]
        gap = "0 | |" if name == BASE else f"{_gap(_gaps(some, base))} |"
        right = f" {fmean(r.accuracy for _, r in some.values()):.2f} |" if accuracy else ""
        # Others' decompositions are theirs to count.
        ours = "(" not in name or name == "neuron (NorMuon)"
        count = f"{flops(shapes_of(bed), contenders[name][0]) / step:.2f}" if ours else ""
        time = f"{ratios[name]:.2f}" if name in ratios else ""
        lines.append(
            f"| {name} | {run.lr}, {run.momentum}, {run.adamw_lr} | {fmean(losses):.4f} |"
            f"{right} {gap} {count} | {time} | {len(some)} |"
        )
    return lines


def _fewer(rows: Mapping[str, Any]) -> list[str]:
    """Return the table of runs of fewer steps, against the base's full ones."""
    full = max(rows[BASE])
    lines = [
        f"| of fewer steps | steps | gap to {BASE}'s {full} | p | n |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, by_steps in rows.items():
        for steps in sorted(set(by_steps) - {full}, reverse=True):
            gaps = _gaps(by_steps[steps], rows[BASE][full])
            if gaps:
                lines.append(f"| {name} | {steps} | {_gap(gaps)} | {len(gaps)} |")
    return lines if len(lines) > 2 else []
