"""All rows of a table -> the few numbers that a plan rests on, in two passes at most.

The first pass counts rows by (class, mean probability) and finds the highest scores. The second
tells labels that their class believes from those that it hardly does: a wrong label stays
improbable while the rest of its class is learned, in whatever way it came to be wrong, so one is
set aside when it is less probable than half the median of its class, or than a gap below that
which parts a crowd of improbable labels from the rest. But labels that are merely hard move while
they are learned: where the improbable ones move clearly more than the others, none is set aside.
This rule is ours, not the paper's. Both passes merge over chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .beta import LOG_SCORE, P_BINS, S_BINS

# id, label, score, mean_prob and the peers, each (n,), and what a user wishes of them.
Columns = dict[str, NDArray]
# Wishes, under names that no peer may have: 1 to keep, -1 to drop, else 0; the weight of the draw;
# what stays or goes together.
FORCED, WEIGHT, GROUP = WISHED = ("wish:forced", "wish:weight", "wish:group")

# Scores of which a LOW value means a difficult example.
LOW_IS_HARD = ("aum", "mean_prob")
# Bins are as wide as the square root of the probability: fine where a hard class is still low.
BINS = 256
SHARE = 0.5
# Steps in which the gap below half the median is sought.
STEPS = 16
# How much more than the others the improbable must move to be hard rather than wrong.
MOVING = 1.25
# Labels that lie no further apart are looked up, several times faster than searched.
MAX_LOOKUP = 1 << 16


def importance(columns: Columns, by: str) -> NDArray[np.float64]:
    """Return the column that ranks the examples, turned so that larger is harder."""
    value = columns[by].astype(np.float64)
    return -value if by in LOW_IS_HARD else value


def class_index(classes: NDArray, label: NDArray) -> NDArray:
    """Return the position of each label in ``classes`` (ascending), in the smallest unsigned type.

    Example:
        >>> class_index(np.array([3, 7]), np.array([7, 3, 7])).tolist()
        [1, 0, 1]
    """
    small = np.min_scalar_type(len(classes))
    if len(classes) == 0 or classes[-1] - classes[0] >= MAX_LOOKUP:
        return np.searchsorted(classes, label).astype(small)
    first = classes[0]
    lookup = np.zeros(classes[-1] - first + 1, dtype=small)
    lookup[classes - first] = np.arange(len(classes))
    return lookup[label.astype(np.int64) - first]


def inside(values: NDArray, ascending: NDArray) -> NDArray[np.bool_]:
    """Say which values occur in an ascending array.

    Example:
        >>> inside(np.array([3, 4]), np.array([1, 4])).tolist()
        [False, True]
    """
    if len(ascending) == 0:
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[place] == values


def prob_bins(mean_prob: NDArray) -> NDArray[np.int16]:
    """Return the bin of each probability; -1 where it is not known.

    Example:
        >>> prob_bins(np.array([0.0, 0.25, 1.0, np.nan])).tolist()
        [0, 128, 255, -1]
    """
    with np.errstate(invalid="ignore"):
        bins = np.minimum(np.sqrt(np.asarray(mean_prob, dtype=np.float64)) * BINS, BINS - 1)
    return np.where(np.isnan(bins), -1, bins).astype(np.int16)


def top_scores(scores: NDArray, ids: NDArray, count: int) -> NDArray[np.int64]:
    """Return the positions of the ``count`` highest scores, in order, ties by ascending id."""
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) > count:
        edge = np.partition(scores[known], len(known) - count)[len(known) - count]
        known = known[scores[known] >= edge]
    order = np.lexsort((ids[known], -scores[known].astype(np.float64)))
    return known[order[:count]]


@dataclass(frozen=True)
class Survey:
    """What the first pass finds in a chunk, or in all of them.

    Attributes:
        classes: (groups,) labels, ascending; one group where labels do not matter.
        counts: (groups, BINS + 1) rows by bin of the mean probability, the first of them for
            rows of which it is not known.
        top: id, score and mean_prob of the rows with the highest scores.
    """

    classes: NDArray
    counts: NDArray[np.int64]
    top: Columns

    @classmethod
    def of(cls, columns: Columns, anchor: int, by_class: bool) -> Survey:
        """Survey one chunk."""
        classes, group = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        if by_class:
            classes = np.unique(columns["label"])
            group = class_index(classes, columns["label"]).astype(np.int64)
        cells = group * (BINS + 1) + prob_bins(columns["mean_prob"]) + 1
        counts = np.bincount(cells, minlength=len(classes) * (BINS + 1)).reshape(-1, BINS + 1)
        best = top_scores(columns["score"], columns["id"], anchor)
        return cls(classes, counts, {n: columns[n][best] for n in ("id", "score", "mean_prob")})

    def merge(self, other: Survey, anchor: int) -> Survey:
        """Return the survey of both."""
        classes = np.union1d(self.classes, other.classes)
        counts = np.zeros((len(classes), BINS + 1), dtype=np.int64)
        for part in (self, other):
            counts[np.searchsorted(classes, part.classes)] += part.counts
        top = {name: np.concatenate([self.top[name], other.top[name]]) for name in self.top}
        best = top_scores(top["score"], top["id"], anchor)
        return Survey(classes, counts, {name: values[best] for name, values in top.items()})


def floors(counts: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Return the lowest bin that each group believes, and how many examples it believes.

    Where the believed begin is a share of the median, both as square roots. Counted over all
    groups, it is the emptiest place between the fullest one below half the median and half the
    median itself. Without a crowd of improbable labels the fullest place is the last, and half
    the median is the answer. Hard examples of a clean class lie between the gap and half the
    median: they are what a long training needs.

    Args:
        counts: (groups, BINS) rows by bin of their mean probability.

    Example:
        >>> low, believed = floors(np.bincount(prob_bins(np.array([0.9, 0.8, 0.7, 0.2])),
        ...     minlength=BINS)[None])
        >>> low.tolist(), believed.tolist()
        ([151], [3])
        >>> wrong = prob_bins(np.append(np.linspace(0.2, 1, 40), [0.01] * 9))
        >>> low, believed = floors(np.bincount(wrong, minlength=BINS)[None])
        >>> low.tolist(), believed.tolist()
        ([100], [40])
    """
    total = counts.cumsum(axis=1)
    median = (total * 2 >= total[:, -1:]).argmax(axis=1)
    half = np.sqrt(SHARE)
    place = (np.arange(BINS) + 0.5) / (median[:, None] + 0.5)
    crowd, edges = np.histogram(place, STEPS, (0.0, half), weights=counts)
    crowd = np.convolve(np.pad(crowd, 1, mode="edge"), np.ones(3), "valid")
    fullest = int(crowd.argmax())
    emptiest = STEPS - 1 - int(crowd[fullest:][::-1].argmin())
    gap = float(half if emptiest == STEPS - 1 else edges[emptiest : emptiest + 2].mean())
    lowest = np.floor((median + 0.5) * gap).astype(np.int16)
    below = np.where(lowest > 0, np.take_along_axis(total, lowest[:, None] - 1, 1)[:, 0], 0)
    return lowest, total[:, -1] - below


def movement(columns: Columns, believed: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Return how much the probabilities of one chunk moved, and how hard its rows are.

    The score divided by its difficulty, 1 - p, is how much the probability moved.

    Args:
        columns: Of the chunk.
        believed: (n,) whether its class believes the label.

    Returns:
        (2, 2) sums of the movement and numbers of rows, believed and not, and (2, P_BINS, S_BINS)
        counts of the rows of each with a positive score, by mean probability and log score; both
        add up over chunks.

    Example:
        >>> p, score = np.array([0.5, 0.9, 0.2]), np.array([0.1, 0.0, np.nan])
        >>> sums, joint = movement({"mean_prob": p, "score": score}, np.array([True, False, True]))
        >>> sums.tolist(), joint.sum(axis=(1, 2)).tolist()
        ([[0.2, 1.0], [0.0, 1.0]], [1, 0])
    """
    p, score = columns["mean_prob"].astype(np.float64), columns["score"].astype(np.float64)
    known = ~np.isnan(p) & ~np.isnan(score)
    moved = score / np.maximum(1.0 - p, 1e-6)
    halves = (known & believed, known & ~believed)
    sums = np.array([[moved[half].sum(), half.sum()] for half in halves])
    some = known & (score > 0)
    low, high = LOG_SCORE
    i = np.clip((p[some] * P_BINS).astype(np.int64), 0, P_BINS - 1)
    steps = (np.log10(score[some]) - low) / (high - low) * S_BINS
    j = np.clip(steps.astype(np.int64), 0, S_BINS - 1)
    cells = ((~believed[some]).astype(np.int64) * P_BINS + i) * S_BINS + j
    counts = np.bincount(cells, minlength=2 * P_BINS * S_BINS)
    return sums, counts.reshape(2, P_BINS, S_BINS)


def merely_hard(moved: NDArray) -> bool:
    """Say whether the improbable labels are being learned; from the sums of ``movement``.

    Example:
        >>> merely_hard(np.array([[5.0, 50.0], [2.0, 10.0]]))
        True
    """
    (believed, many), (rest, few) = moved
    return bool(few > 0 and many > 0 and rest * many > MOVING * believed * few)
