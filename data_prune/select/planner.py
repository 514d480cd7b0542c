"""A table's columns and a prune ratio -> the plan of a selection.

Works chunk by chunk: what is gathered from the chunks (counts, class sizes, the highest scores)
merges in any order.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .auto_c_d import auto_c_d, joint_counts
from .beta import (
    ANCHOR_STATISTICS,
    C_D_PRESETS,
    MAX_ANCHOR,
    anchor_probability,
    beta_parameters,
    top_scores,
)
from .plan import METHODS, Columns, Plan, Strata, hardness, importance
from .quotas import class_quotas, stratum_budgets
from .topk import Fold, find_threshold


@dataclass(frozen=True)
class Options:
    """How to select; every field but ``columns`` is described in ``ScoreTable.select``.

    ``columns`` are the names that the table has; ``by`` must be one of them.
    """

    method: str = "beta"
    by: str | None = None
    c_d: float | str = 4.0
    C: float = 15.0
    beta_sum: float | None = None
    anchor: int = 10
    anchor_statistic: str = "mean"
    seed: int = 0
    per_class: bool = False
    cutoff: float | None = None
    strata: int = 50
    columns: InitVar[Iterable[str]] = ()

    def __post_init__(self, columns: Iterable[str]) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
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
    settings: dict[str, Any] = {
        "prune_ratio": float(prune_ratio),
        "method": options.method,
        "by": by,
        "seed": int(options.seed),
        "per_class": options.per_class,
        "examples": total,
        "kept": kept,
    }
    groups: dict[str, Any] = {"quotas": np.array([kept], dtype=np.int64)}
    if options.method == "ccs":
        groups = _strata(fold, options, total, kept, settings)
    elif options.per_class:
        groups = _classes(about["labels"], kept, settings)
    alpha = beta = 1.0
    if options.method == "beta":
        alpha, beta = _beta(fold, options, about["mu_d"], settings)
    return Plan(
        method=options.method,
        by=by,
        seed=int(options.seed),
        total=total,
        alpha=alpha,
        beta=beta,
        settings=settings,
        **groups,
    )


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


def _beta(
    fold: Fold, options: Options, mu_d: float, settings: dict[str, Any]
) -> tuple[float, float]:
    """Return the parameters of the Beta distribution, and note where they come from."""
    if math.isnan(mu_d) or mu_d > MAX_ANCHOR:
        warnings.warn(
            f"the {options.anchor} highest scores belong to examples with mean probability "
            f"{mu_d:.4g}: nothing is difficult any more, mu_D = {MAX_ANCHOR} is taken instead",
            stacklevel=5,
        )
        mu_d = MAX_ANCHOR
    prune_ratio, c_d = settings["prune_ratio"], options.c_d
    if c_d == "auto":
        counts = fold(lambda c: joint_counts(c["mean_prob"], c["score"]), operator.iadd)
        c_d = auto_c_d(counts, prune_ratio, mu_d, settings["kept"], options.C)
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


def _classes(labels: dict[int, int], kept: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the classes as groups, each with its share of what is kept."""
    if set(labels) == {-1}:
        raise ValueError("per_class needs labels, and this table has none")
    classes = np.array(sorted(labels))
    quotas = class_quotas(np.array([labels[c] for c in classes.tolist()], dtype=np.int64), kept)
    settings["quotas"] = {str(c): int(q) for c, q in zip(classes, quotas, strict=True)}
    return {"classes": classes, "quotas": quotas}


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
