"""What a plan costs on a GPU, on paper: launches, tiles, FLOPs and bytes, counted and not timed.

The iteration itself runs, on tensors without data and over products that only take notes, so
that what is counted is what would be launched. Each product is cut into the tiles that its
kernel would choose; how many FLOPs a tile takes is compared with the machine code in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..iterate.products import plus_identity
from ..kernels.configuration import Config, choose, load_table, symmetric_tiles, tiles_of_plan
from ..planning.choose import Plan

# Dense 16-bit FLOP/s and bytes/s of the data sheets: A100, RTX 4090, H100 SXM, B200, MI300X; the
# part of the FLOP/s that good kernels reach.
PEAKS = {
    "sm_80": (312e12, 2.0e12),
    "sm_89": (165e12, 1.0e12),
    "sm_90": (989e12, 3.35e12),
    "sm_100": (2250e12, 8.0e12),
    "gfx942": (1307e12, 5.3e12),
}
REACHED = 0.65


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kind: "symmetric", "apply", "small" or "elementwise".
        shape: (batch, rows, columns, inner) of the product; zeros for elementwise ones.
        moved: Bytes read and written, each once.
        tiles: Programs that compute one tile each.
        tile: (BLOCK_M, BLOCK_N, BLOCK_K), or zeros.
        needed: FLOPs without padding, a symmetric result counted half where the kernel does.
    """

    kind: str
    shape: tuple[int, int, int, int]
    moved: int
    tiles: int = 0
    tile: tuple[int, int, int] = (0, 0, 0)
    needed: int = 0

    @property
    def tile_flops(self) -> int:
        """FLOPs of one tile, whole turns of the inner loop."""
        m, n, k = self.tile
        return 2 * m * n * k * ceil(self.shape[3] / k) if k else 0

    @property
    def flops(self) -> int:
        """FLOPs that run, padding of tiles at the edges and on the diagonal included."""
        return self.tiles * self.tile_flops

    def seconds(self, arch: str) -> float:
        """Return the longer of arithmetic, in whole waves of tiles, and traffic.

        Args:
            arch: One of `ARCHITECTURES`.
        """
        peak, bandwidth = PEAKS[arch]
        processors = load_table(arch)["processors"]
        waves = ceil(self.tiles / processors)
        busy = waves * self.tile_flops / (REACHED * peak / processors)
        return max(busy, self.moved / bandwidth)


@dataclass(frozen=True)
class Cost:
    """What `cost_on_paper` counted; print it."""

    arch: str
    launches: tuple[Launch, ...]

    @property
    def needed(self) -> int:
        """FLOPs without padding."""
        return sum(one.needed for one in self.launches)

    @property
    def flops(self) -> int:
        """FLOPs that run."""
        return sum(one.flops for one in self.launches)

    @property
    def moved(self) -> int:
        """Bytes to and from memory, as if no cache kept anything from one launch to the next."""
        return sum(one.moved for one in self.launches)

    @property
    def seconds(self) -> float:
        """Time on paper; a launch costs nothing here."""
        return sum(one.seconds(self.arch) for one in self.launches)

    def __add__(self, other: Cost) -> Cost:
        return replace(self, launches=self.launches + other.launches)

    def __str__(self) -> str:
        lines = [
            f"{self.arch}, on paper: {len(self.launches)} launches, {self.needed / 1e9:.3f} GFLOP "
            f"({self.flops / 1e9:.3f} in whole tiles), {self.moved / 1e6:.1f} MB, "
            f"{1e3 * self.seconds:.4f} ms"
        ]
        for one in self.launches:
            if one.tiles:
                b, n, m, k = one.shape
                tile = "x".join(map(str, one.tile))
                lines.append(f"  {one.kind} {b} x ({n}, {m}), inner {k}: {one.tiles} tiles {tile}")
        lines.append(f"  {sum(not one.tiles for one in self.launches)} elementwise and norms")
        return "\n".join(lines)


@dataclass
class CountingProducts:
    """`Products` on tensors without data, which only note what they would launch.

    Args:
        arch: Whose tiles.
        halved: Which products compute one triangle only: any of "gram" and "symmetric".
        tiles: By kernel, default those that the table chooses.
        library: Whether the vendor's library multiplies, as it does for the engine where matrices
            are few and small, or float32: nothing halved or fused, tiles of the same sizes.
    """

    arch: str
    halved: Sequence[str] = ("gram", "symmetric")
    library: bool = False
    tiles: Mapping[str, Config] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.casts = not self.library

    def _config(self, kind: str, x: Tensor, batch: int, n: int, m: int) -> Config:
        if kind in self.tiles:
            return self.tiles[kind]
        table = load_table(self.arch)
        return choose(table, kind, min(x.element_size(), 4), batch, n, m, True)

    def _note(
        self, kind: str, half: bool, a: Tensor, shape: tuple[int, int, int, int], moved: int
    ) -> None:
        batch, n, m, k = shape
        half = half and not self.library
        config = self._config("symmetric" if half else "apply", a, batch, n, m)
        tile = (config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"])
        if half:
            tiles = batch * symmetric_tiles(n, tile[0], tile[1])
        else:
            tiles = batch * ceil(n / tile[0]) * ceil(m / tile[1])
        needed = batch * n * m * k * (1 if half else 2)
        self.launches.append(Launch(kind, shape, batch * moved, tiles, tile, needed))

    def gram(self, x: Tensor, gamma: float = 0.0) -> Tensor:
        """Note ``X X^T + gamma I``."""
        b, n, m = x.shape
        moved = x.element_size() * (n * m + n * n)
        self._note("symmetric", "gram" in self.halved, x, (b, n, n, m), moved)
        result = x.new_empty(b, n, n)
        return plus_identity(result, gamma) if gamma and self.library else result

    def _small(self, a: Tensor, matrices: int) -> None:
        b, n, _ = a.shape
        moved = a.element_size() * matrices * n * n
        self._note("symmetric", "symmetric" in self.halved, a, (b, n, n, n), moved)

    def symmetric(
        self, a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0,
        gamma: float = 0.0, spare: bool = False,
    ) -> Tensor:  # fmt: skip
        """Note ``alpha A B + beta C + gamma I``."""
        self._small(a, 1 + len({id(x) for x in (a, b, c) if x is not None}))
        result = torch.empty_like(a)
        return plus_identity(result, gamma) if gamma and self.library else result

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Note ``Q X``."""
        b, n, m = x.shape
        result = torch.empty_like(x) if out is None else out
        moved = x.element_size() * (n * n + n * m) + result.element_size() * n * m
        self._note("apply", False, x, (b, n, m, n), moved)
        return result


class _Elementwise(TorchDispatchMode):
    """Notes every other operation that runs a kernel: all but views and allocations."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self._launches = launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        several = found if isinstance(found, tuple) else (found,)
        results = [x for x in several if isinstance(x, Tensor)]
        if results and not func.is_view and not name.startswith(("empty", "new_empty", "detach")):
            touched = {id(x): x for x in (*args, *results) if isinstance(x, Tensor)}
            moved = sum(x.numel() * x.element_size() for x in touched.values())
            self._launches.append(Launch("elementwise", (0, 0, 0, 0), moved))
        return found


def counted(run: Callable[[CountingProducts], object], arch: str, **options: Any) -> Cost:
    """Run something over products that take notes, and return the notes.

    Args:
        run: What to run, on tensors of the device "meta".
        arch: Whose tiles.
        options: Of `CountingProducts`.
    """
    ops = CountingProducts(arch, **options)
    with _Elementwise(ops.launches):
        run(ops)
    return Cost(arch, tuple(ops.launches))


def cost_on_paper(chosen: Plan, arch: str) -> Cost:
    """Count what a plan for a GPU launches, in which tiles, and what that costs on paper.

    Args:
        chosen: From `plan(..., device="cuda")`.
        arch: "sm_80", "sm_89", "sm_90", "sm_100" or "gfx942".

    Raises:
        ValueError: For a CPU's plan, which has no tiles.

    Example:
        >>> from torch_specgd.triton_kernels import plan
        >>> cost = cost_on_paper(plan((768, 3072), batch=12, device="cuda"), "sm_90")
        >>> next(one.tile for one in cost.launches if one.tiles)
        (128, 256, 64)
    """
    from ..iterate.run import run_plan

    if chosen.device != "cuda":
        raise ValueError(f"tiles are counted for plans of a GPU, got one for {chosen.device}")
    n, m = chosen.shape
    if chosen.one_launch:
        moved, launches = chosen.traffic()
        shape = (chosen.batch, n, m, n)
        before = (Launch("small", shape, moved // 3),) * (launches - 1)
        last = Launch(
            "small", shape, moved - sum(one.moved for one in before), needed=chosen.flops()
        )
        return Cost(arch, (*before, last))
    x = torch.empty(chosen.batch, n, m, dtype=torch.float32, device="meta")
    tiles = tiles_of_plan(arch, chosen.batch, n, m, chosen.dtype.itemsize)
    if chosen.arch == arch:
        tiles = chosen.configs()
    return counted(
        lambda ops: run_plan(x, chosen, torch.empty_like(x), ops),
        arch,
        library=not tiles,
        tiles=tiles,
    )
