"""LoRA on a small transformer: which spectrum do AdamW, Muon and SpecGD give the adapters?

A byte-level transformer is trained on Python's manual, frozen, and adapted with rank-8 adapters
(PEFT, on q and v) to the source code of Python's standard library. Three adapter seeds.

    python experiments/theory_lora.py          # about 90 seconds on one core
    python experiments/theory_lora.py --quick  # a few seconds, one seed, nothing is written

Source of the claim: Kang et al., arXiv 2602.06385: orthogonalized updates grow all directions of
an adapter together. Which optimizer gives the better model is not what this shows.
"""

from __future__ import annotations

import inspect
import warnings
from importlib import import_module

import torch
from bed import COLORS
from muon_bed import Setting, Transformer, batches, loss_on, read_text
from peft import LoraConfig, get_peft_model
from theory_bed import is_quick, plt, save
from torch.nn.functional import cross_entropy

from torch_specgd import Muon, SpecGD, SpectrumTracker, lora_param_groups

MODULES = ("argparse", "ast", "inspect", "tarfile", "typing", "zipfile", "decimal", "doctest")
OPTIMIZERS = {
    "AdamW, lr 3e-3": lambda m: torch.optim.AdamW(trained(m), lr=3e-3, weight_decay=0.0),
    "AdamW, lr 1e-2": lambda m: torch.optim.AdamW(trained(m), lr=1e-2, weight_decay=0.0),
    "Muon, lr 1e-2": lambda m: Muon(groups(m), weight_decay=0.0),
    "SpecGD, lr 1e-2": lambda m: SpecGD(groups(m), momentum=0.95, nesterov=True),
}
# Muon and SpecGD nearly coincide: a broad line under a thin broken one shows both.
LINES = [
    {"color": COLORS["AdamW"]},
    {"color": COLORS["AdamW"], "linestyle": ":"},
    {"color": COLORS["Muon"], "linewidth": 5, "alpha": 0.5},
    {"color": COLORS["SpecGD"], "linestyle": "--"},
]


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def groups(model: torch.nn.Module) -> list[dict[str, object]]:
    return lora_param_groups(model, lr_b=1e-2, lr_a=1e-2)


def source_code() -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out bytes of the standard library's own source."""
    texts = [inspect.getsource(import_module(name)) for name in MODULES]
    train, held = (
        torch.tensor(list("\n\n".join(part).encode()), dtype=torch.int64)
        for part in (texts[:-1], texts[-1:])
    )
    return train, held


def pretrain(setting: Setting) -> dict[str, torch.Tensor]:
    """Weights of a transformer trained on the manual."""
    torch.manual_seed(0)
    model = Transformer(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    text, _ = read_text()
    for _, (x, y) in zip(range(setting.steps), batches(text, setting, 0), strict=False):
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def adapt(
    weights: dict[str, torch.Tensor], setting: Setting, name: str, seed: int, steps: int
) -> tuple[SpectrumTracker, float]:
    """Trains adapters; returns their spectra over the steps, and the held-out loss."""
    model = Transformer(setting)
    model.load_state_dict(weights)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks a model of its own kind for more than it has
        adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=["q", "v"]))
    optimizer = OPTIMIZERS[name](adapted)
    tracker = SpectrumTracker(adapted, every=10)
    text, held = source_code()
    for step, (x, y) in zip(range(1, steps + 1), batches(text, setting, seed), strict=False):
        loss = cross_entropy(adapted(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracker.update(step)
    return tracker, loss_on(adapted, held, setting.context, windows=128)


def medians(tracker: SpectrumTracker, key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Median over the adapters at every recorded step."""
    steps = tracker.history(tracker.names()[0])[0]
    values = torch.stack([tracker.history(name, key)[1] for name in tracker.names()])
    return steps, values.median(0).values


def main() -> None:
    quick = is_quick(__doc__)
    setting = Setting(width=64, layers=2, batch=8, context=64, steps=20 if quick else 500)
    weights = pretrain(setting)
    seeds, steps = (range(1), 20) if quick else (range(3), 200)
    rows = []
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    for name, line in zip(OPTIMIZERS, LINES, strict=True):
        ends = []
        for seed in seeds:
            tracker, loss = adapt(weights, setting, name, seed, steps)
            at, ratio = medians(tracker, "sigma_ratio")
            axes[0].plot(at, ratio, **line, label=name if seed == 0 else None)
            rank = medians(tracker, "stable_rank")[1]
            axes[1].plot(at, rank, **line)
            sigma = medians(tracker, "singular_values")[1][-1]
            ends.append(sigma / sigma[0])
            rows.append(
                {"optimizer": name, "seed": seed, "sigma_8_over_sigma_1": float(ratio[-1]),
                 "stable_rank": float(rank[-1]), "held_out_loss": loss}
            )  # fmt: skip
        ends = torch.stack(ends)
        axes[2].plot(range(1, 9), ends.median(0).values, marker="o", markersize=4, **line)
        axes[2].fill_between(range(1, 9), ends.amin(0), ends.amax(0), color=line["color"],
                             alpha=0.2, linewidth=0)  # fmt: skip
    axes[0].set(xlabel="step", ylabel=r"$\sigma_8 / \sigma_1$ of BA", ylim=(0, None))
    axes[0].set_title("smallest against largest direction")
    axes[0].legend(loc="center left", bbox_to_anchor=(0.0, 0.42))
    axes[1].set(xlabel="step", ylabel="stable rank of BA", title="directions that count")
    axes[2].set(xlabel="i", ylabel=r"$\sigma_i / \sigma_1$ at the end", ylim=(0, 1.05))
    axes[2].set_title("spectrum at the end, median and range")
    figure.suptitle("Rank-8 adapters on q and v: median over the adapters, one line per seed")
    if quick:
        assert all(row["sigma_8_over_sigma_1"] > 0 for row in rows)
        return
    save("theory_lora", figure, rows)


if __name__ == "__main__":
    main()
