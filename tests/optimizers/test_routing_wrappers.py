"""A parameter is what its layer says it is, whatever stands around the model or the weight."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from torch_specgd import ParamGroups, param_groups


def tiny_phi() -> nn.Module:
    """A model whose fused projection is cut by numbers of heads that its config knows."""
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=70, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    return Phi3ForCausalLM(config)


class Around(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Replica(nn.Module):
    """DistributedDataParallel and DataParallel keep the model under this name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def lightning_module(net: nn.Module) -> nn.Module:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

    return Module()


def what(groups: ParamGroups) -> list[tuple[object, ...]]:
    return [(r.settings, r.reason.partition(" (also")[0]) for r in groups.routes]


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    Around,
    Replica,
    lambda net: Around(Replica(net)),
    lightning_module,
    lambda net: torch.compile(net, backend="eager"),
    lambda net: nn.ModuleDict({"student": net}),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_has_the_routes_of_the_bare_one(wrap: object) -> None:
    """A loss module or DDP around the model hid its config, and fused weights were left whole."""
    bare = param_groups(tiny_phi())
    wrapped = param_groups(wrap(tiny_phi()))
    assert what(wrapped) == what(bare)
    reasons = [r.reason for r in wrapped.routes if "qkv" in r.name]
    assert reasons == ["matrix, split 32 + 16 + 16 along 0"] * 2


@pytest.mark.parametrize("wrap", [Around, Replica, lightning_module])
def test_wrapped_nets_without_a_config(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Of a single layer, a net of layers, and one whose class is named like a head."""

    class DigitClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    for net in (
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        DigitClassifier(),
    ):
        assert what(param_groups(wrap(net))) == what(param_groups(net))
    muon = [r.name for r in param_groups(DigitClassifier()).routes if r.settings["use_muon"]]
    assert muon == ["fc1.weight", "fc2.weight"]


def layers() -> dict[str, nn.Module]:
    return {
        "embed": nn.Embedding(20, 8),
        "conv1d": nn.Conv1d(8, 16, 3),
        "depthwise": nn.Conv1d(16, 16, 3, groups=16),
        "lstm_like": nn.Linear(16, 16),
        "lm_head": nn.Linear(16, 20),
        "last_norm": nn.LayerNorm(16),
    }


@pytest.mark.parametrize(
    "parametrize",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        pytest.param(
            torch.nn.utils.spectral_norm,
            marks=pytest.mark.filterwarnings("ignore::FutureWarning"),
        ),
        pytest.param(
            torch.nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")
        ),
    ],
)
def test_parametrized_layers_are_their_plain_twins(parametrize: Callable) -> None:
    """The weight stands below the layer then, and the type of its holder says nothing."""
    plain = {r.name: r for r in param_groups(nn.ModuleDict(layers())).routes}
    held = layers()
    for name in ("embed", "conv1d", "depthwise", "lstm_like", "lm_head"):
        parametrize(held[name])
    for route in param_groups(nn.ModuleDict(held)).routes:
        layer = route.name.partition(".")[0]
        twin = plain[f"{layer}.weight"]
        if route.param.shape == twin.param.shape and route.param.ndim > 1:
            keys = ("use_muon", "matrix_view")
            assert [route.settings[k] for k in keys] == [twin.settings[k] for k in keys]
            assert route.reason == twin.reason


def test_weights_of_a_parametrization_are_no_layer() -> None:
    """A low-rank factor is a matrix of its own; other tensors are nobody's."""

    class Change(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A = nn.Parameter(torch.zeros(2, 8))
            self.table = nn.Parameter(torch.zeros(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    layer = nn.Linear(8, 8, bias=False)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Change())
    found = {r.name: r for r in param_groups(nn.ModuleDict({"a": layer})).routes}
    prefix = "a.parametrizations.weight."
    assert found[f"{prefix}original"].reason == "matrix"
    assert found[f"{prefix}0.lora_A"].settings["use_muon"]
    assert found[f"{prefix}0.table"].reason == "unknown parameter"


def test_checkpointed_blocks() -> None:
    """Recomputation wraps each block; its layers stay what they are."""
    net = nn.Sequential(checkpoint_wrapper(nn.Linear(8, 8)), nn.Linear(8, 3))
    assert what(param_groups(net)) == what(
        param_groups(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))
    )


@pytest.mark.filterwarnings("default")
def test_adapters_on_a_model() -> None:
    """Base layers keep their routes, factors are matrices, and a kept head is a head."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        vocab_size=50, num_labels=2,
    )  # fmt: skip
    bare = {r.name: r for r in param_groups(BertForSequenceClassification(config)).routes}
    lora = LoraConfig(
        r=4, target_modules=["query", "word_embeddings"], task_type="SEQ_CLS",
        trainable_token_indices=None,
    )  # fmt: skip
    adapted = get_peft_model(BertForSequenceClassification(config), lora)
    routes = {r.name.removeprefix("base_model.model."): r for r in param_groups(adapted).routes}
    for name, route in routes.items():
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        if plain in bare:
            assert route.settings == bare[plain].settings, name
    head = routes["classifier.modules_to_save.default.weight"]
    assert (head.settings["use_muon"], head.reason) == (False, "output head")
    factors = {n: r.settings["use_muon"] for n, r in routes.items() if "lora_" in n}
    assert all(muon for name, muon in factors.items() if "query" in name)
    assert not factors["bert.embeddings.word_embeddings.lora_embedding_A.default"]


@pytest.mark.parametrize("around", [nn.Sequential, lambda *nets: nn.ModuleList(nets)])
def test_networks_in_lists_keep_their_heads(around: Callable[..., nn.Module]) -> None:
    """A list around a model is a wrapper, and of several models each has a head of its own."""

    def net() -> nn.Module:
        made = nn.ModuleDict({"tokens": nn.Embedding(30, 8), "output": nn.Linear(8, 30)})
        block = nn.ModuleDict({"fc": nn.Linear(8, 8), "head": nn.Linear(8, 8)})
        made["blocks"] = nn.ModuleList([block, nn.ModuleDict({"fc": nn.Linear(8, 8)})])
        made["head"] = nn.Linear(8, 5)
        return made

    bare = [(r.settings, r.reason) for r in param_groups(net()).routes]
    assert [reason for _, reason in bare].count("output head") == 2
    for count in (1, 2):
        model = around(*(net() for _ in range(count)))
        assert [(r.settings, r.reason) for r in param_groups(model).routes] == count * bare
    last = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    guessed = param_groups(around(last)).routes[-2].reason
    assert guessed == "output head (a guess: declared last)"
