"""Small models of transformers' architectures, with weights nobody has trained."""

import pytest
from torch import nn

SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 16),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "hidden_dim"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 32),
    **dict.fromkeys(("max_source_positions", "max_target_positions", "image_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    "num_key_value_heads": 2, "vocab_size": 64, "d_kv": 8, "head_dim": 8, "patch_size": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "hidden_sizes": [8, 16], "depths": [1, 1], "num_mel_bins": 16, "rotary_dim": 8,
    "moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "conv_dim": [8, 8], "conv_stride": [2, 2],
    "conv_kernel": [3, 3], "num_feat_extract_layers": 2, "attention_hidden_size": 16,
}  # fmt: skip
NAMES = (
    "albert", "bart", "bert", "bigbird_pegasus", "bloom", "camembert", "codegen", "convnext",
    "convnextv2", "ctrl", "deberta", "deberta-v2", "deit", "dinov2", "distilbert", "electra",
    "esm", "gemma", "gpt2", "gpt_bigcode", "gptj", "llama", "longformer", "marian", "mistral",
    "mixtral", "mobilebert", "mpnet", "mpt", "olmoe", "openai-gpt", "opt", "pegasus", "phi",
    "qwen2", "qwen2_moe", "resnet", "roformer", "stablelm", "t5", "vit", "wav2vec2", "whisper",
    "xglm", "xlm",
)  # fmt: skip


def small(name: str) -> nn.Module:
    """A model of one architecture, with its head where there is one for text."""
    transformers = pytest.importorskip("transformers")
    kind = transformers.CONFIG_MAPPING[name]
    plain = kind()
    fixed = {k for k in dir(kind) if isinstance(getattr(kind, k), property)}
    sizes = {k: v for k, v in SIZES.items() if hasattr(plain, k) and k not in fixed}
    if "depths" in sizes and hasattr(plain, "num_stages"):
        sizes["num_stages"] = len(sizes["depths"])
    if getattr(plain, "layer_types", None):
        sizes["layer_types"] = list(plain.layer_types)[:2]
    config = kind(**sizes)
    heads = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForSeq2SeqLM,
    )
    found = [h for h in heads if type(config) in h._model_mapping]
    return (found[0] if found else transformers.AutoModel).from_config(config)
