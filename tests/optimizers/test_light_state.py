"""Momentum in eight and four bits: what it costs, what it keeps, and that it resumes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_specgd import Muon
from torch_specgd.step.light import BITS, LightBuffer
from torch_specgd.triton_kernels.random_bits import RandomBits

every_width = pytest.mark.parametrize("kept", BITS)
# Even and odd lengths, more than one block, a stack, a convolution, a single column.
SHAPES = ((7, 130), (64, 64), (3, 5, 9), (8, 4, 3, 3), (5, 1))


def buffer(p: Tensor, bits: int, seed: int = 0) -> LightBuffer:
    return LightBuffer(p, LightBuffer.entries(p, bits), RandomBits(torch.tensor(seed)))


@every_width
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_read_is_within_one_step_of_what_was_written(
    kept: str, shape: tuple[int, ...]
) -> None:
    """One code's worth of the largest entry near it, and zeros stay zeros."""
    x = torch.randn(shape) * torch.logspace(-20, 10, shape[0]).view(-1, *[1] * (len(shape) - 1))
    x[0] = 0
    light = buffer(x, BITS[kept])
    light.write(x)
    error = (light.read() - x).abs().flatten(1)
    steps = x.abs().flatten(1).amax(1, keepdim=True) / (2 ** (BITS[kept] - 1) - 1)
    assert light.read().shape == x.shape
    assert (error <= steps * 1.0001).all()
    assert light.read()[0].eq(0).all()


@every_width
def test_rounding_keeps_the_mean(kept: str) -> None:
    """Contributions below one step would be lost for ever by rounding to nearest."""
    x = torch.full((1, 64), 0.013)
    x[0, 0] = 1.0
    total = torch.zeros_like(x)
    for seed in range(400):
        light = buffer(x, BITS[kept], seed)
        light.write(x)
        total += light.read()
    step = 1.0 / (2 ** (BITS[kept] - 1) - 1)
    assert (total / 400)[0, 1:].mean().item() == pytest.approx(0.013, abs=3 * step / 160)


@pytest.mark.parametrize(("kept", "limit"), [("int8", 1.1), ("int4", 0.6)])
def test_bytes_a_parameter(kept: str, limit: float) -> None:
    p = nn.Parameter(torch.randn(96, 384))
    optimizer = Muon([p], state_dtype=kept)
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert sum(x.nbytes for x in optimizer.state[p].values()) / p.numel() <= limit


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in (*SHAPES, (6,))]


def step(params: list[nn.Parameter], optimizer: Muon, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@every_width
def test_resume_is_bit_identical(kept: str) -> None:
    runs = []
    for cut in (None, 3):
        params = parameters()
        optimizer = Muon(params, lr=0.01, state_dtype=kept)
        for seed in range(6):
            if seed == cut:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = Muon(params, lr=0.5)
                optimizer.load_state_dict(saved)
            step(params, optimizer, seed)
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@every_width
def test_a_run_in_more_bits_goes_on_in_fewer(kept: str) -> None:
    """The momentum that was there is kept, not begun anew."""
    params = parameters()
    optimizer = Muon(params, lr=0.0, momentum=0.9)
    step(params, optimizer, 0)
    momentum = optimizer.state[params[1]]["momentum_buffer"].clone()
    optimizer.param_groups[0]["state_dtype"] = kept
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[params[1]]
    assert "momentum_buffer" not in state
    light = LightBuffer(params[1], state)
    cosine = torch.nn.functional.cosine_similarity(
        light.read().flatten(), momentum.flatten(), dim=0
    )
    assert cosine > (0.999 if kept == "int8" else 0.9)


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("after", ["int8", "int4", "bfloat16", "float32", None])
@pytest.mark.parametrize("before", ["int8", "int4", "float32"])
def test_momentum_goes_on_in_other_bits(before: str, after: str | None, stepped: bool) -> None:
    """A setting that was edited would begin the momentum anew, and the next checkpoint be lost."""
    params = parameters()
    optimizer = Muon(params, lr=0.0, momentum=0.9, state_dtype=before)
    step(params, optimizer, 0)
    held = [read(p, optimizer).clone() for p in params[:-1]]
    optimizer.param_groups[0]["state_dtype"] = after
    if stepped:
        for p in params[1:]:
            p.grad = torch.zeros_like(p)
        params[0].grad = None  # waits for a gradient
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    other = parameters()
    resumed = Muon(other, lr=0.5)
    resumed.load_state_dict(saved)
    for p, q, momentum in zip(params, other, held, strict=False):
        assert torch.equal(read(p, optimizer), read(q, resumed))
        wanted = momentum if p is params[0] or not stepped else 0.9 * momentum
        cosine = torch.nn.functional.cosine_similarity(read(q, resumed), wanted, dim=0)
        assert cosine > (0.9 if "int4" in (before, after) else 0.999)
        q.data.copy_(p)
    for some, one in ((params, optimizer), (other, resumed)):
        one.param_groups[0]["lr"] = 0.01
        step(some, one, 1)
        wide = after not in BITS
        assert all(("momentum_buffer" in one.state[p]) == wide for p in some[:-1])
        assert all(("momentum_codes" in one.state[p]) != wide for p in some[:-1])
    assert all(torch.equal(p, q) for p, q in zip(params[:-1], other, strict=False))


def read(p: Tensor, optimizer: Muon) -> Tensor:
    """Return a momentum, flat, in whatever form it is kept."""
    state = optimizer.state[p]
    if "momentum_buffer" in state:
        return state["momentum_buffer"].float().flatten()
    return LightBuffer(p, state).read().flatten()


def test_neither_order_nor_memory_limit_change_a_bit() -> None:
    """Random numbers belong to an entry of a parameter, not to what is stepped beside it."""
    found: list[Any] = []
    for limit in (1, 1 << 20):
        params = parameters()
        optimizer = Muon(params, lr=0.01, state_dtype="int4", max_batch_bytes=limit)
        for seed in range(3):
            step(params, optimizer, seed)
        found.append([s["momentum_codes"] for p, s in optimizer.state.items() if p.ndim > 1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("momentum_codes", torch.zeros(7, 64, dtype=torch.int8), "momentum_codes must have shape"),
        ("momentum_codes", torch.zeros(7, 130, dtype=torch.int64), "must be a floating-point"),
        ("momentum_scales", torch.zeros(7, 1), r"momentum_scales must have shape \(7, 3\)"),
    ],
)
def test_codes_that_do_not_fit_are_refused(key: str, value: Tensor, message: str) -> None:
    params = parameters()
    optimizer = Muon(params, state_dtype="int8")
    step(params, optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key] = value
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)


@every_width
def test_an_empty_piece_is_read_and_written(kept: str) -> None:
    """Of a weight with fewer rows than ranks some rank has none; the others would wait for it."""
    light = buffer(torch.zeros(0, 9), BITS[kept])
    light.write(torch.zeros(0, 9))
    assert light.read().shape == (0, 9)
