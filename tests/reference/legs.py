"""Which schedules the matrices of a plan with several take: nobody but a test needs to know."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from torch_specgd.triton_kernels import Plan, operator
from torch_specgd.triton_kernels.normalize import Start
from torch_specgd.triton_kernels.plans import Leg


@contextmanager
def legs_taken() -> Iterator[list[str]]:
    """Yield a list that grows by a schedule's name a matrix, and "again" for each done again."""
    names: list[str] = []
    choose, redo = operator._taken, operator._redo

    def chosen(start: Start, legs: Sequence[Leg]) -> list[int]:
        found = choose(start, legs)
        if len(legs) > 1:
            names.extend(legs[k].schedule.name for k in found)
        return found

    def noted(x: Tensor, plan: Plan) -> Callable[[Tensor], Tensor] | None:
        again = redo(x, plan)

        def run(lost: Tensor) -> Tensor:
            assert again is not None
            names.extend(["again"] * int(lost.sum()))
            return again(lost)

        return None if again is None else run

    operator._taken, operator._redo = chosen, noted
    try:
        yield names
    finally:
        operator._taken, operator._redo = choose, redo
