"""The rows of the adapters' result files, as the report and the claims read them."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import NamedTuple

import torch
from bed import read
from lora_pretrained import PARTS, RUNS, SPECTRA, TUNING_SEED
from torch import Tensor

MODELS = {"minilm": "MiniLM, tweets", "smollm2": "SmolLM2-135M, Python's manual"}
RANKS = (1, 2, 4, 8, 16)
MARGIN = 0.02  # of held-out loss, below which a smaller rank counts as losing nothing
MEASURES = {"effective_rank": "effective rank", "stable_rank": "stable rank"}
Row = dict[str, str]
Place = tuple[str, str, str]  # model, rank, method


def name_of(model: str) -> str:
    """A model's short name."""
    return MODELS[model].partition(",")[0]


@functools.cache
def reported() -> dict[Place, list[Row]]:
    """Runs on the seeds that tuned nothing, by place; each seed once, at the tuned rate."""
    best = {place: rate for place, (rate, _) in tuned().items()}
    found: dict[Place, dict[str, Row]] = defaultdict(dict)
    for row in read(RUNS):
        place = (row["model"], row["rank"], row["method"])
        if int(row["seed"]) != TUNING_SEED and float(row["lr"]) == best.get(place):
            found[place][row["seed"]] = row
    return {place: [rows[seed] for seed in sorted(rows)] for place, rows in found.items()}


@functools.cache
def tuned() -> dict[Place, tuple[float, dict[float, Row]]]:
    """Each place's best rate on the tuning seed, and all that were tried."""
    tried: dict[Place, dict[float, Row]] = defaultdict(dict)
    for row in read(RUNS):
        if int(row["seed"]) == TUNING_SEED:
            tried[row["model"], row["rank"], row["method"]][float(row["lr"])] = row
    return {
        place: (min(rows, key=lambda lr: float(rows[lr]["held_loss"])), rows)
        for place, rows in tried.items()
    }


@functools.cache
def spectra(model: str, rank: str, method: str) -> list[tuple[Tensor, Tensor]]:
    """(steps, sigma (adapters, steps, rank)) of each reported seed at the tuned rate."""
    seeds = {row["seed"]: row["lr"] for row in reported().get((model, rank, method), [])}
    found: dict[str, dict[int, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in read(SPECTRA):
        if (row["model"], row["rank"], row["method"]) == (model, rank, method) and seeds.get(
            row["seed"]
        ) == row["lr"]:
            sigma = [float(s) for s in row["singular_values"].split()]
            found[row["seed"]][int(row["adapter"])][int(row["step"])] = sigma
    out = []
    for adapters in found.values():
        steps = sorted(next(iter(adapters.values())))
        out.append(
            (torch.tensor(steps), torch.tensor([[a[s] for s in steps] for a in adapters.values()]))
        )
    return out


def spread_of_growth(sigma: Tensor) -> Tensor:
    """(max - min) / |mean| of the growth of sqrt(sigma_i) between looks, (adapters, steps - 1)."""
    growth = sigma.sqrt().diff(dim=1)
    return (growth.amax(-1) - growth.amin(-1)) / growth.mean(-1).abs().clamp_min(1e-9)


def early_and_late(model: str, rank: str, method: str) -> tuple[float, float] | None:
    """The spread's median over adapters and seeds, in the first and the last quarter of a run."""
    found = spectra(model, rank, method)
    if not found:
        return None
    spreads = torch.cat([spread_of_growth(sigma) for _, sigma in found])
    quarter = max(1, spreads.shape[1] // 4)
    return float(spreads[:, :quarter].median()), float(spreads[:, -quarter:].median())


def losses(rank: int, method: str, model: str = "minilm") -> dict[str, float]:
    """Held-out loss of each reported seed at the tuned rate."""
    rows = reported().get((model, str(rank), method), [])
    return {row["seed"]: float(row["held_loss"]) for row in rows}


class Named(NamedTuple):
    """What one run's spectrum says: the rank it was given, the measure, the rank to take."""

    full: int
    value: float
    rank: int


def named(method: str, measure: str) -> Named | None:
    """The rank that MiniLM's largest run on the tuning seed names.

    It is the measure's median over the adapters, rounded up to a rank of ``RANKS``: the seeds that
    judge it have no part in it.
    """
    ranks = [r for r in RANKS if losses(r, method)]
    if not ranks:
        return None
    best, rows = tuned()["minilm", str(ranks[-1]), method]
    value = float(rows[best][measure])
    return Named(ranks[-1], value, next(r for r in RANKS if r >= value))


def missing() -> str:
    """What is planned and has no run on a reported seed, or not on all of them."""
    found, told = reported(), defaultdict(list)
    for model, ranks, methods, seeds in PARTS.values():
        for rank in ranks:
            for method in methods:
                count = len(found.get((model, str(rank), method), []))
                if count < len(seeds):
                    some = f" ({count} of {len(seeds)} seeds have run)" if count else ""
                    told[f"{name_of(model)}, r = {rank}"].append(f"{method}{some}")
    return "; ".join(f"{place}: {', '.join(dict.fromkeys(who))}" for place, who in told.items())
