"""Momentum and weight updates over lists of tensors, against one tensor at a time in float64."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from torch_specgd.triton_kernels import multi_tensor
from torch_specgd.triton_kernels.multi_tensor import (
    BLOCK,
    blocks,
    fusible,
    in_blocks,
    momentum_step,
    weight_step,
)
from torch_specgd.triton_kernels.random_bits import RandomBits, stochastic_round

SHAPES = [(3, 4), (), (BLOCK + 7,), (2, 3, 4), (BLOCK,), (5, 1)]


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A list with small tensors, one of a block, one above a block, one of any strides."""
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=g).to(dtype) for shape in SHAPES]
    return [*made, torch.randn(300, 500, generator=g).to(dtype).T]


@pytest.fixture(params=["blocks", "lists"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's blocks, or whole lists, as under the compiler and on most GPUs."""
    if request.param == "lists":
        monkeypatch.setattr(multi_tensor, "in_blocks", lambda tensors: False)
        monkeypatch.setattr(multi_tensor, "_scalar", lambda value: value.reshape(()))


def close(ours: Tensor, expected: Tensor) -> None:
    eps = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours.double(), expected, rtol=2 * eps, atol=4 * eps)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("of_tensor", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("nesterov", [None, True, False])
@pytest.mark.parametrize(
    ("buffer", "out"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_momentum_is_that_of_the_formula(buffer, out, nesterov, maximize, of_tensor) -> None:
    """A buffer or an operand that is off bends every step of a run."""
    grads, buffers, outs = tensors(0), tensors(1, buffer), tensors(2, out)
    before, momentum = [b.double() for b in buffers], 0.75
    options = {} if nesterov is None else {"nesterov": nesterov}
    given = torch.tensor([momentum]) if of_tensor else momentum
    momentum_step(grads, buffers, outs, given, maximize=maximize, **options)
    for g, b, u, old in zip(tensors(0), buffers, outs, before, strict=True):
        signed = -g.double() if maximize else g.double()
        mean = old + (1 - momentum) * (signed - old)
        assert not torch.equal(b.double(), old)
        close(b, mean)
        close(u, mean if nesterov is False else signed + momentum * (mean - signed))


def test_narrow_buffers_round_up_or_down_and_the_mean_is_exact() -> None:
    """Contributions below half a unit would be lost for ever, or be added where there are none."""
    bits = RandomBits(torch.tensor(0))
    x = torch.full((40_000,), 1.0 + 2.0**-10)  # an eighth of the way from 1 to the next number
    rounded = stochastic_round(x, bits)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2.0**-7}
    # Five standard errors of the mean of so many draws with a chance of 1 / 8.
    assert float((rounded > 1).double().mean()) == pytest.approx(0.125, abs=5 * 0.0017)
    exact = torch.tensor([0.0, -2.5, float("inf"), 1.5 * 2.0**-120])
    for _ in range(20):
        assert stochastic_round(exact, bits).tolist() == exact.tolist()
    buffers, grads = [torch.ones(40_000, dtype=torch.bfloat16)], [torch.full((40_000,), 1.015625)]
    momentum_step(
        grads, buffers, [torch.empty(40_000)], 0.9, nesterov=False, rounding=bits
    )  # to 1.0015625, a fifth of the way
    assert float((buffers[0] > 1).double().mean()) == pytest.approx(0.2, abs=5 * 0.002)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("weight", "direction"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("cautious", [None, False, True])
@pytest.mark.parametrize("decay", [None, 0.5])
def test_weights_move_by_the_formula(weight, direction, cautious, decay) -> None:
    """W <- (1 - lr decay) W - lr s O, whichever way through memory a list takes."""
    for of_tensor in (False, True):
        weights, directions = tensors(0, weight), tensors(1, direction)
        directions[0][0, 0] = 0.0  # nothing shrinks here: cautious decay leaves it
        scales = [2.0, 2.0, 0.5, 0.0, 1.0, 2.0, 3.0]
        lr = torch.tensor(0.25) if of_tensor else 0.25
        options = {} if cautious is None else {"cautious": cautious}
        args = () if decay is None else (decay,)
        old = [w.double() for w in weights]
        versions = [w._version for w in weights]
        weight_step(weights, directions, scales, lr, *args, **options)
        for w, before, o, s in zip(weights, old, directions, scales, strict=True):
            o = o.double()
            shrunk = before * (o * before > 0) if cautious else before
            expected = before - 0.25 * (decay or 0.0) * shrunk - 0.25 * s * o
            # Two or three roundings on the way, each of the size of what is added up.
            eps = torch.finfo(weight).eps
            torch.testing.assert_close(w.double(), expected, rtol=4 * eps, atol=8 * eps)
        assert all(w._version > v for w, v in zip(weights, versions, strict=True))


def test_no_tensor_is_no_step() -> None:
    """A rank that owns nothing steps nothing, and draws nothing that others would miss."""
    random = torch.get_rng_state()
    momentum_step([], [], [], 0.9)
    weight_step([], [], [], 0.1)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_large_gradient_of_other_strides_is_one_piece() -> None:
    """A convolution's weight is contiguous and its gradient may be channels-last."""
    large = torch.arange(2.0 * BLOCK).view(2, BLOCK)
    turned = large.T.contiguous().T
    [pieces] = blocks([large], [turned])
    assert [[x.shape for x in xs] for xs in pieces] == [[(2, BLOCK)]] * 2
    buffer = torch.zeros(2, BLOCK)
    momentum_step([turned], [buffer], [torch.empty(2, BLOCK)], 0.5, nesterov=False)
    assert torch.equal(buffer, large / 2)


def test_one_launch_takes_lists_of_one_gpu_and_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel would read anything else as what it is not."""
    monkeypatch.setattr(multi_tensor, "_PLAIN", {FakeTensor})
    monkeypatch.setattr(multi_tensor, "triton_runs", lambda device: True)
    with FakeTensorMode():
        on_gpu, on_cpu = partial(torch.empty, device="cuda"), torch.empty(4, 6)
        w, stack = on_gpu(4, 6), on_gpu(2, 3, 4)
        assert fusible([w, on_gpu(5), stack], [w.half().T, on_gpu(5).half(), stack.half()])
        for wrong in (stack.transpose(0, 1), w.half(), on_cpu):
            assert not fusible([w, w], [w, wrong])
        assert not fusible([on_cpu], [on_cpu])
        assert in_blocks([on_cpu])
        assert not in_blocks([on_cpu, w])
        monkeypatch.setattr(multi_tensor, "triton_runs", lambda device: False)
        assert not fusible([w])
        monkeypatch.setattr(multi_tensor, "triton_runs", lambda device: True)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not fusible([w])
        assert not in_blocks([on_cpu])
        monkeypatch.undo()
        assert not fusible([w])  # of a class of its own


def test_a_gpu_takes_one_launch_where_kernels_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that is never taken computes the same, only slower: nothing else would tell."""
    elementwise = pytest.importorskip("torch_specgd.triton_kernels.kernels.elementwise")
    trusted, runs, ways = [True], [True], []
    for name, value in (
        ("_PLAIN", {FakeTensor}),
        ("triton_runs", lambda device: runs[0]),
        ("trusted", lambda device, configs: trusted[0]),
        ("architecture", lambda device: "sm_90"),
        ("on_device", lambda device: nullcontext()),
        ("_move", lambda *_: ways.append("list")),
        ("_descend", lambda *_: ways.append("list")),
    ):
        monkeypatch.setattr(multi_tensor, name, value)
    for name in ("momentum", "update"):
        monkeypatch.setattr(elementwise, name, lambda *_: ways.append("launch"))

    def taken(**options) -> list[str]:
        ways.clear()
        momentum_step([w], [w], [w], 0.9, **options)
        if "rounding" not in options:
            weight_step([w], [w], [1.0], 0.1, **options)
        return ways

    with FakeTensorMode():
        w = torch.empty(4, 6, device="cuda")
        assert taken() == ["launch", "launch"]
        assert taken(rounding=torch.Generator()) == ["list"]
        assert taken(fused=False) == ["list", "list"]
        trusted[0] = False
        assert taken() == taken(fused=True) == ["list", "list"]
        trusted[0], runs[0] = True, False
        assert taken() == taken(fused=True) == ["list", "list"]


def test_a_rate_in_a_tensor_is_read_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a step would wait for the device, or be compiled anew for every rate."""
    rate = torch.tensor([0.5])
    assert multi_tensor._scalar(rate) == 0.5
    assert isinstance(multi_tensor._scalar(rate), float)
    with FakeTensorMode():
        assert multi_tensor._scalar(torch.empty(1, device="cuda")).shape == ()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert multi_tensor._scalar(rate).shape == ()
