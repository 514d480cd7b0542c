"""Spectra of weights and LoRA products, and the tracker in every kind of loop."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference.factorization import lora_singular_values as dense_singular_values
from torch_specgd import (
    LoraPair,
    Muon,
    SpecGD,
    SpectrumTracker,
    effective_rank,
    lora_singular_values,
    stable_rank,
)
from torch_specgd.spectrum.measures import lora_balance

checked = settings(derandomize=True, deadline=None, max_examples=50)


def test_stable_and_effective_rank_of_known_spectra() -> None:
    """Both count equal directions, and call the zero matrix rank 0 rather than nan."""
    x = torch.diag(torch.tensor([3.0, 3.0, 0.0]))
    assert float(stable_rank(x)) == pytest.approx(2.0)
    assert float(effective_rank(x)) == pytest.approx(2.0)
    assert float(stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))) == pytest.approx(1.5)
    for rank in (stable_rank, effective_rank):
        assert float(rank(torch.zeros(4, 3))) == 0.0
        assert rank(torch.randn(2, 5, 4, 3)).shape == (2, 5)
        assert rank(torch.randn(4, 3, dtype=torch.bfloat16)).dtype == torch.float32
        spectrum = torch.tensor([3.0, 3.0])
        assert float(rank(spectrum, is_spectrum=True)) == pytest.approx(2.0)


@checked
@given(st.integers(-30, 30))
def test_ranks_do_not_depend_on_the_scale(exponent: int) -> None:
    """Gradients of 1e-30 and weights of 1e30 have the rank of their shape, not nan."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for rank in (stable_rank, effective_rank):
        assert float(rank(x * 10.0**exponent)) == pytest.approx(float(rank(x)), rel=1e-4)


@checked
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 99),
    st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_lora_singular_values_are_those_of_the_product(
    m: int, n: int, r: int, seed: int, dtype: torch.dtype
) -> None:
    """Every shape, also r above m or n; error relative to the largest value."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(m, r, dtype=torch.float64, generator=generator).to(dtype)
    a = torch.randn(r, n, dtype=torch.float64, generator=generator).to(dtype)
    got = lora_singular_values(b, a, scale=-2.0)
    truth = dense_singular_values(b, a, -2.0)
    assert got.shape == truth.shape
    tolerance = 50 * max(m, n, r) * torch.finfo(dtype).eps
    assert float((got.double() - truth).abs().max()) <= tolerance * float(truth.max())


def test_small_singular_values_survive_where_a_gram_matrix_loses_them() -> None:
    """Six orders of magnitude in float32: the tail is right to 1e-2, not drowned in rounding."""
    generator = torch.Generator().manual_seed(0)
    q_b, q_a = (
        torch.linalg.qr(torch.randn(300, 8, generator=generator, dtype=torch.float64)).Q
        for _ in range(2)
    )
    sigma = torch.logspace(0, -6, 8, dtype=torch.float64)
    # Balanced factors in one basis, as spectral training makes them.
    b, a = (q_b * sigma.sqrt()).float(), (q_a * sigma.sqrt()).float().T
    got = lora_singular_values(b, a).double()
    assert float((got / sigma - 1).abs().max()) < 1e-2


def test_balance_is_zero_for_balanced_factors_only() -> None:
    """The conserved quantity of spectral training."""
    q = torch.linalg.qr(torch.randn(9, 3)).Q
    assert float(lora_balance(2 * q, 2 * torch.eye(3))) < 1e-5
    assert float(lora_balance(3 * q, torch.eye(3))) == pytest.approx(2 * math.sqrt(3))


class Adapted(nn.Module):
    """One frozen layer with an adapter."""

    def __init__(self, m: int = 12, n: int = 10, r: int = 3) -> None:
        super().__init__()
        self.base = nn.Linear(n, m)
        self.lora_A, self.lora_B = nn.Linear(n, r, bias=False), nn.Linear(r, m, bias=False)
        self.scaling = 2.0
        nn.init.zeros_(self.lora_B.weight)
        self.base.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scaling * self.lora_B(self.lora_A(x))


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, tracker: SpectrumTracker, n: int
) -> None:
    x, y = torch.randn(32, 10), torch.randn(32, 12)
    for _ in range(n):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        tracker.update()


def test_tracker_in_a_plain_loop(tmp_path: Path) -> None:
    """Every k-th step, every product, nothing lost on the way to CSV and Parquet."""
    import pyarrow.parquet as pq
    from pyarrow import csv

    model = nn.Sequential(Adapted(), nn.Linear(12, 12))
    optimizer = SpecGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    tracker = SpectrumTracker(model, every=4, optimizer=optimizer, weights=["1.weight"])
    run(model, optimizer, tracker, 9)
    assert tracker.names() == ["0", "1.weight"]
    steps, sigma = tracker.history("0")
    assert steps.tolist() == [0, 4, 8]
    layer = model[0]
    truth = dense_singular_values(layer.lora_B.weight.detach(), layer.lora_A.weight.detach(), 2.0)
    assert torch.allclose(sigma[-1], truth, rtol=1e-5)
    assert tracker.history("1.weight")[1].shape == (3, 12)
    assert tracker.history("0", "rate")[1].tolist() == pytest.approx([math.sqrt(2.0) * 0.01] * 3)
    assert tracker.history("0", "sigma_ratio")[1][-1] == pytest.approx(float(truth[-1] / truth[0]))
    table = tracker.table()
    assert len(table) == 3 * (3 + 12)
    tracker.to_csv(tmp_path / "spectrum.csv")
    tracker.to_parquet(tmp_path / "spectrum.parquet")
    assert pq.read_table(tmp_path / "spectrum.parquet").equals(table)
    again = csv.read_csv(tmp_path / "spectrum.csv")
    assert again["singular_value"].to_pylist() == pytest.approx(table["singular_value"].to_pylist())


def test_tracker_leaves_training_as_it_is() -> None:
    """Watching must not change weights, gradients, or the random state."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Adapted()
        optimizer = SpecGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        tracker = SpectrumTracker(model, every=1 if watched else 1000)
        run(model, optimizer, tracker, 3)
        ends.append([p.detach().clone() for p in model.parameters()] + [torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_tracker_resumes() -> None:
    """A checkpoint in the middle: the same records as without."""
    model = Adapted()
    optimizer = SpecGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    first = SpectrumTracker(model, every=2)
    run(model, optimizer, first, 3)
    second = SpectrumTracker(model, every=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.update()
    second.update()
    assert second.history(second.names()[0])[0].tolist() == [0, 2, 4]


def test_known_target_gives_modes_and_predicted_hits() -> None:
    """Sorted singular values cannot tell equal modes apart; the projections can."""
    target = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    b, a = (nn.Parameter(x) for x in (torch.zeros(3, 2), 1e-3 * torch.randn(2, 3)))
    optimizer = SpecGD([b, a], lr=0.1)
    pair = LoraPair("w", b, a, scale=0.25)
    tracker = SpectrumTracker(None, 1, pairs=[pair], targets={"w": target}, optimizer=optimizer)
    with torch.no_grad():
        b[:2, :2], a[:2, :2] = torch.diag(torch.tensor([2.0, -1.0])), torch.eye(2)
        a[:, 2] = 0.0
    tracker.update()
    assert tracker.history("w", "modes")[1][0].tolist() == pytest.approx([0.5, -0.25])
    # sqrt(sigma) grows by sqrt(0.25) * 0.1 a step.
    assert tracker.predicted_hits("w").tolist() == pytest.approx([40.0, 20.0])
    optimizer.param_groups[0]["lr"] = 0.05  # halved from step 10 on, as recorded there
    tracker.record(10)
    assert tracker.predicted_hits("w").tolist() == pytest.approx([70.0, 30.0])


def test_conv_weights_and_stacks_are_their_matrices() -> None:
    """A convolution is one (out, rest) matrix; a stack of experts is one record each."""
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)})
    model.register_parameter("experts", nn.Parameter(torch.randn(2, 5, 6)))
    tracker = SpectrumTracker(model, every=1)
    tracker.update()
    assert tracker.names() == ["experts[0]", "experts[1]", "conv.weight"]
    sigma = tracker.history("conv.weight")[1][0]
    assert torch.allclose(
        sigma, torch.linalg.svdvals(model["conv"].weight.detach().flatten(1)).double(), rtol=1e-5
    )


def test_plot_shows_modes_targets_and_hits(tmp_path: Path) -> None:
    """The figure has a curve and a target line per mode, and one series of predictions."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    target = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    b, a = (nn.Parameter(x) for x in (torch.zeros(3, 2), 1e-3 * torch.randn(2, 3)))
    pair, optimizer = LoraPair("w", b, a), SpecGD([b, a], lr=0.1)
    tracker = SpectrumTracker(None, 1, pairs=[pair], targets={"w": target}, optimizer=optimizer)
    with pytest.raises(ValueError, match="nothing recorded yet"):
        tracker.plot()
    tracker.update()
    tracker.update()
    ax = tracker.plot()
    assert len(ax.lines) == 2 + 2 + 1
    assert ax.get_title() == "w"
    ax.figure.savefig(tmp_path / "spectrum.png")
    assert len(SpectrumTrackerWithoutTarget().plot().lines) == 3
    matplotlib.pyplot.close("all")


def SpectrumTrackerWithoutTarget() -> SpectrumTracker:
    tracker = SpectrumTracker(nn.Linear(4, 3), every=1)
    tracker.update()
    return tracker


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpectrumTracker(Adapted(), every=0), "every must be at least 1, got 0"),
        (lambda: SpectrumTracker(nn.ReLU()), "nothing to record"),
        (lambda: SpectrumTracker(Adapted(), weights=["nope*"]), "no matrix is named like 'nope"),
        (lambda: SpectrumTracker(Adapted(), targets={"x": torch.eye(2)}), "target 'x' belongs"),
        (lambda: SpectrumTracker(Adapted()).history("x"), "nothing recorded under 'x'"),
        (lambda: SpectrumTrackerWithoutTarget().history("weight", "modes"), "has no 'modes'"),
        (lambda: SpectrumTrackerWithoutTarget().predicted_hits("weight"), "known target"),
        (lambda: lora_singular_values(torch.ones(3, 2), torch.ones(3, 4)), r"\(3, 2\)"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    """Wrong names and shapes fail where they are given."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("default")  # Lightning uses names that torch deprecates
def test_lightning_callback_records_and_checkpoints(tmp_path: Path) -> None:
    """Two lines for a Lightning user; accumulation does not record a step twice."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Adapted()

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return (self.layer(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Muon([p for p in self.parameters() if p.requires_grad], lr=0.01)

    data = torch.utils.data.TensorDataset(torch.randn(24, 10), torch.randn(24, 12))
    module = Module()
    tracker = SpectrumTracker(module, every=2)
    trainer = pl.Trainer(
        max_epochs=1, accumulate_grad_batches=2, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[tracker.lightning_callback()],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    steps, _ = tracker.history("layer")
    assert steps.tolist() == [0, 2, 4, 6]
    assert tracker.records[-1]["rate"] is not None
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
    assert any(len(state.get("records", [])) == 4 for state in saved.values())


def many_adapters(count: int = 5) -> SpectrumTracker:
    """Adapters of several ranks, grown at rates of their own."""
    pairs = [LoraPair(f"layer{i}", torch.eye(8, 2 + i), torch.eye(2 + i, 8)) for i in range(count)]
    tracker = SpectrumTracker(None, 1, pairs=pairs)
    for step in range(4):
        for i, pair in enumerate(pairs):
            pair.lora_b.copy_((1 + step * (1 + i)) * torch.eye(8, 2 + i))
            pair.lora_b[-1 - i :] *= 0.25
        tracker.update(step)
    return tracker


def test_plot_of_many_adapters_shows_median_and_range() -> None:
    """Drawn one by one, twenty adapters cannot be read; the first of them alone says little."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    tracker = many_adapters()
    growth = tracker.plot()
    spread = growth.figure.axes[1]
    largest = [[1 + step * (1 + i) for i in range(5)] for step in range(4)]
    wanted = [math.sqrt(sorted(xs)[2]) for xs in largest]
    assert growth.lines[0].get_ydata() == pytest.approx(wanted)
    edges = growth.collections[0].get_paths()[0].vertices[:, 1]
    assert max(edges) == pytest.approx(math.sqrt(16))
    assert min(edges) == pytest.approx(1.0)
    labels = [text.get_text() for text in growth.get_legend().get_texts()]
    assert [label.split()[0] for label in labels] == ["largest", "middle", "smallest"]
    ratios = torch.stack([tracker.history(n, "sigma_ratio")[1] for n in tracker.names()])
    assert spread.lines[0].get_ydata() == pytest.approx(ratios.median(0).values.tolist())
    assert "5 adapters" in growth.get_title()
    alone = matplotlib.pyplot.subplots()[1]
    assert tracker.plot("layer[12]", ax=alone) is alone
    assert "2 adapters" in alone.get_title()
    assert tracker.plot("layer3").get_title() == "layer3"
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("path", ["spectrum.png", Path("figures/spectrum.png")])
def test_plot_says_where_a_path_belongs(path: Any) -> None:
    """`plot("out.png")` reads as if it saved: no figure is made, and the error says how to."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    with pytest.raises(ValueError, match=r"got '.*spectrum.png'; recorded are .*savefig\(path\)"):
        many_adapters().plot(path)
    assert not matplotlib.pyplot.get_fignums()
