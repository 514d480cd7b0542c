"""Routing: every kind of parameter goes where it belongs, and says why."""

import copy

import pytest
import torch
from torch import nn

from torch_specgd import Muon, param_groups
from torch_specgd.triton_kernels import orthogonalize


class Block(nn.Module):
    """A transformer block of everything that routing must tell apart."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.norm = nn.LayerNorm([3, width])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gate_up_proj = nn.Linear(width, 4 * width, bias=False)
        self.router = nn.Linear(width, 4, bias=False)
        self.experts = nn.Parameter(torch.randn(4, width, width))
        self.conv = nn.Conv2d(2, 4, 3)
        self.conv1d = nn.Conv1d(2, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.block = Block()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.row = nn.Linear(8, 1, bias=False)
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.wte.weight


def reasons(model: nn.Module, **options: object) -> dict[str, tuple[str, bool]]:
    return {
        r.name: (r.reason, r.settings["use_muon"]) for r in param_groups(model, **options).routes
    }


def test_every_kind_has_its_route_and_reason() -> None:
    """Embeddings, heads, norms, positions, routers and single rows never reach Muon."""
    found = reasons(Model())
    assert found["wte.weight"] == ("embedding, tied (also lm_head.weight)", False)
    assert found["pos_embed"] == ("positional or token parameter", False)
    assert found["scale"] == ("scalar", False)
    assert found["frozen.weight"] == ("matrix, frozen", True)
    assert found["row.weight"] == ("a single row or column", False)
    block = {name[6:]: value for name, value in found.items() if name.startswith("block.")}
    assert block["attn.in_proj_weight"] == ("matrix, split 8 + 8 + 8 along 0", True)
    assert block["attn.out_proj.weight"] == ("matrix", True)
    assert block["norm.weight"] == ("norm", False)
    assert block["qkv.weight"] == ("matrix, split 8 + 8 + 8 along 0", True)
    assert block["gate_up_proj.weight"] == ("matrix, split 16 + 16 along 0", True)
    assert block["router.weight"] == ("router", False)
    assert block["experts"] == ("stack of matrices", True)
    assert block["conv.weight"] == ("convolution, flattened", True)
    assert block["conv.bias"] == ("vector", False)
    assert block["depthwise.weight"] == ("depthwise convolution", False)


def test_every_parameter_is_there_exactly_once() -> None:
    """Tied weights are stepped once, nothing is lost, and torch accepts the groups."""
    model = Model()
    groups = param_groups(model)
    listed = [p for group in groups for _, p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters()}
    assert len(listed) == len(list(model.parameters()))
    optimizer = Muon(groups, lr=0.01)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name == "frozen.weight"), name


def test_table_is_readable() -> None:
    """print(param_groups(model)) has one line per parameter and a total."""
    lines = str(param_groups(Model())).splitlines()
    assert lines[0].split() == ["parameter", "shape", "algorithm", "reason"]
    assert len(lines) == 2 + len(list(Model().parameters()))
    assert lines[-1].startswith("Muon steps ")
    assert len({line.find("  AdamW  ") for line in lines if "  AdamW  " in line}) == 1


def test_overrides_by_pattern_type_and_settings() -> None:
    """The user has the last word, and it shows in the reason."""
    found = reasons(Model(), overrides={"block.qkv.*": False, nn.Conv2d: False, "row.weight": True})
    assert found["block.qkv.weight"] == ("matrix; override 'block.qkv.*'", False)
    assert found["block.conv.weight"][1] is False
    assert found["block.conv1d.weight"][1] is True
    assert found["row.weight"][1] is True
    groups = param_groups(Model(), {"wte.weight": {"weight_decay": 0.0}}, adamw={"lr": 1e-4})
    (group,) = [g for g in groups if "wte.weight" in dict(g["params"])]
    assert (group["weight_decay"], group["lr"], group["use_muon"]) == (0.0, 1e-4, False)


@pytest.mark.parametrize(
    ("split", "shown"),
    [(4, "6 + 6 + 6 + 6 along 0"), ((20, 4), "20 + 4 along 0"), ((1, (2, 6)), "2 + 6 along 1")],
)
def test_splits_by_declaration(split: object, shown: str) -> None:
    """A fused weight that we do not know is cut as its owner says."""
    assert reasons(Model(), splits={"block.qkv.weight": split})["block.qkv.weight"] == (
        f"matrix, split {shown}",
        True,
    )
    assert reasons(Model(), splits={"block.qkv.weight": None})["block.qkv.weight"][0] == "matrix"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": {"blokc.*": False}}, r"no parameter matches \[.*blokc"),
        ({"splits": {"nothing": 2}}, "no parameter matches"),
        ({"splits": {"block.qkv.weight": 5}}, "24 rows, which is no multiple of 5"),
        ({"splits": {"block.qkv.weight": (8, 8)}}, r"split \(0, \(8, 8\)\) does not fit"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    """A pattern with a typo or sizes that do not add up never pass in silence."""
    with pytest.raises(ValueError, match=message):
        param_groups(Model(), **arguments)


def test_split_parameter_is_stepped_like_its_parts() -> None:
    """A fused QKV weight learns as q, k and v would on their own, scales included."""
    grad = torch.randn(16, 4)
    fused = nn.Parameter(torch.zeros(16, 4))
    fused.grad = grad
    group = {"params": [fused], "split": (0, (8, 4, 4))}
    Muon([group], lr=1.0, weight_decay=0.0).step()
    for part, g in zip(fused.detach().split([8, 4, 4]), grad.split([8, 4, 4]), strict=True):
        alone = nn.Parameter(torch.zeros_like(g))
        alone.grad = g
        Muon([alone], lr=1.0, weight_decay=0.0).step()
        torch.testing.assert_close(part, alone.detach())


def test_stored_transposed_means_the_same_step() -> None:
    """GPT-2 stores weights (in, out): the step and its scale are those of the (out, in) weight."""
    grad = torch.randn(4, 16)
    stored, usual = nn.Parameter(torch.zeros(4, 16)), nn.Parameter(torch.zeros(16, 4))
    stored.grad, usual.grad = grad, grad.T.contiguous()
    options = {"lr": 1.0, "weight_decay": 0.0, "neuron_beta": 0.9}
    Muon([{"params": [stored], "matrix_view": "transposed"}], **options).step()
    Muon([usual], **options).step()
    torch.testing.assert_close(stored.detach().T, usual.detach())


def test_grouped_query_attention_is_cut_by_the_configuration() -> None:
    """q is wider than k and v; a cut into thirds would mix them."""
    model = nn.Module()
    model.config = type("Config", (), {"num_attention_heads": 4, "num_key_value_heads": 1})()
    model.qkv_proj = nn.Linear(8, 12, bias=False)
    model.last = nn.Linear(8, 8, bias=False)
    found = reasons(model)
    assert found["qkv_proj.weight"] == ("matrix, split 8 + 2 + 2 along 0", True)
    model.config.num_key_value_heads = 5
    assert reasons(model)["qkv_proj.weight"] == ("matrix", True)


def test_gpt2_by_transformers_is_known() -> None:
    """c_attn is stored transposed and fused; the tied head follows the embedding."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8)
    found = reasons(transformers.GPT2LMHeadModel(config))
    assert found["transformer.h.0.attn.c_attn.weight"] == ("matrix, split 8 + 8 + 8 along 1", True)
    assert found["transformer.h.0.mlp.c_fc.weight"] == ("matrix", True)
    assert found["transformer.wte.weight"] == ("embedding, tied (also lm_head.weight)", False)
    assert found["transformer.wpe.weight"] == ("embedding", False)
    assert found["transformer.ln_f.weight"] == ("vector", False)


def test_last_linear_layer_is_the_head() -> None:
    """Whatever its name: nothing with parameters comes after it. A single layer is not one."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert reasons(model)["2.weight"] == ("output head (a guess: declared last)", False)
    assert reasons(model)["0.weight"] == ("matrix", True)
    assert reasons(nn.Linear(4, 3))["weight"] == ("matrix", True)


def test_orthogonal_steps_of_a_routed_model() -> None:
    """End to end: a routed expert stack moves by exactly orthogonal matrices."""
    model = Model()
    optimizer = Muon(param_groups(model), lr=1.0, weight_decay=0.0, nesterov=False)
    before = model.block.experts.detach().clone()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    expected = orthogonalize(model.block.experts.grad * 0.05)
    optimizer.step()
    torch.testing.assert_close(before - model.block.experts.detach(), expected)


class Experts(nn.Module):
    """Eight wide, four experts of six inner units, stored (out, in) or, as Llama 4, (in, out)."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        shapes = [(4, 8, 12), (4, 6, 8)] if transposed else [(4, 12, 8), (4, 8, 6)]
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.randn(s)) for s in shapes)


class GptOssExperts(Experts):
    def __init__(self, transposed: bool) -> None:
        super().__init__(transposed)
        self.down_proj_bias = nn.Parameter(torch.randn(4, 8))


def test_gate_and_up_of_expert_stacks_are_cut_where_they_lie() -> None:
    """Gate and up are two matrices in each expert, in either storage order, row by row too."""
    found = reasons(Experts(False))
    assert found["gate_up_proj"] == ("stack of matrices, split 6 + 6 along 1", True)
    assert found["down_proj"] == ("stack of matrices", True)
    assert reasons(Experts(True))["gate_up_proj"][0] == "stack of matrices, split 6 + 6 along 2"
    by_row = reasons(GptOssExperts(True))["gate_up_proj"]
    assert by_row == ("stack of matrices, split 6 times 1 + 1 along 2", True)
    assert reasons(GptOssExperts(True))["down_proj_bias"] == ("bias", False)
    usual, stored = Experts(False), Experts(True)
    for name in ("gate_up_proj", "down_proj"):
        p, q = getattr(usual, name), getattr(stored, name)
        q.data.copy_(p.detach().mT)
        p.grad = torch.randn_like(p)
        q.grad = p.grad.mT.contiguous()
    for model in (usual, stored):
        Muon(param_groups(model), lr=0.1).step()
    torch.testing.assert_close(usual.gate_up_proj, stored.gate_up_proj.mT)
    torch.testing.assert_close(usual.down_proj, stored.down_proj.mT)


def test_state_space_models_are_told_from_attention() -> None:
    """Mamba's decay rates are no matrix, and its input projection is not q, k and v."""
    model = nn.Module()
    config = {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 8}
    model.config = type("Config", (), config)()
    model.mixer = nn.Module()
    model.mixer.A_log = nn.Parameter(torch.randn(12, 4))
    model.mixer.in_proj = nn.Linear(8, 24, bias=False)
    model.attn = nn.Module()
    model.attn.in_proj = nn.Linear(8, 24, bias=False)
    model.other = nn.Module()
    model.other.in_proj = nn.Linear(8, 18, bias=False)
    model.last = nn.Linear(8, 8)
    found = reasons(model)
    assert found["mixer.A_log"] == ("state space parameter", False)
    assert found["mixer.in_proj.weight"] == ("matrix", True)
    assert found["attn.in_proj.weight"] == ("matrix, split 8 + 8 + 8 along 0", True)
    # Divisible by the number of heads, but not into heads of this model's width.
    assert found["other.in_proj.weight"] == ("matrix", True)


def test_gates_of_recurrent_layers_are_matrices_of_their_own() -> None:
    """torch stacks four gates (LSTM) or three (GRU) on each other; a projection is one matrix."""
    model = nn.Module()
    model.lstm, model.cell = nn.LSTM(5, 8, proj_size=3), nn.GRUCell(5, 4)
    model.rnn, model.last = nn.RNN(5, 8), nn.Linear(8, 8)
    found = reasons(model)
    assert found["lstm.weight_ih_l0"] == ("matrix, split 8 + 8 + 8 + 8 along 0", True)
    assert found["lstm.weight_hh_l0"] == ("matrix, split 8 + 8 + 8 + 8 along 0", True)
    assert found["lstm.weight_hr_l0"] == ("matrix", True)
    assert found["cell.weight_hh"] == ("matrix, split 4 + 4 + 4 along 0", True)
    assert found["rnn.weight_hh_l0"] == ("matrix", True)
