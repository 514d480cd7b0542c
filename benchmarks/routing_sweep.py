"""Route every architecture of transformers, and nets as torchvision builds them, under rules.

    python benchmarks/routing_sweep.py                # all of them, about three minutes
    python benchmarks/routing_sweep.py --sample 60    # as the tests do
    python benchmarks/routing_sweep.py --show Bert    # the tables of matching architectures

Each model is built on the meta device with its default widths and two layers, routed by
`param_groups`, and again inside of a plain module. The rules know parameters by other means than
routing does: by sentinel widths (37 labels), `get_output_embeddings`, numbers of groups and names.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_specgd import ParamGroups, param_groups

LABELS = 37
LAYERS = re.compile(
    r"(^|_)(num_(\w+_)?layers?|n_layers?|num_blocks|depth|n_blocks)$|^layers$|^(en|de)coder_layers$"
)
# Weights that are known to hold several matrices; of these names some stand for one matrix.
FUSED = re.compile(
    r"(^|\.)(qkv|qkv_proj|wqkv|c_attn|query_key_value|queries_keys_values|att_proj|to_kv"
    r"|in_proj_(qkvz|ba|qkv)|gate_up_proj|proj_up_gate_z|Wi|in_proj_weight)(\.linear)?(\.weight)?$",
    re.IGNORECASE,
)
LAYER_CLASSES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase)


class Outcome(NamedTuple):
    """What came of one architecture."""

    name: str
    parameters: int
    muon: int
    guesses: list[str]
    splits: int
    faults: list[str]


class Around(nn.Module):
    """A plain module around a model, as users write for their losses."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def architectures() -> list[str]:
    """Names of all models of transformers that its automatic classes know and that can be had."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = set()
    for table in vars(modeling_auto):
        if table.endswith("_MAPPING_NAMES"):
            for value in getattr(modeling_auto, table).values():
                names |= set(value) if isinstance(value, (tuple, list)) else {value}
    found = []
    for name in sorted(names):
        with contextlib.suppress(ImportError, AttributeError):
            if hasattr(getattr(transformers, name), "config_class"):
                found.append(name)
    return found


def build(name: str) -> nn.Module:
    """Build an architecture on the meta device, with two layers where its config lets."""
    import transformers

    kind = getattr(transformers, name)
    errors = []
    for shallow in (True, False):
        config = kind.config_class()
        if shallow:
            _make_shallow(config)
        try:
            with torch.device("meta"):
                return kind(config)
        except Exception as error:  # every library error there is
            errors.append(error)
    raise errors[0]


def _make_shallow(config: Any) -> None:
    from transformers import PretrainedConfig

    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _make_shallow(value)
        elif type(value) is int and value > 2 and LAYERS.search(key):
            with contextlib.suppress(Exception):
                setattr(config, key, 2)
    with contextlib.suppress(Exception):
        config.num_labels = LABELS


def check(name: str, model: nn.Module) -> Outcome:
    """Route a model and say which rules it breaks."""
    groups = param_groups(model)
    faults = [f"{fault}: {rest}" for fault, rest in _faults(model, groups)]
    wrapped = param_groups(Around(model))
    for route, other in zip(groups.routes, wrapped.routes, strict=True):
        if (route.settings, route.reason.split(" (also")[0]) != (
            other.settings,
            other.reason.split(" (also")[0],
        ):
            faults.append(f"other route in a wrapper: {route.name}: {route.reason}/{other.reason}")
    stepped = sum(len(group["params"]) for group in groups)
    if stepped != len(list(model.parameters())):
        faults.append("not every parameter has one route")
    return Outcome(
        name,
        len(groups.routes),
        sum(r.settings["use_muon"] for r in groups.routes),
        [r.name for r in groups.routes if "guess" in r.reason],
        sum(bool(r.settings["split"]) for r in groups.routes),
        faults,
    )


def _faults(model: nn.Module, groups: ParamGroups) -> Iterator[tuple[str, str]]:
    owners = dict(model.named_modules(remove_duplicate=False))
    outputs = _output_weights(model)
    labels = _is_used_once(model, LABELS)
    for name, p, settings, reason in groups.routes:
        if not settings["use_muon"]:
            continue
        path = name.split(".parametrizations.")[0] if "parametrizations" in name else name
        owner = owners[path if path in owners else name.rpartition(".")[0]]
        here = f"{name} {tuple(p.shape)} {type(owner).__name__}: {reason}"
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or _is_embedding(owner):
            yield "embedding", here
        if id(p) in outputs or (labels and LABELS in p.shape) or _is_head(name):
            yield "head", here
        if isinstance(owner, nn.modules.conv._ConvNd):
            if owner.groups > 1 and owner.groups in (owner.in_channels, owner.out_channels):
                yield "depthwise convolution", here
            if p.ndim == 3 and settings["matrix_view"] != "flatten":
                yield "convolution as a stack", here
        elif not isinstance(owner, LAYER_CLASSES) and not _is_known(owner, name, p):
            yield "unknown parameter", here
        if FUSED.search(path) and not settings["split"] and not _is_single(owner, path):
            yield "fused weight left whole", here


def _output_weights(model: nn.Module) -> set[int]:
    found = set()
    for module in model.modules():
        with contextlib.suppress(Exception):
            found |= {id(p) for p in module.get_output_embeddings().parameters()}
    return found


def _is_used_once(model: nn.Module, width: int) -> bool:
    """Whether a width is the model's output and no inner one."""
    return not any(width == getattr(m, "in_features", None) for m in model.modules())


def _is_embedding(owner: nn.Module) -> bool:
    return "Embedding" in type(owner).__name__ and "weight" in owner._parameters


def _is_head(name: str) -> bool:
    *_, module = name.rpartition(".")[0].split(".")
    return bool(re.fullmatch(r"lm_head|classifier|\w+_classifier|class_embed", module))


def _is_known(owner: nn.Module, name: str, p: Tensor) -> bool:
    kind = type(owner).__name__
    if re.search(r"Linear|Conv|MultiheadAttention", kind) and "weight" in name.rpartition(".")[2]:
        return True
    if re.search("expert", f"{kind}.{name}", re.IGNORECASE):
        return p.ndim == 3
    return "Attention" in kind and bool(re.search(r"\.(q|k|v|o|r|r_kernel)$", name))


def _is_single(owner: nn.Module, path: str) -> bool:
    """Names of the list that stand for one matrix: a T5 without gate, a stem of two projections."""
    weight = owner._parameters.get("weight")
    if re.search(r"(^|\.)wi(\.weight)?$", path):
        return True
    return weight is not None and weight.ndim == 3 and "Conv" in type(owner).__name__


def vision_nets() -> dict[str, nn.Module]:
    """Nets as torchvision builds them, at their own widths."""
    with torch.device("meta"):
        return {"resnet": _resnet(), "mobilenet": _mobilenet(), "vgg": _vgg(), "vit": _vit()}


def _resnet() -> nn.Module:
    def block(inputs: int, width: int, groups: int = 1) -> nn.Module:
        layer = nn.Module()
        layer.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        layer.bn1 = nn.BatchNorm2d(width)
        layer.conv2 = nn.Conv2d(width, width, 3, groups=groups, bias=False)
        layer.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        layer.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1), nn.BatchNorm2d(4 * width))
        return layer

    net = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64)
    net.layer1 = nn.Sequential(block(64, 64), block(256, 64, groups=32))
    net.fc = nn.Linear(256, LABELS)
    return net


def _mobilenet() -> nn.Module:
    def unit(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, kernel, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

    net = nn.Module()
    block = nn.Sequential(unit(32, 96, 1), unit(96, 96, 3, groups=96), nn.Conv2d(96, 32, 1))
    net.features = nn.Sequential(unit(3, 32, 3), block, unit(32, 1280, 1))
    net.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, LABELS))
    return net


def _vgg() -> nn.Module:
    net = nn.Module()
    net.features = nn.Sequential(*[nn.Conv2d(n, 64, 3) for n in (3, 64, 64, 64)])
    wide = (nn.Linear(3136, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU())
    net.classifier = nn.Sequential(*wide, nn.Linear(512, LABELS))
    return net


def _vit() -> nn.Module:
    net = nn.Module()
    net.class_token = nn.Parameter(torch.zeros(1, 1, 64))
    net.conv_proj = nn.Conv2d(3, 64, 16, 16)
    net.encoder = nn.Module()
    net.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 197, 64))
    layer = nn.TransformerEncoderLayer(64, 4)
    net.encoder.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    net.heads = nn.Sequential()
    net.heads.add_module("head", nn.Linear(64, LABELS))
    return net


def sweep(names: list[str]) -> tuple[list[Outcome], dict[str, str]]:
    """Check each of the architectures, and say why those are missing that cannot be built."""
    outcomes, missing = [], {}
    for name in names:
        try:
            model = build(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            continue
        outcomes.append(check(name, model))
    return outcomes, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, help="only so many architectures, drawn by seed 0")
    parser.add_argument("--show", help="print the tables of architectures that hold this text")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    names = architectures()
    if options.show:
        for name in (n for n in names if options.show in n):
            print(f"\n{name}\n{param_groups(build(name))}")
        return 0
    if options.sample:
        names = sorted(random.Random(0).sample(names, options.sample))
    start = time.perf_counter()
    outcomes, missing = sweep(names)
    outcomes += [check(name, net) for name, net in vision_nets().items()]
    for outcome in outcomes:
        for fault in outcome.faults:
            print(f"FAULT {outcome.name}: {fault}")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"architectures built  {len(outcomes) - 4:6} of {len(names)}, and 4 nets of vision")
    for error, count in Counter(text.partition(":")[0] for text in missing.values()).items():
        print(f"  not built, {error:20} {count}")
    print(f"parameters           {sum(o.parameters for o in outcomes):6}")
    print(f"  orthogonalized     {sum(o.muon for o in outcomes):6}")
    print(f"  cut into parts     {sum(o.splits for o in outcomes):6}")
    guessing = sum(bool(o.guesses) for o in outcomes)
    print(f"  guessed            {sum(len(o.guesses) for o in outcomes):6} in {guessing} models")
    print(f"faults               {sum(len(o.faults) for o in outcomes):6}")
    print(f"{time.perf_counter() - start:.0f} s")
    return any(o.faults for o in outcomes)


if __name__ == "__main__":
    sys.exit(main())
