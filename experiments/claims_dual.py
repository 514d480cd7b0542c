"""Claims of DUAL (arXiv 2502.06905) against the pruning result files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import claims_dash
import numpy as np
from claims import (
    Claim,
    Outcome,
    by_seed,
    decided,
    in_cells,
    not_run,
    numbers,
    paired,
    rows,
    together,
)

FASHION = "20,000 Fashion-MNIST images, small conv net, 400 steps"
GRID = "digits, Fashion-MNIST, tweets; four kinds of damage, four ratios, three budgets, two nets"
PAPER_RULE = "DUAL + Beta, c_D = 4"
RATIOS = ("0.3", "0.5", "0.7", "0.8", "0.9")


def accuracy(method: str, ratio: str, noise: str = "0.0") -> dict[str, float]:
    """Accuracy in percent by seed, on the Fashion-MNIST bed."""
    found = rows("prune_fashion_mnist", part="report", noise=noise, method=method,
                 prune_ratio=ratio, steps=400)  # fmt: skip
    return {seed: 100 * value for seed, value in by_seed(found, "accuracy").items()}


def against(
    method: str, rival: str, ratios: tuple[str, ...] = RATIOS, noise: str = "0.0"
) -> Callable[[], Outcome]:
    """One method above another at every ratio."""
    return lambda: together(
        {f"r = {r}": paired(accuracy(method, r, noise), accuracy(rival, r, noise)) for r in ratios}
    )


def in_the_grid(method: str, **where: str) -> Callable[[], Outcome]:
    """Count the cells in which a rule is above and below random by the interval of its seeds."""

    def judge() -> Outcome:
        cells: dict[tuple[str, ...], dict[str, dict[str, float]]] = defaultdict(dict)
        # Cells that ran anew after a change of our own rule are not the paper's rule's matter.
        for half in ("search", "confirm"):
            for row in rows("prune_grid", half=half, **where):
                if row["method"] in (method, "random"):
                    cell = tuple(
                        row[k] for k in ("half", "data", "damage", "ratio", "budget", "net")
                    )
                    own = cells[cell].setdefault(row["method"], {})
                    own[row["seed"]] = 100 * float(row["accuracy"])
        return in_cells(
            {", ".join(cell[1:]): (of.get(method, {}), of.get("random", {}))
             for cell, of in cells.items()}
        )  # fmt: skip

    return judge


def wrong_labels() -> Outcome:
    """Share of wrong labels among the kept at ratio 0.7, a fifth of all wrong."""
    share = {
        method: 100 * np.mean(numbers(
            rows("prune_fashion_mnist", noise="0.2", method=method, prune_ratio="0.7"),
            "wrong_labels"))
        for method in ("DUAL + Beta", "DUAL top-k", "EL2N", "random")
    }  # fmt: skip
    text = ", ".join(f"{name} {value:.1f} %" for name, value in share.items())
    return decided(share["DUAL + Beta"] < share["random"] / 3, text, 3)


def collapse() -> Outcome:
    """The score alone against random, and with Beta against the score alone, at ratio 0.9."""
    alone = paired(accuracy("DUAL top-k", "0.9"), accuracy("random", "0.9"), sign=-1)
    rescued = paired(accuracy("DUAL + Beta", "0.9"), accuracy("DUAL top-k", "0.9"))
    return together({"top-k minus random": alone, "Beta minus top-k": rescued})


PASSES = {"fashion": 30, "digits": 60, "tweets": 20}  # of a training in prune_seconds.py


def seconds() -> Outcome:
    """CPU seconds of ten recorded passes over those of training on all the data."""
    parts, over = [], []
    for data, passes in PASSES.items():
        spent = by_seed(
            rows("prune_seconds", data=data, damage="clean", method="default", ratio="0.5"),
            "scoring",
        )
        whole = {
            row["seed"]: float(row["clock"].split()[-1])
            for row in rows("prune_seconds", data=data, damage="clean", method="all the data")
        }
        share = np.mean([spent[s] / whole[s] for s in spent if s in whole])
        over.append(share / (10 / passes))
        parts.append(f"{data} {share:.0%} for 10 of {passes}")
    return decided(max(over) < 1.25, "; ".join(parts), 3)


def equal_seconds() -> Outcome:
    """Score, select and train on half, in seconds, against training on all."""
    parts = {}
    for data in ("fashion", "digits", "tweets"):
        together_s, whole = {}, {}
        for row in rows("prune_seconds", data=data, damage="clean", ratio="0.5", method="default"):
            before = float(row["scoring"]) + float(row["selecting"])
            together_s[row["seed"]] = before + float(row["clock"].split()[-1])
        for row in rows("prune_seconds", data=data, damage="clean", method="all the data"):
            whole[row["seed"]] = float(row["clock"].split()[-1])
        parts[data] = paired(together_s, whole, " s", sign=-1)
    return together(parts)


def for_as_many_seconds(damage: str, method: str, rival: str) -> Callable[[], Outcome]:
    """One method above another where both get the CPU seconds of some passes over all the data."""

    def at(data: str, passes: int, name: str) -> dict[str, float]:
        ratio = 0.0 if name == "all the data" else 0.5
        found = rows("prune_equal_seconds", data=data, damage=damage, passes=passes, ratio=ratio,
                     method=name)  # fmt: skip
        return {seed: 100 * value for seed, value in by_seed(found, "accuracy").items()}

    return lambda: together(
        {f"{data}, {passes} passes": paired(at(data, passes, method), at(data, passes, rival))
         for data, passes in (("digits", 60), ("fashion", 30))}
    )  # fmt: skip


def many_steps(noise: str) -> Callable[[], Outcome]:
    """Our default against random on 20,000 images and 4,000 steps."""

    def at(method: str, ratio: str) -> dict[str, float]:
        found = rows("prune_fashion_mnist_4000", noise=noise, method=method, prune_ratio=ratio)
        return {seed: 100 * value for seed, value in by_seed(found, "accuracy").items()}

    return lambda: together(
        {f"r = {r}": paired(at("default", r), at("random", r)) for r in ("0.5", "0.9")}
    )


def longer_recording() -> Outcome:
    """Wrong labels kept at ratio 0.7 by the number of scoring epochs."""
    share = {
        epochs: 100 * np.mean(numbers(
            rows("prune_noise_epochs", epochs=epochs, method="DUAL + Beta", prune_ratio="0.7"),
            "wrong_labels"))
        for epochs in (5, 10, 20, 40)
    }  # fmt: skip
    text = "wrong labels kept: " + ", ".join(f"T = {t}: {v:.1f} %" for t, v in share.items())
    return decided(max(share.values()) < 20 / 3, text, 3)


WRAPPED, SECONDS = "default, one run", "seconds of 60 (digits) or 30 passes (Fashion-MNIST)"
BED, GRID_PROGRAM = "prune_fashion_mnist.py", "prune_grid.py"
CLAIMS = (
    Claim(
        "DUAL with Beta sampling beats random at every ratio",
        BED,
        f"{FASHION}, clean labels",
        against("DUAL + Beta", "random"),
    ),
    Claim("It beats Dyn-Unc", BED, f"{FASHION}, clean labels", against("DUAL + Beta", "Dyn-Unc")),
    Claim("It beats EL2N", BED, f"{FASHION}, clean labels", against("DUAL + Beta", "EL2N")),
    Claim("It beats CCS", BED, f"{FASHION}, clean labels", against("DUAL + Beta", "CCS")),
    Claim(
        "The score alone falls below random at extreme ratios, Beta sampling prevents it",
        BED,
        f"{FASHION}, r = 0.9",
        collapse,
    ),
    Claim(
        "With wrong labels it beats random at every ratio",
        BED,
        f"{FASHION}, a fifth of the labels redrawn",
        against("DUAL + Beta", "random", noise="0.2"),
    ),
    Claim(
        "With wrong labels it beats CCS",
        BED,
        f"{FASHION}, a fifth of the labels redrawn",
        against("DUAL + Beta", "CCS", noise="0.2"),
    ),
    Claim(
        "It keeps few wrong labels: less than a third of random's share",
        BED,
        f"{FASHION}, a fifth redrawn, r = 0.7",
        wrong_labels,
    ),
    Claim(
        "The same however long is recorded",
        "prune_noise_epochs.py",
        "6,000 images, a fifth redrawn, r = 0.7",
        longer_recording,
    ),
    Claim("It beats random throughout", GRID_PROGRAM, GRID, in_the_grid(PAPER_RULE)),
    Claim(
        "It beats random on clean data",
        GRID_PROGRAM,
        "the cells without damage",
        in_the_grid(PAPER_RULE, damage="clean"),
    ),
    Claim(
        "It beats random under label noise",
        GRID_PROGRAM,
        "the cells with labels redrawn",
        in_the_grid(PAPER_RULE, damage="redrawn"),
    ),
    Claim(
        "It beats random with corrupted inputs",
        GRID_PROGRAM,
        "the cells with corrupted inputs",
        in_the_grid(PAPER_RULE, damage="corrupted"),
    ),
    Claim(
        "It carries over to another architecture",
        GRID_PROGRAM,
        "the cells with another net",
        in_the_grid(PAPER_RULE, net="other"),
    ),
    Claim(
        "Our default beats random throughout (our claim, not the paper's)",
        GRID_PROGRAM,
        GRID,
        in_the_grid("default"),
    ),
    Claim(
        "Scoring costs its share of a training's passes (CIFAR: 30 of 200, 15 %), within a quarter",
        "prune_seconds.py",
        "seconds of scoring over those of training on all the data",
        seconds,
    ),
    Claim(
        "Score, select and train on half takes fewer seconds than training on all",
        "prune_seconds.py",
        "our default, clean labels, equal passes",
        equal_seconds,
    ),
    *(
        Claim(
            f"For as many seconds {what} (our claim, not the paper's)",
            "prune_equal_seconds.py",
            f"a fifth redrawn, ratio 0.5, {SECONDS}"
            if damage == "redrawn"
            else f"clean, {SECONDS}",
            for_as_many_seconds(damage, method, rival),
        )
        for what, damage, method, rival in (
            ("`wrap` beats random", "clean", WRAPPED, "random"),
            ("`wrap` beats all the data", "clean", WRAPPED, "all the data"),
            ("`wrap` beats random with wrong labels", "redrawn", WRAPPED, "random"),
            ("`wrap` beats all the data with wrong labels", "redrawn", WRAPPED, "all the data"),
            (
                "a fresh net on what is kept beats all the data with wrong labels",
                "redrawn",
                "default, anew",
                "all the data",
            ),
            ('mode "dynamic" beats all the data', "clean", "dynamic", "all the data"),
            ('mode "dynamic" beats `wrap` with wrong labels', "redrawn", "dynamic", WRAPPED),
        )
    ),
    Claim(
        "Our default beats random at 4,000 steps, clean labels (not the paper's)",
        BED,
        "20,000 Fashion-MNIST images, small conv net",
        many_steps("0.0"),
    ),
    Claim(
        "Our default beats random at 4,000 steps, wrong labels (not the paper's)",
        BED,
        "the same, a fifth of the labels redrawn",
        many_steps("0.2"),
    ),
    Claim(
        "Dynamic pruning, a shrink and Muon together reach a cold start for a quarter of its "
        "operations (our question)",
        "warm_quarter.py",
        claims_dash.QUARTER,
        claims_dash.for_a_quarter("all three"),
    ),
    Claim(
        "CIFAR-10 and CIFAR-100 with ResNet-18: 87.1 % and 54.5 % at r = 0.9",
        "",
        "200 epochs on a GPU",
        not_run("no copy of CIFAR and no GPU here; numbers read off a figure"),
    ),
    Claim(
        "ImageNet-1k with ResNet-34: 60 % top-1 at r = 0.9",
        "",
        "300,000 steps on GPUs",
        not_run("beyond this machine; of the paper's table only this number is recoverable"),
    ),
    Claim(
        "Numbers under label noise, corruption and for other architectures",
        "",
        "CIFAR",
        not_run("not recoverable from the paper's stored text"),
    ),
)
