"""Muon for any model: matrices are orthogonalized, everything else takes AdamW."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from specgd_common.cuts import check_fit, check_split, cut_of
from specgd_common.tensors import is_dtensor, lasting, local

from .checks import Check, check_schedule, flag, integer, number, one_of, pair, sharing
from .distributed.layout import local_like
from .groups.foreign import in_own_words
from .groups.foreign_state import check_routes, in_own_layout
from .groups.from_adamw import carried_over
from .groups.given import given_groups
from .groups.matrix_view import MATRIX_VIEWS, MatrixView, is_matrix, uses_muon
from .optimizer import SpectralOptimizer
from .step.adamw import adamw_step
from .step.light import BITS, LightBuffer, bits_of, light_buffers, light_shapes, widen
from .step.muon import MAX_BATCH_BYTES, Coefficients, muon
from .step.precondition import BY_NAME, Precondition
from .step.rules import LR_SCALES, AdjustLr
from .step.second_moment import SECOND_MOMENTS
from .step.stages import STAGES, stage_shapes, stages_of, start_stages
from .triton_kernels.kernels.owned import capturing
from .triton_kernels.random_bits import RandomBits

_PASSED_ON = (
    "lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps",
    "adjust_lr_fn", "maximize",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Muon(SpectralOptimizer):
    r"""Muon for a whole model; a superset of ``torch.optim.Muon``.

    For each weight W with gradient G and momentum buffer B::

        B <- momentum B + (1 - momentum) G
        U  = (1 - momentum) G + momentum B   if nesterov, else B
        W <- (1 - lr weight_decay) W - lr s(m, n) polar(U)

    where polar(U) = Q V^T of the singular value decomposition U = Q S V^T, approximated by a
    Newton-Schulz iteration, and s is the shape's factor (``adjust_lr_fn``). Matrices are 2-D
    parameters, each of the stacked matrices of a 3-D one, and convolutions flattened to
    (out, rest). Everything else (embeddings, output heads, norms, biases) is stepped by AdamW
    inside the same optimizer, with the same learning rate times ``adamw_lr_ratio``, so that one LR
    scheduler moves both.

    Args:
        params: A module, whose parameters are routed by what they are, see ``param_groups``; or
            named parameters, which are routed by name and shape; or parameters, which go by shape
            alone, as in torch; or dicts of groups. A group may override every argument below, and
            may hold ``use_muon`` (True, False, or None: by shape), ``matrix_view`` ("auto",
            "flatten" for Conv1d weights, "batch": leading dimensions, "transposed": stored
            (in, out)) and ``split`` ((dim, sizes) of a fused weight, or
            ``Interleaved(heads, sizes)``). ``param_groups(model)`` makes such groups, and prints
            them with reasons.
        lr: Learning rate, a float or one-element tensor (default 1e-3).
        weight_decay: Decoupled decay per unit of lr, of both parts (default 0.1).
        momentum: Weight of the old momentum, a float or one-element tensor (default 0.95);
            ``MomentumWarmup`` schedules it.
        nesterov: Nesterov's look-ahead (default True).
        ns_coefficients: "auto": the engine plans, at least as accurate as five Polar Express
            steps. A name picks a published schedule. One triple (a, b, c), applied ``ns_steps``
            times, is torch.optim.Muon's arithmetic, bfloat16 included. A sequence of tuples is
            applied in its order. "contra" takes 1 - s / 2 of each singular value s over the
            Schatten-4 norm instead of one, so that weak directions are stepped further; its steps
            are shorter, and want up to 1.5 times the rate.
        eps: Lower bound on the norm that a matrix is divided by where ``ns_coefficients`` is one
            triple, as in torch (default 1e-7). "auto" and named schedules need none: gradients of
            1e-30 are normalized as those of 1.
        ns_steps: Number of steps where ``ns_coefficients`` is one triple (default 5); a named
            schedule or a sequence has a length of its own.
        adjust_lr_fn: "original" (also None), "match_rms_adamw", "spectral", "none", or a function
            of (outputs, inputs), see ``shape_scale``. A function is not written to checkpoints:
            the optimizer that loads one keeps its own.
        adamw_lr_ratio: AdamW's learning rate as a multiple of ``lr`` (default 1.0). With
            "match_rms_adamw" 1.0 is right; with "original" and lr=0.02, 0.015 gives 3e-4.
        adamw_betas: Averaging coefficients of the AdamW part (default (0.9, 0.999)).
        adamw_eps: Denominator's epsilon of the AdamW part (default 1e-8).
        adamw_weight_decay: Decay of the AdamW part; None is ``weight_decay`` (default).
        maximize: Ascend instead of descend (default False).
        cautious_weight_decay: Decay only entries that the update shrinks too (default False).
        precondition: What happens to the update before its polar factor is taken: None (default),
            "shampoo" (the inverse root of the gradients' covariance, 2 min(m, n)^2 float32 numbers
            more for an m x n matrix, see ``Shampoo``), "eigenbasis" (Adam's step in the
            eigenbases, m n + 2 m^2 + 2 n^2 more, see ``Eigenbasis``), or a function (update,
            gradient, state) -> update of (B, m, n) matrices, not written to checkpoints. Its
            attribute ``shapes``, a function of (m, n), names the shape of each tensor of ``state``,
            which starts at zero; ``state["step"]`` counts from 1. Not in a CUDA graph.
        second_moment: What the polar factor is divided by: None (default), "neuron" (a running
            root mean square of each output neuron, NorMuon), or "element" (of each entry, AdaMuon,
            without its signs).
        neuron_beta: Averaging coefficient of ``second_moment``, 0.95 if None (default); given
            alone it means "neuron".
        state_dtype: dtype of all state, of both parts: None is the parameter's, "float32", or
            "bfloat16" with stochastic rounding, which keeps small gradients in the means. "int8"
            and "int4" keep the momentum of matrices in so many bits, with a float32 scale for every
            64 entries of a row, and AdamW's state in bfloat16; DTensors must be divided along
            dimension 0. State that is there keeps its dtype, but for momentum in few bits;
            arithmetic is as wide as both.
        compute_dtype: dtype of the orthogonalization: "float32", "bfloat16", or None: the engine's
            rule, which takes bfloat16 only where it is fast and the short side exceeds 64. Low-rank
            gradients (adapters) want float32: rounding noise has no small singular values.
        max_batch_bytes: Bound on the bytes of updates that exist at one time, of a rank's pieces of
            sharded ones; like shapes are orthogonalized together up to it (default 512 MiB). A
            larger matrix goes by itself.
        foreach: False steps one matrix at a time; None and True batch (default None).
        capturable: Keeps AdamW's step counter on the parameter's device, for CUDA graphs
            (default False). A step is to be taken before the capture.
        share_work: The parameters are replicated over the default process group, as under DDP:
            each matrix is orthogonalized by one rank and the results are shared, bit for bit
            (default False). Where only some ranks have a gradient of a parameter, True ends in an
            error on all of them, and "zeros" takes zeros on all of them. DTensors (FSDP2, HSDP,
            tensor parallelism) need no argument: each says by itself how it is spread. No effect
            without a process group.
        per_head: Cut the weights of attention head by head; ``params`` must be a module then
            (default False).

    Raises:
        ValueError: On a value out of range, an unknown name, or ``use_muon=True`` on a vector.
        TypeError: On a hyper-parameter or parameter of the wrong kind (complex, integer).

    Source:
        Jordan 2024, kellerjordan.github.io/posts/muon; torch/optim/_muon.py; Amsel et al.,
        arXiv 2505.16932 (Polar Express); Loshchilov and Hutter, arXiv 1711.05101 (AdamW). Options:
        arXiv 2409.11321 (SOAP), 1802.09568 (Shampoo), 2510.05491 (NorMuon), 2507.11005 (AdaMuon),
        2510.12402 (cautious decay), 1502.02551 (stochastic rounding).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(),
        ...                             torch.nn.LazyLinear(3))
        >>> x = torch.randn(2, 1, 5, 5)
        >>> loss = model(x).square().mean()
        >>> optimizer = Muon(model, lr=0.02)
        >>> loss.backward()
        >>> optimizer.step()
        >>> bool(model(x).square().mean() < loss)
        True
    """

    def __init__(
        self,
        params: ParamsT | nn.Module,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float | Tensor = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = "auto",
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLr = None,
        *,
        adamw_lr_ratio: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float | None = None,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
        precondition: Precondition = None,
        second_moment: str | None = None,
        neuron_beta: float | None = None,
        state_dtype: str | None = None,
        compute_dtype: str | None = None,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        foreach: bool | None = None,
        capturable: bool = False,
        share_work: bool | str = False,
        per_head: bool = False,
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
            "adamw_weight_decay": adamw_weight_decay,
            "maximize": maximize,
            "cautious_weight_decay": cautious_weight_decay,
            "precondition": precondition,
            "second_moment": second_moment,
            "neuron_beta": neuron_beta,
            "state_dtype": state_dtype,
            "compute_dtype": compute_dtype,
            "max_batch_bytes": max_batch_bytes,
            "foreach": foreach,
            "capturable": capturable,
            "share_work": share_work,
            "use_muon": None,
            "matrix_view": "auto",
            "split": None,
            "rounding_step": 0,
            "precondition_step": 0,
        }
        super().__init__(given_groups(params, per_head), defaults)

    carried = ""  # what `from_adamw` did
    CHECKS: ClassVar[Mapping[str, Check]] = {
        "lr": number(),
        "weight_decay": number(),
        "momentum": number(below=1.0),
        "nesterov": flag(),
        "eps": number(),
        "ns_steps": integer(1, 99),
        "adjust_lr_fn": one_of(None, *LR_SCALES, function="(outputs, inputs)"),
        "adamw_lr_ratio": number(),
        "adamw_betas": pair(number(below=1.0)),
        "adamw_eps": number(),
        "adamw_weight_decay": number(none=True),
        "maximize": flag(),
        "cautious_weight_decay": flag(),
        "precondition": one_of(None, *BY_NAME, function="(update, gradient, state)"),
        "second_moment": one_of(None, *SECOND_MOMENTS),
        "neuron_beta": number(below=1.0, none=True),
        "state_dtype": one_of(None, *DTYPES, *BITS),
        "compute_dtype": one_of(None, *DTYPES),
        "max_batch_bytes": integer(1),
        "foreach": flag(none=True),
        "capturable": flag(),
        "share_work": sharing,
        "use_muon": one_of(None, True, False),
        "matrix_view": one_of(*MATRIX_VIEWS),
        "split": lambda name, value: check_split(value, name),
        "rounding_step": integer(0),
        "precondition_step": integer(0),
    }

    @classmethod
    def from_adamw(
        cls, source: Optimizer | Mapping[str, Any], model: nn.Module, **options: Any
    ) -> "Muon":
        """Make the Muon that goes on where an AdamW run stands; ``print`` says what became of it.

        With AdamW's rate a and decay d, an m x n matrix takes the rate 3.8 a, the decay d / 3.8
        and "match_rms_adamw"::

            W <- (1 - a d) W - 3.8 a 0.2 sqrt(max(m, n)) polar(U)

        so that a step decays it as before and has a root mean square of 3.8 times 0.2 a, which is
        typical of AdamW. AdamW's first moment is its momentum. Everything else is stepped as
        before, its moments included.

        Args:
            source: A ``torch.optim.AdamW``, whose state goes along, or its settings, such as
                ``{"lr": 3e-4, "weight_decay": 0.1}``.
            model: Whose parameters it steps.
            **options: Further arguments of ``Muon``.

        Raises:
            ValueError: If ``source`` is no AdamW's, or does what Muon cannot (amsgrad).

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
            >>> print(Muon.from_adamw({"lr": 1e-3}, model).carried)
            from AdamW, parameters:
              1 to Muon: lr 0.0038 (3.8 times AdamW's), decay 0.00263 (the same a step),
                momentum in place of betas and eps; no state
              3 to AdamW: lr 0.001, decay 0.01, betas (0.9, 0.999), eps 1e-08; no state
        """
        made = carried_over(source, model)
        optimizer = cls(made.groups, **options)
        optimizer.carried = made.report
        optimizer.state.update(made.state)
        return optimizer

    def __repr__(self) -> str:
        return "\n".join(filter(None, [super().__repr__(), self.carried]))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see the base class. Names of other optimizers are taken, or refused."""
        super().add_param_group(self._own_words(param_group))

    def _own_words(self, group: Any) -> Any:
        if not isinstance(group, Mapping):
            return group
        return _with_plain_count(in_own_words(group, self.defaults["lr"]))

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups as plain data; see the base class."""
        saved = super().state_dict()
        return {**saved, "param_groups": [_with_plain_count(g) for g in saved["param_groups"]]}

    def _checked(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        checked = super()._checked(in_own_layout(loaded))
        check_routes(checked, self.param_groups)
        return checked

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_schedule(group["ns_coefficients"], group["ns_steps"])

    def _check_parameter(self, p: Tensor, name: str | None, group: Mapping[str, Any]) -> None:
        if uses_muon(p, group["use_muon"], name):
            check_fit(group["split"], p, name or "a parameter")

    def _state_shapes(
        self, p: Tensor, group: Mapping[str, Any], state: Any
    ) -> dict[str, torch.Size]:
        shapes = {"momentum_buffer": p.shape, "exp_avg": p.shape, "exp_avg_sq": p.shape}
        shapes["step"] = torch.Size()
        if p.ndim >= 2:
            # By the codes themselves: the setting may have changed since they were written.
            shapes.update(light_shapes(p.shape, bits_of(state) or 8))
            shapes.update(stage_shapes(group, p))
        return shapes

    def _stays_uncompiled(self) -> bool:
        return any(group["precondition"] is not None for group in self.param_groups)

    def _algorithm(self, p: Tensor, group: Mapping[str, Any]) -> str:
        return "orthogonalized" if uses_muon(p, group["use_muon"]) else "adamw"

    def _update_group(self, group: dict[str, Any]) -> None:
        matrices, others = self._matrices_and_others(group)
        if others and not group["capturable"] and capturing(local(others[0]).device):
            raise RuntimeError(
                "capturable must be True while a CUDA graph is captured, got False: AdamW's part "
                "would count no step of its replays"
            )
        rounding = None
        if group["state_dtype"] in ("bfloat16", *BITS) and (matrices or others):
            rounding = self._random_bits(group, local((matrices or others)[0]).device)
        if matrices:
            states = [self.state[p] for p in matrices]
            light, split = group["state_dtype"] in BITS, group["split"]
            view = MatrixView(group["matrix_view"], None if split is None else cut_of(split))
            staged = any(group[name] is not None for name in STAGES)
            muon(
                matrices,
                [p.grad for p in matrices],  # type: ignore[misc]
                light_buffers(matrices, states, group, rounding)
                if light and rounding is not None
                else [s["momentum_buffer"] for s in states],
                views=[view] * len(matrices),
                cautious=group["cautious_weight_decay"],
                stages=stages_of(group, matrices, states, view) if staged else ((), ()),
                rounding=rounding,
                compute_dtype=DTYPES.get(group["compute_dtype"]),
                max_batch_bytes=1 if group["foreach"] is False else group["max_batch_bytes"],
                share_work=bool(group["share_work"]),
                owner=self,
                clock=self._clock,
                **{name: group[name] for name in _PASSED_ON},
            )
        if others:
            self._step_others(others, group, rounding)

    def _matrices_and_others(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the matrices and the others that have a gradient, all with their state."""
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        use_muon, staged = group["use_muon"], any(group[name] is not None for name in STAGES)
        bits = BITS.get(group["state_dtype"])
        first = "momentum_buffer" if bits is None else "momentum_codes"
        for p in group["params"]:
            if p.grad is None and not p.requires_grad:
                continue
            by_muon = is_matrix(p) if use_muon is None else use_muon
            state = self.state[p]
            there = (first if by_muon else "exp_avg") in state
            there = there and ("momentum_codes" not in state or bits_of(state) == bits)
            if not there:
                self._check_before_making("the optimizer's state", local(p).device)
            if staged or not there:
                lasting(self._init_state, p, by_muon, group)
            if p.grad is not None and p.numel():
                (matrices if by_muon else others).append(p)
        return matrices, others

    def _step_others(
        self, params: list[Tensor], group: dict[str, Any], rounding: RandomBits | None
    ) -> None:
        states = [self.state[p] for p in params]
        decay = group["adamw_weight_decay"]
        # Elementwise: this rank's pieces are enough.
        spread = any(map(is_dtensor, params))
        adamw_step(
            list(map(local, params)),
            [local_like(p.grad, p) if spread else p.grad for p in params],  # type: ignore[misc, arg-type]
            [local(s["exp_avg"]) for s in states],
            [local(s["exp_avg_sq"]) for s in states],
            [s["step"] for s in states],
            lr=group["lr"] * group["adamw_lr_ratio"],
            betas=group["adamw_betas"],
            eps=group["adamw_eps"],
            weight_decay=group["weight_decay"] if decay is None else decay,
            maximize=group["maximize"],
            foreach=group["foreach"],
            capturable=group["capturable"],
            rounding=rounding,
        )

    def _init_state(self, p: Tensor, is_matrix: bool, group: dict[str, Any]) -> None:
        # Also for parameters without a gradient in this step: the same keys exist on every rank.
        state = self.state[p]
        # AdamW's means want more digits than eight bits have.
        bits = BITS.get(group["state_dtype"])
        dtype = DTYPES.get(group["state_dtype"], p.dtype) if bits is None else torch.bfloat16
        if bits_of(state) not in (None, bits):
            widen(p, state, torch.float32 if bits else dtype)
        if is_matrix and bits and "momentum_codes" not in state:
            state.update(LightBuffer.entries(p, bits))
        elif is_matrix and not bits and "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, dtype=dtype)
        if is_matrix:
            start_stages(group, p, state)
        if not is_matrix and "exp_avg" not in state:
            device = p.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)

    def _random_bits(self, group: dict[str, Any], device: torch.device) -> RandomBits:
        """Return bits that depend on the group's step alone: alike on all ranks and resumed.

        Steps are counted on the device, so that each replay of a CUDA graph draws others.
        """
        count = group["rounding_step"]
        if not isinstance(count, Tensor) or count.device != device:
            self._check_before_making(f"the count of state_dtype={group['state_dtype']!r}", device)
            count = lasting(torch.full, (), int(count), dtype=torch.int64, device=device)
            group["rounding_step"] = count
        count.add_(1)
        return RandomBits(count)


def _with_plain_count(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group as checkpoints hold it, or one that shares no count with another optimizer."""
    count = group.get("rounding_step")
    return {**group, "rounding_step": int(count)} if isinstance(count, Tensor) else dict(group)
