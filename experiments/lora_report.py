"""Figures and tables of the adapters on pretrained models, from their result files.

python experiments/lora_report.py   # docs/figures/lora_*; tables of docs/papers/lora.md
"""

from __future__ import annotations

import argparse
from statistics import fmean, median

from bed import COLORS, ROOT, pyplot, ranged, replace_between, save_figure
from claims import NOT_RUN, UNDECIDED, paired
from lora_pretrained import GRIDS, STEPS
from lora_rows import (
    MARGIN,
    MEASURES,
    MODELS,
    RANKS,
    Place,
    Row,
    early_and_late,
    losses,
    missing,
    name_of,
    named,
    reported,
    spectra,
    spread_of_growth,
    tuned,
)

PAGE = ROOT / "docs" / "papers" / "lora.md"


# --- tables


def table_of_spectra() -> str:
    """What the adapters' spectra are like at the end, and how unequal the growth is."""
    lines = [
        "| model, rank | optimizer | rate | seeds | σ_r / σ_1 | stable rank | spread of growth, "
        "early | late | held-out loss |",
        "|---" * 9 + "|",
    ]
    for (model, rank, method), rows in sorted(reported().items(), key=order):
        spread = early_and_late(model, rank, method)
        cells = [f"{value:.2f}" for value in spread] if spread else ["", ""]
        columns = {key: [float(row[key]) for row in rows]
                   for key in ("sigma_ratio", "stable_rank", "held_loss")}  # fmt: skip
        lines.append(
            f"| {MODELS[model].partition(',')[0]}, {rank} | {method} | {rows[0]['lr']} | "
            f"{len(rows)} | {fmean(columns['sigma_ratio']):.3f} | "
            f"{fmean(columns['stable_rank']):.2f} | {' | '.join(cells)} | "
            f"{ranged(columns['held_loss'], 3)} |"
        )
    left = missing()
    return "\n".join(lines) + (f"\n\nNot run: {left}." if left else "")


def order(item: tuple[Place, list[Row]]) -> tuple[str, int, int]:
    """Models, then ranks, then methods as they are listed."""
    model, rank, method = item[0]
    return model, int(rank), list(GRIDS).index(method)


def table_of_rates() -> str:
    """The losses that the rates were chosen by, one seed."""
    lines = ["| model, rank | optimizer | held-out loss on seed 0, by rate |", "|---|---|---|"]
    for (model, rank, method), (best, rows) in sorted(
        tuned().items(), key=lambda item: order((item[0], []))
    ):
        cells = [f"{lr:.2g}: {float(row['held_loss']):.3f}" for lr, row in sorted(rows.items())]
        cells = [f"**{c}**" if lr == best else c for lr, c in zip(sorted(rows), cells, strict=True)]
        edge = "" if min(rows) < best < max(rows) else " (best at the edge: not tuned out)"
        name = name_of(model)
        lines.append(f"| {name}, {rank} | {method} | {', '.join(cells)}{edge} |")
    return "\n".join(lines)


def table_of_pairs() -> str:
    """Held-out losses seed by seed against AdamW's, at each method's own best rate."""
    found = reported()
    lines = ["| model, rank | optimizer | minus AdamW, seed by seed | decided |", "|---" * 4 + "|"]
    for (model, rank, method), _ in sorted(found.items(), key=order):
        pair = paired(*(losses(int(rank), m, model) for m in (method, "AdamW")), digits=3)
        if method != "AdamW" and pair.verdict != NOT_RUN:
            name = name_of(model)
            sure = "no" if pair.verdict == UNDECIDED else "yes"
            lines.append(f"| {name}, {rank} | {method} | {pair.text} | {sure} |")
    return "\n".join(lines)


def table_of_ranks() -> str:
    """Rank by rank: the spectrum, the loss, and what it is above the largest rank's."""
    lines = [
        "| optimizer | rank | seeds | effective rank | stable rank | held-out loss | minus that of "
        "the largest rank, seed by seed |",
        "|---" * 7 + "|",
    ]
    for method in ("Muon", "AdamW"):
        full = next((r for r in reversed(RANKS) if losses(r, method)), RANKS[-1])
        for rank in RANKS:
            rows = reported().get(("minilm", str(rank), method), [])
            if not rows:
                lines.append(f"| {method} | {rank} | 0 |  |  | not run | not run |")
                continue
            cells = [f"{fmean(float(r[k]) for r in rows):.2f}" for k in MEASURES]
            gap = paired(losses(rank, method), losses(full, method), digits=3).text
            lines.append(
                f"| {method} | {rank} | {len(rows)} | {' | '.join(cells)} | "
                f"{ranged([*losses(rank, method).values()], 3)} | {'' if rank == full else gap} |"
            )
    return "\n".join(lines)


def table_of_named() -> str:
    """The rank that one run's spectrum names, and what it loses against that run's own rank."""
    lines = [
        "| optimizer | measure of one run | value | rank that it names | held-out loss, named rank "
        f"minus full rank | no more than {MARGIN} |",
        "|---" * 6 + "|",
    ]
    for method in ("Muon", "AdamW"):
        for measure, name in MEASURES.items():
            if (found := named(method, measure)) is None:
                lines.append(f"| {method} | {name} |  | not run |  |  |")
                continue
            both = (losses(rank, method) for rank in (found.rank, found.full))
            pair = paired(*both, sign=-1, margin=MARGIN, digits=3)
            cells = f"{pair.text} | {pair.verdict}"
            if found.rank == found.full:
                cells = "no smaller rank | "
            elif pair.verdict == NOT_RUN:
                cells = f"r = {found.rank} has not run | "
            lines.append(
                f"| {method} | {name} at r = {found.full} | {found.value:.2f} | {found.rank} | "
                f"{cells} |"
            )
    return "\n".join(lines)


# --- figures


def growth_figure(model: str) -> bool:
    """All adapters' sqrt(sigma_i) over the steps, Muon beside AdamW, and the spread over time."""
    methods = [m for m in ("Muon", "AdamW") if spectra(model, "8", m)]
    if len(methods) < 2:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    for ax, method in zip(axes, methods, strict=False):
        steps, sigma = spectra(model, "8", method)[0]
        roots = sigma.sqrt()
        for i in range(8):
            color = plt.get_cmap("viridis")(i / 8)
            ax.plot(steps, roots[:, :, i].T, color=color, linewidth=0.6, alpha=0.5)
            ax.plot(steps, roots[:, :, i].median(0).values, color=color, linewidth=2,
                    label=f"$\\sigma_{i + 1}$" if i in (0, 3, 7) else None)  # fmt: skip
        ax.set(
            title=f"{method}: all {len(sigma)} adapters, r = 8",
            xlabel="step",
            ylabel=r"$\sqrt{\sigma_i}$ of the product" if method == "Muon" else None,
        )
        ax.legend(title="broad: median", title_fontsize=8)
    for method in GRIDS:
        for k, (steps, sigma) in enumerate(spectra(model, "8", method)):
            axes[2].plot(steps[1:], spread_of_growth(sigma).median(0).values, color=COLORS[method],
                         label=method if k == 0 else None)  # fmt: skip
    top = max(float(spectra(model, "8", m)[0][1].sqrt().max()) for m in methods)
    for ax in axes[:2]:
        ax.set_ylim(0, 1.03 * top)
    axes[2].axvline(STEPS[model] / 2, color="gray", linewidth=0.8, linestyle=":")
    axes[2].set(
        title="how unequal the growth is, a line a seed",
        xlabel="step",
        yscale="log",
        ylabel="(max - min) / |mean| of the growth\nof $\\sqrt{\\sigma_i}$, median adapter",
    )
    axes[2].set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes[2].minorticks_off()
    axes[2].legend(title="dotted: the rate begins to fall", title_fontsize=8)
    figure.suptitle(f"{MODELS[model]}: rank-8 adapters on q and v")
    save_figure(figure, f"lora_growth_{model}")
    return True


def loss_figure() -> bool:
    """Losses by rank; and on the tuning seed by how far the adapters went: matched rates."""
    found = reported()
    ranks = {m: sorted(int(p[1]) for p in found if (p[0], p[2]) == ("minilm", m)) for m in GRIDS}
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for method in ("Muon", "AdamW"):
        rows = [found["minilm", str(r), method] for r in ranks[method]]
        each = [[float(row["held_loss"]) for row in some] for some in rows]
        middle = [fmean(some) for some in each]
        spread = [[m - min(s) for m, s in zip(middle, each, strict=True)],
                  [max(s) - m for m, s in zip(middle, each, strict=True)]]  # fmt: skip
        # A little apart, so that neither hides the other.
        places = [rank * (1.04 if method == "AdamW" else 0.96) for rank in ranks[method]]
        axes[0].errorbar(places, middle, spread, fmt="o-", capsize=3, label=method,
                         color=COLORS[method])  # fmt: skip
    axes[0].set(xscale="log", xlabel="rank of the adapters", ylabel="held-out loss",
                title="MiniLM, rates tuned, mean and range of seeds")  # fmt: skip
    shown = sorted({rank for some in ranks.values() for rank in some})
    axes[0].set_xticks(shown, [str(rank) for rank in shown])
    axes[0].minorticks_off()
    for (model, rank, method), (_, rows) in tuned().items():
        if (model, rank) == ("minilm", "8"):
            points = sorted((float(r["norm"]), float(r["held_loss"])) for r in rows.values())
            axes[1].plot(*zip(*points, strict=True), "o-", color=COLORS[method], label=method)
    axes[1].set(xscale="log", xlabel="median Frobenius norm of the adapters' products at the end",
                title="r = 8, one seed, each dot a rate")  # fmt: skip
    for ax in axes:
        ax.legend()
    save_figure(figure, "lora_loss")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tables, no figures and no page")
    quick = parser.parse_args().quick
    tables = {
        "spectra": table_of_spectra(),
        "differences": table_of_pairs(),
        "ranks": table_of_ranks(),
        "named": table_of_named(),
        "rates": table_of_rates(),
    }
    muon, adamw = (
        median(float(r["sigma_ratio"]) for r in reported()["minilm", "8", m])
        for m in ("Muon", "AdamW")
    )
    assert muon > 3 * adamw, (muon, adamw)
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")
        if not quick:
            replace_between(PAGE, name, table)
    if not quick:
        for model in MODELS:
            growth_figure(model)
        loss_figure()


if __name__ == "__main__":
    main()
