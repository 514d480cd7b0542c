"""Which updates share memory, in which order, and who may use it again."""

import gc
import weakref
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from optimizers.divided import Divided
from torch_specgd import Muon
from torch_specgd.groups.matrix_view import MatrixView
from torch_specgd.step import batches as module
from torch_specgd.step import muon as muon_step
from torch_specgd.step.batches import Room, Round, arrange
from torch_specgd.triton_kernels.engine import orthogonalize_together
from torch_specgd.triton_kernels.iterate import run as engine_run


def arranged(
    *shapes: tuple[int, ...], view: Any = "auto", dtype: torch.dtype = torch.float32
) -> Round:
    params = [torch.zeros(s, dtype=dtype) for s in shapes]
    return in_rounds(params, [view] * len(shapes))[0]


def in_rounds(
    params: list[Tensor], views: Any = "auto", limit: int = 10**6, multiple: int = 1
) -> list[Round]:
    views = [views] * len(params) if isinstance(views, str) else views
    return list(arrange(params, params, views, (None, None), limit, multiple))


def test_rounds_never_pass_the_limit_unless_one_alone_does() -> None:
    """The bound on memory holds for every mixture of shapes."""
    rows = (1, 9, 2, 9, 30, 1)
    params = [torch.zeros(n, 4) for n in rows]
    for limit in (1, 128, 400, 2000):
        found = [some.members for some in in_rounds(params, limit=limit)]
        assert sorted(i for some in found for i in some) == list(range(6))
        for some in found:
            # On a CPU the results are as large as the updates, and count as well.
            assert len(some) == 1 or sum(2 * rows[i] * 4 * 4 for i in some) <= limit


def test_rounds_leave_no_thread_without_a_matrix() -> None:
    """Five like matrices fit, but two threads take four in the time of three."""
    params = [torch.zeros(4, 4)] * 7

    def lengths(limit: int) -> list[int]:
        return [len(some.members) for some in in_rounds(params, limit=limit, multiple=2)]

    assert lengths(5 * 128) == [4, 3]
    assert lengths(7 * 128) == [7]  # an odd one out takes the room that is left
    assert lengths(128) == [1] * 7


def test_a_round_has_one_device() -> None:
    """Its updates lie in one piece of memory."""
    params = [torch.zeros(3, 4), torch.zeros(3, 4, device="meta"), torch.zeros(5, 4)]
    assert [some.members for some in in_rounds(params)] == [[0], [1], [2]]


def test_matrices_of_one_shape_lie_side_by_side() -> None:
    some = arranged((3, 4), (2, 3, 4), (3, 2, 2, 1), (6, 4))
    assert some.members == [0, 1, 2, 3]
    assert [b.matrix for b in some.batches] == [(3, 4), (6, 4)]
    room = Room.of(some)
    assert [tuple(x.shape) for x in room.updates] == [(3, 4), (2, 3, 4), (3, 2, 2, 1), (6, 4)]
    for x in room.updates:
        x.fill_(1)
    assert [tuple(stack.shape) for stack in room.stacks] == [(4, 3, 4), (1, 6, 4)]
    assert all(stack.eq(1).all() for stack in room.stacks)
    assert [x.shape for x in room.results] == [x.shape for x in room.stacks]


def test_only_like_buffers_share_a_batch() -> None:
    """Memory of one dtype and device cannot hold the other's updates."""
    params = [torch.zeros(3, 4), torch.zeros(3, 4).bfloat16(), torch.zeros(3, 4, device="meta")]
    assert [b.members for some in in_rounds(params) for b in some.batches] == [
        {params[0].shape: [i]} for i in range(3)
    ]


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
def test_updates_are_as_wide_as_weight_and_buffer(own: torch.dtype, kept: torch.dtype) -> None:
    p, b = torch.zeros(3, 4, dtype=own), torch.zeros(3, 4, dtype=kept)
    [some] = arrange([p], [b], ["auto"], (None, None), 10**6)
    assert some.dtypes == [torch.promote_types(own, kept)]
    assert some.batches[0].dtype == torch.promote_types(own, kept)


def test_a_view_by_name_and_by_value_is_one_batch() -> None:
    """No parameter may get lost between the two spellings."""
    xs = [torch.zeros(3, 4)] * 4
    views = ["auto", MatrixView("auto"), "batch", "auto"]
    [some] = in_rounds(xs, views)
    assert [b.view for b in some.batches] == [MatrixView("auto"), MatrixView("batch")]
    assert sorted(some.members) == [0, 1, 2, 3]
    assert len(some.views) == 4


@pytest.fixture
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", engine_run.KeptMemory())


SAME = ((4, 6), (4, 6), (6, 4))


@pytest.mark.usefixtures("_nothing_kept")
def test_the_next_step_finds_its_memory() -> None:
    """Fresh memory is a page fault every 4 KiB: as long as all else of a step on LoRA factors."""
    first = Room.of(arranged(*SAME))
    first.give_back()
    again = Room.of(arranged(*SAME))
    same = [x.data_ptr() for x in again.updates]
    assert same == [x.data_ptr() for x in first.updates]
    # Not given back it is still in use: a step inside a step.
    other = Room.of(arranged(*SAME))
    assert {x.data_ptr() for x in other.updates}.isdisjoint(same)


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((4, 6), (6, 4), (6, 4)), {}),
        (((2, 4, 6), (6, 4)), {}),
        (((3, 8), (4, 6), (6, 4)), {}),
        (SAME, {"dtype": torch.float64}),
        (SAME, {"dtype": torch.bfloat16}),
        (((2, 4, 6), (2, 6, 4)), {"view": "flatten"}),
        (((2, 4, 6), (2, 6, 4)), {"view": "batch"}),
    ],
)
def test_a_step_of_another_layout_finds_other_places(
    shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]
) -> None:
    """Whatever stepped before, every place has its own memory, shape and dtype."""
    for before in (SAME, ((2, 4, 6), (2, 6, 4))):
        Room.of(arranged(*before)).give_back()
        room = Room.of(arranged(*shapes, **options))
        places = room.updates
        assert sorted(tuple(x.shape) for x in places) == sorted(shapes)
        assert {x.dtype for x in places} == {options.get("dtype", torch.float32)}
        matrices = {tuple(stack.shape[1:]) for stack in room.stacks}
        flat = options.get("view") == "flatten"
        assert matrices == ({(2, 24)} if flat else {shape[-2:] for shape in shapes})
        apart = room.results if options.get("dtype") != torch.bfloat16 else []
        spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in (*places, *apart))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        room.give_back()


@pytest.mark.usefixtures("_nothing_kept")
def test_views_of_inference_mode_stay_there() -> None:
    """A training step after an evaluation would end in "inplace update to inference tensor"."""
    with torch.inference_mode():
        Room.of(arranged(*SAME)).give_back()
    for x in Room.of(arranged(*SAME)).updates:
        assert not x.is_inference()
        x.add_(1)


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize("broken", [False, True])
def test_large_memory_is_free_after_a_step(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """Nor is any kept by a step that was broken off."""
    monkeypatch.setattr(engine_run, "_LIMIT", 10**6 if broken else 1000)
    p = nn.Parameter(torch.randn(20, 30))
    p.grad = torch.randn_like(p)
    seen: list[Any] = []

    def watching(xs: list[Tensor], outs: list[Tensor], **options: Any) -> None:
        seen.extend(weakref.ref(x) for x in (*xs, *outs))
        if broken:
            raise KeyboardInterrupt
        orthogonalize_together(xs, outs, **options)

    with mock.patch.object(muon_step, "orthogonalize_together", watching):
        try:
            Muon([p]).step()
        except KeyboardInterrupt:
            assert broken
    gc.collect()
    assert seen
    assert all(x() is None for x in seen)


def test_the_order_of_a_step_does_not_depend_on_a_ranks_pieces() -> None:
    """Every rank must bring the matrices in one order, whatever it holds of each."""
    shapes = ((8, 4), (6, 6), (8, 4), (4, 4, 2), (5, 8, 4), (8, 4))
    orders = []
    for rows in ((4, 3, 4, 2, 5, 4), (4, 3, 0, 2, 0, 4), (0, 3, 0, 0, 5, 1)):
        params = [Divided(torch.zeros(s)) for s in shapes]
        pieces = [torch.zeros(n, *s[1:]) for s, n in zip(shapes, rows, strict=True)]
        [some] = arrange(params, pieces, ["auto"] * 6, (None, None), 10**6)
        orders.append(some.members)
    assert orders == [[0, 2, 5, 4, 1, 3]] * 3
