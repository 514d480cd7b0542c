"""Small checkpoints in every format, and the command line called on them."""

import contextlib
import io
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from warmstart import GradientDirection
from warmstart.__main__ import main

INDEX = "m.safetensors.index.json"


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    """Five tensors, the same at every call."""
    g = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (4, 6), "a.bias": (4,), "b.weight": (3, 4), "b.bias": (3,), "n": ()}
    return {n: value * torch.randn(s, generator=g) for n, s in shapes.items()}


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def shards(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of three shards; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    parts = {f"m-{i}.safetensors": names[2 * i : 2 * i + 2] for i in range(3)}
    for shard, own in parts.items():
        safetensors.torch.save_file({n: tensors[n].clone() for n in own}, folder / shard)
    weight_map = {n: shard for shard, own in parts.items() for n in own}
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"note": "mine"}, "weight_map": weight_map})
    )
    return folder / INDEX


def read_shards(index: Path) -> dict[str, torch.Tensor]:
    """All tensors that an index names."""
    weight_map = json.loads(index.read_text())["weight_map"]
    return {n: safetensors.torch.load_file(index.parent / s)[n] for n, s in weight_map.items()}


def directions() -> dict:
    """What a GradientDirection of a net with these tensors saves."""
    net = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 3)})
    direction = GradientDirection(net, reliability=True)
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction.update(
            {n: torch.randn(p.shape, generator=g) for n, p in direction.parameters.items()}
        )
    return direction.state_dict()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
