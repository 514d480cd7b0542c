"""Weights inside a larger checkpoint: where they lie, and what beside them belongs to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

# Keys under which training scripts keep the weights inside a larger checkpoint.
WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "policy",
    "ema",
)
# Names under which optimizers keep averages of one parameter's gradients.
MOMENTS = {"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"}


def is_state_dict(value: object) -> bool:
    """Say whether a value is a dictionary of names with tensors in it."""
    named = isinstance(value, dict) and all(isinstance(k, str) for k in value)
    return named and any(isinstance(v, Tensor) for v in value.values())  # type: ignore[attr-defined]


def _has_matrices(value: object) -> bool:
    """Say whether a value is a state dict of weights, not of statistics or random states.

    What an optimizer keeps of one parameter is none.
    """
    return (
        is_state_dict(value)
        and not MOMENTS & value.keys()  # type: ignore[attr-defined]
        and any(
            isinstance(x, Tensor) and x.ndim > 1 and x.is_floating_point()
            for x in value.values()  # type: ignore[attr-defined]
        )
    )


def find_weights(loaded: Mapping[str, Any], key: str | None) -> tuple[str, ...]:
    """Return the keys that lead to the state dict; none where ``loaded`` is one itself.

    Raises:
        ValueError: If there is none at ``key``; without one, if there is none under the usual
            names and not one alone elsewhere.
    """
    if key is not None:
        keys = resolve(loaded, key)
        if not is_state_dict(at(loaded, keys)):
            raise ValueError(f"has no state dict at key {key!r}; {_keys(loaded)}")
        return keys
    for name in WEIGHT_KEYS:
        inner = loaded.get(name)
        if is_state_dict(inner):
            return (name,)
        deeper = inner if isinstance(inner, dict) else {}
        nested = next((k for k in WEIGHT_KEYS if is_state_dict(deeper.get(k))), None)
        if nested is not None:
            return (name, nested)
    # Last: a training checkpoint may hold a tensor, its loss say, beside the weights.
    if is_state_dict(loaded):
        return ()
    found = [path for path, value in _dictionaries(loaded) if _has_matrices(value)]
    others = [path for path in found if _leads_on(loaded, path)]
    if len(others) == 1:
        return others[0]
    if others:
        choice = " or ".join(f"--key {'.'.join(path)}" for path in others[:4])
        raise ValueError(f"has {len(others)} state dicts; name one: {choice}")
    raise ValueError(f"has no state dict under {', '.join(WEIGHT_KEYS)}; {_keys(loaded)}")


def resolve(loaded: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a key as the keys that it is made of: itself, or its parts between dots.

    A key may have dots of its own: of several ways the one with the longest keys is taken.

    Raises:
        ValueError: If there is nothing.

    Example:
        >>> resolve({"ema.0.99": {"model": {}}}, "ema.0.99.model")
        ('ema.0.99', 'model')
    """
    keys = next(_ways(loaded, key.split(".")), None)
    if keys is None:
        raise ValueError(f"has nothing at key {key!r}; {_keys(loaded)}")
    return keys


def _ways(loaded: Any, parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield every way to join neighbouring parts to keys that lead somewhere, longest first."""
    if not parts:
        yield ()
    elif isinstance(loaded, Mapping):
        for n in range(len(parts), 0, -1):
            key = ".".join(parts[:n])
            if key in loaded:
                yield from ((key, *rest) for rest in _ways(loaded[key], parts[n:]))


def _leads_on(loaded: Any, keys: tuple[str, ...]) -> bool:
    """Say whether keys can be followed as they are: not through lists, or keys of other types."""
    for key in keys:
        if not isinstance(loaded, dict) or key not in loaded:
            return False
        loaded = loaded[key]
    return True


def at(loaded: Any, keys: tuple[str, ...]) -> Any:
    """Return what lies at some keys."""
    for key in keys:
        loaded = loaded[key]
    return loaded


def replaced_at(loaded: Mapping[str, Any], keys: tuple[str, ...], value: Any) -> Any:
    """Return a copy of the dictionaries on the way to some keys, with another value there."""
    if not keys:
        return value
    inner = replaced_at(loaded[keys[0]], keys[1:], value)
    return {**loaded, keys[0]: inner}


def copies_of(
    loaded: Mapping[str, Any], weights: Mapping[str, Any], keys: tuple[str, ...]
) -> list[str]:
    """Return the keys, with dots, of other state dicts that hold tensors of the same names."""
    names = {n for n, x in weights.items() if isinstance(x, Tensor)}
    return [
        ".".join(path)
        for path, value in _dictionaries(loaded)
        if path != keys and len(names & set(plain_names(value))) > 0
    ]


def plain_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of tensors without the prefix of a wrapper -> the names as they are."""
    return {n.removeprefix("module."): n for n, x in state.items() if isinstance(x, Tensor)}


def names_in_file(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Return the name in a file of every wanted tensor, through the prefixes that wrappers add.

    DataParallel, torch.compile and whole models around a part prefix all names (``module.``,
    ``_orig_mod.``, ``model.``); either side may carry the prefix. Without a fit names are taken as
    they are.
    """
    same = {w: w for w in wanted}
    if not wanted or set(wanted) <= set(names):
        return same
    first = next(iter(wanted))
    longer = sorted({n.removesuffix(first) for n in names if n.endswith(first)}, key=len)
    for prefix in longer:
        if all(f"{prefix}{w}" in names for w in wanted):
            return {w: f"{prefix}{w}" for w in wanted}
    parts = first.split(".")
    for k in range(1, len(parts)):
        prefix = ".".join(parts[:k]) + "."
        if all(w.startswith(prefix) and w.removeprefix(prefix) in names for w in wanted):
            return {w: w.removeprefix(prefix) for w in wanted}
    return same


def optimizers_in(loaded: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys of every optimizer state in a checkpoint, in lists (Lightning) as well."""
    return [path for path, value in _dictionaries(loaded) if _is_optimizer(value)]


def without_optimizer_state(loaded: Any) -> Any:
    """Return a copy in which every optimizer's state is empty: it starts anew."""
    if _is_optimizer(loaded):
        return {**loaded, "state": {}}
    if isinstance(loaded, dict):
        return type(loaded)((k, without_optimizer_state(v)) for k, v in loaded.items())
    if isinstance(loaded, list):
        return [without_optimizer_state(v) for v in loaded]
    return loaded


def _is_optimizer(value: object) -> bool:
    return isinstance(value, dict) and {"state", "param_groups"} <= set(value)


def _dictionaries(
    loaded: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every dictionary inside a checkpoint but optimizers' insides, with its keys."""
    if path and isinstance(loaded, dict):
        yield path, loaded
    if isinstance(loaded, dict) and not _is_optimizer(loaded):
        inner = loaded.items()
    elif isinstance(loaded, list):
        inner = {str(i): v for i, v in enumerate(loaded)}.items()
    else:
        return
    for key, value in inner:
        if isinstance(value, (dict, list)) and len(path) < 3:
            yield from _dictionaries(value, (*path, str(key)))


def _keys(loaded: Mapping[str, Any]) -> str:
    return f"its keys: {[str(k) for k in loaded][:8]}"
