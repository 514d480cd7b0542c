"""State dict in, state dict out: pure, faithful, reversible."""

import collections
import json

import pytest
import torch

from warm.checkpoints import equal, fed, net
from warmstart import (
    dash_shrink,
    fire_reinit,
    fire_state_dict,
    perturb_state_dict,
    shrink_state_dict,
    undo_state_dict,
    uniform_shrink,
    uniform_state_dict,
)

safetensors_torch = pytest.importorskip("safetensors.torch")


def test_state_dict_twin_equals_the_model_method() -> None:
    """Weights edited offline must be the weights that the call on the model gives."""
    model = net()
    direction = fed(model)
    state = model.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    new, report = shrink_state_dict(state, direction.state_dict(), floor=0.2)
    assert equal(state, before)  # pure: a state dict's tensors are the live weights
    assert isinstance(new, collections.OrderedDict)
    assert new._metadata == state._metadata
    assert new["1.running_mean"] is state["1.running_mean"]
    expected = dash_shrink(model, direction, floor=0.2)
    assert equal(new, model.state_dict())
    assert [r.name for r in report.rows] == [r.name for r in expected.rows]
    for method, twin in ((uniform_shrink, uniform_state_dict), (fire_reinit, fire_state_dict)):
        model = net()
        offline, _ = twin(model.state_dict())
        method(model)
        assert equal(offline, model.state_dict())


def test_tied_tensors_stay_tied_and_are_shrunk_once() -> None:
    """Tied embeddings appear twice in a state dict; dividing them would double the file."""
    w = torch.ones(3, 2)
    new, report = uniform_state_dict({"embed.weight": w, "head.weight": w}, 0.5)
    assert new["embed.weight"] is new["head.weight"]
    assert float(new["embed.weight"][0, 0]) == 0.5
    assert report.rows[0].aliases == ("head.weight",)


def test_adapter_files_shrink_b_alone() -> None:
    """The offline twin of LoRA's rule: shrinking A as well would square the factor."""
    names = ("q.lora_A.weight", "q.lora_B.weight", "e.lora_embedding_A", "e.lora_embedding_B")
    state = {n: torch.ones(4, 4) for n in names}
    for new, report in (uniform_state_dict(state, 0.5), perturb_state_dict(state, "dash")):
        assert [r.name for r in report.rows] == ["q.lora_B.weight", "e.lora_embedding_B"]
        assert all(torch.equal(new[n], state[n]) for n in names if "A" in n)
    assert "LoRA A factor" in report.skipped[0].reason


def test_names_are_strict() -> None:
    """A direction for a layer that is not there means the wrong checkpoint."""
    state = {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2), "step": 3}
    d = {"a.weight": torch.ones(2, 2)}
    new, _ = shrink_state_dict(state, d)
    assert new["b.weight"] is state["b.weight"]
    assert new["step"] == 3
    with pytest.raises(KeyError, match=r"directions for .*'c.weight'.* have no tensor"):
        shrink_state_dict(state, {"c.weight": torch.ones(2, 2)})
    with pytest.raises(KeyError, match=r"no direction for .*'b.weight'"):
        shrink_state_dict(state, d, include="*.weight")
    with pytest.raises(ValueError, match=r"direction of 'a.weight' is \(3,\)"):
        shrink_state_dict(state, {"a.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"direction of 'a\.weight' is not finite"):
        shrink_state_dict(state, {"a.weight": torch.full((2, 2), torch.nan)})
    with pytest.raises(ValueError, match="no tensor of the state dict is selected"):
        uniform_state_dict({"step": 3})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_undo_restores_within_rounding(dtype: torch.dtype) -> None:
    """Two roundings of the weight's dtype at most: shrink and back."""
    model = net(dtype)
    state = model.state_dict()
    for new, report in (shrink_state_dict(state, fed(model)), uniform_state_dict(state, 0.3)):
        text = json.loads(report.to_json(factors=True))
        back = undo_state_dict(new, text)
        eps = torch.finfo(dtype).eps
        tiny = torch.finfo(dtype).tiny
        for k in state:
            if state[k].is_floating_point():
                error = (back[k].double() - state[k].double()).abs()
                assert bool((error <= 2 * eps * state[k].double().abs() + 4 * tiny).all())
    _, report = perturb_state_dict(state, "dash")
    with pytest.raises(ValueError, match="a perturb report has no factors"):
        undo_state_dict(state, report.to_dict(factors=True))
