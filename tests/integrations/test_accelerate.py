"""Accelerate: prepare reloads the optimizer's state, and must not harm it."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import muon_accelerate
from data_prune import DualScoreSampler, index_batches
from data_prune.load import division
from muon_text import DocumentationText, tiny_llama
from torch_specgd import Muon

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_example_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """Prepare, clip, scheduler and step: the loss falls."""
    muon_accelerate.main()
    first, last = map(float, capsys.readouterr().out.removeprefix("loss: ").split(" -> "))
    assert last < first - 1


def test_prepare_keeps_float32_state() -> None:
    """prepare() loads the state into itself; the base class would round it to bfloat16 there."""
    model = tiny_llama().to(torch.bfloat16)
    optimizer = Muon(model, lr=1e-2, state_dtype="float32")
    for _ in range(2):
        optimizer.zero_grad()
        model(**next(iter(DataLoader(DocumentationText(16), batch_size=16)))).loss.backward()
        optimizer.step()
    before = {
        p: {key: value.clone() for key, value in state.items()}
        for p, state in optimizer.state.items()
    }
    buffers = [state["momentum_buffer"] for state in before.values() if "momentum_buffer" in state]
    assert buffers
    assert all(b.dtype == torch.float32 for b in buffers)
    assert not all(torch.equal(b, b.bfloat16().float()) for b in buffers)
    prepared = Accelerator(cpu=True).prepare_optimizer(optimizer)
    for p, state in before.items():
        for key, value in state.items():
            assert prepared.state[p][key].dtype == value.dtype
            assert torch.equal(prepared.state[p][key], value)


def small_run() -> tuple[Accelerator, nn.Module, Muon, DataLoader]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = tiny_llama()
    optimizer = Muon(model, lr=1e-2)
    loader = DataLoader(DocumentationText(64), batch_size=16)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def epoch(accelerator: Accelerator, model: nn.Module, optimizer: Muon, loader: DataLoader) -> None:
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()


def test_saved_state_continues_identically(tmp_path: Path) -> None:
    """save_state and load_state, under gradient accumulation, lose nothing."""
    straight = small_run()
    epoch(*straight)
    straight[0].save_state(str(tmp_path))
    epoch(*straight)
    resumed = small_run()
    epoch(*resumed)  # somewhere else, with state of its own, before loading
    epoch(*resumed)
    resumed[0].load_state(str(tmp_path))
    epoch(*resumed)
    for p, q in zip(straight[1].parameters(), resumed[1].parameters(), strict=True):
        assert torch.equal(p, q)
    counts = {float(s["step"]) for s in straight[2].state.values() if "step" in s}
    assert counts == {4.0}, "two epochs of four batches, two to a step"


@pytest.mark.parametrize("divided", [None, {"num_replicas": 2, "rank": 0}])
def test_a_dispatcher_of_batches_is_refused(
    divided: dict[str, int] | None, fresh_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank would ask for a pruning sampler's order, merge with all ranks, and wait for ever."""
    Accelerator(cpu=True)
    data = TensorDataset(torch.zeros(64, 2))
    options = {"score_epochs": 2, "window": 2, **(divided or {})}
    loader = index_batches(DataLoader(data, 8), DualScoreSampler(data, 0.5, **options))
    theirs = DataLoaderDispatcher(
        loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn
    )
    assert len(list(theirs)) == (4 if divided else 8)  # on one process it does no harm
    monkeypatch.setattr(division, "world_size", lambda: 2)
    for name, value in (("is_initialized", True), ("get_world_size", 2), ("get_rank", 0)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value: value)
    with pytest.raises(RuntimeError, match=r"DataLoaderConfiguration\(dispatch_batches=False\)"):
        next(iter(theirs))
