"""The quickstart and its data: what a new user runs first."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from quickstart_report import first_step  # noqa: E402
from real_data import distorted, load  # noqa: E402


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, 8, 8)), np.arange(n) % 4


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    for part, n in (("train", 96), ("t10k", 20)):
        x, y = images(n)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", x)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", y)
    return tmp_path


def test_runs_on_a_folder_and_prints_json(idx_folder: Path, tmp_path: Path) -> None:
    """--data FOLDER --json: results for machines on stdout and nothing else, and the figure."""
    figure = tmp_path / "figure.png"
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--data", str(idx_folder)]
    command += ["--json", "--repeats=1", "--steps=2", "--prune-steps=2", "--max-steps=4"]
    command += ["--score-epochs=3", "--window=2"]
    done = subprocess.run(
        [*command, "--figure", str(figure)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    names = {"AdamW", "Muon", "all data", "random", "by score", "cold start", "warm start"}
    assert {name[3:] for name in result["runs"]} == names | {"dash_shrink", "uniform_shrink"}
    for (run,) in result["runs"].values():
        assert 0.0 <= run["test_accuracy"] <= 1.0
        assert run["steps"] > 0
    dual = result["runs"]["b. by score"][0]
    assert dual["examples"] == 48
    kept_wrong = dual["wrong"] - dual["wrong_left_out"]
    assert dual["wrong_kept_share"] == pytest.approx(kept_wrong / 48)
    assert len(set(dual["least_believed"])) == 12
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("goal", "step"), [(0.1, 10), (0.4, 20), (0.5, 40), (0.6, 40), (0.7, None)]
)
def test_a_goal_is_reached_where_it_is_not_lost_again(goal: float, step: int | None) -> None:
    """A curve that crosses the goal by luck has not reached it."""
    assert first_step([[10, 0.2], [20, 0.5], [30, 0.4], [40, 0.6]], goal) == step


def test_distorted_images_are_drawn_once() -> None:
    """The harder data set is data too: the same for every method of a seed, labels unchanged."""
    data = load("digits")
    first, again, other = distorted(data, 1), distorted(data, 1), distorted(data, 2)
    assert first.train_x.equal(again.train_x)
    assert not first.train_x.equal(other.train_x)
    assert first.train_y.equal(data.train_y)
    assert abs(float(first.train_x.mean())) < 1e-5


def test_seed_decides_the_digits_split() -> None:
    """--seed makes a run repeatable from the data on."""
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert first.test_x.equal(again.test_x)
    assert not first.test_x.equal(other.test_x)
    assert (len(first.train_y), len(first.test_y)) == (1437, 360)
    assert abs(float(first.train_x.mean())) < 1e-5
    assert abs(float(first.train_x.std()) - 1) < 1e-5


def test_data_saved_by_datasets_equals_idx(idx_folder: Path, tmp_path: Path) -> None:
    """The hub's path: images as datasets stores them, grey and colour, give the same tensors."""
    import datasets

    def split(n: int) -> datasets.Dataset:
        x, y = images(n)
        pictures = [np.asarray(picture, dtype=np.uint8) for picture in x]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict({"image": pictures, "label": y}, features=features)

    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": split(96), "test": split(20)}).save_to_disk(str(saved))
    ours, theirs = load(str(saved)), load(str(idx_folder))
    for a, b in zip(ours, theirs, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("name", ["digit", "/no/such/folder"])
def test_unknown_data_is_named(name: str) -> None:
    """A typo says what is accepted."""
    with pytest.raises(ValueError, match="data must be 'digits', one of"):
        load(name)


def test_folder_without_data_is_named(tmp_path: Path) -> None:
    """A folder of something else says which files are looked for."""
    with pytest.raises(ValueError, match="holds neither IDX files"):
        load(str(tmp_path))
