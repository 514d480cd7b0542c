"""Routes every parameter of a model to Muon or AdamW, with the reason, and shows it as a table."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from specgd_common.fused import detect_split, stacked_transposed

from .split import Split, normalize_split, unpacked

HEAD_NAMES = r"(^|\.)(lm_head|head|heads|classifier|score|embed_out|output_projection|fc_out)$"
POSITION_NAMES = (
    r"(^|\.)(pos_embed(ding)?s?|position(al)?_embed(ding)?s?|wpe|cls_token|mask_token|dist_token"
    r"|register_tokens?|query_tokens?|relative_position_bias_table|rel_pos\w*)(\.|$)"
)
# Decay rates and the like of Mamba and RWKV: entrywise, though some are stored as matrices.
STATE_NAMES = r"(^|\.)(A_logs?|dt_bias|time_(decay|first|faaaa))$"
ROUTER_NAMES = r"(^|\.)(router|gate|wg)$"
VIEWS: dict[type, str] = {nn.Conv1d: "flatten", nn.ConvTranspose1d: "flatten"}

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
) -> ParamGroups:
    """Sorts a model's parameters for ``Muon``, by name and module type as well as by shape.

    To AdamW go vectors, norms, embeddings (and what is tied to them), positional and other token
    parameters, a state space model's decay rates, output heads, routers, depthwise convolutions and
    single rows; to Muon everything else of two or more dimensions. Fused projections are split
    where the module is known (``nn.MultiheadAttention``, the gates of ``nn.LSTM`` and ``nn.GRU``,
    GPT-2's ``c_attn``, fused q/k/v and gate/up of Llama-like models and of their expert stacks).

    Args:
        model: Any module.
        overrides: By name pattern (``"*.proj.weight"``, shell style) or module type: True (Muon),
            False (AdamW), or a mapping of group settings such as ``{"use_muon": False,
            "weight_decay": 0.0}``. The last match wins.
        splits: By name pattern: a number of equal parts, sizes along dimension 0, or
            (dim, sizes), or ``Interleaved(heads, sizes)``. None switches a detected split off.
        adamw: Settings of all AdamW groups, e.g. ``{"weight_decay": 0.0}``.

    Returns:
        Groups of named parameters for ``Muon(...)``; ``print`` shows them with reasons. A
        parameter with several names appears once; frozen ones are listed, and stepped only if
        they are unfrozen.

    Raises:
        ValueError: If a pattern matches nothing, or a split does not fit.

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
        3.weight   9 x 8  AdamW      output head
        3.bias     9      AdamW      vector
        Muon steps 32 of 157 parameters (20.4%)
        >>> optimizer = Muon(groups, lr=0.02)
    """
    overrides, splits = dict(overrides or {}), dict(splits or {})
    unused: set[Any] = {*overrides, *splits}
    routes = []
    for names, owner, param in _parameters(model):
        settings, reason = _route(model, names, owner, param)
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
        if settings["use_muon"] and settings["split"]:
            dim, sizes, repeats = unpacked(settings["split"])
            times = f"{repeats} times " if repeats > 1 else ""
            reason += f", split {times}{' + '.join(map(str, sizes))} along {dim}"
        if not settings["use_muon"]:
            settings = {**(adamw or {}), **settings, "split": None}
        routes.append(Route(names[0], param, settings, reason + _suffix(names, param)))
    if unused:
        raise ValueError(f"no parameter matches {sorted(map(_show, unused))}")
    return ParamGroups(_group(routes), routes)


def _parameters(model: nn.Module) -> Iterator[tuple[list[str], nn.Module, Tensor]]:
    """Each parameter once: all its names, the module that holds it first, the tensor."""
    found: dict[int, tuple[list[str], nn.Module, Tensor]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{prefix}.{name}" if prefix else name
            found.setdefault(id(p), ([], module, p))[0].append(full)
    yield from found.values()


def _route(
    model: nn.Module, names: list[str], owner: nn.Module, p: Tensor
) -> tuple[dict[str, Any], str]:
    why = _why_adamw(model, names, owner, p)
    view = next((v for t, v in VIEWS.items() if isinstance(owner, t)), "auto")
    if type(owner).__name__ == "Conv1D" and p.ndim == 2:
        view = "transposed"  # transformers' GPT-2 layers store (in, out)
    if stacked_transposed(owner, p):
        view = "transposed"  # and so do some of its expert stacks
    split = None if why else detect_split(model, names[0], owner, p)
    settings = {"use_muon": why is None, "matrix_view": view, "split": split}
    if why is not None:
        return settings, why
    kind = "convolution, flattened" if isinstance(owner, nn.modules.conv._ConvNd) else "matrix"
    return settings, "stack of matrices" if p.ndim == 3 and kind == "matrix" else kind


def _why_adamw(model: nn.Module, names: list[str], owner: nn.Module, p: Tensor) -> str | None:
    """The reason against Muon, or None."""
    if p.ndim < 2:
        return "vector" if p.ndim else "scalar"
    holders = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    if any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in holders):
        return "embedding" if len(names) == 1 else "embedding, tied"
    if "norm" in type(owner).__name__.lower():
        return "norm"
    if any(re.search(POSITION_NAMES, name, re.IGNORECASE) for name in names):
        return "positional or token parameter"
    if any(name.lower().endswith("bias") for name in names):
        return "bias"  # of several experts, one row each
    if any(re.search(STATE_NAMES, name) for name in names):
        return "state space parameter"
    modules = [name.rpartition(".")[0] for name in names]
    if any(re.search(HEAD_NAMES, m) for m in modules) or _is_last(model, owner):
        return "output head"
    if any(re.search(ROUTER_NAMES, m) for m in modules):
        return "router"
    if isinstance(owner, nn.modules.conv._ConvNd) and owner.groups > 1 and p.shape[1] == 1:
        return "depthwise convolution"
    rows, columns = p.shape[0], p.shape[-1]
    if min(rows, p.numel() // max(rows, 1)) == 1 or (p.ndim == 2 and columns == 1):
        return "a single row or column"
    return None


def _is_last(model: nn.Module, owner: nn.Module) -> bool:
    """Whether a linear layer is the model's output: nothing with parameters comes after it."""
    output: Any = getattr(model, "get_output_embeddings", None)  # a method of transformers' models
    if output is not None and output() is owner:
        return True
    last = None
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            last = module
    return owner is last and isinstance(owner, nn.Linear) and owner is not model


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
