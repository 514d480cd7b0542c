"""QK-clip on models of transformers: what it sees, what it scales, and what it leaves alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from reference.attention import latent_logits, llama_logits
from torch_specgd import QKClip
from torch_specgd.attention_logits import Pairs, largest_logits

THETA = 10000.0
SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def built(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{**SIZES, "attn_implementation": attention, **changes}
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if p.ndim > 1 and "embed" not in name:
            nn.init.normal_(p, std=0.5)
        elif name.endswith("bias"):
            nn.init.normal_(p)
    return model


def deepseek(attention: str = "sdpa", **changes: Any) -> Any:
    return built(
        "DeepseekV3", attention, num_key_value_heads=4, kv_lora_rank=12, qk_rope_head_dim=4,
        qk_nope_head_dim=6, v_head_dim=5, q_lora_rank=changes.pop("q_lora_rank", 10),
        first_k_dense_replace=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, **changes,
    )  # fmt: skip


@contextmanager
def inputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each attention was given."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            seen[name] = (
                kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            ).detach()

        return hook

    hooks = [m.register_forward_pre_hook(keep(n), with_kwargs=True) for n, m in modules.items()]
    yield seen
    for hook in hooks:
        hook.remove()


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if n.endswith("self_attn")}


def tokens(padded: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(40, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def largest(logits: Tensor, mask: Tensor) -> Tensor:
    """Of the pairs of a causal model that are no padding."""
    attends = torch.ones(logits.shape[-2:], dtype=torch.bool).tril() & mask[:, None, None].bool()
    return logits.abs().masked_fill(~attends, 0.0).amax((0, 2, 3))


Reference = Callable[[nn.Module, Tensor], Tensor]
CASES: dict[str, tuple[Callable[[str], Any], Reference]] = {
    "Llama": (
        lambda a: built("Llama", a), lambda m, x: llama_logits(m, x, 4, 4, THETA)
    ),
    "grouped queries": (
        lambda a: built("Llama", a, num_key_value_heads=2),
        lambda m, x: llama_logits(m, x, 4, 2, THETA),
    ),
    "one key, biases": (
        lambda a: built("Qwen2", a, num_key_value_heads=1),
        lambda m, x: llama_logits(m, x, 4, 1, THETA),
    ),
    "biases": (
        lambda a: built("Qwen2", a, num_key_value_heads=4),
        lambda m, x: llama_logits(m, x, 4, 4, THETA),
    ),
    "DeepSeek-V3": (deepseek, lambda m, x: latent_logits(m, x, 4, THETA)),
    "DeepSeek-V3, whole queries": (
        lambda a: deepseek(a, q_lora_rank=None), lambda m, x: latent_logits(m, x, 4, THETA)
    ),
}  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_head_is_brought_to_the_limit(case: str, padded: bool, attention: str) -> None:
    """Held against float64: the maxima, the factors, and the same inputs' logits afterwards."""
    make, logits_of = CASES[case]
    model, batch = make(attention), tokens(padded)
    layers = attentions(model)
    with inputs_of(layers) as inputs, QKClip(model, tau=1.0) as clip:
        model(**batch)
        before = {n: logits_of(m, inputs[n]) for n, m in layers.items()}
        maxima = {n: largest(x, batch["attention_mask"]) for n, x in before.items()}
        for name, found in clip.max_logits.items():
            torch.testing.assert_close(found.double(), maxima[name], rtol=2e-5, atol=1e-6)
        clip.tau = tau = float(torch.cat([*maxima.values()]).median())
        gammas = clip.clip_()
    assert set(gammas) == set(layers)
    changed = torch.cat([*gammas.values()]) < 0.9999  # the median's own may be rounded
    assert changed.any()
    assert not changed.all()
    for name, module in layers.items():
        gamma = (tau / maxima[name]).clamp(max=1.0)
        torch.testing.assert_close(gammas[name].double(), gamma, rtol=2e-5, atol=0)
        after = logits_of(module, inputs[name])
        assert float(largest(after, batch["attention_mask"]).max()) <= tau * (1 + 1e-5)
        wanted = before[name] * gamma[:, None, None]
        torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "make",
    [lambda a: built("Llama", a), deepseek,
     lambda a: built("GPT2", a, n_embd=32, n_layer=2, n_head=4, n_positions=64)],
    ids=["Llama", "DeepSeek-V3", "GPT-2"],
)  # fmt: skip
def test_watching_changes_no_bit(make: Callable[[str], Any], attention: str) -> None:
    """The model's own attention runs, with gradients, and transformers is left as it was."""
    model, original = make(attention).eval(), AttentionInterface.get_interface
    results = []
    for watched in (False, True):
        clip = QKClip(model) if watched else None
        model.zero_grad()
        logits = model(**tokens()).logits
        logits.square().mean().backward()
        results.append(
            [logits, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
        if clip is not None:
            clip.close()
            assert float(clip.max_logits.popitem()[1].max()) > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert AttentionInterface.get_interface is original


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}),
        ("GPTNeoX", {"num_hidden_layers": 1}),
        ("Phi3", {"num_hidden_layers": 1, "num_key_value_heads": 2, "pad_token_id": 0}),
    ],
)
def test_fused_projections_are_scaled_in_their_parts(kind: str, settings: dict[str, Any]) -> None:
    """One layer makes q, k and v: one after the other, or head by head. A second look agrees."""
    model = built(kind, **settings).eval()  # no dropout between two looks
    with QKClip(model) as clip:
        model(**tokens())
        (name, before), *_ = clip.max_logits.items()
        clip.tau = float(before.median())
        gamma = clip.clip_()[name]
        model(**tokens())
        torch.testing.assert_close(clip.max_logits[name], before * gamma, rtol=1e-4, atol=1e-5)
        assert 0 < int((gamma < 0.9999).sum()) < len(gamma)


def test_maxima_are_of_training_passes_since_the_last_clip() -> None:
    """Micro-batches add up, evaluation does not count, and nothing is clipped twice."""
    model = built("Llama", num_hidden_layers=1)
    parts = [{k: v[i : i + 1] for k, v in tokens().items()} for i in range(3)]
    with QKClip(model) as clip:
        model(**tokens())
        together = dict(clip.max_logits)
        clip.clip_()
        for part in parts:
            model(**part)
        for name, found in clip.max_logits.items():
            torch.testing.assert_close(found, together[name])
        clip.clip_()
        with torch.no_grad():
            model(**tokens())
        with pytest.raises(RuntimeError, match="run the model with gradients on"):
            clip.clip_()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # its new name
@pytest.mark.parametrize("way", ["compiled", "checkpointed"])
def test_maxima_are_the_same(way: str) -> None:
    """Compiled, or run twice: once without gradients, and again in the backward pass."""
    model = built("Llama", use_cache=False)
    with QKClip(model) as clip:
        model(**tokens())
        plain, clip.max_logits = clip.max_logits, {}
        if way == "compiled":
            run = torch.compile(model, backend="eager")
        else:
            model.train().gradient_checkpointing_enable()
            run = model
        run(**tokens()).logits.square().mean().backward()
        assert clip.max_logits.keys() == plain.keys()
        for name, found in clip.max_logits.items():
            torch.testing.assert_close(found, plain[name])


def test_encoders_see_all_pairs_and_names_choose() -> None:
    """BERT's queries attend to later keys as well; only one of its layers is watched."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    place = "encoder.layer.1.attention.self"
    seen = {}

    def keep(_: nn.Module, inputs: Any) -> None:
        seen["x"] = inputs[0].detach()

    model.get_submodule(place).register_forward_pre_hook(keep)
    with QKClip(model, layers="*.1.attention.self") as clip:
        model(**tokens())
    attention = model.get_submodule(place)
    q, k = (
        layer(seen["x"]).double().unflatten(-1, (4, -1)).transpose(1, 2)
        for layer in (attention.query, attention.key)
    )
    wanted = (q @ k.mT / 8**0.5).abs().amax((0, 2, 3))
    assert list(clip.max_logits) == [place]
    torch.testing.assert_close(clip.max_logits[place].double(), wanted, rtol=1e-5, atol=1e-7)


# As in test_peft.py: the package's own deprecation.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_what_cannot_be_clipped_is_named() -> None:
    """Where scaled weights would not scale logits, nothing is watched."""
    from peft import LoraConfig, get_peft_model

    original = AttentionInterface.get_interface
    normalized = built("Qwen3", head_dim=8)
    with pytest.raises(ValueError, match=r"layers.0.self_attn normalizes .*q_norm, k_norm"):
        QKClip(normalized)
    adapted = get_peft_model(built("Llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"self_attn.q_proj must be a plain linear layer.*merge"):
        QKClip(adapted)
    with pytest.raises(ValueError, match=r"is named like '\*.encoder'"):
        QKClip(built("Llama"), layers="*.encoder")
    with pytest.raises(ValueError, match="tau must be above 0 and finite, got 0"):
        QKClip(built("Llama"), tau=0.0)
    assert AttentionInterface.get_interface is original


def test_attention_that_goes_another_way_is_no_silence() -> None:
    """A model with the same names, whose attention nobody can see."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.q_proj(x) @ self.k_proj(x).mT).softmax(-1) @ x

    model = nn.Sequential(Own())
    with QKClip(model) as clip:
        model(torch.randn(2, 3, 4))
        with pytest.raises(RuntimeError, match="must go through transformers' AttentionInterface"):
            clip.clip_()


def test_logits_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences are looked at some rows at a time; masks and offsets go along."""
    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.rand(2, 1, 9, 9) > 0.3
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    padding = torch.ones(2, 9, dtype=torch.long)
    padding[1, 5:] = 0
    for given in (None, mask, added, padding):
        whole = largest_logits(q, k, Pairs(given, True, 0.5))
        with monkeypatch.context() as patch:
            patch.setattr("torch_specgd.attention_logits._ENTRIES", 2 * 4 * 9 * 2)
            assert torch.equal(largest_logits(q, k, Pairs(given, True, 0.5)), whole)
    same = [largest_logits(q, k, Pairs(m, True, 0.5)) for m in (mask, added)]
    assert torch.equal(*same)
