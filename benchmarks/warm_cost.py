"""What a warm start costs: seconds and extra memory of each method beside one epoch of training.

The peer is the published way of computing the direction: a deep copy of the model, backward passes
into the copy's ``.grad``, and dictionaries of averages.

    python benchmarks/warm_cost.py        # table on standard output; one thread
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from warmstart import (
    Diagnostics,
    GradientDirection,
    dash_shrink,
    fire_reinit,
    shrink_and_perturb,
    uniform_shrink,
)


def make(width: int = 16) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for i, w in enumerate((width, width, 2 * width, 2 * width, 4 * width)):
        layers += [
            nn.Conv2d(inputs, w, 3, stride=1 + i % 2, padding=1),
            nn.BatchNorm2d(w),
            nn.ReLU(),
        ]
        inputs = w
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def published_way(model: nn.Module, batches: list, alpha: float = 0.3) -> int:
    """Direction by deep copy; returns the bytes that stay from batch to batch."""
    twin = copy.deepcopy(model).eval()
    average = {n: torch.zeros_like(p) for n, p in twin.named_parameters()}
    for x, y in batches:
        twin.zero_grad()
        cross_entropy(twin(x), y).backward()
        for n, p in twin.named_parameters():
            average[n] = (1 - alpha) * average[n] - alpha * p.grad
    gradients = [p.grad for p in twin.parameters() if p.grad is not None]
    return size(twin.parameters()) + size(gradients) + size(average.values())


def watched_epoch(model: nn.Module, batches: list) -> None:
    """An epoch with hooks in place from its first step on, and one record at its end."""
    with Diagnostics(model) as probe:
        epoch(model, batches)
        probe.record(0)


def activations(model: nn.Sequential, x: torch.Tensor) -> int:
    """Bytes of one batch's activations, which Diagnostics keeps."""
    total = 0
    for layer in model:
        x = layer(x)
        total += size([x]) if isinstance(layer, nn.ReLU) else 0
    return total


def epoch(model: nn.Module, batches: list) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,))) for _ in range(20)]
    reference = make()
    direction = GradientDirection(reference)
    held = size(direction[name] for name in direction.parameters)
    extra = {
        "the same with Diagnostics": activations(reference, batches[0][0]),
        "direction, published way": published_way(reference, batches[:1]),
        "dash_shrink": held,
        "dash_shrink, tail=13": held,
    }
    methods: dict[str, Callable[[nn.Module], object]] = {
        "one epoch of training": lambda m: epoch(m, batches),
        "the same with Diagnostics": lambda m: watched_epoch(m, batches),
        "direction, published way": lambda m: published_way(m, batches),
        "dash_shrink": lambda m: dash_shrink(m, batches),
        "dash_shrink, tail=13": lambda m: dash_shrink(m, batches, tail=13),
        "uniform_shrink": uniform_shrink,
        "shrink_and_perturb": shrink_and_perturb,
        "fire_reinit": fire_reinit,
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for trial in range(args.trials + 1):  # interleaved; the first round warms up
        for name, method in methods.items():
            model = copy.deepcopy(reference)
            start = time.process_time()
            method(model)
            if trial:
                seconds[name].append(time.process_time() - start)
    base = statistics.median(seconds["one epoch of training"])
    print(
        f"{platform.machine()}, torch {torch.__version__}, one thread, {args.trials} trials, ",
        end="",
    )
    weights = size(reference.parameters()) / 1e6
    print(f"{weights:.2f} MB of weights, 20 batches of 32 images 3x32x32; processor time")
    print("| method | seconds (median) | epochs | extra memory held from batch to batch |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        memory = f"{extra[name] / 1e6:.2f} MB" if name in extra else "-"
        median = statistics.median(times)
        print(f"| {name} | {median:.3f} | {median / base:.2f} | {memory} |")


if __name__ == "__main__":
    main()
