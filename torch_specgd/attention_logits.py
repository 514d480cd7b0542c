"""The largest attention logits of each head, seen while a transformers model runs."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from specgd_common.optional import needed

# Entries of logits that exist at one time.
_ENTRIES = 1 << 24


class Watcher(Protocol):
    """Whom an attention function's queries and keys are shown to, before it runs."""

    def see(self, module: nn.Module, query: Tensor, key: Tensor, pairs: "Pairs") -> None:
        """Look at (batch, heads, length, width) and (batch, key heads, length, width)."""


class Pairs:
    """Which query attends to which key, and how their products are scaled.

    Args:
        mask: What the attention function was given: None, (batch, keys) without padding as flash
            attention has it, or (batch or 1, heads or 1, queries, keys) of booleans or of numbers
            that are added. What is no tensor (flex attention) is not read: all pairs count.
        causal: Whether later keys are left out where there is no mask of pairs.
        scale: Factor on the products.
    """

    def __init__(self, mask: Any, causal: bool, scale: float) -> None:
        self.mask = mask if isinstance(mask, Tensor) else None
        self.causal = causal and (self.mask is None or self.mask.ndim == 2)
        self.scale = scale

    def left_out(self, rows: range, keys: int, queries: int, device: torch.device) -> Any:
        """Return where no logit counts: broadcasts to (batch, heads, rows, keys); None: nowhere."""
        out = None
        if self.mask is not None and self.mask.ndim == 2:
            out = ~self.mask[:, None, None, :keys].bool()
        elif self.mask is not None:
            part = self.mask[..., rows.start : rows.stop, :keys]
            # Added numbers that leave a pair out are the least of some dtype, or nearly.
            out = ~part if part.dtype == torch.bool else part <= torch.finfo(torch.float16).min
        if self.causal:
            i = torch.arange(rows.start, rows.stop, device=device)[:, None] + keys - queries
            later = torch.arange(keys, device=device) > i
            out = later if out is None else out | later
        return out


@torch.no_grad()
def largest_logits(query: Tensor, key: Tensor, pairs: Pairs) -> Tensor:
    """Return max |scale q_i . k_j| over the batch and all pairs that attend, (heads,), float32.

    Args:
        query: (batch, heads, queries, width).
        key: (batch, key heads, keys, width); neighbouring query heads share a key head.
        pairs: Which pairs count.

    Example:
        >>> q = k = torch.tensor([[1.0], [3.0]]).view(1, 1, 2, 1)
        >>> largest_logits(q, k, Pairs(None, causal=True, scale=0.5))
        tensor([4.5000])
    """
    batch, heads, queries, _ = query.shape
    shared, keys = key.shape[1:3]
    largest = torch.zeros(heads, device=query.device)
    step = max(1, _ENTRIES // max(1, batch * heads * keys))
    with torch.autocast(query.device.type, enabled=False):
        q = query.float().unflatten(1, (shared, heads // shared))
        k = key.float().unsqueeze(2).mT
        for start in range(0, queries, step):
            rows = range(start, min(start + step, queries))
            logits = (q[..., rows.start : rows.stop, :] @ k).flatten(1, 2).abs_()
            out = pairs.left_out(rows, keys, queries, query.device)
            if out is not None:
                logits.masked_fill_(out, 0.0)
            torch.maximum(largest, logits.amax((0, 2, 3)), out=largest)
    return largest * abs(pairs.scale)


_WATCHERS: list[Watcher] = []
_ORIGINAL: list[tuple[type, str, Callable[..., Any]]] = []


def watch(watcher: Watcher) -> None:
    """Show a watcher every call of an attention function of transformers from here on."""
    if not _WATCHERS:
        interface = needed("transformers.modeling_utils", "integrations").AttentionInterface
        # Older releases look the function up as in a dict, and eager attention not at all.
        name = "get_interface" if hasattr(interface, "get_interface") else "__getitem__"
        original = getattr(interface, name)
        _ORIGINAL.append((interface, name, original))

        def shown(self: Any, implementation: str, *default: Any) -> Any:
            function = original(self, implementation, *default)
            return partial(_show, function, implementation)

        setattr(interface, name, shown)
    _WATCHERS.append(watcher)


def unwatch(watcher: Watcher) -> None:
    """Show it no more; when nobody watches, transformers is as it was."""
    if watcher in _WATCHERS:
        _WATCHERS.remove(watcher)
        if not _WATCHERS:
            setattr(*_ORIGINAL.pop())


def _show(
    function: Callable[..., Any], implementation: str, module: nn.Module, query: Tensor,
    key: Tensor, value: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    _look(implementation, module, query, key, attention_mask, kwargs)
    return function(module, query, key, value, attention_mask, *args, **kwargs)


def _look(
    implementation: str, module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: Any
) -> None:
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    # Eager attention without a mask has none; one query alone attends to all that came before.
    pairs = Pairs(mask, causal and implementation != "eager" and query.shape[2] > 1, scale)
    for watcher in _WATCHERS:
        watcher.see(module, query, key, pairs)
