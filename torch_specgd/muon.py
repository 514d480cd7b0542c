"""Muon for any model: matrices are orthogonalized, everything else takes AdamW."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from .learning_rate import LR_SCALES, shape_scale
from .optimizer import SpectralOptimizer, check_non_negative, orthogonalize_all
from .routing import MATRIX_VIEWS, matrix_shape, uses_muon
from .triton_kernels import orthogonalize, resolve_schedule

Coefficients = str | tuple[float, float, float] | Sequence[tuple[float, ...]]


def muon(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: Coefficients,
    eps: float,
    ns_steps: int,
    adjust_lr_fn: str | None,
    views: Sequence[str] | None = None,
    maximize: bool = False,
) -> None:
    """One Muon step on matrices, in place; the equation stands at :class:`Muon`.

    Args:
        params: Weights W of two or more dimensions, changed in place.
        grads: Gradients G of the same shapes; never changed.
        momentum_buffers: Buffers B of the same shapes, changed in place.
        lr: Learning rate, a float or a one-element tensor (used without a device sync).
        weight_decay: Decoupled weight decay per unit of ``lr``.
        momentum: Weight of the old buffer.
        nesterov: Whether to look ahead.
        ns_coefficients: See :class:`Muon`.
        eps: Lower bound on the norm that a matrix is divided by.
        ns_steps: How often a single coefficient triple is applied.
        adjust_lr_fn: See :func:`torch_specgd.learning_rate.shape_scale`.
        views: How each parameter is seen as matrices, see ``routing.as_matrices``; default "auto".
        maximize: Ascend instead of descend.
    """
    if not params:
        return
    views = ["auto"] * len(params) if views is None else views
    grads = [g.to(b.dtype) for g, b in zip(grads, momentum_buffers, strict=True)]
    if maximize:
        grads = torch._foreach_neg(grads)
    torch._foreach_lerp_(momentum_buffers, grads, 1 - momentum)
    updates = (
        torch._foreach_lerp(grads, momentum_buffers, momentum) if nesterov else momentum_buffers
    )
    updates = orthogonalize_all(updates, views, _engine(ns_coefficients, ns_steps, eps))
    scales = [
        shape_scale(adjust_lr_fn, *matrix_shape(p, v)) for p, v in zip(params, views, strict=True)
    ]
    if weight_decay:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    if isinstance(lr, Tensor):
        # A multiplication by a tensor, where alpha= would read the tensor's value on the host.
        updates = torch._foreach_mul(torch._foreach_mul(updates, scales), lr)
        torch._foreach_sub_(params, updates)
        return
    for p, update, scale in zip(params, updates, scales, strict=True):
        p.add_(update, alpha=-lr * scale)


def _engine(coefficients: Coefficients, steps: int, eps: float) -> Any:
    if isinstance(coefficients, str) and coefficients == "auto":
        return partial(orthogonalize, method="auto", eps=eps)
    return partial(
        orthogonalize, method="newton_schulz", schedule=coefficients, steps=steps, eps=eps
    )


class Muon(SpectralOptimizer):
    r"""Muon for a whole model; a superset of ``torch.optim.Muon``.

    For each weight W with gradient G and momentum buffer B::

        B <- momentum B + (1 - momentum) G
        U  = (1 - momentum) G + momentum B   if nesterov, else B
        W <- (1 - lr weight_decay) W - lr s(m, n) polar(U)

    where polar(U) = Q V^T of the singular value decomposition U = Q S V^T, approximated by a
    Newton-Schulz iteration, and s is the shape's factor (``adjust_lr_fn``). Matrices are 2-D
    parameters, each of the stacked matrices of a 3-D one, and convolutions flattened to
    (out, rest). Everything else (biases, norms) is stepped by AdamW inside the same optimizer,
    with the same learning rate times ``adamw_lr_ratio``, so that one LR scheduler moves both.

    Args:
        params: Parameters, named parameters, or dicts of groups. A group may override every
            argument below, and may hold ``use_muon`` (True, False, or None: by shape) and
            ``matrix_view`` ("auto", "flatten" for Conv1d weights, "batch": leading dimensions).
        lr: Learning rate, a float or one-element tensor (default 1e-3).
        weight_decay: Decoupled decay per unit of lr, of both parts (default 0.1).
        momentum: Weight of the old momentum (default 0.95).
        nesterov: Nesterov's look-ahead (default True).
        ns_coefficients: "auto": the engine plans, at least as accurate as five Polar Express
            steps. A name picks a published schedule. One triple (a, b, c), applied ``ns_steps``
            times, is torch.optim.Muon's arithmetic, bfloat16 included. A sequence of tuples is
            applied in its order.
        eps: Lower bound on the norm that a matrix is divided by (default 1e-7).
        ns_steps: Number of steps where ``ns_coefficients`` is one triple (default 5); a named
            schedule or a sequence has a length of its own.
        adjust_lr_fn: "original" (also None) or "match_rms_adamw", see ``shape_scale``.
        adamw_lr_ratio: AdamW's learning rate as a multiple of ``lr`` (default 1.0). With
            "match_rms_adamw" 1.0 is right; with "original" and lr=0.02, 0.015 gives 3e-4.
        adamw_betas: Averaging coefficients of the AdamW part (default (0.9, 0.999)).
        adamw_eps: Denominator's epsilon of the AdamW part (default 1e-8).
        maximize: Ascend instead of descend (default False).

    Raises:
        ValueError: On a value out of range, an unknown name, or ``use_muon=True`` on a vector.
        TypeError: On a hyper-parameter or parameter of the wrong kind (complex, integer).

    Source:
        Jordan 2024, kellerjordan.github.io/posts/muon; torch/optim/_muon.py; Amsel et al.,
        arXiv 2505.16932 (Polar Express); Loshchilov and Hutter, arXiv 1711.05101 (AdamW).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(),
        ...                             torch.nn.LazyLinear(3))
        >>> x = torch.randn(2, 1, 5, 5)
        >>> loss = model(x).square().mean()
        >>> optimizer = Muon(model.parameters(), lr=0.02)
        >>> loss.backward()
        >>> optimizer.step()
        >>> bool(model(x).square().mean() < loss)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = "auto",
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        adamw_lr_ratio: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "adamw_lr_ratio": adamw_lr_ratio,
            "adamw_betas": adamw_betas,
            "adamw_eps": adamw_eps,
            "maximize": maximize,
            "use_muon": None,
            "matrix_view": "auto",
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_non_negative(
            **{
                key: group[key]
                for key in ("lr", "weight_decay", "momentum", "eps", "adamw_lr_ratio", "adamw_eps")
            }
        )
        if not isinstance(group["ns_steps"], int) or not 1 <= group["ns_steps"] < 100:
            raise ValueError(
                f"ns_steps must be an integer from 1 to 99, but is {group['ns_steps']!r}"
            )
        if group["adjust_lr_fn"] not in (None, *LR_SCALES):
            raise ValueError(
                f"adjust_lr_fn must be None or one of {LR_SCALES}, but is {group['adjust_lr_fn']!r}"
            )
        if group["matrix_view"] not in MATRIX_VIEWS:
            raise ValueError(
                f"matrix_view must be one of {MATRIX_VIEWS}, but is {group['matrix_view']!r}"
            )
        if group["use_muon"] not in (None, True, False):
            raise ValueError(f"use_muon must be True, False or None, but is {group['use_muon']!r}")
        betas = group["adamw_betas"]
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"adamw_betas must be two numbers in [0, 1), but is {betas!r}")
        if group["ns_coefficients"] != "auto":
            resolve_schedule(group["ns_coefficients"], steps=group["ns_steps"])

    def _check_parameter(self, p: Tensor, name: str | None, group: Mapping[str, Any]) -> None:
        uses_muon(p, group["use_muon"], name)

    def _update_group(self, group: dict[str, Any]) -> None:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for p in group["params"]:
            if not p.requires_grad and p.grad is None:
                continue
            is_matrix = uses_muon(p, group["use_muon"])
            self._init_state(p, is_matrix)
            if p.grad is not None and p.numel() > 0:
                (matrices if is_matrix else others).append(p)
        muon(
            matrices,
            [p.grad for p in matrices],  # type: ignore[misc]
            [self.state[p]["momentum_buffer"] for p in matrices],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=group["ns_coefficients"],
            eps=group["eps"],
            ns_steps=group["ns_steps"],
            adjust_lr_fn=group["adjust_lr_fn"],
            views=[group["matrix_view"]] * len(matrices),
            maximize=group["maximize"],
        )
        self._adamw(others, group)

    def _init_state(self, p: Tensor, is_matrix: bool) -> None:
        # Also for parameters without a gradient in this step: the same keys exist on every rank.
        state = self.state[p]
        if is_matrix and "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        if not is_matrix and "exp_avg" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        states = [self.state[p] for p in params]
        # A checkpoint may hold float32 state of bfloat16 vectors: such steps are done in float32.
        wide = [p.to(s["exp_avg"].dtype) for p, s in zip(params, states, strict=True)]
        beta1, beta2 = group["adamw_betas"]
        adamw(
            wide,
            [p.grad.to(w.dtype) for p, w in zip(params, wide, strict=True)],  # type: ignore[union-attr]
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * group["adamw_lr_ratio"],
            weight_decay=group["weight_decay"],
            eps=group["adamw_eps"],
            maximize=group["maximize"],
        )
        for p, w in zip(params, wide, strict=True):
            if w is not p:
                p.copy_(w)
