"""The exchange without processes: all ranks of a group run in one, in lock step."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

from torch_specgd.distributed import exchange
from torch_specgd.distributed.exchange import from_owners, to_owners
from torch_specgd.distributed.layout import Division, Layout
from torch_specgd.distributed.orthogonalize import orthogonalize_distributed
from torch_specgd.distributed.owners import balanced_owners, buckets, cost
from torch_specgd.distributed.pipeline import _run
from torch_specgd.groups.matrix_view import MatrixView, as_matrices

careful = settings(derandomize=True, deadline=None, max_examples=50)


@dataclass
class Post:
    """Stands for a process group: delivers when every rank has posted."""

    size: int
    posted: dict[int, tuple[Tensor, Tensor, list[int], list[int]]] = field(default_factory=dict)

    def deliver(self) -> None:
        assert len(self.posted) == self.size
        for r, (buffer, _, sizes, _) in self.posted.items():
            parts = [
                flat.split(splits)[r] for _, (_, flat, _, splits) in sorted(self.posted.items())
            ]
            assert [len(x) for x in parts] == sizes, "ranks disagree about the lengths"
            buffer.copy_(torch.cat(parts))
        self.posted = {}


@dataclass
class Desk:
    """One rank's end of a post; takes the place of its process group."""

    post: Post
    rank: int


class Delivered:
    def wait(self) -> None:
        pass


def all_to_all_single(
    buffer: Tensor,
    flat: Tensor,
    sizes: list[int],
    splits: list[int],
    *,
    group: Desk,
    async_op: bool,
) -> Delivered:
    assert async_op
    group.post.posted[group.rank] = (buffer, flat, sizes, splits)
    return Delivered()


def all_gather_flat(buffer: Tensor, flat: Tensor, group: Desk) -> Delivered:
    size = group.post.size
    return all_to_all_single(
        buffer, flat.repeat(size), [len(flat)] * size, [len(flat)] * size,
        group=group, async_op=True,
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", all_to_all_single)
        patch.setattr(exchange, "all_gather_flat", all_gather_flat)
        yield


def in_lock_step(post: Post, ranks: list[Any]) -> list[Any]:
    """Runs one generator per rank to its end; all must pause at the same collectives."""
    outcomes: dict[int, Any] = {}
    while len(outcomes) < len(ranks):
        for i, generator in enumerate(ranks):
            try:
                next(generator)
            except StopIteration as end:
                outcomes[i] = end.value
        assert not (outcomes and len(outcomes) < len(ranks)), "ranks fall out of step"
        if post.posted:
            post.deliver()
    return [outcomes[i] for i in range(len(ranks))]


shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=5,
)


@careful
@given(shapes, st.integers(1, 6), st.integers(0, 1), st.integers(1, 3), st.data())
def test_pieces_meet_at_their_owner_and_return(
    shapes: list[tuple[int, ...]], size: int, dim: int, factor: int, data: st.DataObject
) -> None:
    """Any shapes on any number of ranks, empty pieces and strided shards included."""
    owner = {i: data.draw(st.integers(0, size - 1)) for i in range(len(shapes))}
    full = [torch.randn(s, dtype=torch.float64) for s in shapes]
    whole = dict(enumerate(shapes))
    post = Post(size)
    ranks = [Division(Desk(post, r), size, r, dim, factor) for r in range(size)]
    place = Shard(dim) if factor == 1 else _StridedShard(dim, split_factor=factor)
    pieces = [
        {i: place._split_tensor(x, size, with_padding=False)[0][r] for i, x in enumerate(full)}
        for r in range(size)
    ]
    lengths = [[p[i].shape[dim] for p in pieces] for i in whole]
    if factor > 1 and torch.__version__ < (2, 13):
        # Older ones (2.9) cut uneven strided shards otherwise, and check_layout refuses those.
        assume(all(ranks[0].lengths(shapes[i][dim]) == lengths[i] for i in whole))
    assert ranks[0].lengths(shapes[0][dim]) == lengths[0]
    like = full[0]
    owned = in_lock_step(
        post, [to_owners(p, d, whole, owner, like) for p, d in zip(pieces, ranks, strict=True)]
    )
    for r, matrices in enumerate(owned):
        assert list(matrices) == [i for i in whole if owner[i] == r]
        assert all(torch.equal(x, full[i]) for i, x in matrices.items())
    back = in_lock_step(
        post, [from_owners(m, d, whole, owner, like) for m, d in zip(owned, ranks, strict=True)]
    )
    for mine, received in zip(pieces, back, strict=True):
        assert list(received) == list(mine)
        assert all(torch.equal(mine[i], received[i]) for i in mine)


@careful
@given(shapes, st.integers(1, 6), st.data())
def test_replicas_divide_the_work(
    shapes: list[tuple[int, ...]], size: int, data: st.DataObject
) -> None:
    """Each replica gets every result, also those of ranks that own nothing."""
    owner = {i: data.draw(st.integers(0, size - 1)) for i in range(len(shapes))}
    full = dict(enumerate(torch.randn(s) for s in shapes))
    whole = dict(enumerate(shapes))
    post = Post(size)
    ranks = [Division(Desk(post, r), size, r, None) for r in range(size)]
    chosen = in_lock_step(post, [to_owners(full, d, whole, owner, full[0]) for d in ranks])
    assert sum(len(c) for c in chosen) == len(shapes)
    shared = in_lock_step(
        post,
        [from_owners(c, d, whole, owner, full[0]) for c, d in zip(chosen, ranks, strict=True)],
    )
    for received in shared:
        assert list(received) == list(full)
        assert all(torch.equal(full[i], received[i]) for i in full)


@careful
@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 9))
def test_owners_are_balanced(costs: list[int], count: int) -> None:
    """The slowest rank decides the time of a step: its load is near the best possible."""
    loads = [0] * count
    owners = balanced_owners(costs, loads)
    assert loads == [
        sum(c for c, o in zip(costs, owners, strict=True) if o == r) for r in range(count)
    ]
    # Graham 1969: 4/3 - 1/(3 count) of the optimum, which is at least each of these bounds.
    pairs = sorted(costs, reverse=True)[count - 1 : count + 1]
    best = max([sum(costs) / count, *costs, sum(pairs) if len(pairs) == 2 else 0])
    assert max(loads) <= (4 / 3) * best or max(loads) - best <= max(costs, default=0) / 3


@careful
@given(shapes, st.integers(1, 4), st.integers(1, 400))
def test_buckets_hold_everything_once(
    shapes: list[tuple[int, ...]], owners: int, max_bytes: int
) -> None:
    """A matrix in no bucket would not be updated, one in two would be sent twice."""
    sizes = [4 * torch.Size(s).numel() for s in shapes]
    costs = [cost(s, "auto") for s in shapes]
    parts = buckets(shapes, costs, sizes, owners, max_bytes)
    assert sorted(i for part in parts for i in part) == list(range(len(shapes)))
    assert all(len(part) % owners == 0 for part in parts[:-1])
    for part in parts:
        # Closed as soon as it is full and every owner has the same number.
        assert sum(sizes[i] for i in part[: -owners or None]) < max_bytes * owners


def test_cost_counts_the_pieces_of_a_split_weight() -> None:
    """A fused QKV weight is three matrices, not one large one."""
    assert cost((12, 4), MatrixView("auto", (0, (4, 4, 4)))) == 3 * cost((4, 4), "auto")
    assert cost((6, 2, 3, 3), "auto") == cost((6, 18), "auto")
    assert cost((2, 3, 4, 5), "batch") == 6 * cost((4, 5), "auto")


def test_next_bucket_travels_while_this_one_is_computed() -> None:
    """Waiting for each exchange before the next is launched would leave the network idle."""
    log: list[str] = []

    def job(name: int) -> Generator[None, None, None]:
        log.append(f"in {name}")
        yield
        log.append(f"compute {name}")
        log.append(f"out {name}")
        yield
        log.append(f"done {name}")

    _run([job(0), job(1), job(2)])
    for name in (0, 1):
        assert log.index(f"in {name + 1}") < log.index(f"compute {name}")
        assert log.index(f"compute {name + 1}") < log.index(f"done {name}")
    assert len(log) == 12


def test_divisions_that_keep_matrices_whole_come_first() -> None:
    """Else a stack divided by experts inside and columns outside is put together wrongly."""
    expert = Division(None, 2, 1, 0, moves=False)  # type: ignore[arg-type]
    columns = replace(expert, dim=2, moves=True)

    class Mesh:
        size = staticmethod(lambda i: 2)
        get_group = staticmethod(lambda i: None)
        get_coordinate = staticmethod(lambda: (1, 1))

    layout = Layout(torch.Size((4, 3, 6)), Mesh(), (Shard(2), Shard(0)))
    assert layout.divisions("auto") == [expert, columns]
    assert [d.moves for d in layout.divisions("flatten")] == [True, True]


def test_rank_outside_the_mesh_has_nothing_to_do() -> None:
    """Under pipeline parallelism a rank may hold a parameter's empty shell."""

    class Mesh:
        get_coordinate = staticmethod(lambda: None)

    layout = Layout(torch.Size((4, 3)), Mesh(), (Shard(0),))
    empty = torch.empty(0)
    computed: list[list[int]] = []

    def compute(xs: list[Tensor], members: list[int]) -> list[Tensor]:
        computed.append(members)
        return [x + 1 for x in xs]

    outcome = orthogonalize_distributed(
        [empty, torch.ones(2, 2)], [layout, Layout(torch.Size((2, 2)))], ["auto"] * 2, compute
    )
    assert computed == [[1]]
    assert outcome[0] is empty
    assert torch.equal(outcome[1], torch.full((2, 2), 2.0))


def test_share_work_without_a_process_group_computes_everything() -> None:
    """The same script runs on one process, without torchrun."""
    x = torch.randn(3, 4)
    outcome = orthogonalize_distributed(
        [x], [Layout.of(x)], ["auto"], lambda xs, _: [2 * y for y in xs], share_work=True
    )
    assert torch.equal(outcome[0], 2 * x)


@pytest.mark.parametrize(
    ("shape", "view", "matrices"),
    [
        ((0, 5), "auto", (1, 0, 5)),
        ((0, 3, 2, 2), "auto", (1, 0, 12)),
        ((0, 3, 4), "auto", (0, 3, 4)),
        ((2, 0, 4), "auto", (2, 0, 4)),
        ((2, 0, 3, 4), "batch", (0, 3, 4)),
    ],
)
def test_empty_pieces_are_matrices_too(
    shape: tuple[int, ...], view: str, matrices: tuple[int, ...]
) -> None:
    """An error on the rank that holds no row leaves the others waiting for it."""
    assert tuple(as_matrices(torch.empty(shape), view).shape) == matrices
