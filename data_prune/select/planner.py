"""A table's columns and a prune ratio -> the plan of a selection."""

from __future__ import annotations

import dataclasses
import math
import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .beta import C_D_PRESETS, MAX_ANCHOR, auto_c_d, beta_parameters
from .plan import METHODS, Plan
from .strata import find_strata
from .survey import FORCED, Columns, Survey, floors, merely_hard, movement
from .topk import Fold

ANCHOR_STATISTICS = ("mean", "median")
# Options that become columns beside the table's; see ``wishes``.
WISHES = ("keep", "drop", "within", "groups", "classes", "weights")


@dataclass(frozen=True)
class Options:
    """How to select; every field but ``columns`` is described in ``ScoreTable.select``.

    ``columns`` are the names that the table has; ``by`` must be one of them. ``forced``,
    ``weighed`` and ``grouped`` say what the chunks hold besides; see ``survey.Columns``.
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
    forced: bool = False  # the columns hold what is to stay or to go
    weighed: bool = False
    grouped: bool = False
    class_names: list[str] | None = None  # of the column that stands in the label's place
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
        if self.weighed and self.method in ("top", "easy"):
            raise ValueError(f"weights are for methods that draw, got method {self.method!r}")
        if self.forced and self.method == "ccs":
            raise ValueError("within, keep and drop do not combine with method 'ccs'")
        for name in ("anchor", "strata"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.anchor_statistic not in ANCHOR_STATISTICS:
            raise ValueError(
                f"anchor_statistic must be in {ANCHOR_STATISTICS}, got {self.anchor_statistic!r}"
            )
        if isinstance(self.c_d, str) and self.c_d not in (*C_D_PRESETS, "auto"):
            names = [*sorted(C_D_PRESETS), "auto"]
            raise ValueError(f"c_d must be a positive number or one of {names}, got {self.c_d!r}")
        by = self.by or ("aum" if self.method == "ccs" else "score")
        if by not in columns:
            names = sorted(set(columns) - {"id", "key", "label", "observed"})
            raise ValueError(f"the table has no column {by!r}; it has {names}. Record it: peers=")
        object.__setattr__(self, "by", by)


def split_wishes(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the wishes among the options of a selection, and the other options.

    Example:
        >>> split_wishes({"seed": 3, "keep": [7], "drop": None})
        ({'keep': [7]}, {'seed': 3})
    """
    wishes = {name: options[name] for name in WISHES if options.get(name) is not None}
    return wishes, {name: value for name, value in options.items() if name not in WISHES}


def check_options(options: dict[str, Any], peers: Iterable[str]) -> None:
    """Refuse options of ``ScoreTable.select`` before there is a table.

    Args:
        options: By name.
        peers: Names of the scores that the table will have besides its own.
    """
    wishes, how = split_wishes(options)
    how.pop("ignore_nonfinite", None)
    Options(
        **how,
        forced=not wishes.keys().isdisjoint(("keep", "drop", "within")),
        weighed="weights" in wishes,
        columns=("score", "mean_prob", *peers),
    )


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


def class_quotas(
    sizes: NDArray[np.int64],
    total: int,
    choices: Sequence[NDArray[np.int64]] = (),
    least: NDArray[np.int64] | int = 0,
    must: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return quotas proportional to the class sizes, by largest remainder; exactly ``total``.

    Args:
        sizes: (groups,) Examples of each class.
        total: Sum of the quotas.
        choices: (groups,) each: rows of each class that may stay, the best alone first. The first
            that are enough for ``total`` are the limit; what one class lacks goes to the others.
        least: (groups,) No quota is below this, or below what the last of the choices has; the
            largest quotas pay for it. Fewer where ``total`` is too small for so many of each.
        must: (groups,) No quota is below this in any case.

    Example:
        >>> class_quotas(np.array([50, 30, 21]), 10).tolist()
        [5, 3, 2]
        >>> class_quotas(np.array([500, 30, 2]), 10, least=1).tolist()
        [8, 1, 1]
    """
    choices = choices or [sizes]
    share = sizes * (total / sizes.sum())
    lowest = np.minimum(np.minimum(least, total // len(sizes)), choices[-1])
    if must is not None:
        lowest = np.maximum(lowest, must)
        lowest = must if lowest.sum() > total else lowest
    available = next((some for some in choices if some.sum() >= total), choices[-1])
    available = np.maximum(available, lowest)
    quotas = np.clip(np.floor(share).astype(np.int64), lowest, available)
    order = np.lexsort((np.arange(len(sizes)), -(share - quotas)))
    while (left := total - int(quotas.sum())) > 0:
        quotas[order[quotas[order] < available[order]][:left]] += 1
    while (over := int(quotas.sum()) - total) > 0:
        largest = np.argsort(-quotas, kind="stable")
        quotas[largest[quotas[largest] > lowest[largest]][:over]] -= 1
    return quotas


def check_forced(must: NDArray[np.int64], there: NDArray[np.int64], kept: int) -> None:
    """Refuse lists that leave no choice: more to keep than stay, or fewer left than stay."""
    if must.sum() > kept:
        raise ValueError(f"keep names {must.sum()} examples, and only {kept} are to be kept")
    if there.sum() < kept:
        raise ValueError(f"drop and within leave {there.sum()} examples, {kept} are to be kept")


def plan_rows(fold: Fold, prune_ratio: float, options: Options, kept: int | None = None) -> Plan:
    """Find what the method needs to know of all rows, and fix who competes by what.

    Args:
        fold: Applies a function to every chunk of columns and merges the results.
        prune_ratio: The fraction removed, in [0, 1).
        options: How to select.
        kept: Number of rows to keep; None follows from the ratio.
    """
    method, by, per_class = str(options.method), str(options.by), options.per_class
    by_class = method == "plausible" if per_class is None else per_class
    found: Survey = fold(
        lambda c: Survey.of(c, options.anchor, by_class), lambda a, b: a.merge(b, options.anchor)
    )
    total, labelled = int(found.counts.sum()), found.classes.tolist() != [-1]
    kept = keep_count(total, prune_ratio) if kept is None else kept
    if per_class and not labelled:
        raise ValueError("per_class needs labels, and this table has none")
    if per_class is None:
        per_class = method == "plausible" and labelled
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
        settings["strata"] = options.strata
        groups = find_strata(fold, options.cutoff, settings)
    elif per_class:
        settings["min_per_class"] = options.min_per_class
        sizes, known = found.counts.sum(axis=1), found.counts[:, 1:].sum(axis=1)
        # What has no label is often what was never seen: that is no class.
        most = np.where(found.classes < 0, known, sizes)
        least = np.minimum(options.min_per_class, most)
        quotas = class_quotas(sizes, kept, [known, sizes], least)
        groups = {"classes": found.classes, "quotas": quotas, "least": least}
    plan = Plan(method, by, int(options.seed), total, settings=settings, **groups)
    if method in ("plausible", "beta"):
        plan = _weighted(fold, plan, found, options)
    if options.forced:
        plan = _forced(fold, plan, found.counts.sum(axis=1))
    if plan.classes is not None:
        names = options.class_names
        called = [str(c) if names is None or c < 0 else names[c] for c in plan.classes.tolist()]
        settings["quotas"] = dict(zip(called, plan.quotas.tolist(), strict=True))
    return plan


def _forced(fold: Fold, plan: Plan, sizes: NDArray[np.int64]) -> Plan:
    """Return the plan with quotas that lists of rows to keep and to drop leave possible."""
    count = len(plan.quotas)

    def of(columns: Columns) -> NDArray[np.int64]:
        (group, believed), forced = plan.place(columns), columns[FORCED]
        group = np.zeros(len(forced), dtype=np.int64) if group is None else group
        kinds = (forced > 0, forced >= 0, (believed & (forced == 0)) | (forced > 0))
        return np.stack([np.bincount(group[some], minlength=count) for some in kinds])

    must, there, first = fold(of, operator.iadd)
    kept = int(plan.quotas.sum())
    check_forced(must, there, kept)
    plan.settings.update(forced_kept=int(must.sum()), left_to_choose=int(there.sum()))
    if plan.classes is None:
        return plan
    quotas = class_quotas(sizes, kept, [first, there], plan.least, must)
    return dataclasses.replace(plan, quotas=quotas)


def _weighted(fold: Fold, plan: Plan, found: Survey, options: Options) -> Plan:
    """Return the plan with labels set aside (method "plausible") and a Beta distribution."""
    joint, counts = None, found.counts[:, 1:]
    if plan.method == "plausible":
        lowest, believed = floors(counts)
        plan = dataclasses.replace(plan, floors=lowest)
    if plan.method == "plausible" or options.c_d == "auto":
        moved, halves = fold(
            lambda c: movement(c, plan.place(c)[1]), lambda a, b: (a[0] + b[0], a[1] + b[1])
        )
        joint = halves[0]
    if plan.method == "plausible":
        if merely_hard(moved):
            lowest, believed, joint = np.zeros_like(lowest), counts.sum(axis=1), halves.sum(axis=0)
        plan.settings["set_aside"] = int(counts.sum() - believed.sum())
        if plan.classes is not None:
            sizes = found.counts.sum(axis=1)
            choices, kept = [believed, counts.sum(axis=1), sizes], int(plan.quotas.sum())
            quotas = class_quotas(sizes, kept, choices, plan.least)
            plan = dataclasses.replace(plan, quotas=quotas)
        plan = dataclasses.replace(plan, floors=lowest)
    alpha, beta = _beta(found.top["mean_prob"], joint, options, plan.settings)
    return dataclasses.replace(plan, alpha=alpha, beta=beta)


def _beta(
    top: NDArray, joint: NDArray | None, options: Options, settings: dict[str, Any]
) -> tuple[float, float]:
    """Return the parameters of the Beta distribution, and note where they come from.

    Args:
        top: Mean probabilities of the highest scores.
        joint: Counts of the rows from which c_D is found, see ``movement``; None where it is given.
        options: How to select.
        settings: Of the plan.
    """
    mean = np.mean if options.anchor_statistic == "mean" else np.median
    mu_d = float(mean(top.astype(np.float64))) if len(top) else math.nan
    if math.isnan(mu_d) or mu_d > MAX_ANCHOR:
        warnings.warn(
            f"the {options.anchor} highest scores belong to examples with mean probability "
            f"{mu_d:.4g}: nothing is difficult any more, mu_D = {MAX_ANCHOR} is taken instead",
            stacklevel=6,
        )
        mu_d = MAX_ANCHOR
    ratio, c_d = settings["prune_ratio"], 4.0 if options.c_d is None else options.c_d
    if joint is not None:
        typical = ratio if settings["method"] == "plausible" else 0.5
        c_d = auto_c_d(joint, ratio, mu_d, settings["kept"], options.C, typical)
    c_d = float(C_D_PRESETS[c_d] if isinstance(c_d, str) else c_d)
    alpha, beta = beta_parameters(ratio, mu_d, c_d, C=options.C, beta_sum=options.beta_sum)
    settings |= {"c_d": c_d, "mu_d": mu_d, "alpha": alpha, "beta": beta, "C": options.C}
    settings |= {"anchor": options.anchor, "anchor_statistic": options.anchor_statistic}
    return alpha, beta
