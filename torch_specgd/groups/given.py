"""What a user gives an optimizer: a model, names and parameters, parameters, or groups of them."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from .param_groups import param_groups, routed_by_name


def given_groups(params: Any, per_head: bool = False) -> Any:
    """Return what torch's optimizers take, routed as far as the names tell.

    Args:
        params: A module, which is routed by ``param_groups``; names and parameters, which are
            routed by name and shape; parameters, which go by shape, as in torch; or dicts of
            groups with either. A group that has ``use_muon`` stays as it is.
        per_head: See ``param_groups``; only for a module.

    Returns:
        Groups, of which none is the user's own dict.

    Raises:
        TypeError: For ``per_head`` without a module.
    """
    if isinstance(params, nn.Module):
        return list(param_groups(params, per_head=per_head))
    if per_head:
        raise TypeError(
            f"per_head=True must come with the model, as in Muon(model, per_head=True), got a "
            f"{type(params).__name__} of parameters"
        )
    if isinstance(params, (Tensor, dict, str)) or not isinstance(params, Iterable):
        return params  # torch refuses it in its own words
    given = list(params)
    if not given:
        return given
    if not all(isinstance(item, dict) for item in given):
        given = [{"params": given}]
    groups = [group for item in given for group in _routed(item)]
    _warn_of_tables([p for group in groups if "use_muon" not in group for p in group["params"]])
    return groups


def _routed(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups that one group becomes."""
    members = group.get("params")
    if members is None or isinstance(members, Tensor) or not isinstance(members, Iterable):
        return [dict(group)]
    members = list(members)
    named = bool(members) and all(isinstance(m, tuple) and len(m) == 2 for m in members)
    if not named or "use_muon" in group:
        return [{**group, "params": members}]
    return [{**found, **group, "params": found["params"]} for found in routed_by_name(members)]


def _warn_of_tables(params: Sequence[Any]) -> None:
    """Warn once if parameters without names have a matrix that looks like an embedding or head."""
    matrices = [p for p in params if isinstance(p, Tensor) and p.ndim == 2 and p.requires_grad]
    for before, p in zip([None, *matrices], matrices, strict=False):
        rows, columns = p.shape
        factor = before is not None and before.shape[0] == columns and before.shape[1] > 4 * columns
        ends = len(matrices) > 2 and rows > columns and matrices[0].shape == matrices[-1].shape
        if (rows > 5 * columns > 5 and not factor) or (ends and p is matrices[0]):
            warnings.warn(
                f"Muon orthogonalizes a parameter of shape {tuple(p.shape)}, which looks like an "
                "embedding or an output head: these want AdamW. Muon(model) routes by what each "
                "parameter is; use_muon=True in a group says that it is meant",
                stacklevel=4,
            )
            return
