"""What Muon refuses: by name, at once, and with nothing changed."""

import pytest
import torch
from torch import nn

from torch_specgd import Muon


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be a finite number of at least 0, got -1.0"),
        ({"lr": float("nan")}, ValueError, "lr must be a finite number"),
        ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element and real, got 2 elements"),
        ({"lr": "1"}, TypeError, "lr must be a finite number of at least 0, got '1' of str"),
        ({"momentum": -0.1}, ValueError, r"momentum must be a number in \[0, 1\)"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"ns_steps": 100}, ValueError, "ns_steps must be an integer from 1 to 99, got 100"),
        ({"ns_coefficients": "jordann"}, ValueError, "jordann"),
        ({"adjust_lr_fn": "rms"}, ValueError, "adjust_lr_fn must be one of"),
        ({"adamw_betas": (0.9, 1.0)}, ValueError, r"adamw_betas\[1\] must be a number in"),
        ({"adamw_betas": None}, ValueError, "adamw_betas must be two numbers, got None"),
        ({"adamw_lr_ratio": -1.0}, ValueError, "adamw_lr_ratio"),
        ({"nesterov": "False"}, TypeError, "nesterov must be True or False, got 'False'"),
        ({"foreach": "no"}, TypeError, "foreach must be True, False or None"),
        ({"maximize": None}, TypeError, "maximize must be True or False, got None"),
    ],
)
def test_bad_hyper_parameters_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    """A mistake shows at construction, with the value, and not as a strange loss."""
    with pytest.raises(error, match=message):
        Muon([nn.Parameter(torch.zeros(2, 2))], **arguments)


def test_bad_groups_are_refused_and_leave_no_trace() -> None:
    """A failed add_param_group does not half-add the group."""
    optimizer = Muon([("w", nn.Parameter(torch.zeros(2, 2)))])
    vector = ("b", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match=r"'b' of shape \(3,\)"):
        optimizer.add_param_group({"params": [vector], "use_muon": True})
    with pytest.raises(TypeError, match=r"'c' of shape .* is torch.complex64"):
        optimizer.add_param_group({"params": [("c", nn.Parameter(torch.zeros(2, 2) + 0j))]})
    with pytest.raises(ValueError, match="matrix_view"):
        optimizer.add_param_group({"params": [vector], "matrix_view": "rows"})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [vector]})
    assert len(optimizer.param_groups) == 2


def test_sparse_gradient_is_refused_before_anything_moves() -> None:
    """The first parameter must not have been stepped when the second is refused."""
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    p.grad, q.grad = torch.ones(2, 2), torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match=r"sparse gradients, but a parameter of shape \(2, 2\)"):
        Muon([p, q]).step()
    assert torch.equal(p, torch.ones(2, 2))


def test_misspelled_group_key_is_pointed_out() -> None:
    """A key that nobody reads would leave a head with Muon; keys of the user's own are fine."""
    with pytest.warns(UserWarning, match="'use_moun' and ignores it: was 'use_muon' meant"):
        Muon([{"params": [nn.Parameter(torch.zeros(2, 2))], "use_moun": False}])
    Muon([{"params": [nn.Parameter(torch.zeros(2, 2))], "name": "head", "initial_lr": 0.1}])


def test_parameters_in_float8_are_refused_by_name() -> None:
    """Torch has no arithmetic on them, which would only show at the first step."""
    p = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match=r"'w' of shape \(4, 4\) is torch.float8_e4m3fn"):
        Muon([("w", p)])
