"""Seeded damage to nested state: one change somewhere in a tree of dicts, lists and tensors."""

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STRANGE: list[Any] = [
    None, True, -1, 0, 7, 10**12, -0.5, 2.5, 1e300, float("nan"), float("inf"), "oops", b"x", "",
    [], {}, (), [1, 2], {"a": 1}, (0.9, 1.1), 1j, object,
]  # fmt: skip


def mutated(state: Any, seed: int) -> tuple[Any, str]:
    """A deep copy with one change, and what it is.

    Args:
        state: Dicts, lists and tuples of leaves.
        seed: Says which change.
    """
    draw = random.Random(seed)
    result = copy.deepcopy(state)
    places = list(_places(result, ()))
    parent, key, path = draw.choice(places)
    change = draw.choice([_replace, _remove, _rename, _damage, _damage, _double])
    return result, f"{change.__name__} at {path}: {change(parent, key, draw)}"


def _places(node: Any, path: tuple[Any, ...]) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key, (*path, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*path, key))


def _replace(parent: Any, key: Any, draw: random.Random) -> str:
    parent[key] = draw.choice(STRANGE)
    return repr(parent[key])[:40]


def _remove(parent: Any, key: Any, draw: random.Random) -> str:
    del parent[key]
    return "gone"


def _rename(parent: Any, key: Any, draw: random.Random) -> str:
    if not isinstance(parent, dict):
        return _replace(parent, key, draw)
    other = draw.choice([f"{key}_", "unknown", 12345, str(key).upper()])
    parent[other] = parent.pop(key)
    return repr(other)


def _double(parent: Any, key: Any, draw: random.Random) -> str:
    if not isinstance(parent, list):
        return _replace(parent, key, draw)
    parent.append(copy.deepcopy(parent[key]))
    return "twice"


def _damage(parent: Any, key: Any, draw: random.Random) -> str:
    value = parent[key]
    if not isinstance(value, Tensor):
        return _replace(parent, key, draw)
    changes: list[Callable[[Tensor], Any]] = [
        lambda x: x.reshape(-1)[: x.numel() // 2],
        lambda x: torch.cat([x.reshape(-1)] * 2),
        lambda x: x.unsqueeze(0),
        lambda x: x.mT if x.ndim > 1 else x[None],
        lambda x: x.to(torch.int32),
        lambda x: x.to(torch.complex64),
        lambda x: x.to(torch.bool),
        lambda x: x.to(torch.bfloat16),
        lambda x: x.to(torch.float64),
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x.to_sparse() if x.ndim else x,
        lambda x: torch.empty_like(x, device="meta"),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: -x,
        lambda x: x * float("nan"),
    ]
    k = draw.randrange(len(changes))
    parent[key] = changes[k](value)
    return f"change {k}"


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same values, bit by bit, NaN being itself."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.dtype != b.dtype:
            return False
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)
