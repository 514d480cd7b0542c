"""State dicts that nothing has saved: refused in one line, or taken as they are; nothing else."""

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from data_prune import DualTracker, KeyedTracker
from faults.killed_child import SCALE
from faults.prune_runs import (
    EPOCHS,
    WINDOW,
    N,
    feed,
    loader,
    mutant,
    record_pass,
    same,
)


def in_the_middle(tracker: DualTracker, epochs: int) -> DualTracker:
    for epoch in range(epochs):
        feed(tracker, epoch)
        tracker.end_epoch()
    feed(tracker, epochs, start=16)
    return tracker


def started_loader() -> Any:
    wrapped = loader()
    record_pass(wrapped, 0)
    record_pass(wrapped, 1, batches=2)
    return wrapped


OBJECTS: dict[str, Callable[[], Any]] = {
    "tracker with peers": lambda: in_the_middle(
        DualTracker(N, epochs=EPOCHS, window=WINDOW, peers="all"), 1
    ),
    "tracker": lambda: in_the_middle(DualTracker(N, epochs=EPOCHS, window=WINDOW), 4),
    "keyed tracker": lambda: in_the_middle(
        KeyedTracker(4, epochs=EPOCHS, window=WINDOW), 2
    ),
    "sampler": lambda: started_loader().sampler,
    "loader": started_loader,
}  # fmt: skip


def refusal(target: Any, state: Any) -> str | None:
    """What is said when a state is refused; None if it is taken."""
    try:
        target.load_state_dict(state)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", OBJECTS)
def test_mutated_states(kind: str) -> None:
    """A load that has half happened, or a KeyError from inside, helps nobody."""
    target, rng, outcomes = OBJECTS[kind](), random.Random(0), Counter[str]()
    state = copy.deepcopy(target.state_dict())
    for _ in range(120 * SCALE):
        wrong = mutant(state, rng)
        said = refusal(target, wrong)
        taken = target.state_dict()
        if said is not None:
            assert same(taken, state), said
            assert "\n" not in said
            assert len(said.split()) > 4
            outcomes["refused"] += 1
            continue
        assert same(taken, state) or same(taken, wrong)
        outcomes["same" if same(taken, state) else "legal other value"] += 1
        target.load_state_dict(state)
    assert outcomes["refused"] > 80 * SCALE
    print(kind, dict(outcomes))


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("state", [None, 3, [], "state", {}])
def test_what_is_no_state(kind: str, state: object) -> None:
    """The file of another program, or an empty checkpoint."""
    target = OBJECTS[kind]()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises((TypeError, ValueError), match="state of"):
        target.load_state_dict(state)
    assert same(target.state_dict(), before)


def test_a_refusal_of_one_half_leaves_the_other_half_alone() -> None:
    """A loader has two states: a good recording with a bad position must load neither."""
    wrapped, other = started_loader(), started_loader()
    record_pass(other, 1)
    state, before = other.state_dict(), copy.deepcopy(wrapped.state_dict())
    for part, entry in (("sampler", "yielded"), ("tracker", "updates")):
        wrong = copy.deepcopy(state)
        wrong[part][entry] = -1
        with pytest.raises(ValueError, match=f"{entry} of the state must be"):
            wrapped.load_state_dict(wrong)
        assert same(wrapped.state_dict(), before)
    wrapped.load_state_dict(state)
    assert same(wrapped.state_dict()["tracker"], state["tracker"])
