"""Embeddings and output heads are known by what they are, wherever they are declared."""

import pytest
import torch
from torch import nn

from torch_specgd import param_groups


def adamw(model: nn.Module) -> set[str]:
    """Names of the matrices that are AdamW's."""
    return {
        r.name
        for r in param_groups(model).routes
        if r.param.ndim > 1 and not r.settings["use_muon"]
    }


def reasons(model: nn.Module) -> dict[str, str]:
    return {r.name: r.reason for r in param_groups(model).routes}


class VocabParallelEmbedding(nn.Module):
    """As Megatron's: a module of its own, of no class that torch knows."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(words, width))


class ColumnParallelLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))


def test_classes_of_other_libraries() -> None:
    """The embedding by its class, the head by its width; the layer between is a matrix."""
    model = nn.ModuleDict(
        {
            "output": ColumnParallelLinear(16, 30),
            "tokens": VocabParallelEmbedding(30, 16),
            "ff": ColumnParallelLinear(16, 16),
        }
    )
    found = reasons(model)
    assert found["output.weight"] == "output head"
    assert found["tokens.weight"] == "embedding"
    assert found["ff.weight"] == "matrix"


@pytest.mark.parametrize(
    "name",
    ["lm_head", "classifier", "pre_classifier", "class_embed", "qa_outputs", "score", "head",
     "audio_lm_head", "token_logits", "heads", "class_predictor", "embed_out", "unembed"],
)  # fmt: skip
def test_heads_by_name_need_not_be_last(name: str) -> None:
    """A head that is declared before a projection of the same model was orthogonalized."""
    model = nn.ModuleDict({name: nn.Linear(8, 5), "layers": nn.ModuleList([nn.Linear(8, 8)])})
    model["norm"], model["proj"] = nn.LayerNorm(8), nn.Linear(8, 8)
    assert adamw(model) == {f"{name}.weight"}


def test_heads_by_class_with_all_that_is_in_them() -> None:
    """Roberta's head is dense, out_proj; DETR's is an MLP of three layers."""

    class BoxHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)])

    class SentimentClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.out_proj = nn.Linear(8, 8), nn.Linear(8, 2)

    model = nn.ModuleDict(
        {
            "boxes": BoxHead(),
            "sentiment": SentimentClassifier(),
            "body": nn.Sequential(*[nn.Linear(8, 8) for _ in range(8)]),
        }
    )
    assert adamw(model) == {
        *(f"boxes.layers.{i}.weight" for i in range(3)),
        "sentiment.dense.weight",
        "sentiment.out_proj.weight",
    }


def test_attention_heads_are_no_output() -> None:
    """Modules called heads, of a class called Head, that hold keys, queries and values."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.query, self.value = (nn.Linear(8, 4, bias=False) for _ in range(3))

    class MultiHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([Head() for _ in range(2)])
            self.proj = nn.Linear(8, 8)

    for inner in (MultiHead(), nn.Sequential(*[nn.Sequential(MultiHead()) for _ in range(2)])):
        model = nn.ModuleDict({"tok": nn.Embedding(30, 8), "sa": inner})
        model["lm_head"] = nn.Linear(8, 30)
        assert adamw(model) == {"tok.weight", "lm_head.weight"}


def test_names_of_heads_inside_of_blocks() -> None:
    """GPT-J's fc_out is its MLP's second half, and Funnel's k_head a projection of keys."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k_head, self.fc_out = nn.Linear(8, 8), nn.Linear(8, 8)
            self.output = nn.Sequential(nn.Linear(8, 8))

    model = nn.ModuleDict({"h": nn.ModuleList([Block()]), "lm_head": nn.Linear(8, 30)})
    assert adamw(model) == {"lm_head.weight"}


def test_heads_by_width() -> None:
    """As wide as the vocabulary, the labels, or an embedding is long, and taken by nothing."""
    config = type("Config", (), {"vocab_size": 30, "num_labels": 5})()
    model = nn.ModuleDict({"words": nn.Linear(8, 30), "tags": nn.Linear(8, 5)})
    model["x"] = nn.Linear(8, 8)
    assert all("guess" in reasons(model)[name] for name in ("words.weight", "x.weight"))
    model.config = config
    assert adamw(model) == {"words.weight", "tags.weight"}
    net = nn.ModuleDict({"a": nn.Embedding(30, 8), "b": nn.Linear(8, 30), "c": nn.Linear(8, 8)})
    assert adamw(net) == {"a.weight", "b.weight"}
    net["d"] = nn.Linear(30, 8)  # the width is an inner one
    assert adamw(net) == {"a.weight", "d.weight"}


def test_the_last_layer_is_a_guess_that_says_so() -> None:
    """With no other sign; its twins and the heads beside it go with it."""
    guess = "output head (a guess: declared last)"
    net = nn.ModuleDict(
        {"body": nn.Linear(4, 8), "policy": nn.Linear(8, 3), "value": nn.Linear(8, 2)}
    )
    found = reasons(net)
    assert (found["body.weight"], found["policy.weight"]) == ("matrix", guess)
    assert found["value.weight"] == guess
    towers = nn.ModuleDict({"image": nn.Linear(6, 8), "text": nn.Linear(5, 8)})
    towers["visual_projection"], towers["text_projection"] = nn.Linear(8, 7), nn.Linear(8, 7)
    towers["scale"] = nn.LayerNorm(7)
    assert adamw(towers) == {"visual_projection.weight", "text_projection.weight"}


def test_no_guess_inside_of_blocks_or_attention() -> None:
    """An encoder without a head ends in an inner layer, which is a matrix as the others are."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
            self.out = nn.Linear(8, 8)

    encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])})
    assert adamw(encoder) == set()
    assert adamw(nn.ModuleDict({"embed": nn.Linear(4, 8), "attention": Attention()})) == set()
    assert adamw(nn.Linear(4, 3)) == set()


def test_twins_of_transformers() -> None:
    """Models that differ in the order of declaration alone have the same routes."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 1,
    }  # fmt: skip
    routes = []
    for kind in ("Roberta", "Camembert", "XLMRoberta", "IBert"):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        found = adamw(model)
        routes.append({name.partition(".")[2] for name in found})
        assert {"classifier.dense.weight", "classifier.out_proj.weight"} <= found
    assert all(r == routes[0] for r in routes[1:])


def test_a_big_network_called_head_is_a_network() -> None:
    """A decoder of blocks under the name of a head keeps Muon; its last layer is the output."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = nn.ModuleList([Block()])
            self.classifier = nn.Linear(8, 3)

    model = nn.ModuleDict({"body": nn.Sequential(*[nn.Linear(8, 8) for _ in range(9)])})
    model["depth_head"] = Depth()
    assert adamw(model) == {"depth_head.classifier.weight"}
