"""Sixty architectures of transformers that nobody chose, and nets of vision, routed under rules."""

import importlib.util
import random
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "routing_sweep.py"


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("routing_sweep", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["routing_sweep"] = module  # its classes look themselves up there
    spec.loader.exec_module(module)
    return module


def test_a_sample_of_all_architectures(sweep: ModuleType) -> None:
    """No embedding, head, depthwise convolution or unknown parameter goes to Muon.

    Neither is a convolution seen as a stack or a known fused weight left whole, nor does a module
    around the model change anything.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, of hundreds of files
        names = sweep.architectures()
        sample = random.Random(0).sample(names, 60)
        outcomes, missing = sweep.sweep(sample)
    assert {o.name: o.faults for o in outcomes if o.faults} == {}
    assert len(outcomes) > 45, missing
    assert sum(o.muon for o in outcomes) > 0.25 * sum(o.parameters for o in outcomes)


def test_nets_of_vision(sweep: ModuleType) -> None:
    """As torchvision builds them: grouped and depthwise convolutions, classifiers of layers."""
    for name, net in sweep.vision_nets().items():
        outcome = sweep.check(name, net)
        assert outcome.faults == [], name
        assert outcome.muon > 1, name


def test_the_rules_find_what_is_wrong(sweep: ModuleType) -> None:
    """A rule that nothing breaks would pass whatever routing does."""
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(9, 4),
            "conv": nn.Conv1d(4, 4, 3),
            "depthwise": nn.Conv2d(4, 4, 3, groups=4),
            "qkv": nn.Linear(4, 12),
            "lm_head": nn.Linear(4, 9),
        }
    )
    model.register_parameter("latents", nn.Parameter(model["qkv"].weight.detach().clone()))
    groups = sweep.param_groups(model)
    assert list(sweep._faults(model, groups)) == []
    for route in groups.routes:
        route.settings.update(use_muon=True, matrix_view="auto", split=None)
    kinds = {kind for kind, _ in sweep._faults(model, groups)}
    assert kinds == {
        "embedding", "head", "depthwise convolution", "convolution as a stack",
        "unknown parameter", "fused weight left whole",
    }  # fmt: skip
