"""How little work a step's polar factors may take: losses under schedules from exact to cheap.

    python experiments/muon_schedules.py            # runs that the CSV lacks, then the tables
    python experiments/muon_schedules.py --table    # the tables alone
    python experiments/muon_schedules.py --only lora deep exact    # one bed, some schedules

Beds: the transformer of `muon_bed` at widths 96 (also with preconditioners) and 256, a convolution
net on Fashion-MNIST, and adapters of rank 8 on MiniLM (`lora_models` says how to get it). Every
schedule takes the same rate; runs of one seed share first weights and batches. FLOPs are those of
the direct form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any

import torch
from bed import RESULTS, append, mean_and_error, read
from muon_bed import QUICK, SETTINGS, Setting, Transformer, train
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from torch_specgd import Muon
from torch_specgd.triton_kernels import SCHEDULES, Schedule, design_schedule

OUT = RESULTS / "muon_schedules.csv"
SEEDS = range(1, 7)
WIDE = replace(SETTINGS["plain"], width=256, steps=200)
BETAS = (0.9, 0.95)
Losses = dict[tuple[str, str, int], float]


def steps_of(degrees: tuple[int, ...], lower: float, headroom: tuple[float, ...]) -> Schedule:
    """As far a reach as these degrees have while outputs stay below 1.1 in bfloat16."""
    return design_schedule(degrees, None, lower, 1.0, headroom=headroom, normalization="schatten4")


# From the most accurate, which runs in float32, to the cheapest.
CONTENDERS: dict[str, Callable[[], Schedule]] = {
    "exact": lambda: SCHEDULES["polar_express_8"],
    "deep": lambda: SCHEDULES["deep"],
    "17,17,5": lambda: steps_of((17, 17, 5), 3e-3, (1.05, 1.22, 1.1)),
    "17,17": lambda: steps_of((17, 17), 1.2e-2, (1.05, 1.17)),
}


@cache
def schedule_of(name: str) -> Schedule:
    """A contender, designed once."""
    return CONTENDERS[name]()


def muon(
    matrices: list[nn.Parameter],
    others: list[nn.Parameter],
    name: str,
    lr: float,
    other_lr: float,
    precondition: str | None = None,
) -> Muon:
    """Muon with a schedule on the matrices, AdamW on the rest."""
    hidden: dict[str, Any] = {"params": matrices, "use_muon": True, "lr": lr}
    hidden.update(ns_coefficients=schedule_of(name), precondition=precondition)
    if name == "exact":
        hidden["compute_dtype"] = "float32"
    aside = {"params": others, "use_muon": False, "lr": other_lr, "weight_decay": 0.0}
    return Muon([hidden, aside], adamw_betas=BETAS)


def transformer(bed: str, name: str, seed: int, setting: Setting | None = None) -> float:
    """Loss on held-out text at the end of a run; the bed's name ends with a preconditioner."""
    setting = setting or (WIDE if bed == "width 256" else SETTINGS["plain"])
    rule = bed.partition(", ")[2] or None

    def optimizers(model: Transformer) -> list[Optimizer]:
        return [muon(model.matrices(), model.others(), name, 0.02, 0.003, rule)]

    return train(setting, optimizers, seed, points=1)[-1].held_out


def net(seed: int) -> nn.Sequential:
    """Three convolutions, two of them hidden, and a hidden matrix."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU()]
    for n_in, n_out in ((16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head)


def convolution(_: str, name: str, seed: int, steps: int = 400, batch: int = 64) -> float:
    """Loss on 10,000 test images after 400 steps on 20,000."""
    from prune_bed import fashion

    x, y, test_x, test_y = fashion()
    x, test_x = x[:20_000] - 0.286, test_x - 0.286
    model = net(seed)
    hidden = [p for p in list(model.parameters())[2:-2] if p.ndim >= 2]
    others = [p for p in model.parameters() if all(p is not q for q in hidden)]
    optimizer = muon(hidden, others, name, 0.02, 0.003)
    decay = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [0.02, 0.003], total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        i = torch.randint(len(x), (batch,), generator=generator)
        loss = cross_entropy(model(x[i]), y[: len(x)][i])
        model.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        return float(cross_entropy(model.eval()(test_x), test_y))


def adapters(_: str, name: str, seed: int, steps: int = 200) -> float:
    """Loss on held-out tweets after 200 steps of adapters on a pretrained model."""
    from lora_models import DATA, minilm
    from peft import LoraConfig, get_peft_model

    bed = minilm(DATA)
    torch.manual_seed(seed)
    targets = ["query", "value"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="SEQ_CLS")
    bed.model = get_peft_model(bed.model, config).eval()
    named = [(k, p) for k, p in bed.model.named_parameters() if p.requires_grad]
    hidden = [p for k, p in named if "lora_" in k]
    optimizer = muon(hidden, [p for k, p in named if "lora_" not in k], name, 0.003, 0.001)
    for _, batch in zip(range(steps), bed.batches(seed), strict=False):
        loss = bed.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bed.judge(bed.test)[0]


BEDS: dict[str, Callable[[str, str, int], float]] = {
    "width 96": transformer,
    "convolution": convolution,
    "lora": adapters,
    "width 256": transformer,
    "width 96, shampoo": transformer,
}


def known_losses() -> Losses:
    """Losses by bed, schedule and seed."""
    return {(r["bed"], r["schedule"], int(r["seed"])): float(r["loss"]) for r in read(OUT)}


def measure(bed: str, name: str, seed: int) -> None:
    """Append one run to the CSV, unless it is there."""
    if (bed, name, seed) not in known_losses():
        loss = BEDS[bed](bed, name, seed)
        append(OUT, [{"bed": bed, "schedule": name, "seed": seed, "loss": f"{loss:.5f}"}])
        print(bed, name, seed, f"{loss:.5f}", flush=True)


def table(bed: str) -> str:
    """Losses, and gaps to the most accurate schedule seed by seed, by FLOPs; "" without runs."""
    found = known_losses()
    known = [name for name in CONTENDERS if sum((bed, name, s) in found for s in SEEDS) > 1]
    lines = ["| schedule | n x n | n x 4n | slope | outputs | loss | gap | seeds |",
             "|---|---:|---:|---:|---|---:|---:|---:|"]  # fmt: skip
    for name in known:
        schedule = schedule_of(name)
        seeds = [s for s in SEEDS if all((bed, n, s) in found for n in (name, known[0]))]
        gap, error = mean_and_error(found[bed, name, s] - found[bed, known[0], s] for s in seeds)
        low, high = schedule.range()
        loss = fmean(found[bed, name, s] for s in seeds)
        lines.append(
            f"| {name} | {schedule.flops(1, 1)} n^3 | {schedule.flops(1, 4)} n^3 "
            f"| {schedule.slope:.0f} | {low:.3f} to {high:.3f} | {loss:.4f} "
            f"| {gap:+.4f} ± {error:.4f} | {len(seeds)} |"
        )
    return "\n".join(lines) if known else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, assertions, no files")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--only", nargs="+", default=[], help="beds and schedules")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        losses = [transformer("quick", name, 0, QUICK) for name in CONTENDERS]
        assert max(losses) - min(losses) < 0.1, losses
        return
    beds, names = (
        [one for one in some if one in arguments.only] or list(some) for some in (BEDS, CONTENDERS)
    )
    if not arguments.table:
        for bed in beds:
            for seed in list(SEEDS)[: arguments.seeds]:
                for name in names:
                    measure(bed, name, seed)
    for bed in beds:
        print(f"\n{bed}\n\n{table(bed)}")


if __name__ == "__main__":
    main()
