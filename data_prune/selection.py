"""Columns of a score table -> which examples are kept.

``make_plan`` gathers what the method needs (anchor, quotas, edges of strata), ``search`` finds
the exact top k of the plan's priorities by ``topk``. Both halves work chunk by chunk and merge.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prune.auto import auto_c_d, joint_counts
from data_prune.beta import (
    C_D_PRESETS,
    MAX_ANCHOR,
    anchor_probability,
    beta_parameters,
    top_scores,
)
from data_prune.plan import (
    METHODS,
    Columns,
    Plan,
    check_column,
    hardness,
    importance,
    ranking_column,
)
from data_prune.quotas import class_quotas, keep_count, stratum_budgets
from data_prune.topk import Fold, Search, find_threshold

__all__ = ["make_plan", "search"]


def make_plan(
    fold: Fold,
    prune_ratio: float,
    *,
    method: str = "beta",
    by: str | None = None,
    c_d: float | str = 4.0,
    C: float = 15.0,
    beta_sum: float | None = None,
    anchor: int = 10,
    anchor_statistic: str = "mean",
    seed: int = 0,
    per_class: bool = False,
    cutoff: float | None = None,
    strata: int = 50,
) -> Plan:
    """Gather what the method needs from all chunks of a table.

    Args:
        fold: applies a function to every chunk of columns and merges the results.
        prune_ratio: fraction removed, in [0, 1).
        method: this and all further arguments as for ``ScoreTable.select``.
        by: see there.
        c_d: see there.
        C: see there.
        beta_sum: see there.
        anchor: see there.
        anchor_statistic: see there.
        seed: see there.
        per_class: see there.
        cutoff: see there.
        strata: see there.

    Returns:
        The plan.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if per_class and method == "ccs":
        raise ValueError("per_class does not combine with method 'ccs', whose groups are strata")
    by = ranking_column(method, by)
    summary = summarize(fold, by, anchor, anchor_statistic)
    total = summary["total"]
    kept = keep_count(total, prune_ratio)
    settings: dict[str, Any] = {
        "prune_ratio": float(prune_ratio),
        "method": method,
        "by": by,
        "seed": int(seed),
        "per_class": per_class,
        "examples": total,
        "kept": kept,
    }
    common = {"method": method, "by": by, "seed": int(seed), "total": total, "settings": settings}
    if method == "ccs":
        return _ccs_plan(fold, common, kept, prune_ratio, cutoff, strata, summary)
    classes, quotas = None, np.array([kept], dtype=np.int64)
    if per_class:
        classes, sizes = _class_sizes(summary["labels"])
        quotas = class_quotas(sizes, kept)
        settings["quotas"] = {str(c): int(q) for c, q in zip(classes, quotas, strict=True)}
    alpha = beta = 1.0
    if method == "beta":
        mu_d = summary["mu_d"]
        if math.isnan(mu_d) or mu_d > MAX_ANCHOR:
            warnings.warn(
                f"the {anchor} highest scores belong to examples with mean probability {mu_d:.4g}: "
                f"nothing is difficult any more, mu_D = {MAX_ANCHOR} is taken instead",
                stacklevel=3,
            )
            mu_d = MAX_ANCHOR
        if c_d == "auto":
            counts = fold(lambda c: joint_counts(c["mean_prob"], c["score"]), operator.iadd)
            c_d_value = auto_c_d(counts, prune_ratio, mu_d, kept, C)
        else:
            c_d_value = resolve_c_d(c_d)
        alpha, beta = beta_parameters(prune_ratio, mu_d, c_d_value, C=C, beta_sum=beta_sum)
        settings |= {"c_d": c_d_value, "mu_d": mu_d, "alpha": alpha, "beta": beta, "C": C}
        settings |= {"anchor": anchor, "anchor_statistic": anchor_statistic}
    return Plan(quotas=quotas, alpha=alpha, beta=beta, classes=classes, **common)


def resolve_c_d(c_d: float | str) -> float:
    """A number, or the value of a preset by its name."""
    if not isinstance(c_d, str):
        return float(c_d)
    if c_d in C_D_PRESETS:
        return C_D_PRESETS[c_d]
    names = [*sorted(C_D_PRESETS), "auto"]
    raise ValueError(f"c_d must be a positive number or one of {names}, got {c_d!r}")


def summarize(fold: Fold, by: str, anchor: int, statistic: str) -> dict[str, Any]:
    """One pass: number of rows, class sizes, range of the ranking column, mu_D."""
    anchor_probability(np.ones(1), statistic)  # refuses an unknown one before the pass
    if anchor < 1:
        raise ValueError(f"anchor must be at least 1, got {anchor}")

    def of(columns: Columns) -> dict[str, Any]:
        check_column(by, columns)
        value = importance(columns, by)
        labels, sizes = np.unique(columns["label"], return_counts=True)
        top = top_scores(columns["score"], columns["id"], anchor)
        known_values = value[~np.isnan(value)]
        return {
            "total": len(value),
            "unscored": len(value) - len(known_values),
            "low": float(known_values.min()) if len(known_values) else math.inf,
            "high": float(known_values.max()) if len(known_values) else -math.inf,
            "labels": Counter(dict(zip(labels.tolist(), sizes.tolist(), strict=True))),
            "top": {name: columns[name][top] for name in ("score", "id", "mean_prob")},
        }

    def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        top = {name: np.concatenate([a["top"][name], b["top"][name]]) for name in a["top"]}
        best = top_scores(top["score"], top["id"], anchor)
        a["labels"].update(b["labels"])
        return {
            "total": a["total"] + b["total"],
            "unscored": a["unscored"] + b["unscored"],
            "low": min(a["low"], b["low"]),
            "high": max(a["high"], b["high"]),
            "labels": a["labels"],
            "top": {name: values[best] for name, values in top.items()},
        }

    summary = fold(of, merge)
    prob = summary.pop("top")["mean_prob"]
    return {**summary, "mu_d": anchor_probability(prob, statistic)}


def _class_sizes(labels: dict[int, int]) -> tuple[NDArray, NDArray[np.int64]]:
    if set(labels) == {-1}:
        raise ValueError("per_class needs labels, and this table has none")
    classes = np.array(sorted(labels))
    return classes, np.array([labels[c] for c in classes.tolist()], dtype=np.int64)


def _ccs_plan(
    fold: Fold,
    common: dict[str, Any],
    kept: int,
    prune_ratio: float,
    cutoff: float | None,
    strata: int,
    summary: dict[str, Any],
) -> Plan:
    """Cut the hardest examples, then equal budgets over strata of equal width in the score."""
    if cutoff is None:
        # Zheng et al. tune it per ratio; these are their CIFAR-10 values, linear between.
        cutoff = float(np.interp(prune_ratio, [0.3, 0.5, 0.7, 0.8, 0.9], [0, 0, 0.1, 0.1, 0.3]))
    total = common["total"]
    if not 0.0 <= cutoff < 1.0:
        raise ValueError(f"cutoff must be in [0, 1), got {cutoff}")
    removed = round(total * cutoff)
    if removed + kept > total:
        raise ValueError(
            f"cutoff {cutoff} leaves {total - removed} examples, {kept} are to be kept"
        )
    by = common["by"]
    cut = (
        find_threshold(
            lambda f, merge: fold(lambda c: f(hardness(c, by)), merge), np.array([removed]), total
        )
        if removed
        else None
    )

    def limits(columns: Columns) -> tuple[float, float]:
        value = importance(columns, by)
        if cut is not None:
            value = value[~cut.keep(hardness(columns, by))]
        value = value[~np.isnan(value)]
        return (value.min(), value.max()) if len(value) else (math.inf, -math.inf)

    low, high = fold(limits, lambda a, b: (min(a[0], b[0]), max(a[1], b[1])))
    width = (high - low) * 1.0001 / strata or 1.0
    common["settings"] |= {"cutoff": cutoff, "strata": strata}
    # Two more groups: rows without a score, and the rows that were cut away.
    draft = Plan(
        quotas=np.zeros(strata + 2, dtype=np.int64),
        edges=(float(low), float(width), strata, strata + 1),
        cut=cut,
        **common,
    )
    counts = fold(
        lambda c: np.bincount(draft.groups(c), minlength=strata + 2),  # type: ignore[arg-type]
        operator.iadd,
    )
    sizes = counts[:strata]
    draft.quotas[:strata] = stratum_budgets(sizes, min(kept, int(sizes.sum())))
    draft.quotas[strata] = kept - int(draft.quotas.sum())
    return draft


def search(fold: Fold, plan: Plan) -> Search:
    """Carry out a plan: the threshold above which exactly its quotas lie.

    Args:
        fold: applies a function to the priorities (``plan.chunk``) of every chunk and merges.
        plan: what to do.

    Returns:
        A finished search; ``search.keep(plan.chunk(columns))`` marks the kept rows.
    """
    if plan.total == int(plan.quotas.sum()):
        # r = 0 keeps every row; a search would find the same, more slowly.
        nothing = np.zeros(len(plan.quotas), dtype=np.uint64)
        return Search(high=nothing, low=nothing.copy(), left=plan.quotas.copy(), depth=128)
    return find_threshold(fold, plan.quotas, plan.total)
