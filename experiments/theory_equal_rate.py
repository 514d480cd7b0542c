"""All modes at the same rate, the smallest first: spectral descent against GD, Adam and Muon.

The paper's toy: a 60 x 70 target of rank 5, LoRA start (A = 0, B = 1e-3 Gaussian), step 0.01.

    python experiments/theory_equal_rate.py   # about one minute

Source: Kang et al., arXiv 2602.06385.
"""

from __future__ import annotations

from functools import partial

import torch
from theory_bed import arrivals, is_quick, modes, plt, rates, save

from torch_specgd import SpecGD
from torch_specgd import factorization as fz

SIGMA = torch.tensor([10.0, 8.0, 6.0, 4.0, 2.0], dtype=torch.float64)
ETA = 0.01
JORDAN = (3.4445, -4.7750, 2.0315)
TALL = (60 / 5) ** 0.25  # torch.optim.Muon scales A's step by sqrt(60 / 5), B's by 1

OPTIMIZERS = {
    "SpecGD, svd": (partial(SpecGD, lr=ETA), 1.0),
    "SpecGD, smoothed 1e-2": (partial(SpecGD, lr=ETA, method="smoothed"), 1.0),
    "SpecGD, precise": (partial(SpecGD, lr=ETA, method="precise"), 1.0),
    "SpecGD, newton_schulz": (partial(SpecGD, lr=ETA, method="newton_schulz"), 1.0),
    "SpecGD, Jordan's 5 steps": (
        partial(SpecGD, lr=ETA, method="newton_schulz", ns_coefficients=JORDAN),
        1.0,
    ),
    "torch.optim.Muon": (
        partial(torch.optim.Muon, lr=ETA, momentum=0.0, nesterov=False, weight_decay=0.0),
        TALL,
    ),
    "Gradient descent": (partial(torch.optim.SGD, lr=ETA), None),
    "Adam": (partial(torch.optim.Adam, lr=ETA), None),
}


def random_spectra(count: int = 10) -> list[dict[str, object]]:
    """Spread and order for targets whose five singular values are uniform on [1, 12]."""
    rows = []
    for name in ("SpecGD, svd", "SpecGD, newton_schulz", "SpecGD, Jordan's 5 steps"):
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            draws = 1 + 11 * torch.rand(5, dtype=torch.float64, generator=generator)
            sigma = draws.sort(descending=True).values
            target = fz.target_from_spectrum(60, 70, sigma, seed=seed)
            start = fz.lora_init(60, 5, 70, gamma=1e-3, seeds=[seed])
            run = fz.descend(start, fz.Problem(target), OPTIMIZERS[name][0], 440)
            d = modes(run, target, 5)[:, 0]
            hit = arrivals(d, run.times, sigma)
            rate = rates(d, run.times, float(hit.min())) / ETA
            rows.append(
                {
                    "method": name, "target": f"random {seed}",
                    "spread": float((rate.max() - rate.min()) / rate.mean()),
                    "smallest_first": bool((hit.diff() <= 0).all()),
                }
            )  # fmt: skip
    return rows


def percent(share: float) -> str:
    """Two digits of a small share, none behind the point of a large one."""
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"


def main() -> None:
    if is_quick(__doc__):
        exact, _, jordan = random_spectra(1)
        assert exact["spread"] < 0.01 < 0.05 < jordan["spread"], (exact, jordan)
        return
    target = fz.target_from_spectrum(60, 70, SIGMA, seed=0)
    problem = fz.Problem(target)
    start = fz.lora_init(60, 5, 70, gamma=1e-3, seeds=[0])
    runs = {
        name: (fz.descend(start, problem, make, 520), speed)
        for name, (make, speed) in OPTIMIZERS.items()
    }
    times = torch.linspace(0, 5.2, 521, dtype=torch.float64)
    flow = fz.spectral_gradient_flow(start, problem, times, smoothing=1e-2)
    runs = {"Spectral gradient flow": (flow, 1.0), **runs}

    more = random_spectra()
    figure, axes = plt.subplots(3, 3, figsize=(11, 9), sharex=True, sharey=True)
    rows = []
    for ax, (name, (run, speed)) in zip(axes.flat, runs.items(), strict=True):
        at = run.times / ETA if name == "Spectral gradient flow" else run.times
        d = modes(run, target, 5)[:, 0]
        hit = arrivals(d, at, SIGMA)
        rate = rates(d, at, float(hit[~hit.isnan()].min())) / ETA
        spread = float((rate.max() - rate.min()) / rate.mean())
        for i in range(5):
            predicted = float((0.95 * SIGMA[i]).sqrt() / (ETA * speed)) if speed else float("nan")
            rows.append(
                {
                    "method": name, "target": "figure", "sigma": float(SIGMA[i]),
                    "step_at_95_percent": float(hit[i]),
                    "predicted": predicted, "rate": float(rate[i]), "spread": spread,
                    "smallest_first": bool((hit.diff() <= 0).all()),
                }
            )  # fmt: skip
            color = plt.get_cmap("viridis")(i / 5)
            label = f"$\\sigma$ = {SIGMA[i]:.0f}"
            ax.plot(at, d[:, i].clamp(min=0).sqrt(), color=color, linewidth=1.8, label=label)
            ax.axhline(float(SIGMA[i].sqrt()), color=color, linestyle=":", linewidth=0.8)
        if speed:
            steps = torch.tensor([0.0, float(SIGMA[0].sqrt()) / ETA / speed])
            ax.plot(steps, steps * ETA * speed, "k--", linewidth=1, label="theory")
        told = f"{name}\nspread of the rates {percent(spread)} %"
        if others := [r["spread"] for r in more if r["method"] == name]:
            told += f"\nten random targets: {percent(min(others))} to {percent(max(others))} %"
        ax.set_title(told, fontsize=9)
    axes[0, 0].legend(loc="lower right")
    for ax in axes[-1]:
        ax.set_xlabel("step (flow: time / 0.01)")
    for ax in axes[:, 0]:
        ax.set_ylabel(r"learned $\sqrt{u_i^\top W v_i}$")
    figure.suptitle(
        "Spectral descent learns all modes at one rate, so the smallest is complete first"
    )
    save("theory_equal_rate", figure, [*rows, *more])
    for name in dict.fromkeys(r["method"] for r in more):
        mine = [r for r in more if r["method"] == name]
        spreads = sorted(float(r["spread"]) for r in mine)
        ordered = sum(bool(r["smallest_first"]) for r in mine)
        print(f"{name}: spread, median {spreads[5]:.2g}, largest {spreads[-1]:.2g}; ", end="")
        print(f"smallest first in {ordered} of {len(mine)}")


if __name__ == "__main__":
    main()
