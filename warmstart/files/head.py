"""Reset of the head on a state dict: names tell which layers it is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specgd_common.head_names import HEAD, OUTER_HEAD

from ..shrink.per_parameter import add_value, whole
from ..shrink.report import ShrinkReport
from ..targets.find import Target
from ..targets.state_targets import state_targets
from .state_dicts import StateDict, matching, seed_of, with_values


def head_state_dict(
    state_dict: Mapping[str, Any],
    layers: Sequence[str] | None = None,
    *,
    fresh: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    **selection: Any,
) -> tuple[StateDict, ShrinkReport]:
    """Do ``head_reset`` for a state dict.

    Args:
        state_dict: A model's ``state_dict()``.
        layers: Names of modules, ``"classifier"`` or ``"decoder.head"``, with all that they hold;
            None: the modules that are called as heads are (``lm_head``, ``classifier``, ...). The
            order of a file does not tell which layer is the last.
        fresh: Values of a newly built model; None draws weights and biases as torch initializes
            linear layers and convolutions, uniformly within 1 / sqrt(inputs).
        seed: Of the draw.
        **selection: As in ``state_targets``.

    Returns:
        The new state dict and the report.

    Raises:
        ValueError: If no module is called so, and for heads that are tied to an embedding and
            were not named.

    Example:
        >>> import torch
        >>> from warmstart import head_state_dict
        >>> state = {"body.weight": torch.ones(2, 2), "classifier.weight": torch.ones(3, 2)}
        >>> new, report = head_state_dict(state)
        >>> [row.name for row in report.rows], new["body.weight"] is state["body.weight"]
        (['classifier.weight'], True)
    """
    targets, skipped = state_targets(state_dict, **{**selection, "include": "*"})
    owners = {o for t in targets for o in t.owners}
    chosen = _heads(targets, owners) if layers is None else list(layers)
    unknown = [n for n in chosen if not any(o == n or o.startswith(f"{n}.") for o in owners)]
    if unknown:
        raise ValueError(f"no module with weights is named {unknown}; there are {_last(owners)}")
    head = [
        t for t in targets if any(f"{o}.".startswith(f"{n}.") for o in t.owners for n in chosen)
    ]
    skipped += [t.left("not in the head") for t in targets if t not in head]
    shapes = {n: tuple(x.shape) for n, x in state_dict.items() if isinstance(x, Tensor)}
    values: dict[str, Tensor] = {}
    rows = []
    for t in head:
        drawn = _initial(t, shapes, seed) if fresh is None else matching(fresh, t)
        rows.append(add_value(t, drawn.to(whole(t.parameter)), values))
    report = ShrinkReport("head", {"layers": sorted(chosen), "seed": seed}, rows, skipped)
    return with_values(state_dict, head, values), report


def _heads(targets: Sequence[Target], owners: Collection[str]) -> list[str]:
    """Return the modules that are called as heads are; outermost ones alone."""
    found: list[str] = []
    for owner in sorted(owners, key=len):
        *path, own = owner.split(".")
        outer = not any(map(str.isdigit, path))
        called = HEAD.fullmatch(own) or (outer and OUTER_HEAD.fullmatch(own))
        if called and not any(owner.startswith(f"{n}.") for n in found):
            found.append(owner)
    if not found:
        raise ValueError(
            "no module of the file is called as a head is (a language model's may be its "
            f"embedding, saved once): name it in layers (--layers); there are {_last(owners)}"
        )
    for t in targets:
        if t.kind.startswith("Embedding") and set(found) & set(t.owners):
            raise ValueError(
                f"the head is tied to an embedding ({' and '.join(t.owners)}): drawn anew, it "
                "would forget what tokens mean; naming it in layers (--layers) does so"
            )
    return found


def _last(owners: Collection[str]) -> str:
    return ", ".join(sorted(owners)[-8:])


def _initial(t: Target, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensor:
    """Return torch's initial values of a linear layer, a convolution or a normalization."""
    module, attribute = t.module, t.kind.partition(".")[2]
    shape = shapes.get(f"{module}.weight".lstrip("."), ())
    if t.kind.startswith("Embedding") or attribute not in ("weight", "bias") or not shape:
        raise ValueError(f"{t.name!r} is of no linear layer or convolution: give fresh (--fresh)")
    if len(shape) == 1:
        return torch.full(t.parameter.shape, 1.0 if attribute == "weight" else 0.0)
    # Stored (in, out), as transformers' Conv1D: the bias tells how many outputs there are.
    outputs = shapes.get(f"{module}.bias".lstrip("."), shape[:1])[0]
    inputs = shape[0] if len(shape) == 2 and outputs != shape[0] else math.prod(shape[1:])
    generator = torch.Generator().manual_seed(seed_of(t.name, seed))
    drawn = torch.rand(t.parameter.shape, generator=generator, dtype=torch.float64)
    return (2 * drawn - 1) / math.sqrt(inputs)
