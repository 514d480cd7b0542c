"""Random bits as a function of a count: the same on every device, others in every replay."""

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from reference.random_bits import key_of, pieces
from reference.recorded import Recorded
from torch_specgd import Muon
from torch_specgd.step import batches
from torch_specgd.step.light import LightBuffer
from torch_specgd.triton_kernels import multi_tensor
from torch_specgd.triton_kernels.random_bits import RandomBits, stochastic_round

NARROW = ("bfloat16", "int8", "int4")


def stream(number: int) -> RandomBits:
    return RandomBits(torch.tensor(number))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.int16, 16), (torch.int32, 32)])
def test_bits_are_those_of_the_published_generator(dtype: torch.dtype, bits: int) -> None:
    """A run that is resumed on another device would go on with other bits."""
    for number in (0, 1, 12345, 2**40 + 3):
        wanted, bit_stream = pieces(number, 40, bits), stream(number)
        # However many are drawn at a time: a step on a GPU draws for all tensors at once.
        found = torch.cat([bit_stream.draw(n, "cpu", dtype) for n in (3, 1, 0, 7, 16, 2, 11)])
        assert [x % 2**bits for x in found.tolist()] == wanted
        for i in (0, 5):
            found = stream(number).of(i).draw(40, "cpu", dtype)
            assert [x % 2**bits for x in found.tolist()] == pieces(key_of(number) + i, 40, bits)
    shares = [x >> 8 for x in pieces(7, 40, 32)]
    assert (stream(7).uniform(40, "cpu").double() * 2**24).tolist() == shares


def test_neither_neighbours_nor_steps_know_of_each_other() -> None:
    """Roundings that go the same way in every step would add up, where the mean is to be exact."""
    steps, entries = 2000, 256
    draws = torch.stack([stream(i).uniform(entries, "cpu") for i in range(steps)]).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    # Five standard errors, of an entry's mean over steps, of a step's over entries, and of all.
    spread = 12**-0.5
    assert (draws.mean(0) - 0.5).abs().max() < 5 * spread / steps**0.5
    assert (draws.mean(1) - 0.5).abs().max() < 5 * spread / entries**0.5
    assert abs(draws.mean() - 0.5) < 5 * spread / (steps * entries) ** 0.5
    centred = (draws - 0.5) / spread
    shifted = {
        "neighbours": (centred[:, 1:], centred[:, :-1]),
        "four apart": (centred[:, 4:], centred[:, :-4]),  # the next word of 64 bits
        "steps": (centred[1:], centred[:-1]),
        "both": (centred[1:, 1:], centred[:-1, :-1]),
    }
    for name, (a, b) in shifted.items():
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5, name


def test_many_roundings_of_one_value_have_its_mean() -> None:
    """The rounding of each step is another one, and right on average."""
    x = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 0.3, 1e-30]).repeat(16)
    steps = 4000
    total = sum(stochastic_round(x, stream(i)).double() for i in range(steps))
    assert isinstance(total, Tensor)
    unit = torch.tensor([2**-7, 2**-6, 2**-9, 2**-107], dtype=torch.float64).repeat(16)
    assert ((total / steps - x.double()).abs() <= 5 * unit / 2 / steps**0.5).all()


def test_what_needs_no_rounding_keeps_its_value() -> None:
    """One draw in 65,536 would move a weight whose gradient is zero."""
    exact = torch.tensor([1.0, -2.5]).repeat(1 << 20)
    assert torch.equal(stochastic_round(exact, stream(0)).float(), exact)


def parameters(shapes: tuple = ((5, 130), (9, 64), (3, 4, 5))) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


def gradients(params: list[nn.Parameter], seed: int) -> None:
    """Fill gradients in place, as a captured step asks for."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        fresh = torch.randn(p.shape, generator=generator)
        p.grad = fresh if p.grad is None else p.grad.copy_(fresh)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors at once, and no memory that moves; the directions themselves do not matter."""

    def divided(xs: list[Tensor], outs: list[Tensor], **options: object) -> None:
        for x, out in zip(xs, outs, strict=True):
            out.copy_(x / x.norm())

    monkeypatch.setattr(multi_tensor, "in_blocks", lambda tensors: False)
    step = importlib.import_module("torch_specgd.step.muon")
    monkeypatch.setattr(step, "orthogonalize_together", divided)
    kept = SimpleNamespace(take=lambda n: torch.empty(n, dtype=torch.uint8), give=lambda x: None)
    monkeypatch.setattr(batches, "_KEPT", kept)


@pytest.mark.parametrize("kept", NARROW)
def test_each_replay_of_a_captured_step_draws_anew(kept: str, as_on_a_gpu: None) -> None:
    """With the same bits in every replay the momentum drifts away from the gradients' mean."""
    runs, states = [], []
    for captured in (False, True):
        params = parameters()
        optimizer = Muon(params, lr=0.01, state_dtype=kept, capturable=True)
        gradients(params, 0)
        optimizer.step()
        for seed in range(1, 6):
            gradients(params, seed)
            if not captured:
                optimizer.step()
            elif seed == 1:
                with Recorded() as graph:
                    optimizer.step()
            else:
                graph.replay()
        runs.append(params)
        states.append(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[1]["param_groups"][0]["rounding_step"] == 6
    # And on from a checkpoint of the replays, in a run that captures nothing.
    resumed = parameters()
    other = Muon(resumed, lr=0.5)
    other.load_state_dict(copy.deepcopy(states[1]))
    for p, q in zip(resumed, params, strict=True):
        p.data.copy_(q)
    for some, one in ((resumed, other), (params, optimizer)):
        gradients(some, 6)
        one.step()
    assert all(torch.equal(a, b) for a, b in zip(resumed, params, strict=True))
    graph.replay()
    assert not torch.equal(resumed[0], params[0])


@pytest.mark.parametrize("kept", NARROW)
def test_momentum_at_rest_is_right_on_average_over_replays(kept: str, as_on_a_gpu: None) -> None:
    """The same gradient for ever: bits that repeat leave the momentum off by up to a unit."""
    (p,) = params = parameters(((32, 64),))
    optimizer = Muon(params, lr=0.0, weight_decay=0.0, momentum=0.9, state_dtype=kept)
    gradients(params, 0)
    assert p.grad is not None
    optimizer.step()
    with Recorded() as graph:
        optimizer.step()
    for _ in range(80):
        graph.replay()
    state, total = optimizer.state[p], torch.zeros(p.shape)
    steps = 400
    for _ in range(steps):
        graph.replay()
        total += state["momentum_buffer"].float() if kept == "bfloat16" else _read(p, state)
    unit = {"bfloat16": 2**-7, "int8": 1 / 127, "int4": 1 / 7}[kept] * p.grad.abs().max()
    # A rounding is off by at most a unit, of variance 1 / 4 at most; one in ten of each is kept,
    # and neighbours in time share the rest: (1 + 0.9) / (1 - 0.9) = 19 steps count as one.
    one = unit / 2 / (1 - 0.9**2) ** 0.5 * (19 / steps) ** 0.5
    assert ((total / steps - p.grad).abs() < 5 * one).all()
    assert abs((total / steps - p.grad).mean()) < 5 * one / p.numel() ** 0.5


def _read(p: Tensor, state: dict) -> Tensor:
    return LightBuffer(p, state).read()
