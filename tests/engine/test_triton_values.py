"""What the kernels compute, in Triton's interpreter, against float64.

What this proves is indexing, masks, strides, epilogues and the order of operations; that every
access is to the launch's own tensors, and no element two programs'; and what bfloat16's roundings
do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from reference import spectral as truth
from torch_specgd.triton_kernels import SCHEDULES, orthogonalize
from torch_specgd.triton_kernels.iterate.products import TorchProducts
from torch_specgd.triton_kernels.spectral import turned_basis

Cases = dict[str, dict[str, Tensor]]
SIZES = ((1, 17), (17, 1), (33, 130), (130, 33))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """All cases, run once in a process whose kernels are interpreted."""
    path = tmp_path_factory.mktemp("interpreter") / "cases.pt"
    program = Path(__file__).with_name("triton_cases.py")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(program.parents[1]),
    }
    done = subprocess.run(
        [sys.executable, program, path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


def _rounding(dtype: torch.dtype, size: float) -> float:
    """Largest error of a value of magnitude `size`: float32 sums, then one rounding."""
    return size * (2**-10 if dtype == torch.float16 else 2**-20)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products(cases: Cases, dtype: str, size: tuple[int, int], layout: str) -> None:
    """A wrong mask or stride would corrupt the last rows of layers of odd size."""
    case = cases[f"product-{dtype}-{size[0]}x{size[1]}-{layout}"]
    x, c, q = (case[k].double() for k in ("x", "c", "q"))
    eye = torch.eye(size[0], dtype=torch.float64)
    truth = {
        "gram": x @ x.mT,
        "d": 0.5 * x @ x.mT + 0.25 * c + 3.0 * eye,
        "y": q @ x,
    }
    for name, expected in truth.items():
        limit = _rounding(case["x"].dtype, expected.abs().max().item() + 1.0)
        assert (case[name].double() - expected).abs().max() <= limit, name
    for name in ("gram", "d"):
        assert torch.equal(case[name], case[name].mT), f"{name} is not symmetric bit by bit"


@pytest.mark.parametrize("size", ["40x136", "136x40", "64x64"])
def test_products_through_descriptors(cases: Cases, size: str) -> None:
    """A tile at the edge of a matrix would take in what lies beside it."""
    case = {k: v.double() for k, v in cases[f"descriptor-{size}"].items()}
    x, q = case["x"][::2], case["q"][::2]
    assert case["gram"][1].isnan().all()
    assert (case["gram"][::2] - x @ x.mT).abs().max() < 2**-10 * (x @ x.mT).abs().max()
    assert (case["y"][::2] - q @ x).abs().max() < 1e-3


@pytest.mark.parametrize("schedule", ["degree9_3", "polar_express"])
@pytest.mark.parametrize(
    "name",
    ["plain", "tiny", "huge", "zero", "rank_one", "strided", "one_row", "half", "scratch"],
)
def test_small_rank_kernel(cases: Cases, name: str, schedule: str) -> None:
    """LoRA factors would be orthogonalized differently on the GPU than on the CPU."""
    case = cases[f"small-{name}-{schedule}"]
    truth = orthogonalize(case["x"].double(), method="newton_schulz", schedule=schedule)
    # Slope times float32's rounding; float16 output is rounded once more.
    limit = 2**-10 if case["y"].dtype == torch.float16 else 5e-5
    assert (case["y"].double() - truth).abs().max() < limit


@pytest.mark.parametrize(
    "name", ["plain", "tiny", "huge", "zero", "rank_one", "strided", "scales", "half", "scratch"]
)
def test_long_matrices_are_divided_among_programs(cases: Cases, name: str) -> None:
    """An embedding's LoRA factor would be another on the GPU than on the CPU."""
    case = cases[f"long-{name}"]
    truth = orthogonalize(case["x"].double(), method="newton_schulz", schedule="deep")
    limit = 2**-10 if case["y"].dtype == torch.float16 else 5e-5
    assert case["parts"] > 1
    assert (case["y"].double() - truth).abs().max() < limit
    assert torch.equal(case["y"], case["over"]), "another result where it lies over X"


def test_small_rank_kernel_keeps_nan_apart(cases: Cases) -> None:
    """One broken factor would break the launch's other factors."""
    y = cases["small-broken-degree9_3"]["y"]
    assert y[1].isnan().any()
    assert y[[0, 2]].isfinite().all()


WHOLE = [
    *(("deep", label) for label in (
        "plain", "tall", "row", "column", "rank_three", "zero", "huge", "tiny", "strided"
    )),
    ("flat", "plain"),
    ("jordan", "plain"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "label"), WHOLE)
@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_whole_orthogonalization(
    cases: Cases, dtype: str, form: str, name: str, label: str
) -> None:
    """The kernels, put together as a plan does, would not give the polar factor."""
    key = f"whole-{dtype}-{form}-{name}-{label}"
    if key not in cases:
        assert (dtype, form, name) == ("float16", "gram", "jordan")
        return
    case = cases[key]
    truth = orthogonalize(case["x"].double(), method="newton_schulz", schedule=SCHEDULES[name])
    # A step of degree 9 turns a rounding of R (2^-11) into up to forty times as much: its
    # slope at one in R is 39, that of Jordan's step 5.
    limit = 1e-4 if dtype == "float32" else (5e-3 if name == "jordan" else 40 * 2**-11)
    error = case["y"].double() - truth
    if label == "rank_three":
        # The rounding of X itself fills the other thirty directions, and a slope of 1320 lifts it.
        assert torch.linalg.matrix_norm(case["y"].double(), 2).max() < 1.1
        u, _, vh = torch.linalg.svd(case["x"].double(), full_matrices=False)
        error = u[..., :3].mT @ error @ vh[:, :3].mT
        if form == "gram" and dtype == "float32":
            limit = 1e-2  # R is never formed anew: its own rounding, 1e-7, grows by 1320^2
    assert error.abs().max() < limit


def test_functions_of_spectra_through_the_kernels(cases: Cases) -> None:
    """A GPU would precondition by something else, or launch more than was counted."""
    root, power, basis = (cases[f"spectral-{name}"] for name in ("root", "power", "basis"))
    a, x = root["a"].double(), power["x"].double()
    assert (root["y"] - truth.inverse_root(a, 4)).abs().max() < 1e-3 * root["y"].abs().max()
    norm = torch.linalg.matrix_norm(x @ x.mT, keepdim=True).sqrt()
    assert (power["y"] - truth.power(x / norm, 0.5)).abs().max() < 5e-3
    turned = turned_basis(a, basis["q"].double(), TorchProducts())
    assert (basis["y"] - turned).abs().max() < 1e-4
    # A^2; three polynomials of two products; H^2, M H and H^2 M H twice; Z twice. And nine steps of
    # a Gram matrix, a square and an application. Of a basis Q^T A Q, the angles' size, the turn.
    assert root["counts"].tolist() == [1 + 3 * 2 + 2 * 3, 2]
    assert power["counts"].tolist() == [18, 9]
    assert basis["counts"].tolist() == [1, 3]


@pytest.mark.parametrize("form", ["direct", "gram", "small", "scratch"])
def test_overridden_tiles_are_launched(cases: Cases, form: str) -> None:
    """A user's own tiles would be printed, and others launched; or compute something else."""
    case = cases[f"tiles-{form}"]
    assert case["launched"]
    truth = orthogonalize(case["x"].double(), method="newton_schulz", schedule="deep")
    limit = 40 * 2**-11 if form in ("direct", "gram") else 5e-5
    assert (case["y"].double() - truth).abs().max() < limit


def test_offsets_beyond_32_bits(cases: Cases) -> None:
    """A stack of experts with more than 2^31 elements would corrupt memory."""
    case = {k: v.double() for k, v in cases["offsets"].items()}
    x = case["x"]
    assert (case["gram"] - x @ x.mT).abs().max() < 2**-4  # float16 of up to 64
    assert (case["y"] - case["q"] @ x).abs().max() < 2**-6
    truth = orthogonalize(x, method="newton_schulz", schedule="deep")
    assert (case["z"] - truth).abs().max() < 2**-10
    assert (case["rows"] - (x[:, 0] - 1)).abs().max() < 2**-8


@pytest.mark.parametrize("tensor", range(5))
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", ["strided", "flat"])
def test_momentum(cases: Cases, kind: str, nesterov: bool, tensor: int) -> None:
    """The fused step would drift from the optimizer's formula, or touch the user's gradient."""
    case = cases[f"momentum-{kind}-{nesterov}-{tensor}"]
    new = case["old"].lerp(case["g"], 0.1)
    out = case["g"].lerp(new, 0.9) if nesterov else new
    assert torch.allclose(case["new"], new, atol=1e-6)
    assert torch.allclose(case["out"].float(), out, atol=4e-3)


@pytest.mark.parametrize("tensor", range(5))
@pytest.mark.parametrize("kind", ["strided", "flat"])
def test_update(cases: Cases, kind: str, tensor: int) -> None:
    """Decay and step of the fused update would differ from the formula."""
    case = cases[f"update-{kind}-{tensor}"]
    truth = (1 - 0.3 * 0.5) * case["before"] - 0.3 * case["scale"] * case["o"]
    assert torch.allclose(case["after"], truth, atol=1e-6)


@pytest.mark.parametrize("tensor", range(5))
@pytest.mark.parametrize("tensor_momentum", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_step(cases: Cases, nesterov: bool, tensor_momentum: bool, tensor: int) -> None:
    """A model with convolutions would train otherwise on a GPU than on a CPU."""
    case = cases[f"momentum_step-{nesterov}-{tensor_momentum}-{tensor}"]
    new = case["old"].double().lerp(case["g"].double(), 0.1)
    out = case["g"].double().lerp(new, 0.9) if nesterov else new
    for way in ("fused", "plain"):
        assert torch.allclose(case[way].double(), new, atol=1e-6), way
        assert torch.allclose(case[f"{way}_out"].double(), out, atol=4e-3), way


@pytest.mark.parametrize("tensor", range(5))
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_weight_step(cases: Cases, tensor_rate: bool, tensor: int) -> None:
    """Decay and step would take one tensor's scale for another's."""
    case = cases[f"weight_step-{tensor_rate}-{tensor}"]
    truth = 0.97 * case["before"].double() - 0.3 * case["scale"] * case["o"].double()
    for way in ("fused", "plain"):
        assert torch.allclose(case[way].double(), truth, atol=2e-6), way


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_products(cases: Cases, size: tuple[int, int]) -> None:
    """The dtype that a GPU runs in would round twice, or drop what a wide epilogue keeps."""
    case = cases[f"bfloat16-{size[0]}x{size[1]}"]
    for name in ("gram", "sum", "applied"):
        found, truth = (case[f"{name} {way}"] for way in ("kernel", "rounded"))
        assert found.dtype == torch.bfloat16
        # Sums in another order: a last bit where the emulation is near the middle of two numbers.
        limit = 2.0**-7 * truth.double().abs() + 1e-6 * truth.double().abs().max()
        assert ((found.double() - truth.double()).abs() <= limit).all(), name
        assert (found == truth).double().mean() > 0.98, name


@pytest.mark.parametrize("label", ["plain", "flat"])
def test_whole_orthogonalization_in_bfloat16(cases: Cases, label: str) -> None:
    """The safety that is measured in emulation would be about other arithmetic than this."""
    case = {k: v.double() for k, v in cases[f"bfloat16-{label}"].items()}
    # Two runs whose sums differ in order differ by the roundings of a few steps, 2^-8 each.
    assert (case["kernel"] - case["emulated"]).abs().max() < 2**-5
    assert torch.linalg.matrix_norm(case["kernel"], 2).max() < 1.1
    truth = orthogonalize(case["x"], method="newton_schulz", schedule="deep")
    assert (case["kernel"] - truth).norm() < 0.05 * truth.norm()


def test_every_access_is_to_the_launchs_own_elements(cases: Cases) -> None:
    """A read beyond a matrix is an error on a GPU only now and then, and a write another's data.

    The program would have ended at the first; here it is shown that it looked.
    """
    seen = {name: int(count) for name, count in cases["accesses"].items()}
    assert seen.pop("loads") > 8_000_000
    assert seen.pop("stores") > 3_000_000
    names = ("symmetric", "apply", "parts", "small", "momentum", "update")
    assert seen.keys() == {f"{name}_kernel" for name in names}
    assert all(seen.values())


@pytest.mark.parametrize(("fault", "said"), [
    ("beyond", "load of 1 foreign elements by 0"),
    ("between", "foreign elements by 0, -4 bytes off"),
    ("twice", "two programs store to one element"),
    ("shift", "a program loads what another one stores"),
])  # fmt: skip
def test_the_memory_checker_detects(cases: Cases, fault: str, said: str) -> None:
    """Shows that the test above can fail."""
    assert said in bytes(cases[f"fault-{fault}"]["said"].tolist()).decode()


def test_first_launches_are_judged_by_what_is_right(cases: Cases) -> None:
    """A check that right kernels fail would send every GPU to the vendor's library."""
    assert len(cases["checks"]) == 7
    # The interpreter cuts results to bfloat16 off, by up to 2^-8 where they are below one.
    assert max(cases["checks"].values()) < 2**-7, cases["checks"]


def test_batches_of_nothing(cases: Cases) -> None:
    """A rank that holds no piece of a matrix would end the step of all."""
    assert [tuple(x.shape) for x in cases["empty"].values()] == [
        (0, 20, 20), (0, 20, 30), (0, 20, 30)
    ]  # fmt: skip
