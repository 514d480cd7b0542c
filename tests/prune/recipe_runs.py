"""Run a recipe of examples/ whole and in pieces: python recipe_runs.py NAME FOLDER [torchrun]."""

import glob
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
DATA = TensorDataset(torch.randn(256, 8, generator=torch.Generator().manual_seed(0)),
                     torch.arange(256) % 4)  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(8, 4)


def ddp(folder: Path) -> dict[str, Any]:
    """Stopped within a scoring epoch, at the pruning epoch and after it."""
    from prune_ddp import train

    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    whole, rates = train(DATA, network(), epochs=7)
    first = len(rates) * 2 // 12
    pieces: list[float] = []
    folder.mkdir(exist_ok=True)
    for stop in (first + 1, 4 * first, first // 2, None):
        loader, made = train(DATA, network(), epochs=7, folder=folder, stop_after=stop)
        pieces += made
    return {
        "same": loader.table.digest() == whole.table.digest() and pieces == rates,
        "last": rates[-1], "steps": len(rates), "kept": len(whole.kept),
        "coverage": whole.coverage(), "epoch": loader.sampler.epoch,
    }  # fmt: skip


def accelerate(folder: Path) -> dict[str, Any]:
    """Resumed after a scoring epoch, when pruning begins and after it."""
    from prune_accelerate import train

    sampler, rates = train(DATA, network(), epochs=7)
    pieces: list[float] = []
    for stop in (2, 5, 6, None):
        part, made = train(DATA, network(), epochs=7, folder=folder, stop_after=stop)
        pieces += made
    return {
        "same": part.table.digest() == sampler.table.digest() and pieces == rates,
        "last": rates[-1], "steps": len(rates), "kept": len(sampler.kept),
        "coverage": sampler.tracker.coverage(), "epoch": part.epoch,
    }  # fmt: skip


def trainer(folder: Path) -> dict[str, Any]:
    """Resumed after a scoring epoch, when pruning begins and after it."""
    from prune_trainer import PruningTrainer, TrainingArguments, sentences, tiny_bert

    def make() -> PruningTrainer:
        torch.manual_seed(0)
        arguments = TrainingArguments(
            output_dir=str(folder), num_train_epochs=7, per_device_train_batch_size=16,
            learning_rate=1e-3, report_to=[], save_strategy="epoch", disable_tqdm=True,
            use_cpu=True, logging_strategy="no",
        )  # fmt: skip
        return PruningTrainer(
            model=tiny_bert(), args=arguments, train_dataset=sentences(256), prune_ratio=0.5,
            sampler_options={"score_epochs": 5, "window": 3},
        )  # fmt: skip

    whole = make()
    whole.train()
    if dist.is_initialized():
        dist.barrier()
    saved = sorted(glob.glob(f"{folder}/checkpoint-*"), key=lambda p: int(p.rpartition("-")[2]))
    ends = set()
    for checkpoint in (saved[1], saved[4], saved[5]):
        run = make()
        run.train(resume_from_checkpoint=checkpoint)
        digest = run.scores.table.digest()
        ends.add((run.state.global_step, run.lr_scheduler.get_last_lr()[0], run.scores.epoch))
        if checkpoint != saved[1]:  # from there on nothing is recorded any more
            assert digest == whole.scores.table.digest()
    rate = whole.lr_scheduler.get_last_lr()[0]
    return {
        "same": ends == {(whole.state.global_step, rate, whole.scores.epoch)},
        "last": rate, "steps": whole.state.global_step, "kept": len(whole.scores.kept),
        "coverage": whole.scores.tracker.coverage(), "epoch": whole.scores.epoch,
    }  # fmt: skip


def lightning(folder: Path) -> dict[str, Any]:
    """Resumed after a scoring epoch, when pruning begins and after it.

    Two processes are started by Lightning itself.
    """
    from prune_lightning import train

    devices = int(os.environ.get("DEVICES", "1"))
    strategy = {"devices": devices, **({"strategy": "ddp"} if devices > 1 else {})}
    sampler, model = train(DATA, network(), epochs=7, **strategy)
    rates: list[float] = []
    for stop in (2, 5, 6, None):
        part, run = train(DATA, network(), epochs=7, folder=folder, stop_after=stop, **strategy)
        rates += run.rates
    return {
        "same": part.table.digest() == sampler.table.digest() and rates == model.rates,
        "last": model.lr_schedulers().get_last_lr()[0], "steps": len(model.seen),
        "kept": len(sampler.kept), "coverage": sampler.tracker.coverage(), "epoch": part.epoch,
    }  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, place = sys.argv[1], Path(sys.argv[2])
    result = globals()[name](place / "run")
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    (place / f"{rank}.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    shutil.rmtree(place / "run", ignore_errors=True)
