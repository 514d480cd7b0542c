"""A table's columns and a prune ratio -> the plan of a selection.

Works chunk by chunk: what is gathered from the chunks (counts, class sizes, the highest scores)
merges in any order.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .beta import (
    ANCHOR_STATISTICS,
    C_D_PRESETS,
    MAX_ANCHOR,
    anchor_probability,
    auto_c_d,
    beta_parameters,
    joint_counts,
    top_scores,
)
from .plan import METHODS, Columns, Plan, Strata, hardness, importance
from .plausible import floors, merely_hard, movement, prob_counts
from .quotas import class_quotas, stratum_budgets
from .topk import Fold, find_threshold


@dataclass(frozen=True)
class Options:
    """How to select; every field but ``columns`` is described in ``ScoreTable.select``.

    ``columns`` are the names that the table has; ``by`` must be one of them.
    """

    method: str | None = None
    by: str | None = None
    c_d: float | str | None = None
    C: float = 15.0
    beta_sum: float | None = None
    anchor: int = 10
    anchor_statistic: str = "mean"
    seed: int = 0
    per_class: bool | None = None
    min_per_class: int = 1
    preset: str | None = None
    cutoff: float | None = None
    strata: int = 50
    columns: InitVar[Iterable[str]] = ()

    def __post_init__(self, columns: Iterable[str]) -> None:
        method = resolve_method(self.method, self.preset, self.c_d, self.beta_sum)
        object.__setattr__(self, "method", method)
        if isinstance(self.min_per_class, bool) or not isinstance(
            self.min_per_class, (int, np.integer)
        ):
            raise TypeError(f"min_per_class must be an int, got {self.min_per_class!r}")
        if self.min_per_class < 0:
            raise ValueError(f"min_per_class must not be negative, got {self.min_per_class}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)):
            raise TypeError(f"seed must be an int, got {self.seed!r}")
        if self.per_class and self.method == "ccs":
            raise ValueError("per_class must be False for method 'ccs', whose groups are strata")
        for name in ("anchor", "strata"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.anchor_statistic not in ANCHOR_STATISTICS:
            raise ValueError(
                f"anchor_statistic must be in {ANCHOR_STATISTICS}, got {self.anchor_statistic!r}"
            )
        by = self.by or ("aum" if self.method == "ccs" else "score")
        if by not in columns:
            names = sorted(set(columns) - {"id", "key", "label", "observed"})
            raise ValueError(f"the table has no column {by!r}; it has {names}. Record it: peers=")
        object.__setattr__(self, "by", by)


def resolve_method(
    method: str | None,
    preset: str | None,
    c_d: float | str | None,
    beta_sum: float | None = None,
) -> str:
    """Return the method that was named, or the one that the paper's own numbers belong to."""
    if method not in (None, *METHODS):
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if preset not in (None, "paper"):
        raise ValueError(f"preset must be 'paper' or None, got {preset!r}")
    papers = preset is not None or c_d is not None or beta_sum is not None
    if preset is not None and method not in (None, "beta"):
        raise ValueError(f"method must be 'beta' for preset {preset!r}, got {method!r}")
    if method == "plausible" and papers:
        raise ValueError(
            f"method must be 'beta' where c_d or beta_sum is given, got {method!r}, c_d {c_d!r} "
            f"and beta_sum {beta_sum!r}"
        )
    return method or ("beta" if papers else "plausible")


def keep_count(num_examples: int, prune_ratio: float) -> int:
    """Return how many examples stay: N (1 - r), rounded half to even, never fewer than one.

    Args:
        num_examples: N.
        prune_ratio: r, the fraction removed, in [0, 1).

    Raises:
        ValueError: If r is outside [0, 1) or nothing would be kept.

    Example:
        >>> keep_count(50_000, 0.9)
        5000
    """
    if isinstance(prune_ratio, bool) or not isinstance(prune_ratio, (int, float, np.floating)):
        raise TypeError(f"prune_ratio must be a number, got {prune_ratio!r}")
    if not 0.0 <= prune_ratio < 1.0:
        raise ValueError(f"prune_ratio (the fraction removed) must be in [0, 1), got {prune_ratio}")
    kept = round(num_examples * (1.0 - float(prune_ratio)))
    if kept < 1:
        raise ValueError(f"prune_ratio {prune_ratio} of {num_examples} examples keeps none of them")
    return kept


def make_plan(fold: Fold, prune_ratio: float, options: Options) -> Plan:
    """Gather what the method needs from all chunks of a table.

    Args:
        fold: Applies a function to every chunk of columns and merges the results.
        prune_ratio: The fraction removed, in [0, 1).
        options: How to select.
    """
    about = summarize(fold, options)
    total, by = about["total"], str(options.by)
    kept = keep_count(total, prune_ratio)
    method, labels, per_class = str(options.method), about["labels"], options.per_class
    if per_class is None:
        per_class = method == "plausible" and set(labels) != {-1}
    settings: dict[str, Any] = {
        "prune_ratio": float(prune_ratio),
        "method": method,
        "by": by,
        "seed": int(options.seed),
        "per_class": per_class,
        "examples": total,
        "kept": kept,
    }
    groups: dict[str, Any] = {"quotas": np.array([kept], dtype=np.int64)}
    if method == "ccs":
        groups = _strata(fold, options, total, kept, settings)
    elif per_class:
        groups = _classes(labels, kept, options.min_per_class, settings)
    plan = Plan(method, by, int(options.seed), total, settings=settings, **groups)
    if method == "plausible":
        plan = _set_aside(fold, plan, labels)
    if method in ("plausible", "beta"):
        alpha, beta = _beta(fold, options, about["mu_d"], plan)
        plan = dataclasses.replace(plan, alpha=alpha, beta=beta)
    if plan.classes is not None:
        pairs = zip(plan.classes, plan.quotas, strict=True)
        settings["quotas"] = {str(label): int(quota) for label, quota in pairs}
    return plan


def summarize(fold: Fold, options: Options) -> dict[str, Any]:
    """Return, from one pass, the number of rows, the class sizes and mu_D."""
    anchor = options.anchor

    def of(columns: Columns) -> dict[str, Any]:
        labels, sizes = np.unique(columns["label"], return_counts=True)
        top = top_scores(columns["score"], columns["id"], anchor)
        return {
            "total": len(columns["id"]),
            "labels": Counter(dict(zip(labels.tolist(), sizes.tolist(), strict=True))),
            "top": {name: columns[name][top] for name in ("score", "id", "mean_prob")},
        }

    def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        top = {name: np.concatenate([a["top"][name], b["top"][name]]) for name in a["top"]}
        best = top_scores(top["score"], top["id"], anchor)
        a["labels"].update(b["labels"])
        return {
            "total": a["total"] + b["total"],
            "labels": a["labels"],
            "top": {name: values[best] for name, values in top.items()},
        }

    summary = fold(of, merge)
    prob = summary.pop("top")["mean_prob"]
    return {**summary, "mu_d": anchor_probability(prob, options.anchor_statistic)}


def _set_aside(fold: Fold, plan: Plan, labels: dict[int, int]) -> Plan:
    """Return the plan with the labels that their class hardly believes behind all others."""
    groups, quotas = len(plan.quotas), plan.quotas
    counts = fold(lambda c: prob_counts(c["mean_prob"], plan.groups(c), groups), operator.iadd)
    lowest, believed = floors(counts)
    draft = dataclasses.replace(plan, floors=lowest)

    def moved(columns: Columns) -> NDArray:
        rows = draft.believed(columns, draft.groups(columns))
        return movement(columns["mean_prob"], columns["score"], rows)

    if merely_hard(fold(moved, operator.iadd)):
        lowest, believed = np.zeros_like(lowest), counts.sum(axis=1)
    plan.settings["set_aside"] = int(counts.sum() - believed.sum())
    if plan.classes is not None and believed.sum() >= quotas.sum():
        sizes = np.array([labels[c] for c in plan.classes.tolist()], dtype=np.int64)
        quotas = class_quotas(sizes, int(quotas.sum()), believed, plan.least)
    return dataclasses.replace(plan, floors=lowest, quotas=quotas)


def _beta(fold: Fold, options: Options, mu_d: float, plan: Plan) -> tuple[float, float]:
    """Return the parameters of the Beta distribution, and note where they come from."""
    if math.isnan(mu_d) or mu_d > MAX_ANCHOR:
        warnings.warn(
            f"the {options.anchor} highest scores belong to examples with mean probability "
            f"{mu_d:.4g}: nothing is difficult any more, mu_D = {MAX_ANCHOR} is taken instead",
            stacklevel=5,
        )
        mu_d = MAX_ANCHOR
    settings, c_d = plan.settings, 4.0 if options.c_d is None else options.c_d
    prune_ratio = settings["prune_ratio"]
    if c_d == "auto" or plan.method == "plausible":

        def joint(columns: Columns) -> NDArray[np.int64]:
            rows = plan.believed(columns, plan.groups(columns))
            return joint_counts(columns["mean_prob"][rows], columns["score"][rows])

        typical = prune_ratio if plan.method == "plausible" else 0.5
        counts = fold(joint, operator.iadd)
        c_d = auto_c_d(counts, prune_ratio, mu_d, settings["kept"], options.C, typical)
    elif isinstance(c_d, str):
        if c_d not in C_D_PRESETS:
            names = [*sorted(C_D_PRESETS), "auto"]
            raise ValueError(f"c_d must be a positive number or one of {names}, got {c_d!r}")
        c_d = C_D_PRESETS[c_d]
    alpha, beta = beta_parameters(
        prune_ratio, mu_d, float(c_d), C=options.C, beta_sum=options.beta_sum
    )
    settings |= {"c_d": float(c_d), "mu_d": mu_d, "alpha": alpha, "beta": beta, "C": options.C}
    settings |= {"anchor": options.anchor, "anchor_statistic": options.anchor_statistic}
    return alpha, beta


def _classes(
    labels: dict[int, int], kept: int, least: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the classes as groups, each with its share of what is kept."""
    if set(labels) == {-1}:
        raise ValueError("per_class needs labels, and this table has none")
    classes = np.array(sorted(labels))
    sizes = np.array([labels[c] for c in classes.tolist()], dtype=np.int64)
    quotas = class_quotas(sizes, kept, least=least)
    settings["min_per_class"] = least
    return {"classes": classes, "quotas": quotas, "least": least}


def _strata(
    fold: Fold, options: Options, total: int, kept: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Cut the hardest examples and return strata of equal width, with equal budgets, as groups."""
    cutoff, count, by = options.cutoff, options.strata, str(options.by)
    if cutoff is None:
        # Zheng et al. tune it per ratio; these are their CIFAR-10 values, linear between.
        ratios, cutoffs = [0.3, 0.5, 0.7, 0.8, 0.9], [0, 0, 0.1, 0.1, 0.3]
        cutoff = float(np.interp(settings["prune_ratio"], ratios, cutoffs))
    if not 0.0 <= cutoff < 1.0:
        raise ValueError(f"cutoff must be in [0, 1), got {cutoff}")
    removed = round(total * cutoff)
    if removed + kept > total:
        raise ValueError(
            f"cutoff {cutoff} leaves {total - removed} examples, {kept} are to be kept"
        )
    cut = None
    if removed:
        cut = find_threshold(
            lambda f, merge: fold(lambda c: f(hardness(c, by)), merge), np.array([removed]), total
        )

    def limits(columns: Columns) -> tuple[float, float]:
        value = importance(columns, by)
        if cut is not None:
            value = value[~cut.keep(hardness(columns, by))]
        value = value[~np.isnan(value)]
        return (value.min(), value.max()) if len(value) else (math.inf, -math.inf)

    low, high = fold(limits, lambda a, b: (min(a[0], b[0]), max(a[1], b[1])))
    strata = Strata(float(low), float((high - low) * 1.0001 / count or 1.0), count, cut)
    # Two more groups: rows without a score, and the rows that were cut away.
    counts: NDArray[np.int64] = fold(
        lambda c: np.bincount(strata.of(c, by), minlength=count + 2), operator.iadd
    )
    quotas = np.zeros(count + 2, dtype=np.int64)
    quotas[:count] = stratum_budgets(counts[:count], min(kept, int(counts[:count].sum())))
    quotas[count] = kept - int(quotas.sum())
    settings |= {"cutoff": cutoff, "strata": count}
    return {"quotas": quotas, "strata": strata}
