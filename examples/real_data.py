"""Loads the real data sets that the examples and experiments train on, as tensors."""

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HUB = {"fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}


class Split(NamedTuple):
    """Images (N, channels, height, width), float32, standardized; labels (N,), int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load(name: str, *, seed: int = 0) -> Split:
    """Loads a data set.

    Args:
        name: "digits" (1,797 images inside scikit-learn, a fifth held out by ``seed``),
            "fashion-mnist" or "cifar10" (from the Hugging Face hub), or a folder: IDX files
            (plain or .gz, under their usual names), or what ``datasets`` saved with
            ``save_to_disk`` (splits train and test, a column of images and one of labels).
        seed: Decides which digits are held out; the other sets bring their own test part.

    Returns:
        The two parts, standardized with the training part's mean and deviation.

    Raises:
        ValueError: If the name is none of these, or the folder holds neither kind.
    """
    if name == "digits":
        return _standardize(*_digits(seed))
    if name in HUB:
        from datasets import load_dataset

        return _standardize(*_from_datasets(load_dataset(HUB[name])))
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(
            f"data must be 'digits', one of {sorted(HUB)}, or an existing folder, but is {name!r}"
        )
    if list(folder.glob("*train-images*")):
        return _standardize(*_idx(folder))
    if (folder / "dataset_dict.json").exists():
        from datasets import load_from_disk

        return _standardize(*_from_datasets(load_from_disk(folder)))
    raise ValueError(
        f"{name} holds neither IDX files (train-images-idx3-ubyte[.gz], ...) nor a data set "
        "saved by datasets.DatasetDict.save_to_disk"
    )


def distorted(data: Split, seed: int) -> Split:
    """Return harder images: each turned, moved, scaled and covered with noise, once and for all.

    Turned by up to 22 degrees, moved by up to a sixteenth of the width, scaled by up to a tenth;
    noise of a quarter of a standard deviation. ``seed`` decides it.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) - 0.5

    def harder(x: Tensor) -> Tensor:
        lowest = float(x.min())
        x = torch.nn.functional.pad(x - lowest, (2, 2, 2, 2))
        angle, scale = draw(len(x)) * np.pi / 4, 1 + 0.2 * draw(len(x))
        shift = 0.25 * draw(len(x), 2)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
        grid = torch.nn.functional.affine_grid(
            torch.stack(rows, 1), list(x.shape), align_corners=False
        )
        x = torch.nn.functional.grid_sample(x, grid, align_corners=False) + lowest
        return x + 0.25 * torch.randn(x.shape, generator=generator)

    train_x, test_x = harder(data.train_x), harder(data.test_x)
    mean, std = train_x.mean(), train_x.std()
    return data._replace(train_x=(train_x - mean) / std, test_x=(test_x - mean) / std)


def read_idx(path: Path) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, plain or gzipped; returns uint8 of its shape."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = raw[3]
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">u4", dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _idx(folder: Path) -> tuple[np.ndarray, ...]:
    def find(stem: str) -> np.ndarray:
        found = sorted(folder.glob(f"*{stem}*"))
        if not found:
            raise ValueError(f"{folder} has no file named like {stem}-ubyte[.gz]")
        return read_idx(found[0])

    train_x, test_x = find("train-images-idx3"), find("t10k-images-idx3")
    train_y, test_y = find("train-labels-idx1"), find("t10k-labels-idx1")
    return train_x[:, None], train_y, test_x[:, None], test_y


def _digits(seed: int) -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    return train_x, train_y, test_x, test_y


def _from_datasets(splits: Any) -> tuple[np.ndarray, ...]:
    def arrays(split: Any) -> tuple[np.ndarray, np.ndarray]:
        image = next(c for c in ("image", "img") if c in split.column_names)
        x = np.stack([np.asarray(picture) for picture in split[image]])
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        return x, np.asarray(split["label"])

    return *arrays(splits["train"]), *arrays(splits["test"])


def _standardize(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> Split:
    x, test = torch.tensor(train_x, dtype=torch.float32), torch.tensor(test_x, dtype=torch.float32)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Split(
        (x - mean) / std,
        torch.tensor(train_y, dtype=torch.int64),
        (test - mean) / std,
        torch.tensor(test_y, dtype=torch.int64),
    )
