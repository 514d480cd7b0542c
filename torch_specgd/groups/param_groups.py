"""Routes every parameter of a model to Muon or AdamW, with the reason, and shows it as a table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from specgd_common.cuts import Split, normalize_split, unpacked
from specgd_common.fused import fused_cut, stored_in_out
from specgd_common.places import Place, is_convolution, places_of

from .heads import Heads
from .matrix_view import is_matrix
from .named import model_of
from .per_head import head_cut
from .reasons import view_of, why_adamw

Override = str | type | bool | Mapping[str, Any]


class Route(NamedTuple):
    """Where one parameter goes and why."""

    name: str
    param: Tensor
    settings: dict[str, Any]
    reason: str


class ParamGroups(list[dict[str, Any]]):
    """A list of parameter groups that prints as a table; ``routes`` holds it as data."""

    def __init__(self, groups: Sequence[dict[str, Any]], routes: Sequence[Route]) -> None:
        super().__init__(groups)
        self.routes = list(routes)

    def unnamed(self) -> list[dict[str, Any]]:
        """Return the same groups without names, for ``ZeroRedundancyOptimizer`` and its like."""
        return [{**group, "params": [p for _, p in group["params"]]} for group in self]

    def __str__(self) -> str:
        rows = [("parameter", "shape", "algorithm", "reason")]
        for name, param, settings, reason in self.routes:
            shape = " x ".join(map(str, param.shape)) or "scalar"
            rows.append((name, shape, "Muon" if settings["use_muon"] else "AdamW", reason))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=False)) for r in rows]
        lines = [f"{line}  {row[3]}" for line, row in zip(lines, rows, strict=True)]
        muon = sum(r.param.numel() for r in self.routes if r.settings["use_muon"])
        total = sum(r.param.numel() for r in self.routes)
        share = f"{muon / max(total, 1):.1%}"
        return "\n".join([*lines, f"Muon steps {muon:,} of {total:,} parameters ({share})"])


def param_groups(
    model: nn.Module,
    overrides: Mapping[str | type, bool | Mapping[str, Any]] | None = None,
    *,
    splits: Mapping[str, Split] | None = None,
    adamw: Mapping[str, Any] | None = None,
    per_head: bool = False,
) -> ParamGroups:
    """Sort a model's parameters for ``Muon``, by what each of them is.

    To AdamW go vectors, norms, embeddings (and what is tied to them), output heads, positional and
    other token parameters, a state space model's decay rates, routers, depthwise convolutions,
    single rows, and every parameter that stands in no known layer; to Muon the weights of layers
    and stacks of experts. What a layer is shows through parametrizations and wrappers (DDP, FSDP,
    torch.compile, PEFT, Lightning, a module of your own). Where nothing tells the output head, the
    last layer is taken for it, and its reason says that this is a guess.

    Fused weights (q/k/v, gate/up, gates of recurrent and state space layers) are cut into their
    matrices where names, neighbouring layers and the numbers of heads tell how.

    Args:
        model: Any module.
        overrides: By name pattern (``"*.proj.weight"``, shell style) or module type: True (Muon),
            False (AdamW), or a mapping of group settings such as ``{"use_muon": False,
            "weight_decay": 0.0}``. The last match wins.
        splits: By name pattern: a number of equal parts, sizes along dimension 0, or
            (dim, sizes), or ``Interleaved(heads, sizes)``. None switches a detected split off.
        adamw: Settings of all AdamW groups, e.g. ``{"weight_decay": 0.0}``.
        per_head: Cut the weights of attention head by head, as wide as the module or its config
            says, also where heads share keys and values (default False).

    Returns:
        Groups of named parameters for ``Muon(...)``; ``print`` shows them with reasons. A
        parameter with several names appears once; frozen ones are listed, and stepped only if
        they are unfrozen.

    Raises:
        ValueError: If a pattern matches nothing, a split does not fit, or a parameter is lazy.

    Example:
        >>> from torch import nn
        >>> from torch_specgd import Muon, param_groups
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 9))
        >>> groups = param_groups(model)
        >>> print(groups)
        parameter  shape  algorithm  reason
        0.weight   9 x 4  AdamW      embedding
        1.weight   8 x 4  Muon       matrix
        1.bias     8      AdamW      vector
        3.weight   9 x 8  AdamW      output head (a guess: declared last)
        3.bias     9      AdamW      vector
        Muon steps 32 of 157 parameters (20.4%)
        >>> optimizer = Muon(groups, lr=0.02)
    """
    overrides, splits = dict(overrides or {}), dict(splits or {})
    unused: set[Any] = {*overrides, *splits}
    routes = []
    for places, settings, reason in _routes(model, per_head=per_head):
        names, owner, param = [p.name for p in places], places[0].owner, places[0].param
        for key, value in overrides.items():
            if _matches(key, names, owner):
                unused.discard(key)
                given = {"use_muon": value} if isinstance(value, bool) else dict(value)
                settings, reason = {**settings, **given}, f"{reason}; override {_show(key)}"
        for pattern, split in splits.items():
            if _matches(pattern, names, owner):
                unused.discard(pattern)
                settings["split"] = normalize_split(split, param, names[0])
                reason = reason.split(", split")[0]
        if settings["use_muon"]:
            reason += _show_split(settings["split"])
        if not settings["use_muon"]:
            settings = {**(adamw or {}), **settings, "split": None}
        routes.append(Route(names[0], param, settings, reason + _suffix(names, param)))
    if unused:
        raise ValueError(f"no parameter matches {sorted(map(_show, unused))}")
    return ParamGroups(_group(routes), routes)


def routed_by_name(named: Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Sort parameters for ``Muon`` by their names and shapes, where the model is not at hand.

    Args:
        named: Names and parameters, as ``model.named_parameters()`` gives them.

    Returns:
        Groups of named parameters; one without settings if all of them go by their shapes.
    """
    named = list(named)
    routed = _routes(model_of(named), guess=False)
    found = {id(places[0].param): settings for places, settings, _ in routed}
    by_shape = {"matrix_view": "auto", "split": None}
    if all(found[id(p)] == {"use_muon": is_matrix(p), **by_shape} for _, p in named):
        return [{"params": named}]
    return _group([Route(name, p, found[id(p)], "") for name, p in named])


def _routes(
    model: nn.Module, guess: bool = True, per_head: bool = False
) -> Iterator[tuple[list[Place], dict[str, Any], str]]:
    """Yield the places of each parameter, its settings and the reason."""
    found = places_of(model)
    lazy = [places[0].name for places in found if is_lazy(places[0].param)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} has no shape yet: run a forward pass before the optimizer is built"
        )
    heads = Heads(model, found, guess)
    for places in found:
        settings, reason = _route(places, heads)
        if per_head and settings["use_muon"]:
            settings["split"] = head_cut(places[0], settings["split"])
        yield places, settings, reason


def _show_split(split: Sequence[Any] | None) -> str:
    if split is None:
        return ""
    dim, sizes, repeats = unpacked(split)
    times = f"{repeats} times " if repeats > 1 else ""
    if len(sizes) > 4 and len(set(sizes)) == 1:
        return f", split into {len(sizes)} of {sizes[0]} along {dim}"
    return f", split {times}{' + '.join(map(str, sizes))} along {dim}"


def _route(places: Sequence[Place], heads: Heads) -> tuple[dict[str, Any], str]:
    place = places[0]
    why = why_adamw(places, heads)
    view = "transposed" if stored_in_out(place) else view_of(place)
    split = None if why else fused_cut(place)
    settings = {"use_muon": why is None, "matrix_view": view, "split": split}
    if why is not None:
        return settings, why
    if is_convolution(place.owner):
        return settings, "convolution, flattened"
    stack = place.param.ndim == 3 and view != "flatten"
    return settings, "stack of matrices" if stack else "matrix"


def _matches(key: str | type, names: list[str], owner: nn.Module) -> bool:
    if isinstance(key, type):
        return isinstance(owner, key)
    return any(fnmatchcase(name, key) for name in names)


def _show(key: str | type) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)


def _suffix(names: list[str], p: Tensor) -> str:
    text = f" (also {', '.join(names[1:])})" if len(names) > 1 else ""
    return text if p.requires_grad else f"{text}, frozen"


def _group(routes: Sequence[Route]) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name, param, settings, _ in routes:
        group = groups.setdefault(repr(sorted(settings.items())), {"params": [], **settings})
        group["params"].append((name, param))
    return list(groups.values())
