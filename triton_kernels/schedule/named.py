"""The schedules by name, published ones and this package's own, and what a caller may pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .coefficients import (
    CANS,
    CUBIC5,
    DEEP,
    DEGREE9_3,
    DEGREE9_4,
    FLAT,
    JORDAN,
    POLAR_EXPRESS,
    QUINTIC_4,
    TAYLOR,
    YOU,
)
from .schedule import Schedule

_PE_SOURCE = "Polar Express, arXiv 2505.16932"
_OWN_SOURCE = "minimax design of this package, design_schedule"

SCHEDULES: dict[str, Schedule] = {
    s.name: s
    for s in (
        Schedule("jordan", (JORDAN,) * 5, lower=7e-3, source="KellerJordan/Muon"),
        Schedule("you", YOU, lower=7e-3, source="gram-newton-schulz, YOU_COEFFICIENTS"),
        Schedule("polar_express", POLAR_EXPRESS[:5], safety=1.02, source=_PE_SOURCE),
        Schedule("polar_express_6", POLAR_EXPRESS[:6], safety=1.02, source=_PE_SOURCE),
        Schedule("polar_express_8", POLAR_EXPRESS, safety=1.02, source=_PE_SOURCE),
        Schedule("cans", CANS, safety=1.02, source="CANS, arXiv 2506.10935"),
        Schedule("cubic", CUBIC5, lower=2e-2, source="arXiv 2606.00371"),
        Schedule("convergent", ((1.5, -0.5),) * 12, lower=2e-2, source="Taylor, degree 3"),
        Schedule("convergent_quintic", (TAYLOR,) * 8, lower=2e-2, source="Taylor, degree 5"),
        Schedule(
            "deepseek",
            (JORDAN,) * 8 + ((2.0, -1.5, 0.5),) * 2,
            lower=1e-3,
            source="DeepSeek-V4, as published in its forks",
        ),
        Schedule("quintic_4", QUINTIC_4, 1.02, 5e-3, "schatten4", _OWN_SOURCE),
        Schedule("degree9_3", DEGREE9_3, 1.1, 5e-3, "schatten4", _OWN_SOURCE),
        Schedule("degree9_4", DEGREE9_4, 1.1, 1e-3, "schatten4", _OWN_SOURCE),
        # A search over matrices of two to four rows in bfloat16 (tests/reference/search.py, 6,000
        # of them for 40 generations) lifted the largest values to 1.21 times the design's after
        # the first step of `deep`, to 1.09 and 1.04 after the others; 1.11, 1.02, 1.01 of `flat`.
        Schedule("deep", DEEP, 1.0, 1.3e-3, "schatten4", _OWN_SOURCE, (1.05, 1.25, 1.12)),
        Schedule("flat", FLAT, 1.0, 1e-2, "schatten8", _OWN_SOURCE, (1.05, 1.12, 1.05)),
        # Not the polar factor: 1 - s / 2, so that no direction is stepped as far as the weakest.
        Schedule(
            "contra",
            DEEP,
            1.0,
            1.3e-3,
            "schatten4",
            "nilin.github.io/contra-muon-and-soft-muon, with a factor of 0.2",
            (1.05, 1.25, 1.12),
            weights=(-0.5, 0.0, 0.0, 1.0),
        ),
    )
}
"""Schedules by name, published and our own; `print(SCHEDULES[name])` says what each does."""

WITHOUT_A_PLAN = "polar_express"
"""What `resolve_schedule(None)` means, and so "newton_schulz" and "gram". A plan, and so "auto",
takes another one: `planning.choose.schedule_of` says which, and why."""

# One (a, b, c), or a tuple of coefficients for each step, or the name of a schedule.
Coefficients = str | tuple[float, float, float] | Sequence[tuple[float, ...]]
ScheduleLike = Schedule | Coefficients | Sequence[float] | Sequence[Sequence[float]] | None


def is_triple(schedule: ScheduleLike) -> bool:
    """Say whether `schedule` is one bare (a, b, c), which means torch.optim.Muon's arithmetic."""
    return (
        isinstance(schedule, Sequence)
        and not isinstance(schedule, str)
        and len(schedule) == 3
        # A tuple of types: Dynamo of torch 2.9 knows no unions.
        and all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in schedule)
    )


def _with_steps(schedule: Schedule, steps: int | None) -> Schedule:
    """Cut a schedule to `steps`, or repeat its last step until it has as many."""
    if steps is None or steps == len(schedule):
        return schedule
    if schedule.weights:
        raise ValueError(f"steps must be {len(schedule)}, as the weights of the sum, got {steps}")
    head = schedule.steps[:steps]
    return replace(schedule, steps=head + (schedule.steps[-1],) * (steps - len(head)))


def resolve_schedule(schedule: ScheduleLike = None, steps: int | None = None) -> Schedule:
    """Turn what a caller passes into a `Schedule`.

    Args:
        schedule: None (five Polar Express steps), a name in `SCHEDULES`, one (a, b, c) triple
            that is repeated, a sequence of coefficient tuples, or a `Schedule`.
        steps: How many steps; default the schedule's own, five for one triple. Fewer cut the
            list, more repeat its last step.

    Returns:
        The schedule.

    Raises:
        ValueError: For an unknown name, malformed coefficients, steps outside [1, 99], another
            number of steps than a weighted sum has, or a schedule of `inverse_root`.
        TypeError: For something that is no schedule.

    Example:
        >>> len(resolve_schedule("jordan", steps=3))
        3
    """
    if steps is not None and not 1 <= steps < 100:
        raise ValueError(f"steps must be in [1, 99], got {steps}")
    if schedule is None:
        schedule = WITHOUT_A_PLAN
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; accepted: {sorted(SCHEDULES)}")
        schedule = SCHEDULES[schedule]
    if isinstance(schedule, Schedule):
        if schedule.root != 2:
            raise ValueError(
                f"schedule must have the root 2, that of singular values, got {schedule.root}"
            )
        return _with_steps(schedule, steps)
    if is_triple(schedule):
        triple = tuple(float(c) for c in schedule)  # type: ignore[arg-type]
        return Schedule(f"{triple}", (triple,) * (5 if steps is None else steps))
    try:
        table = tuple(tuple(float(c) for c in step) for step in schedule)  # type: ignore[union-attr]
    except TypeError as error:
        raise TypeError(
            "schedule must be None, a name, an (a, b, c) triple, a sequence of coefficient "
            f"tuples or a Schedule, got {schedule!r}"
        ) from error
    return _with_steps(Schedule("custom", table), steps)
