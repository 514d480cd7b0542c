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
from torch_specgd import Muon, stacks
from torch_specgd.groups.matrix_view import MatrixView
from torch_specgd.step.batches import Kind, alike, batches_of, chunks
from torch_specgd.triton_kernels import orthogonalize_together
from torch_specgd.triton_kernels.iterate import kept_memory


def kinds_of(*shapes: tuple[int, int]) -> dict[Kind, list[int]]:
    params = [torch.zeros(s) for s in shapes]
    return alike(params, params, ["auto"] * len(params))


def test_chunks_never_pass_the_limit_unless_one_alone_does() -> None:
    """The bound on memory holds for every mixture of shapes."""
    rows = (1, 9, 2, 9, 30, 1)
    kinds = kinds_of(*((n, 4) for n in rows))
    for limit in (1, 64, 200, 1000):
        found = [[i for some in c.values() for i in some] for c in chunks(kinds, limit)]
        assert sorted(i for chunk in found for i in chunk) == list(range(6))
        for chunk in found:
            assert len(chunk) == 1 or sum(rows[i] * 4 * 4 for i in chunk) <= limit


def test_chunks_leave_no_thread_without_a_matrix() -> None:
    """Five like matrices fit, but two threads take four in the time of three."""
    kinds = kinds_of(*[(4, 4)] * 7)

    def lengths(limit: int) -> list[int]:
        return [sum(map(len, c.values())) for c in chunks(kinds, limit, together=2)]

    assert lengths(5 * 64) == [4, 3]
    assert lengths(7 * 64) == [7]  # an odd one out takes the room that is left
    assert lengths(64) == [1] * 7


def test_stacks_hold_every_update_in_its_shape() -> None:
    buffers = [torch.zeros(s) for s in ((3, 4), (2, 3, 4), (3, 2, 2), (6, 4))]
    views = [MatrixView(), MatrixView(), MatrixView("flatten"), MatrixView(split=(0, (2, 4)))]
    kinds = alike(buffers, buffers, views)
    batches = batches_of(kinds, {kind: kind.dtype for kind in kinds})
    members = [[i for some in b.kinds.values() for i in some] for b in batches]
    assert members == [[0, 1, 2], [3]]
    made = stacks.stack_updates(buffers, batches, whole=False).stacks
    for x, b in zip([x for s in made for x in s.places], buffers, strict=True):
        assert x.shape == b.shape
        x.fill_(1)
    assert [tuple(s.batch.shape) for s in made] == [(48,), (24,)]
    assert all(s.batch.eq(1).all() for s in made)
    [whole] = stacks.stack_updates(buffers[:3], batches[:1], whole=True).stacks
    assert whole.result is not None
    assert whole.batch.shape == whole.result.shape == (4, 3, 4)


def test_only_like_buffers_share_a_batch() -> None:
    """Memory of one dtype and device cannot hold the other's updates."""
    kind = Kind(torch.Size((3, 4)), torch.float32, torch.device("cpu"), MatrixView())
    others = [kind._replace(dtype=torch.bfloat16), kind._replace(device=torch.device("meta"))]
    kinds = {k: [i] for i, k in enumerate([kind, *others])}
    batches = batches_of(kinds, dict.fromkeys(kinds, torch.float32))
    assert [list(b.kinds) for b in batches] == [[kind], [others[0]], [others[1]]]


def test_a_view_by_name_and_by_value_are_one_kind() -> None:
    """No parameter may get lost between the two spellings."""
    xs = [torch.zeros(3, 4)] * 4
    kinds = alike(xs, xs, ["auto", MatrixView("auto"), "batch", "auto"])
    assert [k.view for k in kinds] == [MatrixView("auto"), MatrixView("batch")]
    assert sorted(i for some in kinds.values() for i in some) == [0, 1, 2, 3]


def updates_of(*shapes: tuple[int, ...], view: str = "auto", dtype: Any = torch.float32) -> Any:
    """Stacks of whole matrices, as a step takes them, and all their places."""
    params = [torch.zeros(s, dtype=dtype) for s in shapes]
    kinds = alike(params, params, [view] * len(shapes))
    batches = batches_of(kinds, {kind: kind.dtype for kind in kinds})
    made = stacks.stack_updates(params, batches, whole=True)
    return made, [x for s in made.stacks for x in s.places]


@pytest.fixture
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_KEPT", kept_memory.KeptMemory())
    monkeypatch.setattr(stacks, "_LAST", stacks._Last())


SAME = ((4, 6), (4, 6), (6, 4))


@pytest.mark.usefixtures("_nothing_kept")
def test_the_next_step_finds_its_views() -> None:
    first, views = updates_of(*SAME)
    stacks.keep_memory(first)
    again, found = updates_of(*SAME)
    assert all(x is y for x, y in zip(views, found, strict=True))
    # Without `keep_memory` they are still in use: a step inside a step.
    _, other = updates_of(*SAME)
    assert {x.data_ptr() for x in other}.isdisjoint(x.data_ptr() for x in views)
    stacks.keep_memory(again)


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
def test_a_step_of_another_layout_finds_other_views(
    shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]
) -> None:
    """Whatever stepped before, every place has its own memory, shape and dtype."""
    for before in (SAME, ((2, 4, 6), (2, 6, 4))):
        stacks.keep_memory(updates_of(*before)[0])
        made, places = updates_of(*shapes, **options)
        assert sorted(tuple(x.shape) for x in places) == sorted(shapes)
        assert {x.dtype for x in places} == {options.get("dtype", torch.float32)}
        matrices = {tuple(s.batch.shape[1:]) for s in made.stacks}
        flat = options.get("view") == "flatten"
        assert matrices == ({(2, 24)} if flat else {shape[-2:] for shape in shapes})
        spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in places)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        stacks.keep_memory(made)


@pytest.mark.usefixtures("_nothing_kept")
def test_views_of_inference_mode_stay_there() -> None:
    """A training step after an evaluation would end in "inplace update to inference tensor"."""
    with torch.inference_mode():
        stacks.keep_memory(updates_of(*SAME)[0])
    for x in updates_of(*SAME)[1]:
        assert not x.is_inference()
        x.add_(1)


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize("broken", [False, True])
def test_large_memory_is_free_after_a_step(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """Nor is any kept by a step that was broken off."""
    monkeypatch.setattr(kept_memory, "_LIMIT", 10**6 if broken else 1000)
    p = nn.Parameter(torch.randn(20, 30))
    p.grad = torch.randn_like(p)
    seen: list[Any] = []

    def watching(xs: list[Tensor], outs: list[Tensor], **options: Any) -> None:
        seen.extend(weakref.ref(x) for x in (*xs, *outs))
        if broken:
            raise KeyboardInterrupt
        orthogonalize_together(xs, outs, **options)

    with mock.patch.object(stacks, "orthogonalize_together", watching):
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
        kinds = alike(params, pieces, ["auto"] * len(shapes))
        batches = batches_of(kinds, {kind: kind.dtype for kind in kinds})
        orders.append([i for b in batches for some in b.kinds.values() for i in some])
        made = stacks.stack_updates([pieces[i] for i in orders[-1]], batches, whole=False)
        places = [x.shape for s in made.stacks for x in s.places]
        assert places == [pieces[i].shape for i in orders[-1]]
    assert orders == [[0, 2, 5, 4, 1, 3]] * 3
