"""dash_shrink against the float64 reference, and the promise to leave no trace."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from reference.dash import official_shrink
from warmstart import GradientDirection, dash_shrink


def conv_net() -> nn.Sequential:
    """Convolutions with and without bias, BatchNorm with moved statistics, dropout, a head."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, 5),
    )
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(32, 1, 8, 8) * 2 + 1)
    return net


def batches(n: int = 6, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(2)
    return [
        (torch.randn(size, 1, 8, 8, generator=g), torch.randint(5, (size,), generator=g))
        for _ in range(n)
    ]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(("alpha", "floor"), [(0.3, 0.3), (0.1, 0.05), (1.0, 0.7)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_equals_the_official_rule(alpha: float, floor: float, mode: str) -> None:
    """A user who reproduces the paper gets the paper's weights, BatchNorm in eval mode included."""
    model = conv_net()
    if mode == "train":
        model[8].p = 0.0  # dropout masks of two dtypes would differ
    expected = official_shrink(model, batches(), cross_entropy, alpha, floor, mode)
    before = weights(model)
    report = dash_shrink(model, batches(), alpha=alpha, floor=floor, grad_mode=mode)
    assert {r.name for r in report.rows} == set(expected)
    for name, p in model.named_parameters():
        if name in expected and not (mode == "train" and name == "3.bias"):
            # 3.bias feeds a BatchNorm: in train mode its gradient is zero up to rounding.
            np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=0, atol=1e-6)
        elif name not in expected:
            assert torch.equal(p, before[name])


def test_sign_keeps_what_descent_would_grow() -> None:
    """The published imitations with the wrong sign shrink just the units still needed."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    before = model.weight.detach().clone()
    # loss = -w0.(1,2) + w1.(1,2): gradient of row 0 is -(1,2), of row 1 +(1,2)
    x = torch.tensor([[1.0, 2.0]])
    report = dash_shrink(model, [x], forward=lambda m, b: m(b)[0, 1] - m(b)[0, 0], floor=0.3)
    assert torch.equal(model.weight[0], before[0])
    torch.testing.assert_close(model.weight[1], 0.3 * before[1])
    assert report.rows[0].share_at_floor == 0.5


def test_leaves_no_trace() -> None:
    """Optimizer, DDP, running statistics and reproducibility of the user's loop stay intact."""
    model = conv_net().to(memory_format=torch.channels_last)
    model.train()
    model[1].eval()  # a user who froze one BatchNorm
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    model[9].bias.grad = None
    generator = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*batches(), strict=True)))
    loader = torch.utils.data.DataLoader(data, 16, shuffle=True, generator=generator)
    before = {
        "modes": [m.training for m in model.modules()],
        "grads": [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "buffers": [(b, b.clone()) for b in model.buffers()],
        "memory": [(p.data_ptr(), p.stride(), p.requires_grad) for p in model.parameters()],
        "random": (torch.get_rng_state(), random.getstate(), generator.get_state()),
    }
    old = weights(model)
    with torch.no_grad():
        dash_shrink(model, loader, grad_mode="train", alpha=1.0)
        assert not torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == before["modes"]
    for p, (grad, value) in zip(model.parameters(), before["grads"], strict=True):
        assert p.grad is grad
        assert grad is None or torch.equal(grad, value)
    for b, (same, value) in zip(model.buffers(), before["buffers"], strict=True):
        assert b is same
        assert torch.equal(b, value)
    memory = [(p.data_ptr(), p.stride(), p.requires_grad) for p in model.parameters()]
    assert memory == before["memory"]
    assert torch.equal(torch.get_rng_state(), before["random"][0])
    assert random.getstate() == before["random"][1]
    assert torch.equal(generator.get_state(), before["random"][2])
    assert not torch.equal(model[3].weight, old["3.weight"])  # channels_last weights really change


@pytest.mark.parametrize(
    "where", ["exception", "nan loss", "nan gradient", "bad batch", "out of memory"]
)
def test_a_failure_changes_no_weight(where: str) -> None:
    """A loader that breaks at its last batch must not leave a half-shrunk model behind."""
    model = conv_net()
    data: list = batches()
    match, error = "", ValueError
    loss_fn = cross_entropy
    if where == "exception":
        data.append("not a batch")
        match, error = "pass forward=", TypeError
    elif where == "nan loss":
        data[4] = (torch.full_like(data[4][0], torch.nan), data[4][1])
        match = "loss of batch 4 is nan"
    elif where == "nan gradient":
        match = r"batch 0: gradient is NaN or infinite in .*9\.weight \(5, 32\)"

        def loss_fn(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            # sqrt at zero: the loss is finite, its gradient is not
            return cross_entropy(out, y) + (out - out.detach()).square().sum().sqrt()
    elif where == "out of memory":
        match, error = "out of memory", torch.OutOfMemoryError

        def loss_fn(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if y is data[5][1]:
                raise torch.OutOfMemoryError("out of memory")
            return cross_entropy(out, y)
    else:
        data[5] = (data[5][0], data[5][1] + 100)
        match, error = "out of bounds", IndexError
    before = weights(model)
    with pytest.raises(error, match=match):
        dash_shrink(model, data, loss_fn)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_refuses_floor_and_alpha_out_of_range(value: float) -> None:
    """A floor of 0 kills units for good; the message must say what is accepted."""
    with pytest.raises(ValueError, match=r"floor must be in \(0, 1\]"):
        dash_shrink(conv_net(), batches(), floor=value)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\]"):
        dash_shrink(conv_net(), batches(), alpha=value)


def test_refuses_an_empty_loader() -> None:
    """An empty loader would otherwise shrink every weight to the floor."""
    model = conv_net()
    before = weights(model)
    with pytest.raises(ValueError, match="data is empty"):
        dash_shrink(model, [])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_floor_one_is_the_identity() -> None:
    """floor=1 must be bit-identical: it is how users check that a pipeline adds nothing."""
    model = conv_net()
    before = weights(model)
    dash_shrink(model, batches(), floor=1.0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_fed_direction_equals_measured_direction() -> None:
    """Feeding the accumulator from own backward passes gives the same weights, resumed or not."""
    model, twin = conv_net().eval(), conv_net().eval()
    direction = GradientDirection(model, alpha=0.3)
    for i, (x, y) in enumerate(batches()):
        cross_entropy(model(x), y).backward()
        direction.update()
        model.zero_grad()
        if i == 2:
            state = copy.deepcopy(direction.state_dict())
            direction = GradientDirection(model, alpha=0.9)
            direction.load_state_dict(state)
    dash_shrink(model, direction)
    dash_shrink(twin, batches())
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_report_prints_and_serializes() -> None:
    """The report is what a user reads and archives; it must name every parameter once."""
    model = conv_net()
    report = dash_shrink(model, batches(), dry_run=True)
    text = str(report)
    assert "dry run" in text
    for name, _ in model.named_parameters():
        assert len(re.findall(rf"\b{name}\b", text)) >= 1
    data = report.to_dict()
    assert {p["name"] for p in data["parameters"]} == {
        "0.weight",
        "3.weight",
        "3.bias",
        "9.weight",
        "9.bias",
    }
    assert {s["name"] for s in data["skipped"]} == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert '"method": "dash_shrink"' in report.to_json()
