"""Steps of plain and of spread-out weights side by side, and what the ranks do in them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from torch_specgd import Muon, Shampoo, SpecGD
from torch_specgd.step import pieces
from torch_specgd.step.batches import Room

# Uneven, fewer rows than ranks (empty pieces), single rows and columns, a convolution, an expert
# stack, a vector, two of one shape that must share a batch, and one that is iterated in bfloat16
# where the processor can.
SHAPES = [
    (8, 6),
    (3, 7),
    (1, 9),
    (9, 1),
    (12, 5),
    (8, 6),
    (5, 3, 2, 2),
    (6, 4, 5),
    (7,),
    (65, 33),
    (70, 66),
]

Gradients = Sequence[Sequence[Tensor | None]]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "muon": lambda p: Muon(p, lr=0.02),
    "muon-plain-rms": lambda p: Muon(
        p, lr=0.02, nesterov=False, adjust_lr_fn="match_rms_adamw", max_batch_bytes=400
    ),
    "muon-normuon-cautious": lambda p: Muon(
        p, lr=0.02, neuron_beta=0.9, cautious_weight_decay=True
    ),
    "muon-eigenbasis-element": lambda p: Muon(
        p, lr=0.02, precondition="eigenbasis", second_moment="element"
    ),
    "muon-shampoo-split": lambda p: Muon(
        [{"params": p[:1], "split": (0, (3, 3, 2))}, {"params": p[1:]}],
        precondition=Shampoo(every=2),
    ),
    "muon-maximize-one-by-one": lambda p: Muon(p, lr=0.02, maximize=True, foreach=False),
    "muon-split-lr-tensor": lambda p: Muon(
        [{"params": p[:1], "split": (0, (3, 3, 2))}, {"params": p[1:]}], lr=torch.tensor(0.02)
    ),
    "specgd": lambda p: SpecGD(p, lr=0.02),
    "specgd-momentum-l2": lambda p: SpecGD(
        p, lr=0.02, momentum=0.9, nesterov=True, l2=0.1, weight_decay=0.1, method="smoothed"
    ),
}


def weights_and_gradients(steps: int = 3) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda: [torch.randn(s, generator=generator) for s in SHAPES]  # noqa: E731
    return draw(), [draw() for _ in range(steps)]


def run(
    make: Callable[[Any], torch.optim.Optimizer],
    place: Callable[[Tensor], Tensor],
    weights: list[Tensor],
    gradients: Gradients,
    backend: str | None = None,
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Steps of fresh parameters; ``backend`` compiles the step."""
    params = [nn.Parameter(place(w.clone())) for w in weights]
    optimizer = make(params)
    step = optimizer.step if backend is None else torch.compile(optimizer.step, backend=backend)
    take_steps(params, step, place, gradients)
    return params, optimizer


def take_steps(
    params: list[nn.Parameter],
    step: Callable[[], Any],
    place: Callable[[Tensor], Tensor],
    gradients: Gradients,
) -> None:
    """One step for each list of gradients, in which None leaves a parameter without one."""
    for grads in gradients:
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else place(g.to(p.dtype))
        step()


def full(x: Tensor) -> Tensor:
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def largest_difference(xs: Any, ys: Any) -> float:
    return max(float((full(x) - full(y)).abs().max()) for x, y in zip(xs, ys, strict=True))


def placed(mesh: DeviceMesh, *placements: Placement) -> Callable[[Tensor], Tensor]:
    """Distributes a tensor; dimensions that it does not have stay replicated."""

    def place(x: Tensor) -> Tensor:
        fitting = [
            p if not isinstance(p, Shard) or p.dim < x.ndim else Replicate() for p in placements
        ]
        return distribute_tensor(x, mesh, fitting)

    return place


def compare_all(place: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Largest difference to the unsharded run, for every optimizer."""
    weights, gradients = weights_and_gradients()
    result = {}
    for name, make in OPTIMIZERS.items():
        plain, _ = run(make, lambda x: x, weights, gradients)
        result[name] = largest_difference(run(make, place, weights, gradients)[0], plain)
    return result


@contextmanager
def counted(module: Any, name: str, calls: list[Any]) -> Iterator[None]:
    """Records the first argument of every call of a function."""
    original = getattr(module, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return original(*args, **kwargs)

    setattr(module, name, recording)
    try:
        yield
    finally:
        setattr(module, name, original)


def matrices_seen(place: Callable[[Tensor], Tensor], **options: Any) -> list[int]:
    """Number of matrices that each rank orthogonalizes in one step; shapes in whole."""
    weights, gradients = weights_and_gradients(1)
    keep = [i for i, s in enumerate(SHAPES) if len(s) in (2, 4)]
    calls: list[list[Tensor]] = []
    rooms: list[Room] = []
    with (
        counted(pieces, "orthogonalize_all", calls),
        counted(Room, "give_back", rooms),
    ):
        run(
            lambda p: Muon(p, **options),
            place,
            [weights[i] for i in keep],
            [[g[i] for i in keep] for g in gradients],
        )
    calls += [room.updates for room in rooms if room.stacks]
    shapes = [tuple(x.shape) for call in calls for x in call]
    assert set(shapes) <= set(SHAPES), "an orthogonalized tensor is no whole matrix"
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, len(shapes))
    return counts


def everywhere_equal(xs: Any) -> bool:
    """Whether all ranks hold the same bits."""
    mine = [full(x) for x in xs]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return all(torch.equal(a, b) for other in every for a, b in zip(every[0], other, strict=True))
