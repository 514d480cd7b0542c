"""Spectral gradient descent: every step moves along the polar factor of the gradient."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from specgd_common.tensors import is_dtensor, lasting, local

from .checks import Check, check_schedule, flag, number, one_of, sharing
from .distributed.layout import Layout, local_like
from .groups.matrix_view import MATRIX_VIEWS
from .optimizer import SpectralOptimizer
from .step.batches import seen
from .step.pieces import orthogonalize_all
from .step.rules import LR_SCALES, AdjustLr, named_scale, shape_scale
from .triton_kernels import momentum_step, weight_step
from .triton_kernels.engine import METHODS
from .triton_kernels.schedule.named import Coefficients

_PASSED_ON = (
    "lr", "momentum", "nesterov", "l2", "weight_decay", "method", "smoothing", "ns_coefficients",
    "adjust_lr_fn", "maximize",
)  # fmt: skip


def specgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    nesterov: bool,
    l2: float,
    weight_decay: float,
    method: str,
    smoothing: float,
    ns_coefficients: Coefficients = "auto",
    adjust_lr_fn: AdjustLr = "none",
    views: Sequence[str] | None = None,
    maximize: bool = False,
    share_work: bool = False,
    clock: Callable[[torch.device], None] | None = None,
) -> None:
    """Take one SpecGD step, in place; the equation stands at :class:`SpecGD`.

    Args:
        params: Weights W of any shape, changed in place; plain tensors or DTensors, with
            gradients and buffers of the same kind.
        grads: Gradients of the same shapes; never changed.
        momentum_buffers: Buffers of the same shapes, changed in place; empty if momentum is 0.
            Their dtype is at least float32.
        lr: Step size, a float or a one-element tensor.
        momentum: Weight of the old buffer.
        nesterov: Whether to look ahead.
        l2: Penalty inside the gradient.
        weight_decay: Decay outside it, per unit of ``lr``.
        method: How the polar factor is computed.
        smoothing: Scale of the smoothed method.
        ns_coefficients: See :class:`SpecGD`.
        adjust_lr_fn: Shape factor on ``lr``, see ``step.rules.shape_scale``.
        views: How each parameter is seen as matrices, see ``as_matrices``; default "auto".
        maximize: Ascend instead of descend.
        share_work: See :class:`SpecGD`.
        clock: Called with the device before and after the orthogonalization.
    """
    if not params:
        return
    views = ["auto"] * len(params) if views is None else views
    divided, traced = any(map(is_dtensor, params)), torch.compiler.is_compiling()
    layouts = [Layout.of(p).as_matrix() for p in params] if divided or share_work else []
    # A vector is a matrix of one column: its polar factor is the normalized vector.
    shapes = [p.shape if p.ndim >= 2 else torch.Size((p.numel(), 1)) for p in params]
    if divided:
        # All but the orthogonalization is elementwise: it runs on this rank's pieces.
        grads = [local_like(g, p) for g, p in zip(grads, params, strict=True)]
        momentum_buffers, params = list(map(local, momentum_buffers)), list(map(local, params))
    # Half-precision noise would become full-size directions: the polar factor knows no scale.
    g = [x.to(_wide(x.dtype)) for x in grads]
    if maximize:
        g = list(torch._foreach_neg(g))
    if l2:
        wide = [p.to(x.dtype) for p, x in zip(params, g, strict=True)]
        g = list(torch._foreach_add(g, wide, alpha=l2))
    if momentum:
        ahead = [torch.empty_like(x) for x in g]
        momentum_step(g, momentum_buffers, ahead, momentum, nesterov=nesterov)
        g = ahead
    columns = [x if x.ndim >= 2 else x.reshape(-1, 1) for x in g]
    widest = torch.float64 if any(x.dtype == torch.float64 for x in g) else torch.float32
    options: dict[str, Any] = {"method": method, "smoothing": smoothing, "dtype": widest}
    if method == "newton_schulz" and ns_coefficients != "auto":
        options["schedule"] = ns_coefficients
    if clock is not None:
        clock(columns[0].device)
    updates = orthogonalize_all(columns, views, options, layouts=layouts, share_work=share_work)
    if clock is not None:
        clock(columns[0].device)
    directions = [o.reshape(p.shape) for o, p in zip(updates, params, strict=True)]
    kind = seen.__wrapped__ if traced else seen
    scale = shape_scale if traced or callable(adjust_lr_fn) else named_scale
    logical = [kind(shape, view).logical for shape, view in zip(shapes, views, strict=True)]
    weight_step(params, directions, [scale(adjust_lr_fn, *x) for x in logical], lr, weight_decay)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class SpecGD(SpectralOptimizer):
    r"""Spectral gradient descent: exact polar factors, no approximation by default.

    For each weight W with gradient G::

        D  = G + l2 W                        (-G + l2 W if maximize)
        B <- momentum B + (1 - momentum) D   if momentum > 0, and D is then B, or looks ahead
        W <- (1 - lr weight_decay) W - lr T(D)

    T is the polar factor Q V^T of the compact singular value decomposition D = Q S V^T: zero
    singular directions stay zero, so T(0) = 0. Matrices are 2-D parameters, the matrices of a
    3-D stack, and convolutions flattened to (out, rest); a vector counts as one column, so its
    step is the normalized gradient. Gradients, momentum and T are at least float32, whatever the
    weights' type.

    Args:
        params: Parameters, named parameters, or dicts of groups. A group may override every
            argument below and may hold ``matrix_view`` ("auto", "flatten", "batch").
        lr: Step size: the spectral norm of every matrix's step (default 1e-2).
        momentum: Weight of the old momentum (default 0: none).
        nesterov: Nesterov's look-ahead; needs momentum (default False).
        l2: Penalty l2/2 ||W||_F^2 inside the gradient. On a factorization A B its optimum
            soft-thresholds the singular values of the target by l2 (default 0).
        weight_decay: Decoupled decay per unit of lr: the fixed point caps each singular value of
            W at 1 / weight_decay (default 0).
        method: "svd" (exact), "newton_schulz" (fast, approximate), "precise" (singular values
            within 1e-3 of one for condition numbers up to 1e4), "smoothed" (singular values s
            become s / sqrt(s^2 + smoothing^2)). On factorizations from tiny starts, and with l2,
            prefer "smoothed": exact factors can chatter around a saddle and leave a weak mode.
        smoothing: The smoothed method's scale, in units of the gradient (default 1e-2, which suits
            factorizations of order one). About a hundredth of the gradient's spectral norm is
            right; gradients far below it are merely divided by it, and steps stay tiny.
        ns_coefficients: The schedule of "newton_schulz": "auto" (the engine's own), a published
            one's name, a triple applied five times, or a sequence of tuples, one per step.
        adjust_lr_fn: Shape factor on lr: "none" (default), "original" (sqrt(max(1, m / n))),
            or another of ``step.rules.shape_scale``.
        maximize: Ascend instead of descend (default False).
        share_work: The parameters are replicated over the default process group, as under DDP:
            each matrix is orthogonalized by one rank and the results are shared, bit for bit
            (default False); "zeros" takes zeros for a gradient that only some ranks have, where
            True is an error on all. DTensors need no argument. No effect without a process group.

    Raises:
        ValueError: On a value out of range, or nesterov without momentum.
        TypeError: On a hyper-parameter or parameter of the wrong kind.

    Source:
        Carlson et al. 2015 (stochastic spectral descent); Kang et al., arXiv 2602.06385.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3, 2))
        >>> optimizer = SpecGD([w], lr=0.5)
        >>> w.grad = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        >>> optimizer.step()
        >>> w.detach().abs()
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000],
                [0.0000, 0.0000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        l2: float = 0.0,
        weight_decay: float = 0.0,
        method: str = "svd",
        smoothing: float = 1e-2,
        ns_coefficients: Coefficients = "auto",
        adjust_lr_fn: AdjustLr = "none",
        maximize: bool = False,
        share_work: bool | str = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "l2": l2,
            "weight_decay": weight_decay,
            "method": method,
            "smoothing": smoothing,
            "ns_coefficients": ns_coefficients,
            "adjust_lr_fn": adjust_lr_fn,
            "maximize": maximize,
            "share_work": share_work,
            "matrix_view": "auto",
        }
        super().__init__(params, defaults)

    CHECKS: ClassVar[Mapping[str, Check]] = {
        "lr": number(),
        "momentum": number(below=1.0),
        "nesterov": flag(),
        "l2": number(),
        "weight_decay": number(),
        "method": one_of(*METHODS),
        "smoothing": number(),
        "ns_coefficients": lambda _, value: check_schedule(value),
        "adjust_lr_fn": one_of(None, *LR_SCALES, function="(outputs, inputs)"),
        "maximize": flag(),
        "share_work": sharing,
        "matrix_view": one_of(*MATRIX_VIEWS),
    }

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov=True needs momentum above 0, but momentum is 0")
        if not group["smoothing"] > 0:
            raise ValueError(f"smoothing must be above 0, got {group['smoothing']}")

    def _state_shapes(
        self, p: Tensor, group: Mapping[str, Any], state: Any
    ) -> dict[str, torch.Size]:
        return {"momentum_buffer": p.shape}

    def _check_parameter(self, p: Tensor, name: str | None, group: Mapping[str, Any]) -> None:
        """Take every floating-point parameter: vectors count as one column."""

    def _algorithm(self, p: Tensor, group: Mapping[str, Any]) -> str:
        return "orthogonalized" if p.ndim >= 2 else "normalized"

    def _update_group(self, group: dict[str, Any]) -> None:
        trained = [p for p in group["params"] if p.requires_grad or p.grad is not None]
        for p in trained if group["momentum"] else ():
            if "momentum_buffer" not in self.state[p]:
                self._check_before_making("the optimizer's state", local(p).device)
                zeros = lasting(torch.zeros_like, p, dtype=_wide(p.dtype))
                self.state[p]["momentum_buffer"] = zeros
        params = [p for p in trained if p.grad is not None and p.numel() > 0]
        specgd(
            params,
            [p.grad for p in params],
            [self.state[p]["momentum_buffer"] for p in params] if group["momentum"] else [],
            views=[group["matrix_view"]] * len(params),
            share_work=bool(group["share_work"]),
            clock=self._clock,
            **{name: group[name] for name in _PASSED_ON},
        )
