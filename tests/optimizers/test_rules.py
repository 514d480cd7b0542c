"""Update rules beside the polar factor: preconditioners, second moments, rules of a user's."""

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference.optimizers import ReferenceMuon, polar_exact
from reference.rules import ReferenceEigenbasis, ReferenceShampoo, contra, element_normalized
from torch_specgd import Eigenbasis, Interleaved, Muon, Shampoo
from torch_specgd.step import precondition, stages

RULES: dict[str, Any] = {
    "eigenbasis": "eigenbasis",
    "eigenbasis-short": Eigenbasis(sides="short"),
    "shampoo": Shampoo(every=4),
    "shampoo-outputs": Shampoo(sides="outputs", every=5),
    "shampoo-both": Shampoo(sides="both", root=4, every=3),
}
EXACT = [(1.875, -1.25, 0.375)] * 40  # slow, and right to the last digit
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def gradients(*shape: int, count: int = 12, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tilt = torch.logspace(0, -1, shape[-1])  # entries of different sizes: the rules do something
    made = [torch.randn(shape, generator=generator) * tilt for _ in range(count)]
    return [g.to(dtype) for g in made]


def steps_of(grads: list[Tensor], **options: Any) -> Tensor:
    """The weight that starts at zero, after a step with each gradient."""
    p = nn.Parameter(torch.zeros_like(grads[0]))
    group = {"params": [p]}
    group.update({k: options.pop(k) for k in ("split", "matrix_view") if k in options})
    optimizer = Muon([group], **{"lr": 0.1, "compute_dtype": "float32", **options})
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def reference_of(rule: Any, m: int, n: int) -> Any:
    rule = precondition.BY_NAME.get(rule, rule) if isinstance(rule, str) else rule
    short = (0,) if m <= n else (1,)
    sides = {"both": (0, 1), "outputs": (0,), "short": short}[rule.sides]
    options = {"beta": rule.beta, "every": rule.every, "sides": sides}
    if isinstance(rule, Shampoo):
        return ReferenceShampoo(m, n, **options, root=rule.root)
    return ReferenceEigenbasis(m, n, **options)


@pytest.mark.parametrize(
    ("rule", "shape"),
    # Not both eigenbases of another shape: what a covariance of low rank leaves open is anyone's.
    [(rule, (5, 5)) for rule in RULES.values()]
    + [(rule, shape) for rule in list(RULES.values())[1:] for shape in ((4, 7), (7, 4))],
)
def test_steps_equal_the_float64_reference(rule: Any, shape: tuple[int, int]) -> None:
    """Momentum, preconditioner, exact polar factor and weight, for longer than a refresh."""
    grads = gradients(*shape, count=13, dtype=torch.float64)
    slow = reference_of(rule, *shape)
    known: list[Tensor] = []

    def polar(u: Tensor) -> Tensor:
        return polar_exact(slow.step(u, known[-1]))

    reference = ReferenceMuon(
        torch.zeros(shape), polar, lr=0.1, weight_decay=0.1, momentum=0.95, nesterov=True,
        match_rms=False,
    )  # fmt: skip
    for g in grads:
        known.append(g)
        reference.step(g)
    found = steps_of(grads, precondition=rule, ns_coefficients=EXACT)
    # The engine's inverse roots are within 2 %.
    tolerance = 0.02 if isinstance(slow, ReferenceShampoo) else 1e-6
    atol = tolerance * float(reference.w.abs().max())
    torch.testing.assert_close(found, reference.w, rtol=tolerance, atol=atol)


def test_elementwise_second_moment_equals_its_rule() -> None:
    """AdaMuon's division, of entries instead of neurons, and the polar factor's own norm."""
    grads = gradients(4, 6, count=4, dtype=torch.float64)
    plain = dict(weight_decay=0.0, momentum=0.0, nesterov=False, lr=1.0)
    w, v = torch.zeros(4, 6).double(), torch.zeros(4, 6).double()
    for g in grads:
        o, v = element_normalized(-steps_of([g], **plain), v, 0.95)
        w = w - o
    torch.testing.assert_close(steps_of(grads, **plain, second_moment="element"), w)


def test_contra_steps_weak_directions_further() -> None:
    """1 - s / 2 of each singular value over the Schatten-4 norm, instead of 1."""
    g = gradients(5, 8, count=1, dtype=torch.float64)[0]
    plain = dict(weight_decay=0.0, momentum=0.0, nesterov=False, lr=1.0, adjust_lr_fn="none")
    found = -steps_of([g], **plain, ns_coefficients="contra")
    torch.testing.assert_close(found, contra(g), rtol=0, atol=0.035)
    assert (found - polar_exact(g)).abs().max() > 0.1


@every_rule
def test_weights_of_one_shape_share_a_call_and_nothing_else(rule: Any) -> None:
    """A GPU waits for launches, not for products; a neighbour's gradients are no business of it."""
    calls: list[tuple[int, ...]] = []

    def watched(update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        calls.append(tuple(update.shape))
        return function(update, gradient, state)

    function = precondition.BY_NAME.get(rule, rule) if isinstance(rule, str) else rule
    watched.shapes = function.shapes  # type: ignore[attr-defined]
    watched.identities = function.identities  # type: ignore[attr-defined]
    watched.together = True  # type: ignore[attr-defined]
    ps = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 6), (6, 4), (4, 6), (2, 4, 6))]
    groups = [{"params": [p], "use_muon": True} for p in ps]
    together = Muon([{"params": ps, "use_muon": True}], lr=0.1, precondition=watched)
    copies = copy.deepcopy(ps)
    alone = Muon([{**g, "params": [q]} for g, q in zip(groups, copies, strict=True)], lr=0.1,
                 precondition=rule)  # fmt: skip
    for step in range(12):
        for k, (p, q) in enumerate(zip(ps, copies, strict=True)):
            p.grad = q.grad = gradients(*p.shape, count=12)[step] * 10.0**k
        together.step()
        alone.step()
    assert sorted(calls[:3]) == [(1, 6, 4), (2, 4, 6), (2, 4, 6)]
    assert len(calls) == 3 * 12
    for p, q in zip(ps, copies, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        for name, x in alone.state[q].items():
            torch.testing.assert_close(together.state[p][name], x, rtol=1e-4, atol=1e-5)


def test_a_coefficient_alone_means_normuon() -> None:
    """What was written before ``second_moment`` existed goes on as it was."""
    grads = gradients(6, 4)
    old, new = steps_of(grads, neuron_beta=0.9), steps_of(
        grads, second_moment="neuron", neuron_beta=0.9
    )  # fmt: skip
    assert torch.equal(old, new)
    assert not torch.equal(old, steps_of(grads))
    default = steps_of(grads, second_moment="neuron")
    assert torch.equal(default, steps_of(grads, neuron_beta=0.95))


@every_rule
def test_convolutions_stacks_and_fused_weights_are_their_matrices(rule: Any) -> None:
    """Each matrix is preconditioned by its own gradients, however it is stored."""
    options = {"precondition": rule, "adjust_lr_fn": "none"}
    grads = gradients(6, 12)
    whole = steps_of(grads, **options)
    conv = steps_of([g.view(6, 3, 2, 2) for g in grads], **options)
    torch.testing.assert_close(conv.flatten(1), whole)
    other = [g.flip(0) for g in grads]
    stack = steps_of([torch.stack(pair) for pair in zip(grads, other, strict=True)], **options)
    torch.testing.assert_close(stack[0], whole)
    torch.testing.assert_close(stack[1], steps_of(other, **options))
    for split, rows in (
        ((0, (4, 2)), (range(4), range(4, 6))),
        (Interleaved(2, (2, 1)), ((0, 1, 3, 4), (2, 5))),
    ):
        fused = steps_of(grads, split=split, **options)
        for some in map(list, rows):
            alone = steps_of([g[some] for g in grads], **options)
            torch.testing.assert_close(fused[some], alone)
    turned = steps_of([g.mT.contiguous() for g in grads], matrix_view="transposed", **options)
    torch.testing.assert_close(turned.mT, whole)


@every_rule
def test_gradients_of_any_size_and_rank_give_finite_steps(rule: Any) -> None:
    """A dead unit, a low rank, an underflow or an overflow must not end a run in NaN."""
    low_rank = [g[:, :1] @ g[:1] for g in gradients(6, 5)]
    for grads in (
        low_rank,
        *([g * size for g in gradients(6, 5)] for size in (0, 1e-30, 1e-22, 1e25)),
    ):
        w = steps_of(grads, precondition=rule)
        assert w.isfinite().all()
        assert w.norm() < 12 * 0.1 * 5**0.5 * 1.3
    assert steps_of([g * 0 for g in low_rank], precondition=rule).eq(0).all()


@every_rule
def test_low_rank_gradients_do_not_move_the_rest(rule: Any) -> None:
    """Rounding noise divided by its own size would be a step as long as any."""
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    grads = [basis[:, :2] @ g for g in gradients(2, 8)]
    w = steps_of(grads, precondition=rule, weight_decay=0.0)
    outside = basis[:, 2:].T @ w
    assert outside.norm() < 0.05 * w.norm()


def test_a_large_side_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary's square does not fit into any memory."""
    monkeypatch.setattr(precondition, "LARGEST_SIDE", 6)
    p = nn.Parameter(torch.zeros(7, 5))
    for rule in (Eigenbasis(sides="both"), Shampoo(sides="both", every=2), Shampoo(every=2)):
        optimizer = Muon([p], precondition=rule)
        p.grad = gradients(7, 5)[0]
        optimizer.step()
        assert "precondition_right" in optimizer.state[p]
        assert "precondition_left" not in optimizer.state[p]
        optimizer.state.clear()


def test_an_adapters_outputs_are_not_preconditioned() -> None:
    """A factor of 64 x 4 would keep 8,192 numbers for its 256."""
    p, q = nn.Parameter(torch.zeros(64, 4)), nn.Parameter(torch.zeros(16, 4))
    optimizer = Muon([{"params": [p, q], "use_muon": True}], precondition=Shampoo(sides="outputs"))
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    assert optimizer.state[p]["precondition_right"].shape == (16,)
    assert optimizer.state[q]["precondition_left"].shape == (256,)


def test_a_basis_turns_into_the_eigenvectors() -> None:
    """Warm steps instead of decompositions: what remains off the diagonal dies out."""
    values = torch.logspace(0, -3, 8).double()
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double())[0]
    covariance, basis = (q * values) @ q.T, torch.eye(8).double()
    for _ in range(60):
        basis = precondition.next_basis(covariance, basis)
    torch.testing.assert_close(basis.T @ covariance @ basis, values.diag(), rtol=1e-6, atol=1e-6)
    assert torch.equal(precondition.next_basis(torch.zeros(3, 3), torch.eye(3)).abs(), torch.eye(3))


@pytest.mark.parametrize("root", [2, 4, 8])
def test_inverse_roots_take_products_alone(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes longer for an eigendecomposition than for the rest of a step."""

    def refused(*_: object) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr(torch.linalg, "eigh", refused)
    w = steps_of(gradients(5, 7), precondition=Shampoo(root=root, every=3))
    assert w.norm() > 0.1


def test_a_late_first_gradient_is_no_lost_step() -> None:
    """An expert that no token chose at first starts with the identity, not with zeros."""
    p, q = (nn.Parameter(torch.zeros(4, 6)) for _ in range(2))
    optimizer = Muon([p, q], lr=0.1, precondition="eigenbasis")
    for i, g in enumerate(gradients(4, 6, count=14)):
        p.grad, q.grad = g, g if i == 13 else None
        optimizer.step()
    # Four singular values of one, each mapped to 0.966 to 1.034 by the default schedule.
    assert q.detach().norm() == pytest.approx(0.1 * 2, rel=0.035)


def by_columns(update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
    state["squares"].lerp_(gradient.square().mean(-2), 0.05)
    return update / (state["squares"].sqrt() + 1e-12).unsqueeze(-2)


by_columns.shapes = lambda m, n: {"squares": (n,)}  # type: ignore[attr-defined]


def test_a_rule_of_ones_own_sees_one_weight_at_a_time() -> None:
    """It may sum over all that it gets; a NaN elsewhere is no business of it."""
    ps = [nn.Parameter(torch.zeros(3, 4)) for _ in range(2)]
    optimizer = Muon(ps, precondition=lambda u, g, state: u / u.norm())
    for p, g in zip(ps, gradients(3, 4), strict=False):
        p.grad = g
    ps[0].grad[0, 0] = math.nan
    optimizer.step()
    assert ps[0].isnan().any()
    assert ps[1].isfinite().all()


def test_a_rule_of_ones_own_is_five_lines() -> None:
    """By columns: the same as dividing them by hand; its state is the optimizer's."""
    grads = gradients(5, 3)
    u, v, w = torch.zeros(5, 3), torch.zeros(3), torch.zeros(5, 3)
    for g in grads:
        u, v = 0.95 * u + 0.05 * g, 0.95 * v + 0.05 * g.square().mean(0)
        w -= 0.1 * (5 / 3) ** 0.5 * polar_exact(u / v.sqrt()).float()
    found = steps_of(grads, precondition=by_columns, nesterov=False, weight_decay=0.0)
    torch.testing.assert_close(found, w, rtol=0.02, atol=0.02 * float(w.abs().max()))
    assert not torch.allclose(found, steps_of(grads, nesterov=False, weight_decay=0.0), rtol=0.02)


@pytest.mark.parametrize("rule", [by_columns, lambda u, g, state: u * (1 + g.abs())])
def test_a_rule_of_ones_own_resumes(rule: Callable[..., Tensor]) -> None:
    """Its state goes through a file; the function does not, and is asked for by name."""
    p = nn.Parameter(torch.zeros(5, 3))
    optimizer = Muon([p], lr=0.1, precondition=rule)
    for g in gradients(5, 3, count=3):
        p.grad = g
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with pytest.raises(ValueError, match="precondition was a function"):
        Muon([p]).load_state_dict(saved)
    q = nn.Parameter(p.detach().clone())
    resumed = Muon([q], lr=0.5, precondition=rule)
    resumed.load_state_dict(saved)
    for x, o in ((p, optimizer), (q, resumed)):
        x.grad = gradients(5, 3)[5]
        o.step()
    assert torch.equal(p, q)


def test_a_rule_sees_whole_float32_matrices_and_counts() -> None:
    """Whatever the weight's form, a rule's author thinks of (B, m, n)."""
    seen: list[Any] = []

    def rule(update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        seen.append((tuple(update.shape), gradient.shape == update.shape, update.dtype, state))
        return update

    p = nn.Parameter(torch.zeros(4, 3, 2, 2, dtype=torch.bfloat16))
    q = nn.Parameter(torch.zeros(5, 4, 3))
    optimizer = Muon([p, q], precondition=rule, maximize=True)
    for _ in range(2):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
    shapes = [((1, 4, 12), True, torch.float32), ((5, 4, 3), True, torch.float32)]
    assert [x[:3] for x in seen] == shapes * 2
    assert [x[3]["step"] for x in seen] == [1, 1, 2, 2]


def test_what_cannot_be_used_is_refused() -> None:
    """Before a weight is changed, in the argument's own words."""
    p = nn.Parameter(torch.zeros(4, 4))
    for options, message in (
        (
            {"precondition": "soap"},
            "precondition must be one of .* or a function of .*, got 'soap'",
        ),
        ({"precondition": Shampoo}, "precondition must be one of"),
        ({"second_moment": "row"}, "second_moment must be one of .*, got 'row'"),
        ({"neuron_beta": 1.0}, "neuron_beta must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Muon([p], **options)
    for make, message in (
        (lambda: Eigenbasis(beta=1.0), r"beta must be a number in \[0, 1\), got 1.0"),
        (lambda: Eigenbasis(every=0), "every must be an integer of at least 1, got 0"),
        (lambda: Shampoo(every=True), "every must be an integer of at least 1, got True"),
        (lambda: Shampoo(sides="left"), r"sides must be one of \('short', .*\), got 'left'"),
        (lambda: Eigenbasis(sides=["short"]), r"sides must be one of .*, got \['short'\]"),
        (lambda: Shampoo(root=3), r"root must be one of \(2, 4, 8\), got 3"),
        (lambda: Shampoo(root=True), r"root must be one of \(2, 4, 8\), got True"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for rule, beta in itertools.product((Shampoo, Eigenbasis), ("a", None, True)):
        with pytest.raises(TypeError, match=r"beta must be a number in \[0, 1\), got .* of "):
            rule(beta=beta)
    p.grad = torch.ones(4, 4)
    with pytest.raises(
        ValueError, match=r"precondition must return the update's shape \(1, 4, 4\)"
    ):
        Muon([p], precondition=lambda u, g, state: u[0]).step()
    assert p.eq(0).all()


def test_a_captured_step_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed graph would divide by the same basis for ever."""
    p = nn.Parameter(torch.zeros(4, 4))
    p.grad = torch.ones(4, 4)
    optimizer = Muon([p], precondition="eigenbasis")
    monkeypatch.setattr(stages, "capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="precondition must be None while a CUDA graph"):
        optimizer.step()
    assert p.eq(0).all()


def test_state_of_a_rule_that_was_switched_off_still_loads() -> None:
    """A setting that is changed in a run must not make its checkpoints useless."""

    def mine(update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        return update

    mine.shapes = lambda m, n: {"mine": (m, 2)}  # type: ignore[attr-defined]
    p = nn.Parameter(torch.zeros(48, 8))  # pieces that precondition different sides
    fused = {"params": [p], "split": (0, (40, 4, 4)), "use_muon": True}
    optimizer = Muon([fused], precondition="eigenbasis")
    rules = ("eigenbasis", Shampoo(sides="both"), "shampoo", mine, Shampoo(sides="outputs"), None)
    for rule in rules:
        optimizer.param_groups[0]["precondition"] = rule
        p.grad = gradients(48, 8)[0]
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    kept = {"precondition_left", "precondition_left_root", "precondition_mine"}
    assert kept <= optimizer.state[p].keys()
    assert p.isfinite().all()


@pytest.mark.parametrize("options", [{"foreach": False}, {"max_batch_bytes": 100}])
def test_batches_of_any_size_take_the_same_steps(options: dict[str, Any]) -> None:
    """What bounds memory is no setting of the algorithm."""
    grads = gradients(3, 6, 4)
    rule = {"precondition": "eigenbasis", "second_moment": "element"}
    torch.testing.assert_close(steps_of(grads, **rule, **options), steps_of(grads, **rule))


@every_rule
def test_steps_are_the_same_under_autocast(rule: Any) -> None:
    """Rounded to bfloat16, a covariance has no small eigenvalues left."""
    grads = gradients(5, 5, count=3)
    plain = steps_of(grads, precondition=rule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(steps_of(grads, precondition=rule), plain)
