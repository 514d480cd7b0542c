"""Claims of DASH (arXiv 2410.23495) against the warm-start result files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import warm_quarter
import warm_verdict
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
    whole,
)

FLOOR = {"norm": "0.3", "plain": "0.7"}
NO_FLOOR = ("cold", "warm", "FIRE", "warm, fresh momentum")
PLACES = {"BatchNorm": ("norm", "0.01"), "no normalization": ("plain", "0.03")}
BEST = {"BatchNorm, lr 0.3": ("norm", "0.3")}
BED = "hard Fashion-MNIST, four chunks of 500, small conv net"


def at_the_end(
    net: str, lr: str, method: str, column: str, purpose: str = "grid"
) -> dict[str, float]:
    """A number after the fourth chunk, by seed."""
    floor = (
        "1.0" if method in NO_FLOOR else "auto" if method == "auto" else FLOOR[net[:5].rstrip("4")]
    )
    method = "DASH" if method == "auto" else method
    found = rows(
        "warm_chunks", purpose=purpose, net=net, lr=lr, method=method, floor=floor, chunk=4
    )
    return by_seed(found, column)


def beside(
    one: str, other: str, column: str = "test_accuracy", sign: int = 1,
    places: dict[str, tuple[str, str]] = PLACES,
) -> Callable[[], Outcome]:  # fmt: skip
    """One method above (sign -1: below) another on every net."""
    unit, digits = ("", 0) if column == "steps" else (" points", 1)
    return lambda: together(
        {name: paired(at_the_end(net, lr, one, column), at_the_end(net, lr, other, column), unit,
                      sign=sign, digits=digits)
         for name, (net, lr) in places.items()}
    )  # fmt: skip


def auto_floor() -> Outcome:
    """floor="auto" on nets and seeds that it was not found on: accuracy, and half the steps."""
    parts = {}
    for name, (net, lr) in {"BatchNorm": ("norm4", "0.01"), "no norm": ("plain4", "0.03")}.items():
        cold, auto = (at_the_end(net, lr, m, "test_accuracy", "confirm") for m in ("cold", "auto"))
        steps = [at_the_end(net, lr, m, "steps", "confirm") for m in ("cold", "auto")]
        parts[f"{name}, accuracy"] = paired(auto, cold, " points")
        parts[f"{name}, steps"] = paired(steps[1], steps[0], "", sign=-1, digits=0)
    return together(parts)


def forgetting(step: int, other: str, net: str = "norm") -> Callable[[], Outcome]:
    """DASH keeps clean labels and gives up wrong ones by a wider margin than another shrink."""

    def gap(method: str) -> dict[str, float]:
        found = rows("warm_mechanism", net=net, method=method, step=step)
        return {r["seed"]: float(r["clean"]) - float(r["wrong"]) for r in found}

    return lambda: paired(gap("DASH"), gap(other), " points")


def process() -> Outcome:
    """The discrete process: warm below cold, the ideal shrink level with cold at less work."""
    last = {
        mode: (np.mean(numbers(found, "accuracy")), np.mean(numbers(found, "active")))
        for mode in ("cold", "warm", "ideal")
        for found in [rows("warm_features", mode=mode, experiment=50)]
    }
    text = "; ".join(f"{m}: {a:.1f} %, {n:,.0f} inputs active" for m, (a, n) in last.items())
    holds = last["warm"][0] < last["cold"][0] - 10 and abs(last["ideal"][0] - last["cold"][0]) < 0.5
    return decided(holds and last["ideal"][1] < 0.2 * last["cold"][1], text, 10)


def across_streams(one: str, other: str, labels: str = "", sign: int = 1) -> Callable[[], Outcome]:
    """One method above (sign -1: below) another at a stream's end: nets, optimizers, labels."""

    def judge() -> Outcome:
        cells: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        # Seed 0 chose the rates.
        for row in whole("warm_breadth"):
            if row["seed"] != "0" and labels in ("", row["labels"]):
                place = ", ".join(row[k] for k in ("net", "optimizer", "labels"))
                for own, method in zip(
                    cells.setdefault(place, ({}, {})), (one, other), strict=True
                ):
                    if row["method"] == method:
                        own[row["seed"]] = float(row["accuracy"])
        return in_cells(cells, sign=sign)

    return judge


def for_a_quarter(kind: str) -> Callable[[], Outcome]:
    """A kind of retrain of warm_quarter.py, no more than its margin below the cold starts."""

    def judge() -> Outcome:
        of: dict[tuple[str, str], dict[str, float]] = {}
        for row in whole("warm_quarter"):
            run = warm_quarter.run_of(row)
            if run.part in ("cold", "quarter"):
                told = warm_quarter.kind_of(run)
                told += f" {run.shrink}" if told == "control" else ""
                of.setdefault((run.data, told), {})[row["seed"]] = float(row["accuracy"])
        return together(
            {data: paired(of.get((data, kind), {}), of.get((data, "cold start"), {}), " points",
                          margin=warm_quarter.POINTS)
             for data in warm_quarter.SETS}
        )  # fmt: skip

    return judge


def verdicts(seeds: int) -> Callable[[], Outcome]:
    """In how many unseen streams ``compare`` is right, and one answer for all would be."""

    def judge() -> Outcome:
        streams = [of for place, of in warm_verdict.streams(whole("warm_verdict"))
                   if place[0] == "confirm"]  # fmt: skip
        right = sum(warm_verdict.named(of, seeds)[1] for of in streams)
        always = {m: sum(warm_verdict.judge(m, warm_verdict.truth(of))[0] for of in streams)
                  for m in warm_verdict.CHOSEN}  # fmt: skip
        best = max(always, key=lambda m: always[m])
        text = f'right in {right} of {len(streams)}; "{best}" for all would be in {always[best]}'
        return decided(right == len(streams), text, seeds)

    return judge


CHUNKS, MECHANISM = "warm_chunks.py", "warm_mechanism.py"
MEMORY = "1,000 images learned by heart, a fifth of them wrong, BatchNorm"
BREADTH, VERDICT = "warm_breadth.py", "warm_verdict.py"
STREAMS = "an MLP, a conv net, a transformer, by SGD, AdamW and Muon, rates tuned"
QUARTER = "digits, Fashion-MNIST, text in five chunks; a margin of 0.3 points"
CLAIMS = (
    Claim("A warm start ends below a cold start", CHUNKS, BED, beside("warm", "cold", sign=-1)),
    Claim(
        "A warm start takes fewer steps than a cold start",
        CHUNKS,
        BED,
        beside("warm", "cold", "steps", -1),
    ),
    Claim("DASH ends above a warm start", CHUNKS, BED, beside("DASH", "warm")),
    Claim("DASH ends above a cold start", CHUNKS, BED, beside("DASH", "cold")),
    Claim(
        "DASH takes fewer steps than a cold start", CHUNKS, BED, beside("DASH", "cold", "steps", -1)
    ),
    Claim("DASH ends above shrink and perturb", CHUNKS, BED, beside("DASH", "shrink & perturb")),
    Claim("DASH ends above FIRE (a later method)", CHUNKS, BED, beside("DASH", "FIRE")),
    Claim(
        "Its direction matters: DASH ends above a plain shrink by the floor",
        CHUNKS,
        BED,
        beside("DASH", "uniform"),
    ),
    Claim(
        "Its direction matters: DASH ends above its own factors dealt at random",
        CHUNKS,
        BED,
        beside("DASH", "DASH, shuffled factors"),
    ),
    Claim(
        "Its direction matters: DASH ends above the same with the wrong sign",
        CHUNKS,
        BED,
        beside("DASH", "DASH, wrong sign"),
    ),
    Claim(
        "DASH ends above a cold start at the rate that is best for the cold start",
        CHUNKS,
        BED,
        beside("DASH", "cold", places=BEST),
    ),
    Claim(
        '`floor="auto"` ends above a cold start in fewer steps (our claim, not the paper\'s)',
        CHUNKS,
        "nets and seeds that it was not found on",
        auto_floor,
    ),
    *(
        Claim(claim, BREADTH, f"{STREAMS}, {where}", across_streams(*of))
        for claim, where, of in (
            ("A warm start ends below a cold start", "clean labels", ("none", "cold", "clean", -1)),
            ("The same with wrong labels", "a fifth redrawn", ("none", "cold", "wrong", -1)),
            ("DASH ends above a warm start", "clean labels", ("dash", "none", "clean")),
            ("The same with wrong labels", "a fifth redrawn", ("dash", "none", "wrong")),
            ("DASH ends above a cold start", "clean labels", ("dash", "cold", "clean")),
            ("The same with wrong labels", "a fifth redrawn", ("dash", "cold", "wrong")),
            ("DASH ends above a plain shrink", "clean and wrong", ("dash", "uniform")),
            ("DASH ends above FIRE", "clean and wrong", ("dash", "fire")),
        )
    ),
    Claim(
        "The best of sixteen retrains reaches a cold start for a quarter of its operations "
        "(our question)",
        "warm_quarter.py",
        QUARTER,
        for_a_quarter("best of the search"),
    ),
    Claim(
        "The same for a shrink, Muon and dynamic pruning together",
        "warm_quarter.py",
        QUARTER,
        for_a_quarter("all three"),
    ),
    Claim(
        "The same for a warm start by AdamW alone",
        "warm_quarter.py",
        QUARTER,
        for_a_quarter("control none"),
    ),
    Claim(
        "The same for a cold start with a quarter of the operations",
        "warm_quarter.py",
        QUARTER,
        for_a_quarter("control cold"),
    ),
    *(
        Claim(
            f"`compare` names a right method in every stream, {seeds} seeds asked (our claim)",
            VERDICT,
            "12 streams that did not shape it: three nets, two optimizers, clean and wrong labels",
            verdicts(seeds),
        )
        for seeds in (2, 3)
    ),
    Claim(
        "DASH forgets noise and keeps features: right after it, more than shuffled factors",
        MECHANISM,
        MEMORY,
        forgetting(0, "DASH, shuffled factors"),
    ),
    Claim(
        "The same, more than a plain shrink to the same norms",
        MECHANISM,
        MEMORY,
        forgetting(0, "uniform, DASH's norms"),
    ),
    Claim(
        "The same after 50 steps of training, more than shuffled factors",
        MECHANISM,
        MEMORY,
        forgetting(50, "DASH, shuffled factors"),
    ),
    Claim(
        "The same after 50 steps, more than a plain shrink to the same norms",
        MECHANISM,
        MEMORY,
        forgetting(50, "uniform, DASH's norms"),
    ),
    Claim(
        "The same after 50 steps, more than no shrink", MECHANISM, MEMORY, forgetting(50, "nothing")
    ),
    Claim(
        "The same without normalization, after 50 steps, more than no shrink",
        MECHANISM,
        "the same images, no normalization",
        forgetting(50, "nothing", "plain"),
    ),
    Claim(
        "Warm starts stop learning features, an ideal shrink does not",
        "warm_features.py",
        "the paper's discrete process, 50 experiments",
        process,
    ),
    Claim(
        "CIFAR-10, CIFAR-100, SVHN, Tiny-ImageNet with ResNet-18, VGG-16, an MLP, 50 chunks",
        "",
        "GPU days",
        not_run("beyond this machine; the paper's tables are not recoverable from its stored text"),
    ),
    Claim(
        "ImageNet-1k with ResNet-18: best accuracy and convergence",
        "",
        "GPU days",
        not_run("beyond this machine; numbers not recoverable from the paper's stored text"),
    ),
)
