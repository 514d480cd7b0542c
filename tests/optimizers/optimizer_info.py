"""Rows of torch's own OptimizerInfo table for our optimizers, made from its row for Muon."""

import inspect
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
    optim_db,
)

from torch_specgd import Muon, SpecGD

TORCH_ROW = next(row for row in optim_db if row.optim_cls is torch.optim.Muon)
FLAGS = ("foreach", "fused", "differentiable")

# The message that torch's row expects -> when and how ours fails instead, and why; None: it is no
# error here. test_errors_differ_only_where_listed keeps the list from going stale.
OWN_ERRORS: dict[str, tuple[OptimizerErrorEnum, type[Exception], str] | None] = {
    # A superset: a 3-D parameter is a batch of matrices.
    "Muon only supports 2D parameters": None,
    # The message names the argument and what is accepted.
    "Adjust learning rate function arbitrary is not supported": (
        OptimizerErrorEnum.CONSTRUCTION_ERROR,
        ValueError,
        "adjust_lr_fn must be .*'arbitrary'",
    ),
    # Refused at line one of the user's script, not after the first backward pass.
    "Muon does not support complex parameters": (
        OptimizerErrorEnum.CONSTRUCTION_ERROR,
        TypeError,
        r"Muon needs real floating-point parameters .* but a parameter of shape \(2, 3\)",
    ),
}


def own_errors(inputs: list[ErrorOptimizerInput]) -> Iterator[ErrorOptimizerInput]:
    """Torch's inputs that fail, with our class and message where OWN_ERRORS has one."""
    for error in inputs:
        if error.error_regex not in OWN_ERRORS:
            yield error
        elif (own := OWN_ERRORS[error.error_regex]) is not None:
            on, kind, regex = own
            yield ErrorOptimizerInput(
                error.optimizer_error_input, error_on=on, error_type=kind, error_regex=regex
            )


def muon_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    """Torch's inputs for its Muon, then one for each argument that only ours has."""
    own = {
        "plain momentum": {"nesterov": False},
        "no weight decay": {"weight_decay": 0.0},
        "larger eps": {"eps": 1e-5},
        "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw", "lr": 0.01},
        "auto schedule": {"ns_coefficients": "auto"},
        "AdamW part": {
            "adamw_lr_ratio": 0.5,
            "adamw_betas": (0.8, 0.95),
            "adamw_eps": 1e-6,
            "adamw_weight_decay": 0.01,
        },
        "maximize": {"maximize": True},
        "maximize, tensor lr": {"maximize": True, "lr": torch.tensor(0.01)},
        "cautious": {"cautious_weight_decay": True},
        "NorMuon": {"neuron_beta": 0.95},
        "NorMuon, by its name": {"second_moment": "neuron"},
        "elementwise second moment": {"second_moment": "element"},
        "Shampoo": {"precondition": "shampoo"},
        "eigenbasis": {"precondition": "eigenbasis"},
        "bfloat16 state": {"state_dtype": "bfloat16"},
        "small batches": {"max_batch_bytes": 64},
        "float32 iteration": {"compute_dtype": "float32"},
        "shared among one rank": {"share_work": True},
    }
    inherited = TORCH_ROW.optim_inputs_func(device=device, dtype=dtype)
    return inherited + [OptimizerInput(None, kwargs, desc) for desc, kwargs in own.items()]


def muon_errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """Torch's inputs that its Muon refuses, as ours refuses them."""
    return list(own_errors(TORCH_ROW.optim_error_inputs_func(device, dtype)))


def specgd_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    """One input for each argument of SpecGD."""
    own: dict[str, dict[str, Any]] = {
        "default": {},
        "non-default lr": {"lr": 0.02},
        "Tensor lr": {"lr": torch.tensor(0.01)},
        "momentum": {"momentum": 0.9},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "l2": {"l2": 0.01},
        "weight decay": {"weight_decay": 0.1},
        "newton_schulz": {"method": "newton_schulz", "ns_coefficients": (3.4, -4.7, 2.0)},
        "smoothed": {"method": "smoothed", "smoothing": 0.1},
        "original scale": {"adjust_lr_fn": "original"},
        "maximize": {"maximize": True, "momentum": 0.5},
        "shared among one rank": {"share_work": True},
    }
    return [OptimizerInput(None, kwargs, desc) for desc, kwargs in own.items()]


def specgd_errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """What torch expects every optimizer to refuse."""
    return list(own_errors(get_error_inputs_for_all_optims(device, dtype)))


def row_of(
    optimizer: type[torch.optim.Optimizer],
    inputs: Callable[..., list[OptimizerInput]],
    errors: Callable[..., list[ErrorOptimizerInput]],
) -> OptimizerInfo:
    """Torch's row for Muon with our class in it; flags are read from our constructor."""
    arguments = inspect.signature(optimizer).parameters
    fields = {
        name: deepcopy(getattr(TORCH_ROW, name))
        for name in inspect.signature(OptimizerInfo).parameters
        if hasattr(TORCH_ROW, name)
    }
    fields |= {
        "optim_cls": optimizer,
        "optim_inputs_func": inputs,
        "optim_error_inputs_func": errors,
        "supported_impls": tuple(flag for flag in FLAGS if flag in arguments),
        # What torch's Muon does not have, its checkpoints do not have either.
        "not_og_supported_flags": tuple(
            name for name in arguments if name not in inspect.signature(torch.optim.Muon).parameters
        ),
        "has_capturable_arg": "capturable" in arguments,
        "decorators": TORCH_ROW.decorators,
    }
    return OptimizerInfo(**fields)


ROWS = {
    "Muon": row_of(Muon, muon_inputs, muon_errors),
    "SpecGD": row_of(SpecGD, specgd_inputs, specgd_errors),
}
CASES = [
    (row, position)
    for row in ROWS.values()
    for position in range(len(row.optim_inputs_func(device="cpu")))
]


def case_name(case: tuple[OptimizerInfo, int]) -> str:
    """The row's name and its input's description, as a test's id."""
    row, position = case
    return f"{row.name}-{row.optim_inputs_func(device='cpu')[position].desc}"


def kwargs_of(case: tuple[OptimizerInfo, int]) -> dict[str, Any]:
    """Fresh keyword arguments of a case: schedulers write into tensor learning rates."""
    row, position = case
    return row.optim_inputs_func(device="cpu")[position].kwargs


# The checks that torch's test_optim.py runs over this table, and those of other files that do
# (test_compiled_optimizers.py, test_cuda.py): the wheel ships the table without the tests.
TORCH_CHECKS = [
    "test_can_load_from_to_named_state_dict",
    "test_can_load_older_state_dict",
    "test_complex",
    "test_complex_2d",
    "test_correctness",
    "test_cpu_load_state_dict",
    "test_deepcopy_copies_all_public_attrs",
    "test_defaults_changed_to_foreach",
    "test_errors",
    "test_foreach_large_tensor",
    "test_foreach_matches_forloop",
    "test_forloop_goes_right_direction",
    "test_forloop_goes_right_direction_multigpu",
    "test_fused_cpu_matches_cuda",
    "test_fused_does_not_step_if_foundinf",
    "test_fused_error_on_params_on_meta",
    "test_fused_large_tensor",
    "test_fused_matches_forloop",
    "test_grad_scaling_autocast_fused_optimizers",
    "test_graph_optims",
    "test_load_nontensor_step",
    "test_load_state_dict_post_hook",
    "test_load_state_dict_pre_hook_and_prepend",
    "test_load_state_dict_pre_post_hook",
    "test_mixed_device_dtype",
    "test_non_empty_state",
    "test_optim_infos_do_not_specify_global_cliquey_kwargs",
    "test_optimizer_can_be_printed",
    "test_param_group_with_lrscheduler_goes_right_direction",
    "test_param_groups_lr",
    "test_param_groups_weight_decay",
    "test_peak_memory_foreach",
    "test_rosenbrock_sparse",
    "test_save_load_equality_with_weights_only",
    "test_second_order_optims_return_consistent_types",
    "test_set_default_dtype_works_with_foreach",
    "test_state_dict_deterministic",
    "test_state_dict_post_hook",
    "test_state_dict_pre_hook",
    "test_state_dict_pre_post_hook",
    "test_state_dict_with_cuda_params",
    "test_step_all_hooks",
    "test_step_is_noop_for_zero_grads",
    "test_step_is_noop_when_params_have_no_grad",
    "test_step_post_hook",
    "test_step_pre_hook",
    "test_tensor_lr",
]

# Checks of torch's test_optim.py that do not run for some row: why, and the fact that says so.
# test_list_of_what_does_not_apply_is_current evaluates each fact on every row.
NOT_APPLICABLE: dict[str, tuple[str, Callable[[OptimizerInfo], bool]]] = {
    "test_complex": (
        "complex parameters are refused at construction (test_errors)",
        lambda row: not row.supports_complex,
    ),
    "test_complex_2d": ("as test_complex", lambda row: not row.supports_complex),
    "test_rosenbrock_sparse": (
        "sparse gradients are refused before anything is changed (test_sparse_gradients_refused)",
        lambda row: not (row.supports_sparse or row.only_supports_sparse_grads),
    ),
    "test_second_order_optims_return_consistent_types": (
        "no step needs a closure",
        lambda row: not row.step_requires_closure,
    ),
    "test_defaults_changed_to_foreach": (
        "replaces a private function of torch's modules by a mock; ours has no such twin, and None "
        "already means batched (test_foreach_matches_forloop)",
        lambda row: (
            not hasattr(inspect.getmodule(row.optim_cls), f"_multi_tensor_{row.name.lower()}")
        ),
    ),
    "test_peak_memory_foreach": (
        "torch allows one copy of all parameters; orthogonalizing a batch works on copies by "
        "nature, bounded by max_batch_bytes where there is a flag",
        lambda row: (
            "foreach" not in row.supported_impls
            or "max_batch_bytes" in inspect.signature(row.optim_cls).parameters
        ),
    ),
    **{
        name: (
            "no foreach flag: one path, always batched (test_batch_equals_one_by_one)",
            lambda row: "foreach" not in row.supported_impls,
        )
        for name in ("test_foreach_large_tensor", "test_foreach_matches_forloop")
    },
    **{
        name: ("no fused flag", lambda row: "fused" not in row.supported_impls)
        for name in (
            "test_cpu_load_state_dict",
            "test_fused_cpu_matches_cuda",
            "test_fused_does_not_step_if_foundinf",
            "test_fused_error_on_params_on_meta",
            "test_fused_large_tensor",
            "test_fused_matches_forloop",
            "test_grad_scaling_autocast_fused_optimizers",
        )
    },
    "test_graph_optims": (
        "no capturable flag",
        lambda row: not row.has_capturable_arg,
    ),
}


def applies(name: str) -> list[OptimizerInfo]:
    """Rows that a listed check applies to after all."""
    return [row for row in ROWS.values() if not NOT_APPLICABLE[name][1](row)]
