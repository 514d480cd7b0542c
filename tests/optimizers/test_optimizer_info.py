"""PyTorch's generic optimizer checks, driven by its OptimizerInfo table: the table and errors.

Each check that PyTorch has under the same name keeps that name in the files test_optimizer_info*,
so that a decorator of the table (a skip, a tolerance) finds it. What does not run is listed in
optimizer_info.NOT_APPLICABLE.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import DecorateInfo
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    get_error_inputs_for_all_optims,
    optim_db,
)

from optimizers.optimizer_info import (
    FLAGS,
    NOT_APPLICABLE,
    OWN_ERRORS,
    ROWS,
    TORCH_CHECKS,
    TORCH_ROW,
    applies,
    muon_inputs,
)
from optimizers.optimizer_info_problem import Problem, every_row
from torch_specgd import Muon


def names_here() -> set[str]:
    """Tests in these files, which lie beside each other."""
    files = Path(__file__).parent.glob("test_optimizer_info*.py")
    text = "\n".join(file.read_text() for file in files)
    return set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))


def names_in_the_table(test_class: str) -> set[str]:
    """Tests of PyTorch that some row of its table skips or loosens."""
    decorators = [d for row in optim_db for d in row.decorators if isinstance(d, DecorateInfo)]
    return {d.test_name for d in decorators if d.cls_name == test_class and d.test_name}


def test_list_of_what_does_not_apply_is_current() -> None:
    """Every check of torch runs here or is listed with a reason, and each reason holds."""
    here = names_here()
    assert set(TORCH_CHECKS) == set(TORCH_CHECKS) & here | NOT_APPLICABLE.keys()
    named = names_in_the_table("TestOptimRenewed")
    named |= names_in_the_table("CompiledOptimizerParityTests")
    assert named <= set(TORCH_CHECKS), "torch's table names a check that is not known here"
    for name, (why, _) in NOT_APPLICABLE.items():
        runs_for = [row.name for row in applies(name)]
        assert bool(runs_for) == (name in here), f"{name} applies to {runs_for}; listed: {why}"
        for instead in re.findall(r"\((test_\w+)\)", why):
            assert instead in here, f"{name} points to {instead}"


@every_row
def test_no_check_is_skipped_or_loosened_by_torchs_row(row: OptimizerInfo) -> None:
    """Torch's row for Muon excuses nothing here but its compiled step, which ours need not."""
    for name in names_here():
        found = row.get_decorators("TestOptimRenewed", name, "cpu", torch.float32, {})
        assert not found, f"{name} has decorators in the table: {found}"
    assert TORCH_ROW.get_decorators(
        "CompiledOptimizerParityTests", "test_correctness", "cpu", torch.float32, {}
    )


@every_row
def test_flags_and_arguments_are_all_covered(row: OptimizerInfo) -> None:
    """A flag that the constructor has is declared; each argument stands in some input."""
    # What a module is asked for when it is routed is no setting of a group.
    arguments = set(inspect.signature(row.optim_cls).parameters) - {"params", "per_head"}
    assert set(row.supported_impls) == set(FLAGS) & arguments
    assert row.has_capturable_arg == ("capturable" in arguments)
    inputs = row.optim_inputs_func(device="cpu")
    # Torch's rule: flags stand in the tests, not in the inputs (capturable: on CUDA only).
    assert arguments - {*FLAGS, "capturable"} == {key for given in inputs for key in given.kwargs}


def test_torchs_own_inputs_are_all_driven() -> None:
    """Ours are added to torch's inputs, which stand first and unchanged."""
    theirs = TORCH_ROW.optim_inputs_func(device="cpu")
    assert [i.kwargs for i in muon_inputs("cpu")[: len(theirs)]] == [i.kwargs for i in theirs]


@every_row
def test_optim_infos_do_not_specify_global_cliquey_kwargs(row: OptimizerInfo) -> None:
    """The table's rule for rows: flags that exclude each other are left to the tests."""
    for given in row.optim_inputs_func(device="cpu"):
        assert not set(FLAGS) & given.kwargs.keys()


# ---- errors ----

ERRORS = [
    (row, error)
    for row in ROWS.values()
    for error in row.optim_error_inputs_func("cpu", torch.float32)
]


def refuse(row: OptimizerInfo, error: ErrorOptimizerInput) -> bool:
    """Meet the expected error or warning, and say whether no parameter was moved by an error."""
    given = error.optimizer_error_input
    expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    at_once = error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
    params = [Parameter(torch.randn(2, 3))] if given.params is None else given.params
    tensors = [p for p in params if isinstance(p, torch.Tensor)]
    before = [p.detach().clone() for p in tensors]
    if at_once:
        with expected(error.error_type, match=error.error_regex):
            row.optim_cls(params, **given.kwargs)
    else:
        optimizer = row.optim_cls(params, **given.kwargs)
        with expected(error.error_type, match=error.error_regex):
            optimizer.step()
    kept = all(torch.equal(p, old) for p, old in zip(tensors, before, strict=True))
    return kept or expected is pytest.warns


@pytest.mark.parametrize(
    ("row", "error"), ERRORS, ids=lambda x: getattr(x, "name", None) or x.optimizer_error_input.desc
)
def test_errors(row: OptimizerInfo, error: ErrorOptimizerInput) -> None:
    """What torch refuses is refused, with a message, at construction or before the step moves."""
    assert refuse(row, error)


def torchs_errors() -> dict[str, ErrorOptimizerInput]:
    errors = TORCH_ROW.optim_error_inputs_func("cpu", torch.float32)
    return {error.error_regex: error for error in errors}


def test_errors_differ_only_where_listed() -> None:
    """A listed difference is a real one: torch's own expectation is not met there."""
    assert OWN_ERRORS.keys() <= torchs_errors().keys()
    for regex in OWN_ERRORS:
        with pytest.raises((TypeError, ValueError, pytest.fail.Exception, AssertionError)):
            refuse(ROWS["Muon"], torchs_errors()[regex])


def test_what_only_torch_refuses_takes_a_step() -> None:
    """A 3-D parameter, which torch.optim.Muon refuses, is stepped as a batch of matrices."""
    (regex,) = (regex for regex, own in OWN_ERRORS.items() if own is None)
    (p,) = torchs_errors()[regex].optimizer_error_input.params
    assert p.ndim == 3
    one_by_one = [Parameter(m.clone()) for m in p]
    for m, grad in zip(one_by_one, p.grad, strict=True):
        m.grad = grad.clone()
    Muon([p]).step()
    Muon(one_by_one).step()
    assert_close(p, torch.stack(one_by_one).detach())


@every_row
def test_errors_for_every_optimizer_are_among_ours(row: OptimizerInfo) -> None:
    """No expectation that torch has of every optimizer is dropped."""
    common = {e.optimizer_error_input.desc for e in get_error_inputs_for_all_optims("cpu", None)}
    ours = row.optim_error_inputs_func("cpu", torch.float32)
    assert common <= {e.optimizer_error_input.desc for e in ours}


@every_row
def test_sparse_gradients_refused(row: OptimizerInfo) -> None:
    """A sparse gradient anywhere stops the step before any parameter is changed."""
    problem = Problem()
    optimizer = row.optim_cls(problem.params)
    problem.backward()
    problem.bias.grad = problem.bias.grad.to_sparse()
    before = problem.twin()
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*shape \(10,\)"):
        optimizer.step()
    assert torch.equal(before.weight, problem.weight)
