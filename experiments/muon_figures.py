"""Draws docs/figures/muon_curves.* and prints tables of docs/muon_results.md from the CSVs.

python experiments/muon_figures.py
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

from bed import COLORS, pyplot, read, save_figure
from muon_bed import SETTINGS
from muon_transformer import QUANTILES, RUNS, SPECTRA, TUNING_SEED

plt = pyplot()
LABELS = {"adamw": "AdamW", "torch-muon": "torch.optim.Muon", "auto": "Muon (ours, auto)"}
Curves = dict[tuple[str, str, str], dict[str, dict[int, tuple[float, float]]]]


def curves() -> Curves:
    """(setting, optimizer, lr) -> seed -> step -> (held-out loss, training loss)."""
    found: Curves = defaultdict(lambda: defaultdict(dict))
    for row in read(RUNS):
        losses = (float(row["held_out_loss"]), float(row["train_loss"]))
        key = (row["setting"], row["optimizer"], row["lr"])
        found[key][row["seed"]][int(row["step"])] = losses
    return found


def summary(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def tuning_table(found: Curves) -> str:
    """Losses of the tuning seed at the end, by rate."""
    lines = ["| optimizer | lr | loss |", "|---|---:|---:|"]
    for (setting, name, lr), seeds in sorted(
        found.items(), key=lambda x: (x[0][1], float(x[0][2]))
    ):
        if setting == "plain" and str(TUNING_SEED) in seeds:
            loss = seeds[str(TUNING_SEED)][SETTINGS[setting].steps][0]
            lines.append(f"| {name} | {lr} | {loss:.4f} |")
    return "\n".join(lines)


def comparison_table(found: Curves, setting: str) -> str:
    """Final losses over the test seeds, and differences to torch.optim.Muon seed by seed."""
    lines = ["| method | lr | held-out | training | gap | training gap | seeds |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    last = SETTINGS[setting].steps
    ends = {
        key: {s: c[last] for s, c in seeds.items() if s != str(TUNING_SEED)}
        for key, seeds in found.items()
        if key[0] == setting
    }
    base = next((e for k, e in ends.items() if k[1] == "torch-muon" and e), {})
    for (_, name, lr), end in sorted(ends.items(), key=lambda x: x[0][1]):
        if not end:
            continue
        held, trained = ([e[i] for e in end.values()] for i in (0, 1))
        gaps = [[end[s][i] - base[s][i] for s in end if s in base] for i in (0, 1)]
        cells = (name, lr, *map(summary, (held, trained, *gaps)), str(len(end)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spectra_table() -> str:
    """Quantiles of the singular values of what Muon orthogonalizes."""
    values = defaultdict(list)
    for row in read(SPECTRA):
        key = (row["setting"], int(row["step"]), float(row["quantile"]))
        values[key].append(float(row["singular_value"]))
    order = sorted(QUANTILES, reverse=True)
    lines = ["| setting, step | " + " | ".join(f"q{q:g}" for q in order) + " |"]
    lines.append("|---|" + "---:|" * len(order))
    for setting, step in sorted({k[:2] for k in values}):
        medians = (statistics.median(values[setting, step, q]) for q in order)
        lines.append(f"| {setting}, {step} | " + " | ".join(f"{m:.1e}" for m in medians) + " |")
    return "\n".join(lines)


def loss_figure(found: Curves) -> None:
    """Held-out loss over steps, mean and range over the test seeds."""
    fig, ax = plt.subplots(figsize=(6, 4))
    for (setting, name, lr), seeds in found.items():
        tested = [c for s, c in seeds.items() if s != str(TUNING_SEED)]
        if setting != "plain" or name not in LABELS or not tested:
            continue
        steps = sorted(tested[0])
        losses = [[c[s][0] for c in tested] for s in steps]
        line = ax.plot(
            steps,
            [statistics.mean(v) for v in losses],
            label=f"{LABELS[name]}, lr {lr}",
            color=COLORS[LABELS[name].partition(" (")[0]],
        )
        low, high = ([f(v) for v in losses] for f in (min, max))
        ax.fill_between(steps, low, high, alpha=0.25, color=line[0].get_color(), linewidth=0)
    ax.set(xlabel="step", ylabel="held-out loss (nats per byte)", ylim=(None, 3.4))
    ax.set_title("Two-layer transformer on Python's manual, tuned learning rates", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend()
    save_figure(fig, "muon_curves")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tables, no figure")
    quick = parser.parse_args().quick
    found = curves()
    print(tuning_table(found))
    for setting in SETTINGS:
        print(f"\n{setting}\n\n{comparison_table(found, setting)}")
    print(f"\n{spectra_table()}")
    if not quick:
        loss_figure(found)


if __name__ == "__main__":
    main()
