"""Groups that were written for another Muon or for AdamW, in the words of ours."""

from collections.abc import Mapping
from typing import Any

# Another name of the same thing.
_SAME = {
    "wd": "weight_decay",
    "learning_rate": "lr",
    "mu": "momentum",
    "momentum_beta": "momentum",
    "adamw_wd": "adamw_weight_decay",
    "cautious_wd": "cautious_weight_decay",
}
# What AdamW's own names mean in a group that AdamW steps.
_ADAMW = {"betas": "adamw_betas", "eps": "adamw_eps", "epsilon": "adamw_eps"}
_ROUTES = {"muon": True, "adamw": False}
_ADJUST = {"rms_norm": "match_rms_adamw", "spectral_norm": "spectral", None: "none"}
# Values that ask for nothing that Muon does not do; all others are refused by name.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "amsgrad": (False, None),
    "differentiable": (False, None),
    "fused": (False, None, True),
    "decoupled_weight_decay": (True, None),
    "weight_decouple": (True, None),
    "fixed_decay": (False, None),
    "ams_bound": (False, None),
    "use_adjusted_lr": (False, None),
}
_REMEDIES = {
    "betas": "AdamW's, which are adamw_betas here, or betas in a group with use_muon=False; "
    "a run of AdamW goes on with Muon.from_adamw(optimizer, model)",
    "epsilon": "AdamW's, which is adamw_eps here",
    "use_adjusted_lr": 'adjust_lr_fn="match_rms_adamw"',
    "algorithm": "'muon' or 'adamw'",
    "adjust_lr": "None, 'spectral_norm' or 'rms_norm'",
}


def in_own_words(group: Mapping[str, Any], lr: Any) -> dict[str, Any]:
    """Return a group with the names of ``Muon`` for what other optimizers call otherwise.

    Names of KellerJordan's, pytorch_optimizer's, dion's and timm's Muon and of torch's AdamW are
    taken where they say the same, and refused by name where they do not.

    Args:
        group: A parameter group, of a user or out of a checkpoint.
        lr: The rate of a group that has none.

    Raises:
        ValueError: If a name, or its value, has no counterpart, or both names are there.

    Example:
        >>> in_own_words({"params": [], "use_muon": False, "betas": (0.9, 0.95), "wd": 0.0}, 1e-3)
        {'params': [], 'use_muon': False, 'adamw_betas': (0.9, 0.95), 'weight_decay': 0.0}
    """
    given = dict(group)
    if "algorithm" in given:
        name = given.pop("algorithm")
        if not isinstance(name, str) or name not in _ROUTES:
            _refuse("algorithm", name)
        given["use_muon"] = _ROUTES[name]
    if "use_fallback" in given:
        given["use_muon"] = not given.pop("use_fallback")
    if "adjust_lr" in given:
        name = given.pop("adjust_lr")
        if name is not None and name not in tuple(_ADJUST):
            _refuse("adjust_lr", name)
        given["adjust_lr_fn"] = _ADJUST[name]
    if "beta1" in given and "beta2" in given:
        given["betas"] = (given.pop("beta1"), given.pop("beta2"))
    by_adamw = given.get("use_muon") is False
    names = {**_SAME, **(_ADAMW if by_adamw and "adamw_eps" not in given else {})}
    result: dict[str, Any] = {}
    for key, value in given.items():
        if key in _NOTHING:
            if not any(value is x for x in _NOTHING[key]):
                _refuse(key, value)
            continue
        own = names.get(key, key)
        if own in result or (own != key and own in given):
            raise ValueError(f"a group must have {own!r} once, got {key!r} as well")
        if own in ("betas", "epsilon"):
            _refuse(key, value)
        result[own] = value
    if "adamw_lr" in result:
        rate, base = result.pop("adamw_lr"), result.get("lr", lr)
        if not float(base) > 0:
            raise ValueError(f"adamw_lr={rate} needs an lr above 0, of which it is a multiple")
        result.setdefault("adamw_lr_ratio", float(rate) / float(base))
    return result


def _refuse(key: str, value: Any) -> None:
    remedy = _REMEDIES.get(key, "leave it out")
    raise ValueError(f"Muon has no {key!r} in a group, got {value!r:.80}: {remedy}")
