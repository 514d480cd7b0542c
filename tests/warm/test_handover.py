"""Optimizer state, master copies, EMA weights and running statistics go along, or nothing moves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from warmstart import GradientDirection, dash_shrink, uniform_shrink


def trained(optimizer_class=torch.optim.SGD, **keywords) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small BatchNorm net after three steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    optimizer = optimizer_class(model.parameters(), lr=0.01, **keywords)
    for x, y in data():
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def data() -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 6, 6, generator=g) + 1, torch.randint(3, (16,), generator=g))
        for _ in range(3)
    ]


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    return (
        {n: t.clone() for n, t in model.state_dict().items()},
        copy.deepcopy(optimizer.state_dict()),
    )


def assert_same(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


OPTIMIZERS = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.AdamW, {"fused": True, "amsgrad": True}),
    (torch.optim.Adam, {"capturable": False}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {}),
]
SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


@pytest.mark.parametrize(("optimizer_class", "keywords"), OPTIMIZERS)
def test_scale(optimizer_class, keywords) -> None:
    """Moments follow their units; untouched parameters (BatchNorm) keep theirs bit for bit."""
    model, optimizer = trained(optimizer_class, **keywords)
    old = {n: copy.deepcopy(optimizer.state[p]) for n, p in model.named_parameters()}
    report = dash_shrink(model, data(), optimizer=optimizer, optimizer_state="scale")
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            before = old[name][key]
            if name not in report.factors or value.shape != p.shape:
                assert_same(value, before)
                continue
            s = report.factors[name] ** (2 if key in SECOND else 1)
            torch.testing.assert_close(value, before * s, rtol=1e-6, atol=0)


def test_scale_leaves_the_step_counter_of_a_scalar_alone() -> None:
    """A scalar parameter has the shape of its step counter; 5 steps must not become 1.5."""
    model = nn.Linear(3, 2)
    model.gain = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.NAdam(model.parameters())
    batch = (torch.randn(8, 3), torch.randint(2, (8,)))
    forward = lambda m, b: cross_entropy(m(b[0]) * m.gain, b[1])  # noqa: E731
    forward(model, batch).backward()
    optimizer.step()
    old = copy.deepcopy(optimizer.state[model.gain])
    report = dash_shrink(
        model, [batch], forward=forward, include=("default", "gain"),
        optimizer=optimizer, optimizer_state="scale", zero_gradient="floor", floor=0.3,
    )  # fmt: skip
    new, s = optimizer.state[model.gain], report.factors["gain"]
    assert new["step"] == old["step"] == 1
    assert new["mu_product"] == old["mu_product"]
    torch.testing.assert_close(new["exp_avg"], old["exp_avg"] * s)


@pytest.mark.parametrize(("optimizer_class", "keywords"), OPTIMIZERS)
def test_reset(optimizer_class, keywords) -> None:
    """Touched parameters start like new ones at the next step, the others go on."""
    model, optimizer = trained(optimizer_class, **keywords)
    dash_shrink(model, data(), optimizer=optimizer, optimizer_state="reset")
    assert not optimizer.state.get(model[0].weight)
    assert optimizer.state[model[1].weight]
    fresh = optimizer_class([model[0].weight], lr=0.01, **keywords)
    x, y = data()[0]
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    start = model[0].weight.detach().clone()
    fresh.step()
    expected = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.copy_(start)
    if optimizer_class is not torch.optim.Adagrad:  # Adagrad builds its state in the constructor
        optimizer.step()
        assert_same(model[0].weight.detach(), expected)


def test_keep_is_the_default() -> None:
    """The official code keeps momentum; parity needs the same."""
    model, optimizer = trained(momentum=0.9)
    before = copy.deepcopy(optimizer.state_dict())
    dash_shrink(model, data(), optimizer=optimizer)
    assert_same(optimizer.state_dict()["state"], before["state"])


def test_param_groups_and_tensors_of_other_models() -> None:
    """One optimizer over several groups and several models: only the shrunk ones are touched."""
    model, _ = trained()
    other = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "lr": 0.1},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            {"params": other.parameters(), "lr": 1e-4},
        ]
    )
    (model(data()[0][0]).square().mean() + other(torch.ones(3)).square().mean()).backward()
    optimizer.step()
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    old = {id(p): copy.deepcopy(s) for p, s in optimizer.state.items()}
    excluded = model[0].weight
    report = dash_shrink(
        model, data(), optimizer=optimizer, optimizer_state="scale", exclude="0.weight"
    )
    assert set(report.factors) == {"4.weight", "4.bias"}
    for p in (*other.parameters(), excluded, model[1].weight, model[1].bias):
        assert_same(optimizer.state[p], old[id(p)])
    for name, s in report.factors.items():
        p = model.get_parameter(name)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], old[id(p)]["exp_avg"] * s)
        assert_same(optimizer.state[p]["step"], old[id(p)]["step"])
    after = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert after == groups


@pytest.mark.parametrize("rule", ["keep", "reset", "scale"])
def test_master_copies_always_follow(rule: str) -> None:
    """A float32 master that keeps the old value undoes the shrink at the next step."""
    model, optimizer = trained(momentum=0.9)
    for p in model.parameters():
        optimizer.state[p]["master_param"] = p.detach().float().clone()
    dash_shrink(model, data(), optimizer=optimizer, optimizer_state=rule)
    for p in model.parameters():
        torch.testing.assert_close(optimizer.state[p]["master_param"], p.detach(), rtol=0, atol=0)
    if rule == "reset":
        assert not optimizer.state[model[0].weight]["momentum_buffer"].any()


def test_shadow_weights_shrink_along() -> None:
    """An EMA that stays behind pulls the weights back; a state dict is accepted as well."""
    model, _ = trained(momentum=0.9)
    shadow = AveragedModel(model)
    with torch.no_grad():
        for p in shadow.parameters():
            p.mul_(1.5)
    masters = {n: p.detach().double() for n, p in model.named_parameters()}
    old = {n: p.detach().clone() for n, p in shadow.module.named_parameters()}
    old_masters = {n: p.clone() for n, p in masters.items()}
    report = dash_shrink(model, data(), along=[shadow, masters])
    for n, p in shadow.module.named_parameters():
        s = report.factors.get(n, torch.ones(()))
        torch.testing.assert_close(p.detach(), old[n] * s, rtol=1e-6, atol=0)
        torch.testing.assert_close(masters[n], old_masters[n] * s, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"optimizer_state": "forget"}, ValueError, "optimizer_state must be one of"),
        ({"optimizer_state": "reset"}, ValueError, "needs optimizer="),
        ({"optimizer": "adam"}, TypeError, "must be a torch optimizer, got str"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())},
            ValueError,
            "holds none of the shrunk parameters",
        ),
        (
            {"along": {"0.weight": torch.zeros(1)}},
            ValueError,
            r"along\[0\] has \(1,\) for '0.weight'",
        ),
        ({"along": nn.Linear(1, 1)}, ValueError, r"along\[0\] has no tensor named '0.weight'"),
        ({"along": [3]}, TypeError, "along takes modules and mappings"),
        ({"recalibrate_norm": -1}, ValueError, "recalibrate_norm must be"),
        ({"tail": 0}, ValueError, "tail must be a positive integer"),
        ({"max_batches": 1.5}, ValueError, "max_batches must be a positive integer"),
        ({"grad_mode": "test"}, ValueError, "grad_mode must be one of"),
        ({"units": "channel"}, ValueError, "units must be one of"),
        ({"bias": "zero"}, ValueError, "bias must be one of"),
        ({"floor": "small"}, ValueError, 'floor must be in .* or "auto"'),
    ],
)
def test_bad_arguments_change_nothing(keywords: dict, error: type, match: str) -> None:
    """Every argument is checked before the first weight is written."""
    model, optimizer = trained(momentum=0.9)
    before = snapshot(model, optimizer)
    with pytest.raises(error, match=match):
        dash_shrink(model, data(), **keywords)
    assert_same(snapshot(model, optimizer), before)


class Fails(torch.Tensor):
    """A shadow weight on a device that runs out of memory when it is written."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.copy_:
            raise torch.OutOfMemoryError("out of memory")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("where", ["along", "recalibration", "interrupt"])
def test_a_late_failure_rolls_everything_back(where: str, monkeypatch) -> None:
    """Out of memory, a loader that dies, or Ctrl-C after the weights were written."""
    model, optimizer = trained(momentum=0.9)
    before = snapshot(model, optimizer)
    keywords: dict = {"optimizer": optimizer, "optimizer_state": "scale"}
    if where == "along":
        copies = {n: p.detach().clone() for n, p in model.named_parameters()}
        copies["4.weight"] = copies["4.weight"].as_subclass(Fails)
        error, keywords["along"] = torch.OutOfMemoryError, copies
    else:
        error = OSError if where == "recalibration" else KeyboardInterrupt
        keywords["recalibrate_norm"] = 2
        calls = []

        def forward(m: nn.Module, batch) -> torch.Tensor:
            calls.append(1)
            if len(calls) > 4:  # three batches of the gradient pass, then the second of two
                raise error("gone")
            return cross_entropy(m(batch[0]), batch[1])

        keywords["forward"] = forward
    with pytest.raises(error):
        dash_shrink(model, data(), **keywords)
    assert_same(snapshot(model, optimizer), before)
    assert all(m.momentum == 0.1 for m in model if isinstance(m, nn.BatchNorm2d))
    assert model.training


def test_recalibrated_statistics_are_the_batch_means() -> None:
    """Without it the first evaluation after a shrink is chance; only BatchNorm may move."""
    model, _ = trained()
    model[1].momentum = 0.1
    dash_shrink(model, data(), recalibrate_norm=2)
    with torch.no_grad():
        outs = [model[0](x) for x, _ in data()[:2]]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outs]).mean(0)
    var = torch.stack([o.var((0, 2, 3)) for o in outs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var, var, rtol=1e-5, atol=1e-6)
    assert model[1].num_batches_tracked == 3
    assert model[1].momentum == 0.1
    with pytest.raises(ValueError, match="pass a loader, not an iterator"):
        dash_shrink(model, iter(data()), recalibrate_norm=1)


def test_notes_tell_about_stale_statistics_and_double_shrinks() -> None:
    """The two mistakes that users make right after a shrink."""
    model, _ = trained()
    report = dash_shrink(model, data())
    assert any("running statistics of 1 BatchNorm" in n for n in report.notes)
    with pytest.warns(UserWarning, match="the factors multiply"):
        dash_shrink(model, data())
    with torch.no_grad():
        model[0].weight.add_(0.1)  # training went on
    assert not any("stale" in n for n in dash_shrink(model, data(), recalibrate_norm=1).notes)


def test_inplace_false_and_dry_run_leave_the_model_alone() -> None:
    """A copy in the report, or nothing but the report."""
    model, optimizer = trained(momentum=0.9)
    before = snapshot(model, optimizer)
    planned = dash_shrink(model, data(), dry_run=True, optimizer=optimizer, optimizer_state="reset")
    copied = dash_shrink(model, data(), inplace=False)
    assert_same(snapshot(model, optimizer), before)
    assert planned.model is None
    assert not planned.applied
    dash_shrink(model, data())
    assert_same(copied.model.state_dict(), model.state_dict())
    for n, s in planned.factors.items():
        assert torch.equal(s, copied.factors[n])
    with pytest.raises(ValueError, match="use inplace=True"):
        uniform_shrink(model, 0.5, inplace=False, optimizer=optimizer)


def test_loaders_of_every_kind() -> None:
    """Unknown length, generators, dict batches with labels, max_batches and tail."""
    batches = data()

    def shrunk(loader, **keywords) -> dict:
        model, _ = trained()
        dash_shrink(model, loader, **keywords)
        return {n: p.detach() for n, p in model.named_parameters()}

    assert_same(shrunk(iter(batches)), shrunk(batches))
    assert_same(shrunk(batches, max_batches=2), shrunk(batches[:2]))
    assert_same(shrunk(batches, tail=2), shrunk(batches[1:]))
    assert_same(shrunk(iter(batches), tail=2), shrunk(batches[1:]))
    assert_same(shrunk(batches, tail=9), shrunk(batches))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = trained()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
            logits = self.inner(x)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    named = Named()
    dash_shrink(named, [{"x": x, "labels": y} for x, y in batches])
    assert_same({n: p.detach() for n, p in named.inner.named_parameters()}, shrunk(batches))
    seen: list = []
    shrunk(batches, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_train_mode_on_batchnorm_says_that_direction_is_blind() -> None:
    """Per filter in train mode every cosine is zero: DASH is a uniform shrink and must say so."""
    model, _ = trained()
    report = dash_shrink(model, data(), units="filter", grad_mode="train")
    row = report.row("0.weight")
    assert row.norm_follows == "1"
    assert row.share_at_floor == 1.0
    assert row.effective_lr == pytest.approx(1 / 0.09, rel=1e-5)
    assert any(n.startswith("direction carries no information for 0.weight") for n in report.notes)
    assert report.row("4.weight").effective_lr is None


def test_auto_floor_looks_at_normalization() -> None:
    """0.3 where BatchNorm follows, 0.1^(1/n) for n weights in a row without one."""
    model, _ = trained()
    report = dash_shrink(model, data(), floor="auto")
    assert [r.floor for r in report.rows] == [0.3, 0.3, 0.3]
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = dash_shrink(plain, [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))], floor="auto")
    assert report.row("0.weight").floor == pytest.approx(0.1 ** (1 / 3))
    normed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    report = dash_shrink(normed, [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))], floor="auto")
    assert report.row("0.weight").floor == 0.3
    assert report.row("2.weight").floor == pytest.approx(0.1**0.5)
    direction = GradientDirection(normed)
    direction.update({"0.weight": torch.ones(4, 4)})
    with pytest.raises(ValueError, match="give data, not a fed direction"):
        dash_shrink(normed, direction, floor="auto")


def decay(model: nn.Module, batch: object) -> torch.Tensor:
    """A loss that shortens every weight alike: all cosines are -1, all factors the floor."""
    model(batch)
    return sum((p.double() ** 2).sum() for p in model.parameters()).float()  # type: ignore[union-attr]


class Functional(nn.Module):
    """ReLUs that no hook sees, and a shortcut: two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shortcut, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.head(torch.relu(self.b(x)) + self.shortcut(x))


@pytest.mark.parametrize(
    ("model", "depth"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), 3),
        (Functional(), 3),
    ],
)
def test_auto_floor_keeps_the_function_of_a_plain_net_up_to_its_scale(
    model: nn.Module, depth: int
) -> None:
    """One factor per bias vector would open and close other ReLUs than before."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    before = model(x).detach()
    report = dash_shrink(model, [x], floor="auto", forward=decay)
    floor = next(r.floor for r in report.rows if r.name.endswith("weight"))
    assert report.rows[0].share_at_floor == 1.0
    torch.testing.assert_close(model(x).detach(), floor**depth * before, rtol=1e-5, atol=1e-6)
    biases = [r for r in report.rows if r.name.endswith("bias")]
    assert len({round(r.mean_factor, 6) for r in biases}) == depth


def test_auto_floor_follows_the_official_rule_behind_normalization() -> None:
    """A head alone behind its normalization has no row of factors that could multiply."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]
    auto = dash_shrink(model, batches, floor="auto", dry_run=True).factors
    official = dash_shrink(model, batches, floor=0.3, dry_run=True).factors
    assert auto is not None
    assert official is not None
    assert all(torch.equal(auto[name], official[name]) for name in official)
