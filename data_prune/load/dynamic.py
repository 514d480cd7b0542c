r"""Mode "dynamic": the losses seen last -> who is left out of the next epoch, and the weights.

Each epoch a share r of the well-learned examples, those whose loss lies below the mean, is drawn
and left out; the others of them weigh :math:`1 / (1 - r)`. An example's weight is 1 on average
whatever its loss, so that the weighted gradients of an epoch have the gradients of all examples
as their expected sum. The last epochs see everything.

Source:
    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
    ICLR 2024, arXiv 2303.04947.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..record.tracker import DualTracker
from ..select.noise import epoch_seed, uniform
from ..select.plan import parts

MODES = ("static", "dynamic")
# The share of the epochs that see everything at the end, as in the paper.
FULL_SHARE = 0.125
# Losses are compared in whole steps, whose sum is the same in any order and on any machine.
STEPS = 2.0**24


class Draw(NamedTuple):
    """One epoch.

    Attributes:
        members: Examples that are seen, ascending; None where all are.
        light: (N,) whether an example is well learned; None where all weigh 1.
        weight: Of a well-learned example that is seen.
    """

    members: NDArray[np.int64] | None = None
    light: NDArray[np.bool_] | None = None
    weight: float = 1.0

    def weights(self, index: Tensor) -> Tensor:
        """Return the weight of each example of a batch, (B,) float32 on the host."""
        if self.light is None:
            return torch.ones(len(index))
        return 1.0 + (self.weight - 1.0) * torch.from_numpy(self.light[index.numpy()]).float()


EVERYTHING = Draw()


def well_learned(prob: NDArray) -> NDArray[np.bool_]:
    """Say which examples have a loss, -log of the probability, below the mean.

    Args:
        prob: (N,) seen last; NaN where nothing is known, which is never well learned.

    Example:
        >>> well_learned(np.array([0.9, 0.9, 0.1, np.nan])).tolist()
        [True, True, False, False]
        >>> well_learned(np.full(3, 0.7)).tolist()
        [False, False, False]
    """

    def loss(part: slice) -> NDArray[np.int64]:
        p = np.clip(prob[part].astype(np.float64), 1.0 / STEPS, 1.0)
        return np.rint(-STEPS * np.log(np.where(np.isnan(p), 1.0, p))).astype(np.int64)

    known = ~np.isnan(prob)
    count, total = int(known.sum()), sum(int(loss(part).sum()) for part in parts(len(prob)))
    for part in parts(len(prob)):
        known[part] &= loss(part) * count < total
    return known


def draw(prob: NDArray, prune_ratio: float, seed: int) -> Draw:
    """Draw one epoch.

    Args:
        prob: (N,) probabilities seen last, NaN where nothing is known.
        prune_ratio: r, the share of the well-learned that is left out, in [0, 1).
        seed: Of this epoch's draw.

    Example:
        >>> one = draw(np.array([0.9, 0.1, 0.8, 0.9, 0.7]), 0.5, seed=0)
        >>> one.members.tolist(), one.weight
        ([0, 1, 3], 2.0)
        >>> one.weights(torch.tensor([1, 3])).tolist()
        [1.0, 2.0]
    """
    light = well_learned(prob)
    known = np.flatnonzero(light)
    stay = max(1, len(known) - round(len(known) * prune_ratio))
    if stay >= len(known):
        return EVERYTHING
    key = uniform(seed, known.astype(np.uint64))
    stays = key <= np.partition(key, stay - 1)[stay - 1]
    seen = np.ones(len(prob), dtype=bool)
    seen[known[~stays]] = False
    # The number that stays is exact, so that the mean weight of the well-learned is 1.
    return Draw(np.flatnonzero(seen), light, len(known) / int(stays.sum()))


class Draws:
    """The draws of a training, epoch by epoch, from what a tracker has recorded.

    Args:
        tracker: Records every epoch.
        prune_ratio: See ``draw``.
        seed: Of all draws.
        last: First of the epochs at the end that see everything.
    """

    def __init__(self, tracker: DualTracker, prune_ratio: float, seed: int, last: int) -> None:
        self.tracker, self.prune_ratio, self.seed, self.last = tracker, prune_ratio, seed, last
        self.forget()

    def forget(self) -> None:
        """Make the draws anew: another recording is being loaded."""
        self._going_on = EVERYTHING
        self._found: tuple[tuple[int, int], Draw] | None = None

    def begin(self, epoch: int) -> None:
        """Fix the draw of the epoch that begins; ``weights`` are those of its examples."""
        self._going_on = self.of(epoch, epoch)

    def weights(self, index: Tensor) -> Tensor:
        """Return the weights of a batch of the epoch that began last."""
        return self._going_on.weights(index)

    def of(self, epoch: int, present: int) -> Draw:
        """Return the draw of an epoch.

        Args:
            epoch: That epoch.
            present: The one that is going on, or about to begin.

        Raises:
            RuntimeError: If the losses that decide are not known yet.
        """
        if epoch == 0 or epoch >= self.last:
            return EVERYTHING
        if epoch != present:
            raise RuntimeError(
                "in mode 'dynamic' the losses decide how long an epoch is: let a schedule follow "
                "the epochs, or progress of the wrapped loader, instead of a number of steps"
            )
        if self.tracker.recording and self.tracker.epoch < epoch:
            return self._going_on  # the last batch of the epoch before is not recorded yet
        key = (epoch, self.tracker.epoch)
        if self._found is None or self._found[0] != key:
            seed = epoch_seed(self.seed, epoch)
            self._found = key, draw(self.tracker.last_seen(), self.prune_ratio, seed)
        return self._found[1]


def check_mode(mode: str, needed: dict[str, Any], refused: dict[str, Any]) -> None:
    """Refuse a mode that does not exist, and what does not fit to it.

    Args:
        mode: One of ``MODES``.
        needed: Arguments that belong to mode "dynamic"; None where they are not given.
        refused: Arguments that do not.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    for name, value in (needed if mode == "static" else refused).items():
        if value is not None:
            raise ValueError(f"{name} must not be given for mode {mode!r}, got {value!r}")
    epochs = needed["epochs"]
    if mode == "dynamic" and (isinstance(epochs, bool) or not isinstance(epochs, int)):
        raise TypeError(
            f"epochs must be the number of passes of the whole training for mode 'dynamic', got "
            f"{epochs!r}"
        )
    if mode == "dynamic" and epochs < 2:
        raise ValueError(f"epochs must be at least 2 for mode 'dynamic', got {epochs}")


def full_epochs_of(epochs: int, full_epochs: int | None) -> int:
    """Return how many of the last epochs see everything.

    Example:
        >>> full_epochs_of(30, None)
        4
    """
    if full_epochs is None:
        return math.ceil(epochs * FULL_SHARE)
    if not 0 <= full_epochs <= epochs:
        raise ValueError(f"full_epochs must be in [0, {epochs}], got {full_epochs}")
    return full_epochs
