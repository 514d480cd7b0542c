"""Checkpoints that other optimizers wrote, in the layout of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .matrix_view import describe, is_matrix, names_of

_ORIGINAL = (3.4445, -4.7750, 2.0315)
_Group = dict[str, Any]
_States = list[dict[str, Any]]


def in_own_layout(loaded: Any) -> Any:
    """Return a state dict of dion's, timm's or pytorch_optimizer's Muon with our keys and meanings.

    Those of torch.optim.Muon and KellerJordan's have them already. dion's momentum is a sum of
    gradients, ours a mean: it is multiplied by 1 - momentum. AdamW's count of steps, which dion and
    pytorch_optimizer keep in the group, goes to each parameter. Groups keep further names, which
    ``in_own_words`` takes or refuses.

    Args:
        loaded: A state dict of anyone; what has no known layout is returned as it is.

    Raises:
        ValueError: If it is Adam's or AdamW's, or its rule has no counterpart here.

    Example:
        >>> group = {"params": [0], "lr": 0.1, "algorithm": "adamw", "mu": 0.9, "step": 2}
        >>> saved = {"state": {0: {"momentum": 1.0, "variance": 4.0}}, "param_groups": [group]}
        >>> in_own_layout(saved)["state"][0]
        {'step': 2, 'exp_avg': 1.0, 'exp_avg_sq': 4.0}
    """
    parts = [loaded.get(key) for key in ("state", "param_groups")] if _is_dict(loaded) else []
    if len(parts) != 2 or not _is_dict(parts[0]) or not isinstance(parts[1], Sequence):
        return loaded
    state, groups = dict(parts[0]), []
    if parts[1] and all(map(_is_adam, parts[1])):
        raise ValueError(
            "the state dict is Adam's or AdamW's, which Muon does not load: load it into "
            "torch.optim.AdamW, then go on with Muon.from_adamw(optimizer, model)"
        )
    for group in parts[1]:
        translate = next((f for known, f in _LAYOUTS.items() if _has(group, known)), None)
        if translate is None:
            _check_whole(group, state)
            groups.append(group)
            continue
        ids = [i for i in group.get("params", ()) if _is_dict(state.get(i))]
        made, states = translate(dict(group), [dict(state[i]) for i in ids])
        groups.append(made)
        state.update(zip(ids, states, strict=True))
    return {**loaded, "state": state, "param_groups": groups}


def check_routes(loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless each parameter's state is of the algorithm that steps it here.

    Groups that do not say how their weights are routed and cut, as those of torch.optim.Muon, take
    it from the optimizer's.

    Args:
        loaded: A state dict that fits the groups; its groups are completed.
        groups: The optimizer's.

    Raises:
        ValueError: If a matrix comes with AdamW's state alone, or the other way round.
    """
    for saved, own in zip(loaded["param_groups"], groups, strict=True):
        for key in ("use_muon", "matrix_view", "split"):
            saved.setdefault(key, own[key])
        route = saved["use_muon"]
        for i, p, name in zip(saved["params"], own["params"], names_of(own), strict=True):
            state = loaded["state"].get(i, {})
            by_muon = is_matrix(p) if route is None else route
            momentum = "momentum_buffer" in state or "momentum_codes" in state
            if by_muon and "exp_avg" in state and not momentum:
                _refuse_route(p, name, "AdamW's", "Muon")
            if not by_muon and momentum and "exp_avg" not in state:
                _refuse_route(p, name, "Muon's", "AdamW")


def _refuse_route(p: Tensor, name: str | None, there: str, here: str) -> None:
    raise ValueError(
        f"the state dict's state of {describe(p, name)} is {there}, but {here} steps it here: give "
        f"it a group with use_muon={here != 'Muon'} before loading"
    )


def _is_dict(x: Any) -> bool:
    return isinstance(x, Mapping)


def _has(group: Any, keys: tuple[str, ...]) -> bool:
    return _is_dict(group) and all(key in group for key in keys)


def _check_whole(group: Any, state: Mapping[Any, Any]) -> None:
    """Raise for one rank's state of KellerJordan's distributed Muon: its own matrices' alone."""
    if not _has(group, ("params", "momentum")) or any(key in group for key in ("nesterov", "mu")):
        return
    there = sum(i in state for i in group["params"])
    if 0 < there < len(group["params"]):
        raise ValueError(
            f"the state dict has state of {there} of {len(group['params'])} matrices: each rank of "
            "KellerJordan's distributed Muon saves its own; join the 'state' of all ranks' first"
        )


def _is_adam(group: Any) -> bool:
    other = ("momentum", "use_muon", "algorithm", "adamw_betas", "mu")
    return _has(group, ("betas", "eps")) and not any(key in group for key in other)


def _dion(group: _Group, states: _States) -> tuple[_Group, _States]:
    """Of ``dion.Muon``: one algorithm a group, and all settings of all algorithms in each."""
    count, momentum = group.pop("step", 0), group.pop("mu")
    by_muon = group["algorithm"] == "muon"
    if by_muon:
        for key in ("beta1", "beta2"):
            group.pop(key, None)
        group["momentum"], group["eps"] = momentum, group.pop("epsilon", 1e-8)
        group["matrix_view"] = "flatten" if group.pop("flatten", False) else "batch"
        if (group.pop("num_heads", None) or 1) > 1:
            _refuse("dion", "num_heads above 1")
        return group, [
            {"momentum_buffer": _mean(x.pop("momentum"), momentum), **x} if "momentum" in x else x
            for x in states
        ]
    for key in ("nesterov", "flatten", "adjust_lr", "num_heads"):
        group.pop(key, None)
    names = {"momentum": "exp_avg", "variance": "exp_avg_sq"}
    renamed = [{names.get(key, key): value for key, value in x.items()} for x in states]
    return group, _counted(renamed, count)


def _mean(total: Any, momentum: float) -> Any:
    return total * (1 - momentum) if isinstance(total, Tensor) else total


def _pytorch_optimizer(group: _Group, states: _States) -> tuple[_Group, _States]:
    """Of ``pytorch_optimizer.Muon``."""
    count = group.pop("step", 0)
    if group.pop("cautious", False):
        _refuse("pytorch_optimizer", "cautious=True")
    for key in ("ns_method", "ns_reset_steps"):  # the same result in another order
        group.pop(key, None)
    if "ns_coeffs" in group:
        group["ns_coefficients"] = _schedule(group.pop("ns_coeffs"), group.get("ns_steps", 5))
    if "use_adjusted_lr" in group:
        adjusted = group.pop("use_adjusted_lr")
        group["adjust_lr_fn"] = "match_rms_adamw" if adjusted else "original"
    return group, states if group["use_muon"] else _counted(states, count)


def _timm(group: _Group, states: _States) -> tuple[_Group, _States]:
    """Of ``timm.optim.Muon``: each parameter's state says what steps it."""
    for key, wanted in {
        "algo": "muon", "conv_mode": "flatten", "safety_factor": 1.0, "scale_eps": False,
    }.items():  # fmt: skip
        if group.pop(key, wanted) != wanted:
            _refuse("timm", f"another {key} than {wanted!r}")
    routes = [x.pop("use_muon", True) for x in states]
    if not all(routes) and group.get("nesterov"):
        _refuse("timm", "nesterov=True, where NAdamW steps what is no matrix")
    for key in ("verbose", "normalize_spatial"):
        group.pop(key, None)
    group["adamw_betas"], group["adamw_eps"] = group.pop("betas"), group["eps"]
    if "fallback_lr_scale" in group:
        group["adamw_lr_ratio"] = group.pop("fallback_lr_scale")
    if group.get("adjust_lr_fn") == "rms_to_rms":
        group["adjust_lr_fn"] = "spectral"
    steps = group.get("ns_coefficients", "quintic")
    group["ns_coefficients"] = _schedule(steps, group.get("ns_steps", 5))
    return group, states


def _schedule(steps: Any, count: int) -> Any:
    """Return one triple as such, a list cut or filled up by its last, and a name as "auto"."""
    if isinstance(steps, str):
        return _ORIGINAL if steps == "original" else "auto"
    if len(steps) == 3 and not isinstance(steps[0], Sequence):
        return tuple(steps)
    triples = [tuple(step) for step in steps]
    if len(triples) == 1:
        return triples[0]
    return tuple((triples + triples[-1:] * count)[:count])


def _counted(states: _States, count: Any) -> _States:
    return [{"step": count, **x} if "exp_avg" in x else x for x in states]


def _refuse(of: str, what: str) -> None:
    raise ValueError(
        f"the state dict is {of}'s with {what}, which Muon has not: keep the weights, and start "
        "Muon with fresh state"
    )


# Keys by which a group of each is known.
_LAYOUTS = {
    ("algorithm", "mu"): _dion,
    ("conv_mode", "betas", "eps"): _timm,
    ("weight_decouple", "use_muon"): _pytorch_optimizer,
}
