"""Momentum in eight or four bits: integers, and a scale for every 64 entries of a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from ..distributed.exchange import cut
from ..distributed.layout import Layout, rewrapped
from ..groups.matrix_view import describe

BITS = {"int8": 8, "int4": 4}
BLOCK = 64


def light_shapes(shape: torch.Size, bits: int) -> tuple[torch.Size, torch.Size]:
    """Return the shapes of codes and scales for a parameter of two or more dimensions.

    Example:
        >>> light_shapes(torch.Size((8, 100)), 4)
        (torch.Size([8, 50]), torch.Size([8, 2]))
    """
    rows, rest = shape[0], shape[1:].numel()
    codes = shape if bits == 8 else torch.Size((rows, -(-rest // 2)))
    return codes, torch.Size((rows, -(-rest // BLOCK)))


def light_buffers(
    params: Sequence[Tensor], states: Sequence[dict[str, Any]], group: Mapping[str, Any]
) -> "list[LightBuffer]":
    """Return the momenta of some of a group's parameters, out of their state."""
    bits = BITS[group["state_dtype"]]
    order = {p: i for i, p in enumerate(group["params"])}
    made = []
    for p, state in zip(params, states, strict=True):
        seed = group["rounding_step"] * (1 << 20) + order[p]
        light = LightBuffer(p, state["momentum_codes"], state["momentum_scales"], bits, seed)
        if "momentum_buffer" in state:  # of a run that had it in more digits
            light.write(local(state.pop("momentum_buffer")))
        made.append(light)
    return made


class LightBuffer:
    """The momentum of one parameter, read and written as float32.

    What is written is rounded up or down with probabilities that keep the mean. The random numbers
    are those of an entry's place in the whole parameter, so that shards hold what the whole would.

    Args:
        p: The parameter, of which a DTensor is divided along its first dimension alone.
        codes: Integers, of a DTensor this rank's piece.
        scales: Of each block, likewise.
        bits: 8 or 4.
        seed: Says which random numbers the next writing takes.
    """

    dtype = torch.float32

    def __init__(self, p: Tensor, codes: Tensor, scales: Tensor, bits: int, seed: int) -> None:
        self.p, self.bits, self.seed = p, bits, seed
        self.codes, self.scales = local(codes), local(scales)
        self.shape, self.device = local(p).shape, self.codes.device

    @staticmethod
    def entries(p: Tensor, bits: int) -> dict[str, Tensor]:
        """Return the state of a momentum of zero.

        Raises:
            ValueError: If a DTensor is divided along another dimension than the first.
        """
        codes, scales = light_shapes(local(p).shape, bits)
        device = p.device
        made = {
            "momentum_codes": torch.zeros(
                codes, dtype=torch.int8 if bits == 8 else torch.uint8, device=device
            ),
            "momentum_scales": torch.zeros(scales, dtype=torch.float32, device=device),
        }
        if not is_dtensor(p):
            return made
        dims = [d.dim for d in Layout.of(p).divisions() if d.dim is not None]
        if any(dims):
            raise ValueError(
                f"state_dtype='int8' and 'int4' must be of parameters that are divided along "
                f"dimension 0, got {p.placements} of {describe(p)}"
            )
        whole = dict(zip(made, light_shapes(p.shape, bits), strict=True))
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
            codes = torch.stack([low, high], -1).view(rows, 2 * self.codes.shape[1])[:, :rest]
        scales = self.scales.repeat_interleave(BLOCK, 1)[:, :rest]
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
        wide = scales.clamp(min=tiny).repeat_interleave(BLOCK, 1)[:, :rest]
        codes = (flat / wide + self._noise(rest)).floor().clamp(-most, most)
        codes = codes.nan_to_num().to(torch.int8)
        if self.bits == 4:
            shifted = torch.nn.functional.pad(codes + 8, (0, rest % 2)).to(torch.uint8)
            codes = shifted[:, ::2] | (shifted[:, 1::2] << 4)
        self.codes.copy_(codes.view(self.codes.shape))

    def _noise(self, rest: int) -> Tensor:
        """Draw uniformly from [0, 1), a function of seed and place."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        whole = torch.rand((self.p.shape[0], rest), generator=generator, device=self.device)
        if not is_dtensor(self.p):
            return whole
        for d in Layout.of(self.p).divisions():
            whole = whole if d.dim is None else cut(whole, d)[d.index]
        return whole
