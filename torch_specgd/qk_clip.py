"""QK-clip: rescales query and key weights when attention logits grow too large."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from specgd_common.cuts import pieces
from specgd_common.fused import QKV, fused_cut_of
from specgd_common.places import has_class, is_linear
from specgd_common.tensors import is_dtensor

from .attention_logits import Pairs, largest_logits, unwatch, watch
from .checks import number
from .groups.per_head import QUERY

KEY = re.compile(r"(to_|w|linear_)?(k|key|keys)(_(proj|lin|linear|head))?", re.IGNORECASE)
NORM = re.compile(r"(q|k|qk|query|key)_?(layer_?)?norm|norm_[qk]|[qk]_ln", re.IGNORECASE)


@torch.no_grad()
def qk_clip_(q: Tensor, k: Tensor, max_logits: Tensor, *, tau: float = 100.0) -> Tensor:
    """Scale each attention head so that its largest logit is at most ``tau``, in place.

        gamma_h = min(1, tau / S_h)

    With as many key heads as query heads both weights take sqrt(gamma_h). Where query heads share
    key heads (grouped-query attention) only the queries are scaled, by gamma_h: another factor on
    a shared key would change the neighbours' logits.

    Call it after ``optimizer.step()``, with the largest absolute logit that each head showed in
    the forward pass. Rotary embeddings do not change the result; biases of q and k, if any, are
    passed as further weights of shape (heads * head_dim, 1).

    Args:
        q: (heads * head_dim, in), the query projection's weight, changed in place.
        k: (kv_heads * head_dim, in), the key projection's weight, changed in place.
        max_logits: (heads,), S_h: each head's largest absolute logit, as it enters the softmax.
        tau: The limit (default 100, as in the source).

    Returns:
        gamma, (heads,).

    Raises:
        ValueError: If shapes do not fit, a logit is not finite, or ``tau`` is not above zero.

    Source:
        Kimi K2, arXiv 2507.20534 (MuonClip).

    Example:
        >>> q, k = torch.eye(4), torch.eye(4)
        >>> qk_clip_(q, k, torch.tensor([50.0, 400.0]), tau=100.0)
        tensor([1.0000, 0.2500])
        >>> q.diag()
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    heads = max_logits.numel()
    _check_tau(tau)
    if q.shape[0] % heads:
        raise ValueError(f"q has {q.shape[0]} rows, which is no multiple of {heads} heads")
    width = q.shape[0] // heads
    if k.shape[0] % width or heads % (k.shape[0] // width):
        raise ValueError(f"k has {k.shape[0]} rows, which do not fit {heads} heads of {width}")
    if not bool(max_logits.isfinite().all()):
        raise ValueError(f"max_logits are not finite: {max_logits.tolist()}")
    gamma = (tau / max_logits.clamp(min=tau)).to(q.dtype)
    shared = k.shape[0] < q.shape[0]
    factor = (gamma if shared else gamma.sqrt()).repeat_interleave(width)
    q.mul_(factor.view(-1, *[1] * (q.ndim - 1)))
    if not shared:
        k.mul_(factor.view(-1, *[1] * (k.ndim - 1)))
    return gamma


def _check_tau(tau: float) -> None:
    number()("tau", tau)
    if tau == 0:
        raise ValueError(f"tau must be above 0 and finite, got {tau}")


class QKClip:
    """Watches the attention of a transformers model, and clips what grew too large.

    While the model runs with gradients on, the largest absolute logit of every head is kept: of
    pairs that attend, as it enters the softmax, over all passes since the last clip. ``clip_()``
    scales the weights (and biases) of queries and keys as :func:`qk_clip_` does. Multi-head latent
    attention (DeepSeek-V2 and V3, Kimi) has parts of its own: with gamma as there,

        query and key without position: sqrt(gamma_h),   rotary query: gamma_h,   rotary key: 1

    since the rotary key is shared by all heads. Watching costs one more product of queries and keys
    a pass, in float32; the model's own attention function (sdpa, eager, flash) runs as before.
    Under DDP and FSDP2 the ranks' maxima are joined. Evaluation under ``no_grad`` does not count.

    Args:
        model: A model of transformers whose attention goes through its ``AttentionInterface``,
            bare or wrapped; projections may be apart or fused.
        tau: The limit (default 100, as in the source).
        layers: Pattern of names of the attention modules to watch (default: all).

    Raises:
        ValueError: If no attention is found, or one normalizes its queries and keys, where scaled
            weights would change nothing; name the others by ``layers`` then.

    Source:
        Kimi K2, arXiv 2507.20534 (MuonClip).

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> with QKClip(model, tau=1e-6) as clip:
        ...     loss = model(input_ids=torch.arange(8)[None]).logits.square().mean()
        ...     loss.backward()  # and optimizer.step()
        ...     gammas = clip.clip_()
        >>> bool((gammas["model.layers.0.self_attn"] < 1).all())
        True
    """

    def __init__(self, model: nn.Module, tau: float = 100.0, *, layers: str = "*") -> None:
        _check_tau(tau)
        self.tau = tau
        found = {
            name: _Projections.of(model, name, module)
            for name, module in model.named_modules()
            if fnmatchcase(name, layers) and _has_heads(module)
        }
        if not found:
            raise ValueError(f"no attention with queries and keys is named like {layers!r}")
        self._projections = found
        self._names = {model.get_submodule(name): name for name in found}
        self.max_logits: dict[str, Tensor] = {}
        self._widths: dict[str, int] = {}
        watch(self)

    def see(self, module: nn.Module, query: Tensor, key: Tensor, pairs: Pairs) -> None:
        """Keep the largest logits of a watched module's heads; called by its attention."""
        name = self._names.get(module)
        if name is not None and torch.is_grad_enabled():
            largest = largest_logits(query.detach(), key.detach(), pairs)
            known = self.max_logits.get(name)
            self.max_logits[name] = largest if known is None else torch.maximum(known, largest)
            self._widths[name] = query.shape[-1]

    @torch.no_grad()
    def clip_(self) -> dict[str, Tensor]:
        """Scale the weights of heads above ``tau``, in place; forget the maxima.

        Call it after ``optimizer.step()``; ``optimizer.register_step_post_hook(lambda *_:
        clip.clip_())`` does so.

        Returns:
            gamma of each attention module that ran, (heads,), 1 where nothing was changed.

        Raises:
            RuntimeError: If no watched attention ran since the last call.
            ValueError: If a logit is not finite, or a weight does not have the heads that ran.
        """
        seen, self.max_logits = _over_ranks(self.max_logits), {}
        if not seen:
            raise RuntimeError(
                "no attention logit was seen since the last clip: run the model with gradients on; "
                "its attention must go through transformers' AttentionInterface, as sdpa does"
            )
        factors = {
            name: self._projections[name].factors(largest, self._widths[name], self.tau)
            for name, largest in seen.items()
        }
        for name in seen:
            self._projections[name].scale_(*factors[name][:2])
        return {name: gamma for name, (_, _, gamma) in factors.items()}

    def close(self) -> None:
        """Watch no longer."""
        unwatch(self)

    def __enter__(self) -> "QKClip":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Projections(NamedTuple):
    """The layers that make an attention's queries and keys, and which of their rows do.

    Attributes:
        name: Of the attention module.
        query: Makes queries, and perhaps more.
        key: Makes keys, and perhaps more; the same where they are fused.
        query_rows: Positions of the queries along the layer's outputs.
        key_rows: Positions of the keys; of latent attention all.
        latent: Widths of a head of latent attention: (without position, rotary, value), or None.
    """

    name: str
    query: nn.Module
    key: nn.Module
    query_rows: Tensor
    key_rows: Tensor
    latent: tuple[int, int, int] | None

    @staticmethod
    def of(model: nn.Module, name: str, module: nn.Module) -> "_Projections":
        """Find them among an attention module's children."""
        norms = [n for n, m in module._modules.items() if NORM.fullmatch(n) and _is_norm(m)]
        if norms:
            raise ValueError(
                f"{name} normalizes queries and keys ({', '.join(norms)}), which bounds its logits "
                "already: clipped weights would change nothing"
            )
        children = {n: m for n, m in module._modules.items() if m is not None}
        fused = next((n for n in children if _is_fused(n)), None)
        latent = "kv_b_proj" in children
        names: tuple[str, str]
        if latent:
            names = next(n for n in ("q_b_proj", "q_proj") if n in children), "kv_b_proj"
        elif fused is not None:
            names = fused, fused
        else:
            names = (
                next(n for n in children if QUERY.fullmatch(n)),
                next(n for n in children if KEY.fullmatch(n)),
            )
        layers = [children[n] for n in names]
        for own, layer in zip(names, layers, strict=True):
            if not is_linear(layer) or "weight" not in layer._parameters:
                raise ValueError(
                    f"{name}.{own} must be a plain linear layer, got {type(layer).__name__}: merge "
                    "adapters and remove parametrizations before QK-clip"
                )
        q, k = (torch.arange(_outputs(layer)) for layer in layers)
        if fused is not None and not latent:
            cut = fused_cut_of(model, f"{name}.{fused}.weight".lstrip("."))
            parts = pieces(q, None if cut is None else (0, *cut[1:]))
            if len(parts) != 3:
                raise ValueError(f"{name}.{fused} must be cut into q, k and v, got {cut}")
            q, k = parts[:2]
        widths = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        of_head = tuple(getattr(module, w) for w in widths) if latent else None
        return _Projections(name, layers[0], layers[1], q, k, of_head)

    def factors(self, largest: Tensor, width: int, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the factors of the query rows, of the key rows, and gamma of each head."""
        if not bool(largest.isfinite().all()):
            raise ValueError(f"the logits of {self.name} are not finite: {largest.tolist()}")
        heads, (asking, asked) = len(largest), (len(self.query_rows), len(self.key_rows))
        gamma = tau / largest.clamp(min=tau)
        root, one = gamma.sqrt(), torch.ones_like(gamma)
        if self.latent is not None:
            plain, rotary, value = self.latent
            sizes = torch.tensor([plain, rotary]), torch.tensor([plain, value])
            wanted = heads * (plain + rotary), heads * (plain + value)
            q, k = torch.stack([root, gamma], 1), torch.stack([root, one], 1)
            made = [_spread(x, n) for x, n in zip((q, k), sizes, strict=True)]
        else:
            # Another factor on a key that several heads share would change the others' logits.
            shared = asked < asking
            wanted = heads * width, asked if shared and not asked % width else heads * width
            sizes = (torch.tensor([width]),) * 2
            q, k = (gamma, one[: asked // width]) if shared else (root, root)
            made = [_spread(x[:, None], sizes[0]) for x in (q, k)]
        if (asking, asked) != wanted:
            raise ValueError(
                f"{self.name} must make {wanted[0]} rows of queries for {heads} heads and "
                f"{wanted[1]} of keys, got {asking} and {asked}: layers that tensor parallelism "
                "divides, or that make gates as well, are not supported"
            )
        return made[0], made[1], gamma

    def scale_(self, queries: Tensor, keys: Tensor) -> None:
        """Multiply the rows of both layers' weights and biases."""
        for layer, rows, factors in (
            (self.query, self.query_rows, queries),
            (self.key, self.key_rows, keys),
        ):
            if bool((factors == 1).all()):
                continue
            along = torch.ones(_outputs(layer), device=factors.device)
            along[rows.to(factors.device)] = factors
            for p in layer._parameters.values():
                if p is not None:
                    dim = 1 if has_class(layer, "Conv1D") and p.ndim == 2 else 0
                    shape = [-1 if i == dim else 1 for i in range(p.ndim)]
                    p.mul_(_everywhere(along.view(shape).to(p.dtype), p))


def _has_heads(module: nn.Module) -> bool:
    """Say whether a module's children make queries and keys."""
    names = [n for n, m in module._modules.items() if m is not None and not _is_norm(m)]
    apart = any(map(QUERY.fullmatch, names)) and any(map(KEY.fullmatch, names))
    fused = any(map(_is_fused, names))
    latent = "kv_b_proj" in names and hasattr(module, "qk_nope_head_dim")
    return apart or latent or fused


def _is_fused(name: str) -> bool:
    """Say whether a layer of this name makes queries, keys and values; "in_proj" may be any."""
    own = name.lower()
    return own != "in_proj" and (own == "query_key_value" or bool(QKV.fullmatch(own)))


def _is_norm(module: nn.Module | None) -> bool:
    return module is not None and "norm" in type(module).__name__.lower()


def _outputs(layer: nn.Module) -> int:
    return layer._parameters["weight"].shape[int(has_class(layer, "Conv1D"))]  # type: ignore[union-attr]


def _spread(x: Tensor, sizes: Tensor) -> Tensor:
    """Repeat each column of (heads, parts) so often, head by head."""
    return x.repeat_interleave(sizes.to(x.device), dim=1).flatten()


def _everywhere(x: Tensor, p: Tensor) -> Tensor:
    """Return x where p lies: of a DTensor the same on every rank."""
    if not is_dtensor(p):
        return x.to(p.device)
    from torch.distributed.tensor import DTensor, Replicate

    mesh = p.device_mesh
    return DTensor.from_local(x.to(p.to_local().device), mesh, [Replicate()] * mesh.ndim)


def _over_ranks(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the largest logits over all ranks, which ran the same modules."""
    if not seen or not (dist.is_available() and dist.is_initialized()):
        return seen
    values: Sequence[Tensor] = list(seen.values())
    joined = torch.cat([x.to(values[0].device) for x in values])
    dist.all_reduce(joined, dist.ReduceOp.MAX)
    return dict(zip(seen, joined.split([len(x) for x in values]), strict=True))
