"""The tables of the result pages that a result file fills, between their markers.

    python experiments/tables.py           # rewrites the pages of TABLES below
    python experiments/tables.py --quick   # makes them and writes nothing

Tables of pruning's grid, seconds and methods are written by ``prune_grid_report.py``,
``prune_seconds.py`` and ``prune_fashion_mnist.py``, those of the papers by ``papers.py``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from statistics import mean, stdev

import muon_figures
import muon_from_adamw
import muon_schedules
import prune_tables
import warm_features
import warm_mechanism
import warm_summary
from bed import RESULTS, ROOT, lines, mean_and_error, ranged, read, replace_between

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


def light(losses_too: bool = True) -> str:
    """Held-out loss with momentum in fewer bits, and how far behind float32."""
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read(RESULTS / "muon_light.csv"):
        losses[row["state_dtype"]][row["seed"]] = float(row["held_out"])
    size = {"float32": "4", "bfloat16": "2", "int8": "1.06", "int4": "0.56"}
    rows = []
    for kept, bytes_each in size.items():
        gap, error = mean_and_error(
            losses[kept][seed] - losses["float32"][seed] for seed in losses["float32"]
        )
        behind = "" if kept == "float32" else f"{gap:.3f} ± {error:.3f}"
        loss = [f"{mean(losses[kept].values()):.3f}"] if losses_too else []
        rows.append([f"`{kept}`", bytes_each, *loss, behind])
    head = "| `state_dtype` | bytes a parameter of the momentum |"
    head += " held-out loss | behind float32 |" if losses_too else " behind float32, nats a byte |"
    return lines(head, rows, right=3 if losses_too else 2)


def in_the_trainer() -> str:
    """Losses of the Trainer's small net by rate and optimizer, mean and range of the seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read(RESULTS / "muon_trainer.csv"):
        found[row["rate"]][row["optimizer"]].append(float(row["loss"]))
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    rows = [[rate, *(ranged(of[name], 3) for name in names)] for rate, of in found.items()]
    return lines(f"| AdamW's rate | {' | '.join(names)} |", rows, right=len(names))


# --- warm starts


def embedded(again: bool) -> str:
    """Points that warm starts lose on small sets, by seed."""
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in read(RESULTS / "warm_embedded.csv"):
        if (int(row["seed"]) >= 10) == again:
            found[row["set"], row["labels"], row["optimizer"]].append(float(row["lost"]))
    rows = []
    for place, points in found.items():
        value, error = mean_and_error(points)
        each = " / ".join(f"{p:+.1f}" for p in points)
        rows.append([*place, f"{value:+.1f} ± {error:.1f}", each])
    return lines("| set | labels | optimizer | warm starts lose, points | on each seed |", rows)


def real_files() -> str:
    """What the command line did to files that others trained."""
    rows = [list(row.values()) for row in read(RESULTS / "warm_real_files.csv")]
    head = "| file | weights | tensors shrunk | running statistics | moved | undo, relative error |"
    return lines(head, rows)


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
        "schedules, transformer": lambda: muon_schedules.table("width 96"),
        "schedules, convolution": lambda: muon_schedules.table("convolution"),
        "trainer": in_the_trainer,
    },
    "muon_training.md": {"state": lambda: light(losses_too=False)},
    "pruning_results.md": {
        "noise epochs": prune_tables.noise_epochs,
        "wrong kept": prune_tables.wrong_kept,
        "c_d": prune_tables.c_d,
        "many steps, clean": lambda: prune_tables.many_steps("0.0"),
        "many steps, redrawn": lambda: prune_tables.many_steps("0.2"),
        "likely wrong": prune_tables.likely_wrong,
    },
    "warmstart_results.md": {
        "real files": real_files,
        "embedded": lambda: embedded(again=False),
        "embedded, again": lambda: embedded(again=True),
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
