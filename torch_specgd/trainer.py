"""Muon in the Hugging Face Trainer and in TRL: one argument, the settings stay where they are."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .groups.from_adamw import in_muons_terms
from .groups.param_groups import param_groups
from .muon import Muon


class TrainerMuon:
    """What Trainer makes and calls with the model, once that is wrapped and sharded.

    It is no Optimizer class: those get two groups of parameters without names.
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        overrides: Mapping[Any, Any] | None = None,
        splits: Mapping[str, Any] | None = None,
        per_head: bool = False,
        of_adamw: bool = False,
        **settings: Any,
    ) -> Muon:
        """Return Muon on the trained parameters, vectors without weight decay as Trainer has it.

        Rate and decay are AdamW's if ``of_adamw``, else Muon's own.
        """
        groups = []
        lr, decay = settings["lr"], settings["weight_decay"]
        for group in param_groups(model, overrides, splits=splits, per_head=per_head):
            for decayed in (True, False):
                params = [
                    (name, p)
                    for name, p in group["params"]
                    if p.requires_grad and (p.ndim > 1) == decayed
                ]
                if params:
                    own = {"lr": lr, "weight_decay": decay if decayed else 0.0}
                    if of_adamw:
                        own = in_muons_terms(**own, use_muon=bool(group["use_muon"]))
                    groups.append({**own, **group, "params": params})
        return Muon(groups, **settings)


def muon_for_trainer(
    model: nn.Module | None,
    args: Any,
    *,
    overrides: Mapping[Any, Any] | None = None,
    splits: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[type[TrainerMuon], dict[str, Any]]:
    """Return the ``optimizer_cls_and_kwargs`` of a ``transformers.Trainer`` or of TRL's trainers.

    Learning rate, weight decay, betas and epsilon are those of ``args``, and mean what they mean
    for AdamW: Muon takes what ``Muon.from_adamw`` makes of them. Vectors are not decayed, and the
    Trainer's scheduler moves all of it.

    Args:
        model: The model; None where the Trainer makes it by ``model_init``. Patterns are checked
            against it at once.
        args: ``TrainingArguments``.
        overrides: As in ``param_groups``.
        splits: As in ``param_groups``.
        **settings: Arguments of ``Muon``, which win over those of ``args``. An ``lr`` is Muon's own
            for every parameter, and ``weight_decay`` per unit of it.

    Raises:
        ValueError: If a pattern matches nothing, or a split does not fit.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(
        ...     learning_rate=3e-3, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95,
        ...     adam_epsilon=1e-8,
        ... )
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> make, kwargs = muon_for_trainer(model, args)  # Trainer(optimizer_cls_and_kwargs=...)
        >>> make()(model, **kwargs).defaults["lr"]
        0.003
    """
    if model is not None:
        param_groups(model, overrides, splits=splits)
    return TrainerMuon, {
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        "adamw_betas": (args.adam_beta1, args.adam_beta2),
        "adamw_eps": args.adam_epsilon,
        "adjust_lr_fn": "match_rms_adamw",
        "overrides": overrides,
        "splits": splits,
        "of_adamw": "lr" not in settings,
        **settings,
    }
