"""Where the updates of a step lie: matrices of one shape side by side, one batch."""

import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .step.batches import Batch
from .triton_kernels import orthogonalize
from .triton_kernels.engine import orthogonalize_together
from .triton_kernels.iterate.kept_memory import KeptMemory

_KEPT = KeptMemory()  # the last step's updates
_LINE = 64  # bytes


class Stack(NamedTuple):
    """A batch's updates, which share one piece of memory.

    Attributes:
        places: The updates, in the order of the batch's parameters: views of ``batch``.
        batch: (B, m, n): all their matrices; flat where they are not whole.
        result: As large as ``batch``, or the same: where their orthogonalization goes; None: new
            memory.
        results: Views of ``result`` like ``places``.
    """

    places: list[Tensor]
    batch: Tensor
    result: Tensor | None
    results: list[Tensor]


class _Need(NamedTuple):
    """What the whole updates of a batch take of the kept memory."""

    runs: list[tuple[torch.Size, int]]
    matrix: tuple[Any, ...]
    dtype: torch.dtype

    @staticmethod
    def of(batch: Batch) -> "_Need":
        runs = [(kind.shape, len(members)) for kind, members in batch.kinds.items()]
        return _Need(runs, batch.first.matrices, batch.dtype)

    @property
    def copies(self) -> int:
        # bfloat16 is iterated in the direct form, whose result may lie over the updates; the Gram
        # form of small matrices in float32 reads them last.
        return 1 if self.dtype == torch.bfloat16 else 2

    def sizes(self) -> tuple[int, int]:
        """Bytes of a copy, and how far one is from the next."""
        nbytes = self.dtype.itemsize * sum(shape.numel() * count for shape, count in self.runs)
        return nbytes, -(-nbytes // _LINE) * _LINE


class Stacks(NamedTuple):
    """The stacks of a chunk, and to what need of kept memory they answer; None: to none."""

    stacks: list[Stack]
    key: object = None


class _Last(threading.local):
    """The stacks that this thread gave back last, views of the memory that `_KEPT` has."""

    def __init__(self) -> None:
        self._stacks = Stacks([])

    def take(self, key: object) -> list[Stack] | None:
        """Returns those of a key, or None; in any case they are not kept any more."""
        (stacks, known), self._stacks = self._stacks, Stacks([])
        return stacks if known == key else None

    def give(self, stacks: Stacks) -> None:
        self._stacks = stacks


_LAST = _Last()


def stack_updates(buffers: Sequence[Tensor], batches: Sequence[Batch], whole: bool) -> Stacks:
    """Makes room for one update of each buffer's shape, uninitialized.

    Args:
        buffers: Momentum buffers in the order of the batches' parameters, of a DTensor this
            rank's piece.
        batches: What they belong to.
        whole: Whether the buffers have the full shapes, none of them split.

    Returns:
        A stack for each batch: of whole matrices on a CPU in kept memory, else in new memory.
    """
    if whole and all(batch.first.device.type == "cpu" for batch in batches):
        return _stacks_in_kept_memory(batches)
    left, stacks = iter(buffers), []
    for batch in batches:
        shapes = [next(left).shape for some in batch.kinds.values() for _ in some]
        runs = [(shape, len(list(same))) for shape, same in groupby(shapes)]
        size = sum(shape.numel() for shape in shapes)
        memory = torch.empty(size, dtype=batch.dtype, device=batch.first.device)
        matrices = memory.view(-1, *batch.first.matrices) if whole else memory
        stacks.append(Stack(_cut(memory, runs), matrices, None, []))
    return Stacks(stacks)


def _stacks_in_kept_memory(batches: Sequence[Batch]) -> Stacks:
    needs = [_Need.of(batch) for batch in batches]
    key = (torch.is_inference_mode_enabled(), needs)
    # Hundreds of views take as long as the arithmetic of small matrices: they are kept as well.
    known = _LAST.take(key)
    memory = _KEPT.take(sum(need.copies * need.sizes()[1] for need in needs))
    # A tensor without data, of a mode that is on by now, has no address.
    if known and type(memory) is Tensor and known[0].batch.data_ptr() == memory.data_ptr():
        return Stacks(known, key)
    stacks = []
    for need in needs:
        nbytes, span = need.sizes()
        pieces = [memory[i * span :][:nbytes].view(need.dtype) for i in range(need.copies)]
        memory = memory[need.copies * span :]
        places = [_cut(x, need.runs) for x in pieces]
        batch = [x.view(-1, *need.matrix) for x in pieces]
        stacks.append(Stack(places[0], batch[0], batch[-1], places[-1]))
    return Stacks(stacks, key)


def keep_memory(made: Stacks) -> None:
    """Lets this thread's next step write over these updates, if they are a CPU's and not large."""
    if made.key is None or not made.stacks:
        return
    if _KEPT.give(made.stacks[0].batch):
        _LAST.give(made)


def _cut(memory: Tensor, runs: Sequence[tuple[torch.Size, int]]) -> list[Tensor]:
    """Views of the given shapes, each so many times, one after the other."""
    pieces = memory.split([shape.numel() * count for shape, count in runs])
    return [
        place
        for piece, (shape, count) in zip(pieces, runs, strict=True)
        for place in piece.view(count, *shape).unbind()
    ]


def orthogonalize_stacks(stacks: Sequence[Stack], **options: Any) -> list[Tensor]:
    """Orthogonalizes the batch of every stack of whole updates.

    Args:
        stacks: From `stack_updates`.
        **options: Of the engine's ``orthogonalize``.

    Returns:
        The results in the order of the places, row-major, of the places' shapes and dtypes; they
        may lie in the stacks' own memory.
    """
    placed = [s for s in stacks if s.result is not None]
    outs = [s.result for s in placed if s.result is not None]
    orthogonalize_together([s.batch for s in placed], outs, **options)
    results: list[Tensor] = []
    for places, batch, result, done in stacks:
        if result is None:
            # A GPU leaves tall results transposed: one pass over all beats strided reads later.
            new = orthogonalize(batch, **options).contiguous()
            done = _cut(new.view(-1), [(x.shape, 1) for x in places])
        results += done
    return results
