"""The tables of the result pages that a result file fills, between their markers.

    python experiments/tables.py           # rewrites docs/*_results.md and docs/theory.md
    python experiments/tables.py --quick   # makes them and writes nothing

Tables of pruning's grid, seconds and methods are written by ``prune_grid_report.py``,
``prune_seconds.py`` and ``prune_fashion_mnist.py``, those of the papers by ``papers.py``.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable
from statistics import mean, stdev

import muon_figures
import muon_from_adamw
import warm_features
import warm_mechanism
import warm_summary
from bed import RESULTS, ROOT, read, replace_between


def lines(head: str, rows: list[list[str]], right: int = 0) -> str:
    """A Markdown table; ``right`` columns from the end are set to the right."""
    count = head.count("|") - 1
    rule = "|---" * (count - right) + "|---:" * right + "|"
    return "\n".join([head, rule, *(f"| {' | '.join(row)} |" for row in rows)])


# --- theory

EQUAL_RATE = {
    "SpecGD, svd": '`SpecGD(method="svd")`',
    "SpecGD, precise": '`SpecGD(method="precise")`',
    "SpecGD, smoothed 1e-2": '`SpecGD(method="smoothed")`',
    "SpecGD, newton_schulz": '`SpecGD(method="newton_schulz")`',
    "SpecGD, Jordan's 5 steps": "the same with Jordan's five steps",
    "torch.optim.Muon": "`torch.optim.Muon` (its prediction: 0.54 of the above)",
}


def equal_rate() -> str:
    """Steps to 95 % of each mode, and the spread of the rates."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read(RESULTS / "theory_equal_rate.csv"):
        if row["target"] == "figure":
            found[row["method"]].append(row)
    exact = found["SpecGD, svd"]
    rows = [["prediction √(0.95 σ) / η", *(f"{float(r['predicted']):.1f}" for r in exact), ""]]
    for name, modes in found.items():
        if name != "Spectral gradient flow":
            steps = (float(r["step_at_95_percent"]) for r in modes)
            cells = [f"{s:.0f}" if s == s else "not in 520" for s in steps]
            spread = 100 * float(modes[0]["spread"])
            told = f"{spread:.2g}" if spread < 10 else f"{spread:.0f}"
            rows.append([EQUAL_RATE.get(name, name), *cells, f"{told} %"])
    sigma = [f"{float(r['sigma']):g}" for r in exact]
    return lines(f"| method | σ = {' | '.join(sigma)} | spread |", rows)


def adapters() -> str:
    """Spectra and losses of the small transformer's adapters, lowest to highest seed."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read(RESULTS / "theory_lora.csv"):
        found[row["optimizer"]].append(row)
    columns = {"sigma_8_over_sigma_1": 2, "stable_rank": 1, "held_out_loss": 3}
    rows = []
    for name, runs in found.items():
        cells = [name]
        for column, digits in columns.items():
            values = [float(run[column]) for run in runs]
            cells.append(f"{min(values):.{digits}f} – {max(values):.{digits}f}")
        rows.append(cells)
    head = "| optimizer | σ₈ / σ₁ of BA | stable rank | held-out loss (nats / byte) |"
    return lines(head, rows)


# --- Muon

FROM_ADAMW = {
    "narrow, 4 layers": "width 48, 4 layers",
    "wide, 1 layer": "width 128, 1 layer, batch 4, 300 steps",
    "long warm-up": "width 64, batch 4, warm-up over 0.4 of the steps",
    "AdamW's betas, decay 1": "width 80, context 32, 500 steps, betas (0.9, 0.999), decay 1",
    "short text": "width 80, context 48, batch 12, 200 steps on 40 kB",
    "beta 0.999": "betas (0.9, 0.999)",
}


def from_adamw(found: bool = False) -> str:
    """Tuned rates; for settings that the rule was not found on, the losses of both as well."""
    if not found:
        head = (
            "| setting | AdamW's rate | best multiple | tuned Muon | `from_adamw` | behind tuned |"
        )
        rows = [
            muon_from_adamw.compare(name).replace(f"| {name} |", f"| {FROM_ADAMW[name]} |")
            for name in muon_from_adamw.CONFIRMED
        ]
        return "\n".join([lines(head, [], right=5), *rows])
    rows = []
    for name, case in muon_from_adamw.FOUND.items():
        tuned = [muon_from_adamw.tuned(name, (seed,), aside=3e-3) for seed in case.tuning]
        seeds = f", {len(tuned)} seeds" if len(tuned) > 1 else ""
        rates, multiples = zip(*tuned, strict=True)
        rows.append([f"{FROM_ADAMW.get(name, name)}{seeds}", ", ".join(f"{r:.4f}" for r in rates),
                     ", ".join(f"{m:.1f}" for m in multiples)])  # fmt: skip
    return lines("| setting | AdamW's best rate | Muon's over it |", rows, right=2)


def per_head() -> str:
    """Held-out loss with whole projections and head by head."""
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read(RESULTS / "muon_per_head.csv"):
        losses[row["per_head"]][row["seed"]] = float(row["held_out_loss"])
    whole, heads = losses["False"], losses["True"]
    gaps = [heads[seed] - whole[seed] for seed in whole]
    names = {"whole projections (default)": whole.values(), "`per_head=True`": heads.values()}
    rows = [[name, f"{mean(v):.4f} ± {stdev(v):.4f}"] for name, v in names.items()]
    rows.append(["difference, seed by seed", f"{mean(gaps):+.4f} ± {stdev(gaps):.4f}"])
    return lines(f"| | held-out loss (nats a byte), {len(gaps)} seeds |", rows, right=1)


def light() -> str:
    """Held-out loss with momentum in fewer bits, and how far behind float32."""
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read(RESULTS / "muon_light.csv"):
        losses[row["state_dtype"]][row["seed"]] = float(row["held_out"])
    size = {"float32": "4", "bfloat16": "2", "int8": "1.06", "int4": "0.56"}
    rows = []
    for kept, bytes_each in size.items():
        gaps = [losses[kept][seed] - losses["float32"][seed] for seed in losses["float32"]]
        error = stdev(gaps) / math.sqrt(len(gaps))
        behind = "" if kept == "float32" else f"{mean(gaps):.3f} ± {error:.3f}"
        rows.append([kept, bytes_each, f"{mean(losses[kept].values()):.3f}", behind])
    head = "| `state_dtype` | bytes a parameter of the momentum | held-out loss | behind float32 |"
    return lines(head, rows, right=3)


# --- pruning


def noise_epochs() -> str:
    """Wrong labels among the kept, by scoring epochs."""
    share: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read(RESULTS / "prune_noise_epochs.csv"):
        place = (row["method"], row["prune_ratio"])
        share[place][int(row["epochs"])].append(100 * float(row["wrong_labels"]))
    rows = []
    for (method, ratio), of in share.items():
        if ratio == "0.9" or (ratio == "0.5" and method.startswith("DUAL")):
            rows.append([f"{method}, {ratio}", *(f"{mean(of[t]):.1f}" for t in sorted(of))])
    rows.sort(key=lambda row: [name for name, _ in share].index(row[0].rpartition(", ")[0]))
    return lines("| method, ratio | T = 5 | 10 | 20 | 40 |", rows)


# --- warm starts


def features() -> str:
    """The discrete process: accuracy, features and active inputs."""
    made = read(RESULTS / "warm_features.csv")
    rows = []
    for experiment in (1, 5, 10, 25, 50):
        cells = [str(experiment)]
        for mode in ("cold", "warm", "ideal"):
            accuracy, spread = warm_features.mean_std(made, mode, experiment, "accuracy")
            learned, active = (
                warm_features.mean_std(made, mode, experiment, column)[0]
                for column in ("features", "active")
            )
            cells.append(f"{accuracy:.2f} +- {spread:.2f} / {learned:.1f} / {active:.0f}")
        rows.append(cells)
    return lines("| experiment | cold | warm | ideal |", rows)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "theory.md": {"equal rate": equal_rate, "adapters": adapters},
    "muon_results.md": {
        "tuning": lambda: muon_figures.tuning_table(muon_figures.curves()),
        "plain": lambda: muon_figures.comparison_table(muon_figures.curves(), "plain"),
        "small batch": lambda: muon_figures.comparison_table(muon_figures.curves(), "small-batch"),
        "late": lambda: muon_figures.comparison_table(muon_figures.curves(), "late"),
        "singular values": muon_figures.spectra_table,
        "found": lambda: from_adamw(found=True),
        "from AdamW": from_adamw,
        "per head": per_head,
        "momentum": light,
    },
    "pruning_results.md": {"noise epochs": noise_epochs},
    "warmstart_results.md": {
        "features": features,
        "mechanism": lambda: warm_mechanism.tables(read(RESULTS / "warm_mechanism.csv")),
        "chunks": lambda: warm_summary.tables(read(RESULTS / "warm_chunks.csv")),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no page is written")
    quick = parser.parse_args().quick
    for page, of in TABLES.items():
        for name, make in of.items():
            made = make()
            assert made.count("\n") > 1, (name, made)
            if not quick:
                replace_between(ROOT / "docs" / page, name, made)
        print(f"{page}: {', '.join(of)}")


if __name__ == "__main__":
    main()
