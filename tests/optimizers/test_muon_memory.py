"""What a step does with memory: blocks, stacks and dtypes must not change what it computes."""

from itertools import accumulate
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.profiler import ProfilerActivity, profile

from torch_specgd import Muon
from torch_specgd.groups.matrix_view import MatrixView
from torch_specgd.step import batches
from torch_specgd.step import muon as muon_step
from torch_specgd.triton_kernels import momentum_step, multi_tensor, plan, weight_step
from torch_specgd.triton_kernels.engine import orthogonalize_together
from torch_specgd.triton_kernels.multi_tensor import BLOCK, blocks

# Below one block, of several with a rest, not contiguous, empty.
SHAPES = ((5, 7), (3, BLOCK // 2 + 5), (0, 4))


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(s).to(dtype) for s in SHAPES] + [torch.randn(9, 600, 40).to(dtype).mT]


def test_blocks_cover_every_element_once_and_share_its_memory() -> None:
    shapes = [(4, 4)] * 3 + [(3, BLOCK // 2 + 5)] + [(BLOCK // 2,)] * 3 + [(0,)]
    xs, ys = ([torch.zeros(s) for s in shapes] for _ in range(2))
    pieces = list(blocks(xs, ys))
    assert [len(a) for a, _ in pieces] == [3, 1, 1, 2, 2]
    for a, b in pieces:
        assert [x.shape for x in a] == [y.shape for y in b]
        assert sum(x.numel() for x in a) <= BLOCK
        for x in a:
            x.add_(1)
    assert all(x.eq(1).all() for x in xs)


def test_a_large_tensor_that_is_not_contiguous_is_one_piece() -> None:
    x = torch.zeros(2, 3, BLOCK).mT
    assert [[y.shape for y in ys] for (ys,) in blocks([torch.zeros(2), x])] == [[(2,)], [x.shape]]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("place", [torch.float32, torch.bfloat16])
def test_blocks_make_the_same_updates_as_whole_tensors(
    nesterov: bool, maximize: bool, place: torch.dtype
) -> None:
    """The way of CPUs and the way of GPUs and compilers: the same bits."""
    grads, start = tensors(torch.bfloat16), tensors()
    results = []
    for by_blocks in (True, False):
        buffers = [b.clone() for b in start]
        places = [torch.empty_like(b, dtype=place) for b in start]
        with mock.patch.object(multi_tensor, "in_blocks", lambda _, way=by_blocks: way):
            momentum_step(grads, buffers, places, 0.9, nesterov=nesterov, maximize=maximize)
        results.append([*buffers, *places])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
@pytest.mark.parametrize(("decay", "cautious"), [(0.0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize(
    ("weight", "update"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_updates_are_applied_by_their_rule(
    lr: Any, decay: float, cautious: bool, weight: torch.dtype, update: torch.dtype
) -> None:
    """Fused, in blocks, over lists: W - lr decay W - lr s O, entry by entry in float64."""
    start, o = tensors(weight), tensors(update)
    scales = [2.0, 0.0, -1.0, 0.5]
    # 1 - lr decay is computed in the dtype of a tensor lr, as everywhere in torch.
    coarse = torch.float32 if isinstance(lr, Tensor) and weight == torch.float64 else weight
    eps = torch.finfo(coarse).eps
    for by_blocks in (True, False):
        params = [p.clone() for p in start]
        with mock.patch.object(multi_tensor, "in_blocks", lambda _, way=by_blocks: way):
            weight_step(params, o, scales, lr, decay, cautious=cautious)
        for p, w, x, s in zip(params, start, o, scales, strict=True):
            w64, x64 = w.double(), x.double()
            where = (x64 * w64 > 0).double() if cautious else 1.0
            shrunk = w64 * (1 - float(lr) * decay * where)
            torch.testing.assert_close(
                p.double(), shrunk - float(lr) * s * x64, rtol=4 * eps, atol=8 * eps
            )


def test_bfloat16_batches_take_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed to the engine in bfloat16, updates give the results that float32 ones give."""
    shapes = ((96, 200), (200, 96), (300, 80), (16, 200), (4, 70, 90), (70, 9, 3, 3))
    made = batches._arranged.__wrapped__  # which is not asked again for shapes that are known
    monkeypatch.setattr(batches, "_arranged", made)
    for coefficients in ("auto", (3.4445, -4.7750, 2.0315), "polar_express"):
        results = []
        for narrow in (True, False):
            torch.manual_seed(1)
            params = [nn.Parameter(torch.randn(s)) for s in shapes]
            optimizer = Muon(params, lr=0.1, ns_coefficients=coefficients)
            for _ in range(3):
                for p in params:
                    p.grad = torch.randn_like(p)
                if narrow:
                    optimizer.step()
                else:
                    with mock.patch.object(batches, "update_dtype", lambda *a: a[-2]):
                        optimizer.step()
            results.append(params)
        for a, b in zip(*results, strict=True):
            # Only the additions to the weights may differ, by float32's rounding.
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_only_what_the_engine_would_round_is_rounded() -> None:
    """A matrix whose iteration runs in float32 must not lose its digits on the way there."""
    cpu, view = torch.device("cpu"), MatrixView()

    def dtype(shape: tuple[int, ...], coefficients: Any = None, own: Any = None, **kw: Any):
        given = {"dtype": torch.float32, "device": cpu, "view": view, **kw}
        return batches.update_dtype(coefficients, own, torch.Size(shape), **given)

    large, small = (512, 300), (16, 512)
    engine = plan(large, 1, torch.float32, "cpu").dtype
    assert dtype(large) == engine
    assert dtype(small) == plan(small, 1, torch.float32, "cpu").dtype == torch.float32
    assert dtype(large, own=torch.float32) == torch.float32
    assert dtype(small, own=torch.bfloat16) == torch.bfloat16
    assert dtype(small, coefficients=(3.4445, -4.7750, 2.0315)) == torch.bfloat16
    assert dtype(large, dtype=torch.float64) == torch.float64
    assert dtype(large, device=torch.device("cuda")) == torch.float32
    fused = MatrixView(split=(0, (16, 496)))  # one piece of 16 rows: both stay as they are
    assert dtype(large, view=fused) == torch.float32
    assert dtype(large, view=MatrixView(split=(0, (256, 256)))) == engine


def test_matrices_of_one_shape_are_one_batch_whatever_they_belong_to() -> None:
    """A convolution, a stack and a matrix of one logical shape: one call, without a copy."""
    shapes = ((8, 4, 3, 3), (2, 8, 36), (8, 36), (8, 5))
    params = [nn.Parameter(torch.randn(s)) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    seen = []

    def recording(xs: list[Tensor], outs: list[Tensor], **options: Any) -> None:
        seen.extend(tuple(x.shape) for x in xs)
        orthogonalize_together(xs, outs, **options)

    with mock.patch.object(muon_step, "orthogonalize_together", recording):
        Muon(params).step()
    assert seen == [(4, 8, 36), (1, 8, 5)]


def test_a_buffer_of_another_shape_is_refused() -> None:
    """Broadcasting would step with garbage, and resize memory that later steps use."""
    p = nn.Parameter(torch.randn(4, 6))
    optimizer = Muon([p])
    p.grad = torch.randn_like(p)
    optimizer.step()
    p.data = torch.randn(4, 1)
    p.grad = torch.randn_like(p)
    before = p.detach().clone()
    with pytest.raises(
        RuntimeError, match=r"shape \(4, 1\) cannot be stepped: momentum_buffer .* got \(4, 6\)"
    ):
        optimizer.step()
    assert torch.equal(p, before)
    del optimizer.state[p]
    optimizer.step()


def peak_bytes(optimizer: Muon) -> int:
    """Bytes that one step holds at its highest, from the profiler's allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        optimizer.step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held)


def test_memory_of_a_step_is_bounded_by_the_option() -> None:
    """A model of many layers must not need their updates and the iteration's copies all at once."""
    peaks = []
    matrix = 4 * 64 * 128
    for limit in (2 * matrix, 4 * matrix, 16 * matrix):
        params = [nn.Parameter(torch.randn(64, 128)) for _ in range(16)]
        optimizer = Muon(params, max_batch_bytes=limit)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        peaks.append(peak_bytes(optimizer))
        # The updates and the iteration's own matrices: 5.5 times, measured.
        assert peaks[-1] <= 8 * limit
    assert peaks[0] < peaks[1] < peaks[2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
        {"neuron_beta": 0.9, "cautious_weight_decay": True},
        {"maximize": True, "foreach": False},
    ],
)
def test_step_on_a_gpu_reads_no_value_on_the_host(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One .item() would wait for the device and forbid CUDA graphs; a fake tensor has no value."""
    # The bound method asks a build without CUDA for the current device; the operator does not.
    monkeypatch.setattr(FakeTensor, "copy_", lambda self, src: torch.ops.aten.copy_(self, src))
    with FakeTensorMode(), mock.patch.object(muon_step, "orthogonalize_together"):
        shapes = ((8, 6), (4, 5, 3), (6, 2, 3, 3), (5,))
        params = [torch.empty(s, device="cuda").requires_grad_() for s in shapes]
        optimizer = Muon(params, capturable=True, **options)
        for key in ("lr", "momentum"):
            optimizer.param_groups[0][key] = torch.empty((), device="cuda")
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p)
            optimizer.step()
        for state in optimizer.state.values():
            assert {x.device.type for x in state.values()} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            optimizer.param_groups[0]["lr"].item()
