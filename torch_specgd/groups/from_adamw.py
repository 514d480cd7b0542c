"""What becomes of an AdamW run's numbers and state when Muon goes on with it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from .param_groups import param_groups

# Muon's best rate over AdamW's, where both updates have the root mean square that
# "match_rms_adamw" gives: tuned on the transformer of docs/muon_results.md, in eight settings.
RATE = 3.8
_KNOWN = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


class CarriedOver(NamedTuple):
    """An AdamW run in Muon's terms.

    Attributes:
        groups: For ``Muon``; rates and decays are each group's own.
        state: Of the parameters that have some.
        report: What became of each number, a line each.
    """

    groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]
    report: str


def in_muons_terms(lr: Any, weight_decay: float, use_muon: bool) -> dict[str, Any]:
    """Translate a rate and a decay of AdamW; a step decays as much as before.

    Example:
        >>> in_muons_terms(1e-3, 0.1, use_muon=False)
        {'lr': 0.001, 'weight_decay': 0.1}
    """
    rate = RATE if use_muon else 1.0
    return {"lr": lr * rate, "weight_decay": weight_decay / rate}


def carried_over(source: Optimizer | Mapping[str, Any], model: nn.Module) -> CarriedOver:
    """Translate an AdamW optimizer, or its settings, for a model's parameters.

    Args:
        source: The optimizer, whose state goes along, or its arguments.
        model: Whose parameters are routed.

    Raises:
        ValueError: If ``source`` is no AdamW's, or does something that has no counterpart.
        TypeError: If it is neither an optimizer nor settings.
    """
    if isinstance(source, Optimizer):
        settings = [{**_KNOWN, **group} for group in source.param_groups]
        where = {p: i for i, g in enumerate(source.param_groups) for p in g["params"]}
    elif isinstance(source, Mapping):
        unknown = sorted(source.keys() - _KNOWN.keys())
        if unknown:
            raise ValueError(f"settings must be out of {sorted(_KNOWN)}, got {unknown}")
        settings = [{**_KNOWN, **source}]
        where = dict.fromkeys(model.parameters(), 0)
    else:
        raise TypeError(f"must be an AdamW or its settings, got {type(source).__name__}")
    for group in settings:
        _check(group)
    state = {} if isinstance(source, Mapping) else source.state
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    carried: dict[Tensor, dict[str, Any]] = {}
    for k, route in enumerate(param_groups(model)):
        for name, p in route["params"]:
            if p not in where:
                continue
            own = settings[where[p]]
            made = groups.setdefault((where[p], k), _group(route, own))
            made["params"].append((name, p))
            if state.get(p):
                carried[p] = _state(state[p], bool(route["use_muon"]))
    if not groups:
        raise ValueError("none of the model's parameters is in the optimizer")
    return CarriedOver(list(groups.values()), carried, _report(list(groups.values()), carried))


def _check(group: Mapping[str, Any]) -> None:
    if not {"betas", "eps"} <= group.keys() or "momentum" in group:
        raise ValueError("must be an AdamW or its settings, got groups without betas and eps")
    if group.get("amsgrad"):
        raise ValueError("amsgrad=True has no counterpart in Muon, got it in a group")
    coupled = group.get("decoupled_weight_decay") is False
    if coupled and group["weight_decay"]:
        raise ValueError("weight decay must be decoupled, as AdamW's, got Adam's in a group")


def _group(route: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that one route and one of AdamW's groups have in common."""
    by_muon = bool(route["use_muon"])
    kept = {k: v for k, v in route.items() if k not in ("params", "param_names")}
    made = {
        **kept,
        "params": [],
        **in_muons_terms(own["lr"], own["weight_decay"], by_muon),
        "adjust_lr_fn": "match_rms_adamw",
        "adamw_betas": tuple(own["betas"]),
        "adamw_eps": own["eps"],
        "maximize": bool(own.get("maximize", False)),
    }
    if "initial_lr" in own:
        made["initial_lr"] = in_muons_terms(own["initial_lr"], 0.0, by_muon)["lr"]
    return made


def _state(state: Mapping[str, Any], is_matrix: bool) -> dict[str, Any]:
    """Carry the first moment, the same mean of gradients in both; Muon has no second."""
    if is_matrix:
        return {"momentum_buffer": state["exp_avg"].detach().clone()}
    kept = {key: state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in kept.items()}


def _report(groups: list[dict[str, Any]], carried: Mapping[Tensor, Any]) -> str:
    lines = ["from AdamW, parameters:"]
    for group in groups:
        lr, decay, count = float(group["lr"]), group["weight_decay"], len(group["params"])
        with_state = sum(p in carried for _, p in group["params"])
        if group["use_muon"]:
            became = (
                f"Muon: lr {lr:g} ({RATE:g} times AdamW's), decay {decay:.3g} (the same a step)"
            )
            became += ",\n    momentum in place of betas and eps"
            moved = f"first moments as momentum of {with_state}, second moments left behind"
        else:
            became = f"AdamW: lr {lr:g}, decay {decay:g}, "
            became += f"betas {group['adamw_betas']}, eps {group['adamw_eps']:g}"
            moved = f"all moments of {with_state}"
        lines.append(f"  {count} to {became}; {moved if with_state else 'no state'}")
    return "\n".join(lines)
