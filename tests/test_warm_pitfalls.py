"""Pitfalls that users of other implementations met: what must hold however the pass ends."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from warmstart import dash_shrink, fire_reinit, shrink_and_perturb, uniform_shrink
from warmstart.__main__ import main


class NotCopied(nn.Sequential):
    """A model that fills its device: a second one does not fit."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        raise AssertionError("the model was copied")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return NotCopied(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def data(size: int = 8) -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 6, 6, generator=g), torch.randint(3, (size,), generator=g))
        for _ in range(3)
    ]


def everything(model: nn.Module) -> tuple:
    """All that a failed pass could have moved."""
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [(p.data_ptr(), p.stride()) for p in model.parameters()],
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
def test_a_failed_pass_leaves_no_trace(error: type[BaseException], mode: str) -> None:
    """Not only the weights: gradients, modes, statistics and random state survive a failure."""
    model = net()
    model[1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, calls = everything(model), []

    def forward(m: nn.Module, batch: tuple) -> torch.Tensor:
        loss = cross_entropy(m(batch[0]), batch[1])
        calls.append(1)
        if len(calls) == 2:
            raise error("gone")
        return loss

    with pytest.raises(error, match="gone"):
        dash_shrink(model, data(), forward=forward, grad_mode=mode)
    torch.testing.assert_close(everything(model), before, rtol=0, atol=0)
    assert torch.is_grad_enabled()


def test_transposed_and_shared_storage_is_written_in_place() -> None:
    """A weight that is a view of the user's own buffer changes there, and keeps its strides."""
    buffer = torch.randn(5, 4)
    layer = nn.Linear(5, 4, bias=False)
    layer.weight = nn.Parameter(buffer.t())
    before = buffer.clone()
    uniform_shrink(layer, 0.5)
    assert torch.equal(buffer, before / 2)
    assert layer.weight.stride() == (1, 4)
    dash_shrink(layer, [(torch.randn(8, 5), torch.randint(4, (8,)))], floor=0.5)
    assert not torch.equal(buffer, before / 2)
    assert layer.weight.data_ptr() == buffer.data_ptr()


def test_a_batch_of_one() -> None:
    """Fine in eval mode; BatchNorm in train mode refuses it, and then nothing has changed."""
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    batch = (torch.randn(1, 3), torch.tensor([1]))
    before = copy.deepcopy(flat.state_dict())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        dash_shrink(flat, [batch], grad_mode="train")
    torch.testing.assert_close(flat.state_dict(), before, rtol=0, atol=0)
    assert dash_shrink(flat, [batch]).num_batches == 1


class Stream(torch.utils.data.IterableDataset):
    """Examples without a length, of which the last batch would be short."""

    def __iter__(self) -> Iterator[tuple]:
        x, y = (torch.cat(t) for t in zip(*data(), strict=True))
        yield from zip(x, y, strict=True)


def test_streams_and_short_last_batches() -> None:
    """An iterable data set counts its batches; drop_last leaves the short one out."""
    loader = torch.utils.data.DataLoader
    for drop_last, expected in ((False, 3), (True, 2)):
        stream = loader(Stream(), batch_size=10, drop_last=drop_last)
        assert dash_shrink(net(), stream, progress=True).num_batches == expected


def test_shuffled_data_is_noted() -> None:
    """The published rule goes oldest first; a random sampler changes what the average means."""
    x, y = (torch.cat(t) for t in zip(*data(), strict=True))
    pairs = torch.utils.data.TensorDataset(x, y)
    shuffled = torch.utils.data.DataLoader(pairs, 8, shuffle=True)
    notes: Callable[..., list[str]] = lambda **k: dash_shrink(net(), shuffled, **k).notes  # noqa: E731
    assert any(n.startswith("data is shuffled") for n in notes())
    assert not any(n.startswith("data is shuffled") for n in notes(alpha=1.0))
    assert any("would have carried 0.49" in n for n in dash_shrink(net(), data(), tail=2).notes)


def test_an_expert_without_tokens() -> None:
    """Its gradient is zero: floored by the official rule, kept by choice."""
    for rule, factor in (("floor", 0.3), ("keep", 1.0)):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
        before = model[1].weight.detach().clone()

        def forward(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
            chosen = torch.zeros(len(x), 1)  # the router sends every token to expert 0
            return ((1 - chosen) * m[0](x) + chosen * m[1](x)).square().mean()

        dash_shrink(model, [torch.randn(4, 3)], forward=forward, zero_gradient=rule)
        torch.testing.assert_close(model[1].weight.detach(), factor * before)


@pytest.mark.parametrize("method", [uniform_shrink, shrink_and_perturb, fire_reinit])
def test_stale_statistics_are_noted_by_every_method(method: Callable) -> None:
    """The first evaluation after any change of the weights is chance on a BatchNorm net."""
    assert any("accuracy in eval mode is meaningless" in n for n in method(net()).notes)
    assert method(nn.Linear(3, 2)).notes == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch) -> None:
    """A full disk in the middle of writing: the old checkpoint stays, no half of a new one."""
    path = tmp_path / "model.pt"
    torch.save(net().state_dict(), path)
    content = path.read_bytes()

    def half(state: dict, target: Path) -> None:
        Path(target).write_bytes(content[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    assert main(["uniform", str(path), "-o", str(path), "--force"]) == 2
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_twice_is_the_product() -> None:
    """Not idempotent: two calls multiply, as the warning says."""
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    uniform_shrink(layer, 0.3)
    uniform_shrink(layer, 0.3)
    torch.testing.assert_close(layer.weight.detach(), 0.09 * before)
