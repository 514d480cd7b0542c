"""LoRA mode: the two factors of every adapter, and parameter groups with a rate for each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from specgd_common.lora_names import lora_place

from .param_groups import param_groups


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The two factors of one adapter: the weight changes by scale * lora_b @ lora_a.

    The names are PEFT's. Kang et al. call lora_b (zero at the start) A and lora_a (random) B.

    Args:
        name: What reports call it.
        lora_b: (m, r), the factor next to the output; convolutions are flattened to (out, rest).
        lora_a: (r, n), the factor next to the input.
        scale: c, in PEFT lora_alpha / r (default 1).

    Raises:
        ValueError: If the inner dimensions differ.

    Example:
        >>> import torch
        >>> LoraPair("q", torch.zeros(6, 2), torch.randn(2, 4)).rank
        2
    """

    name: str
    lora_b: Tensor
    lora_a: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        for factor, x in (("lora_b", self.lora_b), ("lora_a", self.lora_a)):
            if x.ndim < 2:
                raise ValueError(
                    f"{factor} of {self.name!r} must be a matrix, got shape {tuple(x.shape)}"
                )
        if self.lora_b.shape[1] != self.lora_a.shape[0]:
            raise ValueError(
                f"lora_b of {self.name!r} must be (m, r) and lora_a (r, n), got "
                f"{tuple(self.lora_b.shape)} and {tuple(self.lora_a.shape)}"
            )

    @property
    def rank(self) -> int:
        """The inner dimension r."""
        return self.lora_a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the product."""
        return self.lora_b.shape[0], self.lora_a[0].numel()


def find_lora_pairs(model: nn.Module, *, adapter: str | None = None) -> list[LoraPair]:
    """Pair the LoRA factors of a model by their names (PEFT, loralib, torchtune).

    Args:
        model: Any module.
        adapter: Only this adapter of a PEFT model (default: every one).

    Returns:
        One pair per adapted weight, in the model's order. The scale is read from the module
        (PEFT's and loralib's ``scaling``, torchtune's ``alpha / rank``), 1 where there is none.

    Raises:
        ValueError: If a factor has no partner, or an adapter stacks several experts.

    Example:
        >>> layer = nn.Module()
        >>> layer.lora_A, layer.lora_B = nn.Linear(4, 2), nn.Linear(2, 6)
        >>> find_lora_pairs(nn.ModuleDict({"q": layer}))[0].shape
        (6, 4)
    """
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        place = lora_place(name)
        if place is None or (adapter is not None and place[1] != adapter):
            continue
        found.setdefault(place[:2], {})[place[2]] = parameter
    pairs = []
    for (path, adapter_name), factors in found.items():
        label = f"{path}.{adapter_name}".strip(".") or "lora"
        if set(factors) != {"a", "b"}:
            raise ValueError(f"{label!r} has only lora_{next(iter(factors))}: a pair needs both")
        module = model.get_submodule(path)
        if getattr(module, "num_experts", 1) > 1:
            raise ValueError(
                f"{label!r} stacks the adapters of {module.num_experts} experts in one matrix, "
                "which find_lora_pairs does not take apart; build LoraPair objects by hand"
            )
        pairs.append(LoraPair(label, factors["b"], factors["a"], _scale(module, adapter_name)))
    return pairs


def _scale(module: Any, adapter: str) -> float:
    scaling = getattr(module, "scaling", None)
    if isinstance(scaling, dict):
        return float(scaling[adapter])
    if scaling is not None:
        return float(scaling)
    if hasattr(module, "alpha") and hasattr(module, "rank"):
        return float(module.alpha) / float(module.rank)
    return 1.0


def as_pairs(model: nn.Module | Iterable[LoraPair]) -> list[LoraPair]:
    """Return the pairs of a model, or the pairs themselves.

    Args:
        model: A module to search, or pairs made by hand.

    Returns:
        The pairs.

    Raises:
        ValueError: If there are none.
    """
    pairs = find_lora_pairs(model) if isinstance(model, nn.Module) else list(model)
    if not pairs:
        raise ValueError(
            "found no LoRA factors (parameters named lora_A and lora_B); pass LoraPair objects"
        )
    return pairs


def lora_param_groups(
    model: nn.Module | Iterable[LoraPair],
    *,
    lr_b: float,
    lr_a: float,
    adjust_lr_b: str = "none",
    adjust_lr_a: str = "none",
    lr_other: float | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Make groups for SpecGD or Muon: each factor has its own rate and shape factor.

    Both optimizers orthogonalize in float32 then, whatever the weights' type (SpecGD always does,
    for Muon the groups say ``compute_dtype="float32"``).

    The optimizer orthogonalizes each factor by itself, all factors of one shape in one batch.
    Nothing about the rates is left implicit: torch.optim.Muon's default would multiply lr_b by
    sqrt(m / r) and lr_a by 1.

    Args:
        model: A module whose trainable parameters are grouped, or pairs made by hand.
        lr_b: Learning rate of lora_b, the factor that starts at zero.
        lr_a: Learning rate of lora_a.
        adjust_lr_b: Shape factor on lr_b: "none" (1), "original" (sqrt(max(1, m / r))) or
            "match_rms_adamw" (0.2 sqrt(max(m, r))).
        adjust_lr_a: The same for lr_a, whose matrix is r x n.
        lr_other: Learning rate of everything else that is trainable (heads, norms, biases), which
            is routed to Muon or AdamW as ``param_groups`` does.
        **options: Further options of every group, for example ``weight_decay=0.0``.

    Returns:
        Groups "lora_b", "lora_a" and, where needed, of "other" (key ``factor``), with names.

    Raises:
        ValueError: If there are no trainable factors, or other parameters but no lr_other.

    Source:
        Kang et al., arXiv 2602.06385: both factors orthogonalized separately; the product's
        square-rooted singular values grow at sqrt(scale lr_a lr_b) per step.

    Example:
        >>> import torch
        >>> from torch_specgd import SpecGD
        >>> pair = LoraPair("q", nn.Parameter(torch.zeros(6, 2)), nn.Parameter(torch.randn(2, 4)))
        >>> optimizer = SpecGD(lora_param_groups([pair], lr_b=0.02, lr_a=0.01))
        >>> [(group["factor"], group["lr"]) for group in optimizer.param_groups]
        [('lora_b', 0.02), ('lora_a', 0.01)]
    """
    whole = model if isinstance(model, nn.Module) else None
    pairs = as_pairs(model)
    rates = {"lora_b": (lr_b, adjust_lr_b), "lora_a": (lr_a, adjust_lr_a)}
    names = {} if whole is None else {id(p): name for name, p in whole.named_parameters()}
    groups = []
    paired: set[int] = set()
    for factor, (lr, adjust) in rates.items():
        found = [(f"{pair.name}.{factor}", getattr(pair, factor)) for pair in pairs]
        trained = [(names.get(id(p), name), p) for name, p in found if p.requires_grad]
        paired |= {id(p) for _, p in trained}
        if trained:
            settings = {"lr": lr, "adjust_lr_fn": adjust, "compute_dtype": "float32", **options}
            groups.append({"params": trained, "factor": factor, "use_muon": True, **settings})
    if not groups:
        raise ValueError("no LoRA factor is trainable: requires_grad is False for all of them")
    return groups if whole is None else groups + _others(whole, paired, lr_other, options)


def _others(
    model: nn.Module, paired: set[int], lr: float | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Make groups of what is trained beside the factors, routed as without adapters."""
    groups = []
    for group in param_groups(model):
        other = [(n, p) for n, p in group["params"] if p.requires_grad and id(p) not in paired]
        if other:
            groups.append({**group, "params": other, "factor": "other", "lr": lr, **options})
    count = sum(len(group["params"]) for group in groups)
    if count and lr is None:
        raise ValueError(
            f"{count} trainable parameters are no LoRA factors, the first is "
            f"{groups[0]['params'][0][0]!r}; give lr_other, or freeze them"
        )
    return groups
