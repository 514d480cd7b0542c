"""WarmStart: one shrink for each growth of the data set, whenever the run is killed."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from warmstart import WarmStart, dash_shrink, undo_state_dict
from warmstart.loops import warm_start
from warmstart.loops.growth import joined, parts_of, positions


def loader(n: int, **options) -> DataLoader:
    """The first so many examples of one data set, shuffled as in training."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=g)
    data = TensorDataset(x[:n], (x[:n, 0] > 0).long())
    return DataLoader(data, **{"batch_size": 8, "shuffle": True, **options})


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, warm: WarmStart) -> dict:
    parts = {"model": model, "optimizer": optimizer, "warm": warm}
    return json_like({name: part.state_dict() for name, part in parts.items()})


def json_like(saved: dict) -> dict:
    """As a file would give it back."""
    import io

    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resumed(saved: dict, folder: Path, **options):
    model, optimizer = make()
    warm = WarmStart(folder, **options)
    for name, part in {"model": model, "optimizer": optimizer, "warm": warm}.items():
        part.load_state_dict(saved[name])
    return model, optimizer, warm


def trained(folder: Path, **options) -> dict:
    """A checkpoint of a model that converged on 48 examples."""
    model, optimizer = make()
    warm = WarmStart(folder, **options)
    assert warm.shrink_if_grown(model, loader(48), optimizer) is None
    epoch(model, optimizer, loader(48))
    return checkpoint(model, optimizer, warm)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_is_dash_over_the_examples_oldest_first(tmp_path: Path) -> None:
    """The shrink is dash_shrink's on old then new batches, none of which mixes both."""
    saved = trained(tmp_path)
    model, optimizer, warm = resumed(saved, tmp_path, floor=0.2)
    report = warm.shrink_if_grown(model, loader(84), optimizer)
    twin = resumed(saved, tmp_path)[0]
    old, new = (TensorDataset(*loader(84).dataset[a:b]) for a, b in ((0, 48), (48, 84)))
    batches = [*DataLoader(old, batch_size=8), *DataLoader(new, batch_size=8)]
    expected = dash_shrink(twin, batches, floor=0.2)
    assert same(model, twin)
    assert report.num_batches == expected.num_batches == 11
    assert not optimizer.state, "reset, unless told otherwise"
    assert any("old data (6 batches)" in n and "new data (5 batches)" in n for n in report.notes)


def test_undone_from_the_folder(tmp_path: Path) -> None:
    """The report lies beside the checkpoints, with all factors."""
    saved = trained(tmp_path)
    model, optimizer, warm = resumed(saved, tmp_path)
    warm.shrink_if_grown(model, loader(96), optimizer)
    told = json.loads((tmp_path / "warmstart-48-96.json").read_text())
    back = undo_state_dict(model.state_dict(), told)
    torch.testing.assert_close(back, saved["model"], rtol=1e-6, atol=0)


def test_once_for_each_growth(tmp_path: Path) -> None:
    """At every epoch and after a resume the same data set is no news."""
    model, optimizer, warm = resumed(trained(tmp_path), tmp_path)
    assert warm.shrink_if_grown(model, loader(64), optimizer)
    for _ in range(2):
        epoch(model, optimizer, loader(64))
        assert warm.shrink_if_grown(model, loader(64), optimizer) is None
    model, optimizer, warm = resumed(checkpoint(model, optimizer, warm), tmp_path)
    assert warm.shrink_if_grown(model, loader(64), optimizer) is None
    assert warm.shrink_if_grown(model, loader(96), optimizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "warmstart-48-64.json",
        "warmstart-64-96.json",
    ]


def test_killed_before_the_next_checkpoint(tmp_path: Path) -> None:
    """Old weights come back with the old state: shrunk again, to the same weights."""
    saved = trained(tmp_path)
    first, optimizer, warm = resumed(saved, tmp_path)
    warm.shrink_if_grown(first, loader(96), optimizer)
    written = (tmp_path / "warmstart-48-96.json").read_bytes()
    again, optimizer, warm = resumed(saved, tmp_path)
    assert warm.shrink_if_grown(again, loader(96), optimizer)
    assert same(first, again)
    assert (tmp_path / "warmstart-48-96.json").read_bytes() == written


def test_killed_between_shrink_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state tells that the weights are shrunk, and brings the report along."""
    model, optimizer, warm = resumed(trained(tmp_path), tmp_path)

    def full(path, text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(warm_start, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            warm.shrink_if_grown(model, loader(96), optimizer)
    assert not list(tmp_path.iterdir())
    shrunk = checkpoint(model, optimizer, warm)  # what a handler of signals saves
    later, optimizer, warm = resumed(shrunk, tmp_path)
    assert warm.shrink_if_grown(later, loader(96), optimizer) is None
    assert same(later, model)
    assert json.loads((tmp_path / "warmstart-48-96.json").read_text())["method"] == "dash_shrink"
    assert warm.state_dict()["report"] is None


def test_nothing_is_noted_where_the_shrink_fails(tmp_path: Path) -> None:
    """A batch of NaN leaves weights and state: the next call shrinks."""
    saved = trained(tmp_path)
    model, optimizer, warm = resumed(saved, tmp_path)
    broken = loader(96)
    broken.dataset.tensors[0][90] = float("nan")
    with pytest.raises(ValueError, match="loss of batch"):
        warm.shrink_if_grown(model, broken, optimizer)
    torch.testing.assert_close(model.state_dict(), saved["model"], rtol=0, atol=0)
    assert warm.state_dict() == saved["warm"]
    assert warm.shrink_if_grown(model, loader(96), optimizer)


def test_few_examples_wait(tmp_path: Path) -> None:
    """A data set that grows by a handful at each restart is no reason, until they are many."""
    model, optimizer, warm = resumed(trained(tmp_path), tmp_path, min_growth=0.25)
    for n in (49, 55, 59):
        assert warm.shrink_if_grown(model, loader(n), optimizer) is None
    assert warm.seen == {"examples": 48}
    assert warm.shrink_if_grown(model, loader(60), optimizer)


def test_manifest_tells_which_are_new(tmp_path: Path) -> None:
    """Names, not positions: new files in the middle, a file that has grown, one that has left."""
    parts = {"a": 32, "b": 16}
    saved = trained(tmp_path, manifest=lambda _: parts)
    now = {"c": 24, "a": 40}
    model, optimizer, warm = resumed(saved, tmp_path, manifest=lambda _: now)
    report = warm.shrink_if_grown(model, loader(64), optimizer)
    assert any("old data (4 batches)" in n and "new data (4 batches)" in n for n in report.notes)
    assert warm.seen == {"a": 40, "b": 16, "c": 24}
    assert positions(parts, now)[1] == [*range(24), *range(56, 64)]
    with pytest.raises(ValueError, match="manifest counts 64 examples of 96"):
        warm.shrink_if_grown(model, loader(96), optimizer)


def test_tail_and_peers(tmp_path: Path) -> None:
    """The newest batches alone, and methods without data."""
    saved = trained(tmp_path)
    model, optimizer, warm = resumed(saved, tmp_path, tail=7, optimizer_state="scale")
    report = warm.shrink_if_grown(model, loader(96), optimizer)
    assert any("old data (1 batches)" in n and "new data (6 batches)" in n for n in report.notes)
    assert optimizer.state
    for method, option in {
        "uniform": "factor",
        "fire": "strength",
        "shrink_and_perturb": "seed",
    }.items():
        model, optimizer, warm = resumed(saved, tmp_path, method=method, **{option: 1})
        assert warm.shrink_if_grown(model, loader(96), optimizer).row("0.weight")
        assert model[0].weight not in optimizer.state


def test_refusals() -> None:
    """What would come to light in the middle of a run is refused at its start."""
    for options, match in (
        ({"method": "dsh"}, "method must be one of"),
        ({"min_growth": -1}, "min_growth must be"),
        ({"optimizer_state": "forget"}, "optimizer_state must be one of"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"method": "fire", "optimizer_state": "scale"}, "no factors to scale by"),
        ({"seen": -1}, "integers >= 0"),
    ):
        with pytest.raises(ValueError, match=match):
            WarmStart(**options)
    with pytest.raises(TypeError, match="has no option 'flor'"):
        WarmStart(flor=0.3)
    warm = WarmStart()
    with pytest.raises(TypeError, match="needs a DataLoader"):
        warm.shrink_if_grown(make()[0], DataLoader(Stream()))
    with pytest.raises(ValueError, match="state must be a WarmStart's"):
        warm.load_state_dict({"epoch": 1})
    with pytest.raises(TypeError, match="a manifest must be"):
        parts_of("a.png")
    with pytest.raises(ValueError, match="'a' twice"):
        parts_of(["a", "a"])
    assert joined({"a": 2}, {"a": 1}) == {"a": 2}


class Stream(torch.utils.data.IterableDataset):
    """Examples without positions."""

    def __iter__(self):
        yield torch.zeros(4), 0
