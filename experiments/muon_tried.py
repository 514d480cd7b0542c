"""Changes of Muon that were tried once, beside a tuned Muon: most of them gain little or lose.

    python experiments/muon_tried.py            # appends what is missing to the CSV, then the table
    python experiments/muon_tried.py --report   # the table alone

The transformer of `muon_bed`, 400 steps. Every change is tried at the rates and the momentum at
which torch.optim.Muon is best there (0.045 and 0.8, AdamW's 0.003), and at 1.5 times the matrices'
rate, on three seeds that `muon_rules` reports nothing of. What won is tuned there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bed import RESULTS, ROOT, append, command_line, mean_and_error, read, show
from muon_bed import QUICK, SETTINGS, Setting, Transformer, train
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from torch_specgd import Muon, Shampoo
from torch_specgd.triton_kernels import SCHEDULES

OUT, PAGE = RESULTS / "muon_tried.csv", ROOT / "docs" / "muon_results.md"
SEEDS, RATES, MOMENTUM, AUX = (0, 7, 8), (0.045, 0.0675), 0.8, 0.003
Matrices = list[nn.Parameter]


def contra(amount: float) -> Any:
    """Return the schedule whose result is one minus so much of a singular value."""
    return replace(SCHEDULES["contra"], weights=(-amount, 0.0, 0.0, 1.0))


def squares_first(update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Divide by the root of each entry's mean square before the polar factor is taken."""
    state["squares"].lerp_(gradient.square(), 0.05)
    root = state["squares"].sqrt()
    return update / (root + 0.01 * root.square().mean((-2, -1), keepdim=True).sqrt() + 1e-20)


squares_first.shapes = lambda m, n: {"squares": (m, n)}  # type: ignore[attr-defined]


class Changed(Muon):
    """Muon whose step is changed from outside: gradients before it, weights after it."""

    def __init__(
        self,
        params: Matrices,
        before: Callable[[nn.Parameter, dict[str, Tensor]], None] = lambda p, kept: None,
        after: Callable[[nn.Parameter, Tensor, dict[str, Tensor], float], None] = (
            lambda p, old, kept, share: None
        ),
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self.before, self.after, self.peak = before, after, float(options["lr"])
        self.kept: list[dict[str, Tensor]] = [{} for _ in params]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take Muon's step between the two changes."""
        params = self.param_groups[0]["params"]
        share = float(self.param_groups[0]["lr"]) / self.peak
        for p, kept in zip(params, self.kept, strict=True):
            self.before(p, kept)
        old = [p.clone() for p in params]
        loss = super().step(closure)
        for p, x, kept in zip(params, old, self.kept, strict=True):
            self.after(p, x, kept, share)
        return loss


def mars(p: nn.Parameter, kept: dict[str, Tensor]) -> None:
    """Add a part of what the gradient has changed by (arXiv 2411.10438, without its clipping)."""
    assert p.grad is not None
    gradient = p.grad.clone()
    last = kept.get("gradient", gradient)
    p.grad.add_(gradient - last, alpha=0.05 * MOMENTUM / (1 - MOMENTUM))
    kept["gradient"] = gradient


def cautious(p: nn.Parameter, old: Tensor, kept: dict[str, Tensor], share: float) -> None:
    """Take a third of what goes against the gradient, at the step's length (arXiv 2411.16085)."""
    assert p.grad is not None
    step = p - old
    part = torch.where(step * p.grad < 0, step, 0.3 * step)
    p.copy_(old + part * (step.norm() / part.norm().clamp(min=1e-30)))


def look_ahead(p: nn.Parameter, old: Tensor, kept: dict[str, Tensor], share: float) -> None:
    """Take gradients where a mean of past steps leads to (EMA-Nesterov, arXiv 2605.25395)."""
    last = kept.get("weight", old)
    kept["mean"] = torch.lerp(kept.get("mean", torch.zeros_like(p)), p - last, 0.1)
    kept["weight"] = p.clone()
    p.add_(kept["mean"], alpha=0.3 * share)


def hyperball(p: nn.Parameter, old: Tensor, kept: dict[str, Tensor], share: float) -> None:
    """Keep the norm that a weight starts with (arXiv 2606.16899)."""
    norm = kept.setdefault("norm", old.norm())
    p.mul_(norm / p.norm())


def muon(**options: Any) -> Callable[[Matrices, float], Optimizer]:
    """Return a maker of Muon, changed or with options."""
    plain = not {"before", "after"} & options.keys()
    return lambda ps, lr: (Muon if plain else Changed)(
        ps, **{"lr": lr, "momentum": MOMENTUM, **options}
    )


BOTH = Shampoo(sides="both", root=4, every=10)
TRIED: dict[str, Callable[[Matrices, float], Optimizer]] = {
    "Muon": muon(),
    "contra 0.2": muon(ns_coefficients=contra(0.2)),
    "contra 0.5": muon(ns_coefficients=contra(0.5)),
    "contra 0.8": muon(ns_coefficients=contra(0.8)),
    "neuron": muon(second_moment="neuron"),
    "element": muon(second_moment="element"),
    "contra 0.5, neuron": muon(ns_coefficients=contra(0.5), second_moment="neuron"),
    "contra 0.5, element": muon(ns_coefficients=contra(0.5), second_moment="element"),
    "second moment before the polar factor": muon(precondition=squares_first),
    "Shampoo of both sides, fourth roots": muon(precondition=BOTH),
    "the same, contra 0.5, element": muon(
        precondition=BOTH, ns_coefficients=contra(0.5), second_moment="element"
    ),
    "differences of gradients (MARS)": muon(before=mars),
    "cautious steps": muon(after=cautious),
    "EMA-Nesterov": muon(after=look_ahead),
    "hyperball": muon(after=hyperball, weight_decay=0.0),
    "tall matrices by m / n": muon(adjust_lr_fn=lambda m, n: max(1.0, m / n)),
}


def loss(name: str, lr: float, seed: int, setting: Setting) -> float:
    """Return the held-out loss at a run's end."""

    def optimizers(model: Transformer) -> Sequence[Optimizer]:
        aside = AdamW(model.others(), lr=AUX, betas=(0.9, 0.95), weight_decay=0.0)
        return [TRIED[name](model.matrices(), lr), aside]

    return train(setting, lambda model: list(optimizers(model)), seed, points=1)[-1].held_out


def known(path: Path) -> dict[tuple[str, float, int], float]:
    """Return what the CSV holds."""
    return {(r["change"], float(r["lr"]), int(r["seed"])): float(r["held_out"]) for r in read(path)}


def run_all(path: Path) -> None:
    """Run what the CSV lacks."""
    for name, lr, seed in product(TRIED, RATES, SEEDS):
        if (name, lr, seed) not in known(path):
            found = loss(name, lr, seed, SETTINGS["plain"])
            append(path, [{"change": name, "lr": lr, "seed": seed, "held_out": found}])
            print(name, lr, seed, f"{found:.4f}", flush=True)


def report(path: Path) -> str:
    """Return the table: each change at the better of its rates, as Muon is."""
    found, rows, base = known(path), [], []
    for name in TRIED:
        means = {
            lr: fmean(found[name, lr, s] for s in SEEDS)
            for lr in RATES
            if all((name, lr, s) in found for s in SEEDS)
        }
        if means:
            lr = min(means, key=means.__getitem__)
            base = base or [found[name, lr, s] for s in SEEDS]
            gap, error = mean_and_error(
                found[name, lr, s] - b for s, b in zip(SEEDS, base, strict=True)
            )
            rows.append(f"| {name} | {lr:g} | {means[lr]:.4f} | {gap:+.4f} ± {error:.4f} |")
    head = "| change | rate | held-out loss | gap, seed by seed |"
    return "\n".join([head, "|---|---:|---:|---:|", *rows])


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        ends = [loss(name, 0.02, 0, QUICK) for name in TRIED]
        assert all(2 < end < 8 for end in ends), ends
        return
    if not args.report:
        run_all(args.csv)
    show(report(args.csv), PAGE, "tried", args.csv == OUT)


if __name__ == "__main__":
    main()
