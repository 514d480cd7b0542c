"""Momentum in eight or four bits: integers, and a scale for every 64 entries of a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from ..distributed.exchange import cut
from ..distributed.layout import Layout, rewrapped
from ..groups.matrix_view import describe
from ..triton_kernels.random_bits import RandomBits

BITS = {"int8": 8, "int4": 4}
DTYPES = {8: torch.int8, 4: torch.uint8}  # of the codes
BLOCK = 64


def light_shapes(shape: torch.Size, bits: int) -> dict[str, torch.Size]:
    """Return the shapes of the state of a parameter of two or more dimensions.

    Example:
        >>> light_shapes(torch.Size((8, 100)), 4)
        {'momentum_codes': torch.Size([8, 50]), 'momentum_scales': torch.Size([8, 2])}
    """
    rows, rest = shape[0], shape[1:].numel()
    codes = shape if bits == 8 else torch.Size((rows, -(-rest // 2)))
    return {"momentum_codes": codes, "momentum_scales": torch.Size((rows, -(-rest // BLOCK)))}


def bits_of(state: Mapping[str, Any]) -> int | None:
    """Return in how many bits a parameter's momentum is kept, or None: not in codes."""
    if not isinstance(state, Mapping) or "momentum_codes" not in state:
        return None
    return 4 if getattr(state["momentum_codes"], "dtype", None) == DTYPES[4] else 8


def light_buffers(
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    group: Mapping[str, Any],
    rounding: RandomBits,
) -> "list[LightBuffer]":
    """Return the momenta of some of a group's parameters, out of their state."""
    order = {p: i for i, p in enumerate(group["params"])}
    made = []
    for p, state in zip(params, states, strict=True):
        light = LightBuffer(p, state, rounding.of(order[p]))
        if "momentum_buffer" in state:  # of a run that had it in more digits, or in other codes
            light.write(local(state.pop("momentum_buffer")))
        made.append(light)
    return made


def widen(p: Tensor, state: dict[str, Any], dtype: torch.dtype) -> None:
    """Turn codes into a "momentum_buffer", from which those of other bits are made.

    Args:
        p: The parameter.
        state: Its state, changed in place; a "momentum_buffer" that is there is newer than codes.
        dtype: Of the buffer.
    """
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = rewrapped(LightBuffer(p, state).read().to(dtype), p)
    del state["momentum_codes"], state["momentum_scales"]


class LightBuffer:
    """The momentum of one parameter, read and written as float32.

    What is written is rounded up or down with probabilities that keep the mean. The random numbers
    are those of an entry's place in the whole parameter, so that shards hold what the whole would.

    Args:
        p: The parameter, of which a DTensor is divided along its first dimension alone.
        state: Holds its "momentum_codes", which are integers of 8 or 4 bits, and
            "momentum_scales", one for each block.
        rounding: Source of the random numbers of what is written.
    """

    dtype = torch.float32

    def __init__(
        self, p: Tensor, state: Mapping[str, Any], rounding: RandomBits | None = None
    ) -> None:
        self.p, self.bits, self.rounding = p, bits_of(state) or 8, rounding
        self.codes, self.scales = local(state["momentum_codes"]), local(state["momentum_scales"])
        self.shape, self.device = local(p).shape, self.codes.device

    @staticmethod
    def entries(p: Tensor, bits: int) -> dict[str, Tensor]:
        """Return the state of a momentum of zero.

        Raises:
            ValueError: If a DTensor is divided along another dimension than the first.
        """
        dtypes = {"momentum_codes": DTYPES[bits], "momentum_scales": torch.float32}
        made = {
            key: torch.zeros(shape, dtype=dtypes[key], device=p.device)
            for key, shape in light_shapes(local(p).shape, bits).items()
        }
        if not is_dtensor(p):
            return made
        dims = [d.dim for d in Layout.of(p).divisions() if d.dim is not None]
        if any(dims):
            raise ValueError(
                f"state_dtype='int8' and 'int4' must be of parameters that are divided along "
                f"dimension 0, got {p.placements} of {describe(p)}"
            )
        whole = light_shapes(p.shape, bits)
        return {key: rewrapped(x, p, whole[key]) for key, x in made.items()}

    def read(self) -> Tensor:
        """Return the momentum, of a DTensor this rank's piece."""
        rows, rest = self.shape[0], self.shape[1:].numel()
        # Spelled out: a rank's piece may be empty, and then -1 could be anything.
        if self.bits == 8:
            codes = self.codes.reshape(rows, rest)
        else:
            codes = self.codes
            low, high = (codes & 15).to(torch.int8) - 8, (codes >> 4).to(torch.int8) - 8
            codes = torch.stack([low, high], -1).flatten(1).narrow(1, 0, rest)
        scales = self.scales.repeat_interleave(BLOCK, 1).narrow(1, 0, rest)
        return (codes.float() * scales).view(self.shape)

    def write(self, x: Tensor) -> None:
        """Keep a momentum, rounded stochastically."""
        rows, rest = self.shape[0], self.shape[1:].numel()
        most = 2 ** (self.bits - 1) - 1
        flat = x.reshape(rows, rest).float()
        padded = torch.nn.functional.pad(flat, (0, -rest % BLOCK))
        padded = padded.view(rows, -(-rest // BLOCK), BLOCK)
        scales = padded.abs().amax(-1) / most
        self.scales.copy_(scales)
        tiny = torch.finfo(torch.float32).tiny
        wide = scales.clamp(min=tiny).repeat_interleave(BLOCK, 1).narrow(1, 0, rest)
        codes = (flat / wide + self._noise(rest)).floor().clamp(-most, most)
        codes = codes.nan_to_num().to(torch.int8)
        if self.bits == 4:
            shifted = torch.nn.functional.pad(codes + 8, (0, rest % 2)).to(torch.uint8)
            low, high = shifted.unflatten(1, (self.codes.shape[1], 2)).unbind(-1)
            codes = low | (high << 4)
        self.codes.copy_(codes.view(self.codes.shape))

    def _noise(self, rest: int) -> Tensor:
        """Draw uniformly from [0, 1), a function of the stream and the place."""
        assert self.rounding is not None
        rows = self.p.shape[0]
        whole = self.rounding.uniform(rows * rest, self.device).view(rows, rest)
        if not is_dtensor(self.p):
            return whole
        for d in Layout.of(self.p).divisions():
            whole = whole if d.dim is None else cut(whole, d)[d.index]
        return whole
