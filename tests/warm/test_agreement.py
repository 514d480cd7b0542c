"""Model and file agree: what a call takes of a model, the command line takes of its file."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from specgd_common.fused import HEADS
from warm.architectures import NAMES, small
from warmstart import (
    Target,
    find_targets,
    fire_reinit,
    fire_state_dict,
    perturb_state_dict,
    shrink_and_perturb,
    uniform_shrink,
    uniform_state_dict,
)
from warmstart.__main__ import main
from warmstart.files.state_dicts import file_cut
from warmstart.methods.fire import model_cut
from warmstart.targets.state_targets import state_targets

ARGUMENTS: dict[str, tuple] = {
    "AdaptiveLogSoftmaxWithLoss": (8, 20, [5, 10]), "Bilinear": (2, 3, 4), "Linear": (4, 3),
    "Embedding": (5, 4), "EmbeddingBag": (5, 4), "MultiheadAttention": (8, 2),
    "Transformer": (8, 2, 1, 1, 16), "TransformerEncoderLayer": (8, 2, 16),
    "TransformerDecoderLayer": (8, 2, 16), "LSTM": (4, 5), "GRU": (4, 5), "RNN": (4, 5),
    "LSTMCell": (4, 5), "GRUCell": (4, 5), "RNNCell": (4, 5), "LayerNorm": ((4, 6),), "PReLU": (4,),
}  # fmt: skip


def with_weights() -> dict[str, nn.Module]:
    """One module of every class of torch.nn that has weights."""
    out: dict[str, nn.Module] = {}
    for name in dir(nn):
        kind = getattr(nn, name)
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)) or name.startswith("Lazy"):
            continue
        # Shapes are guessed until one constructor takes them; some warn of empty weights.
        for arguments in [ARGUMENTS[name]] if name in ARGUMENTS else [(4, 6, 3), (4, 6), (4,), ()]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    module = kind(*arguments)
            except TypeError:
                continue
            except (ValueError, RuntimeError):
                break
            if any(True for _ in module.parameters()):
                out[name] = module
            break
    return out


MODULES = {
    **with_weights(),
    "weight_norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
    "weight_norm of all": nn.utils.parametrizations.weight_norm(nn.Linear(3, 4), dim=None),
    "spectral_norm": nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
    "orthogonal": nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
    "spectral_norm, older": nn.utils.spectral_norm(nn.Linear(3, 4)),
    "pruned": prune.random_unstructured(
        prune.random_unstructured(nn.Linear(3, 4), "bias", 0.5), "weight", 0.5
    ),
    "bidirectional": nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3),
    "grouped transpose": nn.ConvTranspose1d(4, 6, 2, groups=2),
    "kdim": nn.MultiheadAttention(8, 2, kdim=3, vdim=5, add_bias_kv=True),
}


def choice(targets: Sequence[Target]) -> dict[frozenset[str], tuple[str, tuple[int, ...]]]:
    """Every target by all of its names, with its units."""
    return {frozenset((t.name, *t.aliases)): (t.unit, t.dims) for t in targets}


def of_model(model: nn.Module, **options) -> dict:
    return choice(find_targets(model, **options)[0])


def test_the_list_is_long() -> None:
    """torch may add classes; a constructor that changes must not empty the list in silence."""
    assert {"Conv3d", "GRUCell", "Bilinear", "PReLU", "RMSNorm", "Transformer"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_with_weights(name: str) -> None:
    """LSTM and weight_norm were left out of files; LayerNorm over two dimensions was taken."""
    module = MODULES[name]
    model = nn.Sequential()
    model.add_module("layer", module)
    model.add_module("fc", nn.Linear(2, 2))
    targets, skipped = state_targets(model.state_dict())
    assert choice(targets) == of_model(model)
    assert name != "pruned" or [t.name for t in targets][:2] == [
        "layer.bias_orig",
        "layer.weight_orig",
    ]
    names = {n for t in targets for n in (t.name, *t.aliases)} | {s.name for s in skipped}
    assert names == {n for n, x in model.state_dict().items() if isinstance(x, torch.Tensor)}
    filters, _ = state_targets(model.state_dict(), units="filter")
    if name != "grouped transpose":  # its groups are not told
        assert choice(filters) == of_model(model, units="filter")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", NAMES)
def test_architectures(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same tensors in the same units, and the same ones become isometries."""
    caplog.set_level(logging.CRITICAL)
    torch.manual_seed(0)
    model = small(name)
    state = {n: x.clone() for n, x in model.state_dict().items()}
    targets, _ = state_targets(model.state_dict())
    assert choice(targets) == of_model(model)
    if name in ("bart", "gpt2", "llama", "convnext", "mobilebert"):
        new, report = fire_state_dict(model.state_dict())
        rows = fire_reinit(model).rows
        assert {frozenset((r.name, *r.aliases)) for r in report.rows} == {
            frozenset((r.name, *r.aliases)) for r in rows
        }
        for n, x in model.state_dict().items():
            torch.testing.assert_close(new[n], x, rtol=0, atol=1e-5)
        assert any(not torch.equal(new[n], x) for n, x in state.items())


def test_reports_count_the_same_weights() -> None:
    """Running statistics lie in the file, and are no weights."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    _, of_file = uniform_state_dict(model.state_dict())
    assert of_file.summary() == uniform_shrink(model, dry_run=True).summary()
    assert of_file.summary().startswith("58 of 62 weights in 4 of 6 tensors; ")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", [*NAMES, "gpt_neox", "persimmon", "falcon", "phi3"])
def test_fused_projections_are_cut_alike(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """FIRE of a file stacked what FIRE of its model cuts: heads in a row, shared keys."""
    caplog.set_level(logging.CRITICAL)
    model = small(name)
    shapes = {n: tuple(x.shape) for n, x in model.state_dict().items()}
    heads = next((n for h in HEADS if (n := getattr(model.config, h, None))), None)
    on_model = {
        t.name: model_cut(model, t, t.parameter)
        for t in find_targets(model)[0]
        if t.direction_of is None
    }
    for t in state_targets(model.state_dict())[0]:
        if t.direction_of is not None:  # magnitudes are no matrices
            continue
        own = next(on_model[n] for n in (t.name, *t.aliases) if n in on_model)
        assert file_cut(t, shapes, heads) == own, t.name


def test_unknown_heads_are_left_and_named(tmp_path: Path, capsys) -> None:
    """Thirds of such a layer mix queries, keys and values; settings beside the file tell."""
    torch.manual_seed(0)
    model = small("bloom")
    state, source = model.state_dict(), tmp_path / "model.pt"
    fused = [n for n in state if n.endswith("query_key_value.weight")]
    new, report = fire_state_dict(state)
    assert all(torch.equal(new[n], state[n]) for n in fused)
    assert any("give heads (--heads)" in note for note in report.notes)
    torch.save(state, source)
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    assert main(["fire", str(source), "-o", str(tmp_path / "out.pt")]) == 0
    fire_reinit(model)
    for n, x in torch.load(tmp_path / "out.pt", weights_only=True).items():
        torch.testing.assert_close(x, model.state_dict()[n], rtol=0, atol=1e-5)
    assert main(["fire", str(source), "-o", str(tmp_path / "o.pt"), "--heads", "-1"]) == 2
    assert "heads must be >= 1, got -1" in capsys.readouterr().err
    assert main(["fire", str(source), "-o", str(tmp_path / "o.pt"), "--heads", "5"]) == 2
    assert "heads must divide the 16 rows" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["ash", "dash", "interpolate", "dohare"])
def test_buffers_never_change(preset: str) -> None:
    """A real file got 67 negative variances and NaN outputs from a perturbation of them."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    fresh = {n: x.clone() for n, x in model.state_dict().items()}
    with torch.no_grad():
        model[1].running_var.fill_(1e-6)
        model[1].running_mean.fill_(5.0)
    state = model.state_dict()
    new, report = perturb_state_dict(state, preset, perturb=1e-2, fresh=fresh)
    on_model = shrink_and_perturb(model, preset, perturb=1e-2, fresh=fresh, dry_run=True)
    assert {r.name for r in report.rows} == {r.name for r in on_model.rows}
    for n in ("running_mean", "running_var", "num_batches_tracked"):
        assert new[f"1.{n}"] is state[f"1.{n}"]
    everything, _ = state_targets(state, include="*")
    assert not [t.name for t in everything if "running" in t.name]
