"""Muon: follows torch.optim.Muon where both exist, and is right where only ours does."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from reference.optimizers import ReferenceMuon, polar_by_polynomials
from torch_specgd import Muon
from torch_specgd.triton_kernels import resolve_schedule

JORDAN = (3.4445, -4.7750, 2.0315)


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(20, 32, bias=False), nn.Linear(32, 48, bias=False)]
    return nn.Sequential(
        layers[0], nn.Tanh(), layers[1], nn.Tanh(), nn.Linear(48, 5, bias=False)
    ).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """The same batches for every optimizer, whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(16, 20, generator=generator).to(dtype)
        y = torch.randint(5, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@torch.no_grad()
def distance_in_travel(a: nn.Module, b: nn.Module, start: nn.Module) -> float:
    """Largest difference of a weight, as a share of how far that weight has moved."""
    triples = zip(a.parameters(), b.parameters(), start.parameters(), strict=True)
    return max(float((p - q).norm() / (q - s).norm()) for p, q, s in triples)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
def test_follows_torch_muon_for_20_steps(nesterov: bool, adjust_lr_fn: str | None) -> None:
    """Whoever replaces torch.optim.Muon by ours keeps his run."""
    ours, theirs, start = mlp(), mlp(), mlp()
    options = {"lr": 0.02, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    train(ours, Muon(ours.parameters(), ns_coefficients=JORDAN, **options), 20)
    train(theirs, torch.optim.Muon(theirs.parameters(), ns_coefficients=JORDAN, **options), 20)
    # One bf16 rounding (2^-8) per step would be allowed; the order of products may differ.
    assert distance_in_travel(ours, theirs, start) < 2**-8


@pytest.mark.parametrize("first", ["ours", "torch"])
def test_checkpoint_of_either_continues_in_the_other(first: str) -> None:
    """A run that was begun with one optimizer goes on in the other as if nothing had happened."""
    options = {"lr": 0.02, "ns_coefficients": JORDAN, "adjust_lr_fn": "match_rms_adamw"}
    classes = [Muon, torch.optim.Muon] if first == "ours" else [torch.optim.Muon, Muon]
    model, start = mlp(), mlp()
    optimizer = classes[0](model.parameters(), **options)
    train(model, optimizer, 10)
    changed = copy.deepcopy(model)
    # Constructed with other values on purpose: the checkpoint's must win.
    other = classes[1](changed.parameters(), lr=1.0, ns_coefficients=JORDAN)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.02
    train(model, optimizer, 10, seed=1)
    train(changed, other, 10, seed=1)
    assert distance_in_travel(changed, model, start) < 2**-8


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (1, 8), (8, 1), (1, 1)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("match_rms", [True, False])
def test_equals_float64_reference(shape: tuple[int, int], nesterov: bool, match_rms: bool) -> None:
    """Momentum, scale, decay and polynomial together are what the docstring's equation says."""
    table = resolve_schedule("polar_express").coefficients
    w = torch.randn(shape, dtype=torch.float64)
    options = {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    reference = ReferenceMuon(
        w, partial(polar_by_polynomials, coefficients=table), match_rms=match_rms, **options
    )
    p = nn.Parameter(w.clone())
    adjust = "match_rms_adamw" if match_rms else "original"
    optimizer = Muon([p], ns_coefficients=table, adjust_lr_fn=adjust, **options)
    for _ in range(5):
        p.grad = torch.randn_like(p)
        optimizer.step()
        reference.step(p.grad)
    torch.testing.assert_close(p.detach(), reference.w, rtol=1e-9, atol=1e-9)


def test_vectors_take_exactly_torch_adamw() -> None:
    """The AdamW part is torch's own: the same numbers, its state under the same keys."""
    p, q = nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(5))
    q.data.copy_(p.data)
    ours = Muon([p], lr=0.02, weight_decay=0.05, adamw_lr_ratio=0.1, adamw_betas=(0.8, 0.9))
    theirs = torch.optim.AdamW([q], lr=0.002, weight_decay=0.05, betas=(0.8, 0.9))
    for _ in range(5):
        p.grad = torch.randn(5)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(p, q)
    assert set(ours.state[p]) == set(theirs.state[q])


def test_whole_model_in_one_optimizer() -> None:
    """Muon(model.parameters()) works on convolutions, norms, biases and embeddings alike."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    optimizer = Muon(model.parameters(), lr=0.05, adjust_lr_fn="match_rms_adamw")
    x, y = torch.randn(32, 1, 4, 4), torch.randint(3, (32,))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def first_step(p: torch.Tensor, grad: torch.Tensor, **group: object) -> torch.Tensor:
    """Direction of a step of learning rate one from zero."""
    p = nn.Parameter(torch.zeros_like(p))
    p.grad = grad
    Muon([{"params": [p], **group}], lr=1.0, weight_decay=0.0, adjust_lr_fn="original").step()
    return -p.detach()


def test_convolution_is_flattened_and_3d_is_a_batch() -> None:
    """Expert stacks and convolutions are orthogonalized as the matrices that they mean."""
    grad = torch.randn(6, 2, 3, 3)
    flat = first_step(grad.view(6, 18), grad.view(6, 18))
    torch.testing.assert_close(first_step(grad, grad), flat.view(6, 2, 3, 3))
    stack = torch.randn(3, 4, 5)
    each = torch.stack([first_step(g, g) for g in stack])
    torch.testing.assert_close(first_step(stack, stack), each)
    conv1d = first_step(stack, stack, matrix_view="flatten")
    torch.testing.assert_close(
        conv1d, first_step(stack[:, 0].new_zeros(3, 20), stack.view(3, 20)).view(3, 4, 5)
    )
    experts = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(
        first_step(experts, experts, matrix_view="batch").view(6, 4, 5),
        first_step(experts.view(6, 4, 5), experts.view(6, 4, 5)),
    )


def test_channels_last_weights_take_the_same_step() -> None:
    """The memory format changes speed, never values."""
    grad = torch.randn(6, 2, 3, 3)
    p = nn.Parameter(torch.zeros(6, 2, 3, 3).to(memory_format=torch.channels_last))
    p.grad = grad.to(memory_format=torch.channels_last)
    Muon([p], lr=1.0, weight_decay=0.0).step()
    torch.testing.assert_close(-p.detach(), first_step(grad, grad))
    assert p.is_contiguous(memory_format=torch.channels_last)


def test_use_muon_false_sends_a_matrix_to_adamw() -> None:
    """Embeddings and heads can be kept away from Muon by group."""
    p = nn.Parameter(torch.randn(4, 3))
    optimizer = Muon([{"params": [p], "use_muon": False}], lr=0.1)
    p.grad = torch.randn(4, 3)
    optimizer.step()
    assert set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"}


def test_one_scheduler_moves_both_parts() -> None:
    """The AdamW part follows the schedule: it has no learning rate of its own to be forgotten."""
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = Muon([matrix, vector], lr=0.1, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    for moved in (True, False):
        before = [matrix.detach().clone(), vector.detach().clone()]
        matrix.grad, vector.grad = torch.randn(2, 2), torch.randn(2)
        optimizer.step()
        scheduler.step()
        assert [not torch.equal(a, b) for a, b in zip(before, (matrix, vector), strict=True)] == [
            moved,
            moved,
        ]


def test_one_bad_matrix_leaves_the_others_alone() -> None:
    """Matrices of one shape share a batch; a NaN in one must not reach its neighbours."""
    good, bad = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    good.grad, bad.grad = torch.randn(4, 4), torch.full((4, 4), float("nan"))
    Muon([good, bad], lr=0.1).step()
    assert good.isfinite().all()
    assert bad.isnan().any()


def test_settings_out_of_a_file_take_the_same_step() -> None:
    """JSON has no tuples, and numpy's numbers are numbers."""
    grad = torch.randn(6, 4)
    steps = []
    for settings in (
        {"split": (0, (2, 4)), "adamw_betas": (0.9, 0.99), "ns_coefficients": [JORDAN, JORDAN]},
        {"split": [0, [2, 4]], "adamw_betas": [0.9, 0.99], "ns_coefficients": [[*JORDAN]] * 2},
    ):
        p = nn.Parameter(torch.zeros(6, 4))
        p.grad = grad
        Muon([{"params": [p], **settings}], lr=np.float32(0.5)).step()
        steps.append(p.detach())
    assert torch.equal(*steps)
    assert not steps[0].eq(0).any()


def test_low_precision_momentum_is_not_normalized_in_place() -> None:
    """torch's Muon of 2.13 did that: bfloat16 weights, nesterov off, and the buffer shrank."""
    p = nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    optimizer = Muon([p], nesterov=False, momentum=0.5, ns_coefficients=JORDAN)
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].eq(0.5).all()


def test_parameter_that_is_frozen_or_unused_on_some_steps() -> None:
    """Progressive unfreezing and layer drop: a skipped step moves nothing."""
    p, q = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))
    straight, gaps = Muon([p]), Muon([q])
    q.data.copy_(p.data)
    for step in range(6):
        grad = torch.randn(4, 3)
        q.requires_grad_(step % 2 == 0)
        q.grad = grad.clone() if step % 2 == 0 else None
        gaps.step()
        if step % 2 == 0:
            p.grad = grad
            straight.step()
    assert torch.equal(p, q)
    assert torch.equal(straight.state[p]["momentum_buffer"], gaps.state[q]["momentum_buffer"])


def test_going_back_to_torch_takes_the_triple_in_the_groups() -> None:
    """The README's way back: settings travel in the checkpoint, and torch knows no "auto"."""
    p = nn.Parameter(torch.randn(4, 4))
    ours = Muon([p])
    p.grad = torch.randn(4, 4)
    ours.step()
    for group in ours.param_groups:
        group["ns_coefficients"] = JORDAN
    theirs = torch.optim.Muon([p])
    theirs.load_state_dict(ours.state_dict())
    before = p.detach().clone()
    theirs.step()
    assert p.isfinite().all()
    assert not torch.equal(p, before)


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_autograd_sees_that_weights_have_moved(state_dtype: str | None) -> None:
    """Going back through weights that are others by now is an error, as with torch's optimizers."""
    model = mlp()
    optimizer = Muon(model, lr=0.02, state_dtype=state_dtype)
    old = [p._version for p in model.parameters()]
    loss = model(torch.randn(4, 20)).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    assert all(p._version > v for p, v in zip(model.parameters(), old, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
