"""Config files of Hydra and torchtune: a dotted path, and settings as YAML has them."""

import io
import pkgutil
from collections import UserList
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from torch_specgd import Muon


def instantiate(config: dict[str, Any], **arguments: Any) -> Any:
    """What `hydra.utils.instantiate` and torchtune's `config.instantiate` do with a mapping."""
    settings = dict(config)
    path = settings.pop("_target_", None) or settings.pop("_component_")
    return pkgutil.resolve_name(path)(**settings, **arguments)


@pytest.mark.parametrize("key", ["_target_", "_component_"])
def test_by_dotted_path(key: str) -> None:
    """Lists stand for tuples there, and numbers may be written in any form."""
    config = yaml.safe_load(
        f"""
        {key}: torch_specgd.Muon
        lr: 2.0e-2
        weight_decay: 0.1
        adamw_betas: [0.9, 0.95]
        adjust_lr_fn: match_rms_adamw
        ns_coefficients: [3.4445, -4.7750, 2.0315]
        neuron_beta: null
        cautious_weight_decay: true
        """
    )
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = instantiate(config, params=model)
    assert type(optimizer) is Muon
    twin = Muon(
        model, lr=0.02, adamw_betas=(0.9, 0.95), adjust_lr_fn="match_rms_adamw",
        ns_coefficients=(3.4445, -4.7750, 2.0315), cautious_weight_decay=True,
    )  # fmt: skip
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    moved = [p.detach().clone() for p in model.parameters()]
    for p, old in zip(model.parameters(), before, strict=True):
        p.data.copy_(old)
    twin.step()
    for p, new in zip(model.parameters(), moved, strict=True):
        assert torch.equal(p, new)


def test_lists_of_a_config_library_stay_out_of_groups_and_checkpoints() -> None:
    """Hydra passes lists of a class of its own, which no checkpoint should need to be read."""
    betas, triple = UserList([0.9, 0.95]), UserList([3.4445, -4.7750, 2.0315])
    steps = UserList([UserList([1.5, -0.5]), UserList([1.5, -0.5])])
    p = nn.Parameter(torch.randn(4, 4))
    group = {"params": [p], "ns_coefficients": steps}
    optimizer = Muon([group], adamw_betas=betas, ns_coefficients=triple)
    assert optimizer.defaults["ns_coefficients"] == (3.4445, -4.7750, 2.0315)
    assert optimizer.param_groups[0]["ns_coefficients"] == ((1.5, -0.5), (1.5, -0.5))
    assert optimizer.param_groups[0]["adamw_betas"] == (0.9, 0.95)
    p.grad = torch.randn_like(p)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
