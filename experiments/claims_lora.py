"""Claims of arXiv 2602.06385 (uniform growth under Muon) against the result files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import lora_rows
from claims import (
    FAILS,
    NOT_RUN,
    Claim,
    Outcome,
    by_seed,
    decided,
    middle,
    not_run,
    numbers,
    paired,
    rows,
    together,
)

TOY = "60 x 70, rank 5, LoRA start, step 0.01"
MODELS = {"minilm": "MiniLM, 12 adapters", "smollm2": "SmolLM2-135M, 60 adapters"}


def spread(method: str, below: float) -> Callable[[], Outcome]:
    """The rates' spread on the toy, and over ten random spectra where those ran."""

    def judge() -> Outcome:
        toy = numbers(rows("theory_equal_rate", method=method, target="figure"), "spread")[0]
        more = [float(r["spread"]) for r in rows("theory_equal_rate", method=method)
                if r["target"].startswith("random")]  # fmt: skip
        text = f"spread of the five rates {100 * toy:.2g} %"
        if more:
            text += (
                f"; ten random spectra: {100 * middle(more):.2g} %, at most {100 * max(more):.2g} %"
            )
        return decided(max([toy, *more]) < below, text, len(more) + 1)

    return judge


def smallest_first(method: str) -> Callable[[], Outcome]:
    """In how many of ten random spectra the modes arrive in the order of their size."""

    def judge() -> Outcome:
        found = [r["smallest_first"] == "True" for r in rows("theory_equal_rate", method=method)
                 if r["target"].startswith("random")]  # fmt: skip
        return decided(all(found), f"{sum(found)} of {len(found)} random spectra", len(found))

    return judge


def arrival() -> Outcome:
    """Steps to 95 % of each mode against sqrt(0.95 sigma) / eta."""
    found = rows("theory_equal_rate", method="SpecGD, svd", target="figure")
    error = max(abs(float(r["step_at_95_percent"]) / float(r["predicted"]) - 1) for r in found)
    return decided(error < 0.02, f"largest error of five times {100 * error:.1f} %", 1)


def convergence(method: str) -> Callable[[], Outcome]:
    """How many of the starts end above a relative suboptimality of 1e-4."""

    def judge() -> Outcome:
        values = numbers(rows("theory_convergence", method=method), "relative_suboptimality")
        missed = sum(v > 1e-4 for v in values)
        text = f"{missed} of {len(values)} starts end above 1e-4, the worst at {max(values):.1e}"
        return decided(missed == 0, text, 10)

    return judge


def law(part: str) -> Callable[[], Outcome]:
    """Measured singular values against the closed form of a penalty."""

    def judge() -> Outcome:
        found = rows("theory_regularization", part=part)
        error = max(abs(float(r["measured"]) - float(r["predicted"])) for r in found)
        return decided(error < 0.02, f"largest error of {len(found)} values {error:.1e}", 1)

    return judge


def stuck(method: str) -> Callable[[], Outcome]:
    """Runs with l2 that miss the optimum, by the scale of the start."""

    def judge() -> Outcome:
        found = rows("theory_regularization", part="stuck", method=method)
        counts = {r["setting"]: int(float(r["measured"])) for r in found}
        text = ", ".join(f"start {s}: {n} of 40" for s, n in counts.items())
        return decided(not any(counts.values()), f"runs that miss the optimum: {text}", 40)

    return judge


def limits(part: str, ours: str, other: str) -> Callable[[], Outcome]:
    """Spectral descent's error below another method's, seed by seed."""

    def judge() -> Outcome:
        error = [
            by_seed(rows("theory_limits", part=part, method=m), "error") for m in (ours, other)
        ]
        mine, theirs = (middle([*of.values()]) for of in error)
        pair = paired(*error, sign=-1, digits=2)
        text = f"relative error {mine:.2g}, {other} {theirs:.2g}; difference {pair.text}"
        return pair._replace(text=text)

    return judge


def toy_adapters() -> Outcome:
    """sigma_8 / sigma_1 on the byte-level transformer."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows("theory_lora"):
        found[row["optimizer"]].append(float(row["sigma_8_over_sigma_1"]))
    text = ", ".join(f"{name}: {min(v):.2f} to {max(v):.2f}" for name, v in found.items())
    low = min(min(v) for name, v in found.items() if not name.startswith("AdamW"))
    high = max(max(v) for name, v in found.items() if name.startswith("AdamW"))
    return decided(low > high, text, 3)


def reported(model: str, rank: str, method: str, column: str) -> dict[str, float]:
    """A number of each seed's run at the tuned rate."""
    found = lora_rows.reported().get((model, rank, method), [])
    return {row["seed"]: float(row[column]) for row in found}


def flatter(method: str, rank: str = "8") -> Callable[[], Outcome]:
    """sigma_r / sigma_1 above AdamW's in every adapter set, model by model."""

    def judge() -> Outcome:
        parts = {}
        for model, name in MODELS.items():
            one, other = (reported(model, rank, m, "sigma_ratio") for m in (method, "AdamW"))
            part = paired(one, other, digits=3)
            if one and other:
                medians = f"{middle([*one.values()]):.3f}, AdamW {middle([*other.values()]):.3f}"
                part = part._replace(text=f"{medians}; difference {part.text}")
            parts[name] = part
        return together(parts)

    return judge


def uniform_growth(method: str, late: bool) -> Callable[[], Outcome]:
    """The spread of the growth of sqrt(sigma) below a half in the first or last quarter."""

    def judge() -> Outcome:
        parts = {}
        for model, name in MODELS.items():
            found = lora_rows.early_and_late(model, "8", method)
            other = lora_rows.early_and_late(model, "8", "AdamW")
            if found is None or other is None:
                parts[name] = not_run("not run yet")()
                continue
            seeds = len(reported(model, "8", method, "sigma_ratio"))
            text = f"spread {found[late]:.2f}, AdamW {other[late]:.2f}"
            parts[name] = decided(found[late] < 0.5, text, seeds)
        return together(parts)

    return judge


def better_loss(method: str, rank: int, other: str = "AdamW") -> Callable[[], Outcome]:
    """Held-out loss at each method's own best rate, below another's, wherever both have run."""

    def judge() -> Outcome:
        of = {
            name: [lora_rows.losses(rank, m, model) for m in (method, other)]
            for model, name in MODELS.items()
        }
        found = {n: paired(*both, sign=-1, digits=3) for n, both in of.items() if all(both)}
        return together(found) if found else Outcome(NOT_RUN, "not run yet")

    return judge


def spectrum_names(method: str, measure: str) -> Callable[[], Outcome]:
    """The rank that one run's spectrum names is smaller, and ends within a margin of the full."""

    def judge() -> Outcome:
        if (found := lora_rows.named(method, measure)) is None:
            return Outcome(NOT_RUN, "not run yet")
        text = f"{found.value:.1f} of {found.full} names r = {found.rank}"
        if found.rank == found.full:
            return Outcome(FAILS, text)
        both = (lora_rows.losses(r, method) for r in (found.rank, found.full))
        part = paired(*both, sign=-1, margin=lora_rows.MARGIN, digits=3)
        return part._replace(text=f"{text}: {part.text}")

    return judge


RATE, PRETRAINED = "theory_equal_rate.py", "lora_pretrained.py"
ADAPTERS = "LoRA r = 8 on q and v, rates tuned on another seed"
CLAIMS = (
    Claim("All modes grow at one rate: exact polar factor", RATE, TOY, spread("SpecGD, svd", 0.01)),
    Claim(
        "The same with the smoothed operator, which the paper analyses",
        RATE,
        TOY,
        spread("SpecGD, smoothed 1e-2", 0.01),
    ),
    Claim(
        "The same with the engine's Newton-Schulz schedule, within 10 %",
        RATE,
        TOY,
        spread("SpecGD, newton_schulz", 0.1),
    ),
    Claim(
        "The same with Jordan's five steps, within 10 %",
        RATE,
        TOY,
        spread("SpecGD, Jordan's 5 steps", 0.1),
    ),
    Claim(
        "The same with torch.optim.Muon, within 10 %", RATE, TOY, spread("torch.optim.Muon", 0.1)
    ),
    Claim(
        "The smallest mode arrives first: exact factor",
        RATE,
        "ten random spectra on [1, 12]",
        smallest_first("SpecGD, svd"),
    ),
    Claim(
        "The smallest mode arrives first: Jordan's five steps",
        RATE,
        "ten random spectra on [1, 12]",
        smallest_first("SpecGD, Jordan's 5 steps"),
    ),
    Claim("A mode arrives after sqrt(sigma) / eta steps, within 2 %", RATE, TOY, arrival),
    Claim(
        "The smoothed method reaches the global minimum from every start",
        "theory_convergence.py",
        "30 x 35, five inner dimensions, four scales",
        convergence("smoothed"),
    ),
    Claim(
        "The exact method reaches it from every start (more than the paper says)",
        "theory_convergence.py",
        "the same starts",
        convergence("svd"),
    ),
    Claim(
        "With l2 the optimum is a soft threshold",
        "theory_regularization.py",
        "30 x 35, smoothed, six penalties",
        law("l2"),
    ),
    Claim(
        "Smoothed, every start gets to that optimum",
        "theory_regularization.py",
        "l2 = 0.5, Gaussian starts",
        stuck("smoothed"),
    ),
    Claim(
        "Exact, every start gets there (more than the paper says)",
        "theory_regularization.py",
        "the same starts",
        stuck("svd"),
    ),
    Claim(
        "Adapters of a small transformer get flat spectra: sigma_8 / sigma_1",
        "theory_lora.py",
        "byte-level, two layers, 200 steps, rates not tuned",
        toy_adapters,
    ),
    Claim(
        "Adapters of a pretrained model get flatter spectra under Muon than under AdamW",
        PRETRAINED,
        ADAPTERS,
        flatter("Muon"),
    ),
    Claim("The same under SpecGD", PRETRAINED, ADAPTERS, flatter("SpecGD")),
    Claim("The same under torch.optim.Muon", PRETRAINED, ADAPTERS, flatter("torch.optim.Muon")),
    Claim("The same at rank 16, Muon", PRETRAINED, "r = 16", flatter("Muon", "16")),
    Claim(
        "Muon's growth is uniform early: spread below a half",
        PRETRAINED,
        "first quarter of the steps",
        uniform_growth("Muon", late=False),
    ),
    Claim(
        "Muon's growth is uniform to the end: spread below a half",
        PRETRAINED,
        "last quarter of the steps",
        uniform_growth("Muon", late=True),
    ),
    *(
        Claim(
            f"{method}'s held-out loss is below AdamW's at r = {rank} (not claimed by the paper)",
            PRETRAINED,
            "rates tuned on another seed",
            better_loss(method, rank),
        )
        for rank in (8, 16)
        for method in ("Muon", "SpecGD", "torch.optim.Muon")
    ),
    Claim(
        "One polar factor for the product does better than one for each factor (our question)",
        PRETRAINED,
        f"MiniLM, {ADAPTERS}",
        better_loss("coupled", 8, other="Muon"),
    ),
    *(
        Claim(
            f"Under {method} the {name} of one run names a smaller rank that loses nothing "
            "(our question)",
            PRETRAINED,
            f"MiniLM, held-out loss no more than {lora_rows.MARGIN} above that of the full rank",
            spectrum_names(method, measure),
        )
        for method in ("Muon", "AdamW")
        for measure, name in lora_rows.MEASURES.items()
    ),
    Claim(
        "Equal growth favours low rank (an over-reading)",
        "theory_limits.py",
        "completing 20 x 20 of rank 2 from 200 entries",
        limits("completion", "SpecGD, svd", "GD"),
    ),
    Claim(
        "Equal growth can be stopped before it fits noise (an over-reading)",
        "theory_limits.py",
        "denoising with r = 20 for rank 3",
        limits("denoising", "SpecGD, svd", "GD"),
    ),
    Claim(
        "RoBERTa on SST-2, LLaMA-3.2-1B on Alpaca",
        "",
        "rank 8 on q and v",
        not_run("rates, steps, batch and figures are not recoverable from the paper's stored text"),
    ),
)
