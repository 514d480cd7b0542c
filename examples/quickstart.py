"""Trains, prunes and warm-starts on real data, and prints what each of the three was worth.

    python examples/quickstart.py                      # scikit-learn's digits, two minutes at most
    python examples/quickstart.py --data fashion-mnist  # or cifar10: from the Hugging Face hub
    python examples/quickstart.py --data FOLDER         # IDX files, or datasets' save_to_disk

a. A transformer learns Python's own documentation with AdamW and with Muon.
b. A fifth of the labels is redrawn. Scores find wrong ones, and nets train on what is kept.
c. Data arrives in four parts. Each time a net goes on, shrunk or not, or starts again.

Every number in the table and the figure is computed in this run, on ``--repeats`` seeds.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from data_prune import DualScoreSampler, ScoreTable
from quickstart_report import draw_figure, print_table
from quickstart_text import ByteTransformer, batch, documentation, next_byte_accuracy
from real_data import Split, distorted, load
from torch_specgd import Muon
from warmstart import dash_shrink, uniform_shrink

BATCH = 64
# Each optimizer's best of 3e-3, 6e-3, 1.2e-2, ... until it fell: mean of seeds 100 and 101.
TEXT_LR = {"AdamW": 1.2e-2, "Muon": 4.8e-2}
MUON_LR = 1e-2
CONVERGE_LR = 0.03  # a cold start's best of 0.01, 0.03 and 0.1; without a schedule
PARTS = 4  # in which the data of part c arrives


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    start = time.perf_counter()
    runs: dict[str, list[dict[str, Any]]] = {}
    first: Split | None = None
    bar = tqdm(total=9 * args.repeats, unit="run", disable=None, file=sys.stderr)
    for repeat in range(args.repeats):
        seed = args.seed + repeat
        data = limit(load(args.data, seed=seed), args.limit)
        first = first or data
        for part in (
            optimizers(args, seed),
            pruning(data, args, seed),
            warm(data, args, seed),
        ):
            for name, result in part:
                runs.setdefault(name, []).append(result)
                bar.set_postfix_str(name)
                bar.update()
    bar.close()
    seconds = time.perf_counter() - start
    settings = {**vars(args), "train_examples": len(data.train_y), "seconds": round(seconds, 1)}
    draw_figure(runs, settings, args.figure, redraw_labels(first, args.wrong, args.seed))
    if args.json:
        print(json.dumps({"settings": settings, "torch": torch.__version__, "runs": runs}))
    else:
        print_table(runs, settings)


# --- a. Muon against AdamW, on text, at equal steps


def optimizers(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Any]]:
    """Trains the same net from the same weights on the same batches with both optimizers."""
    text, held_out = documentation()
    for name, lr in TEXT_LR.items():
        torch.manual_seed(seed)
        model = ByteTransformer()
        if name == "Muon":
            optimizer: torch.optim.Optimizer = new_muon(model, lr)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=args.steps)
        generator, curve = torch.Generator().manual_seed(seed), []
        start = time.perf_counter()
        for done in range(1, args.steps + 1):
            x, y = batch(text, 16, generator)
            step(optimizer, model(x).flatten(0, 1), y.flatten())
            schedule.step()
            if done % max(1, args.steps // 40) == 0 or done == args.steps:
                curve.append([done, next_byte_accuracy(model, held_out)])
        yield f"a. {name}", result(curve, start)


# --- b. pruning by scores from the first epochs, against random pruning, at equal steps; a share
# of the training labels is wrong, as in most data that people collect


def pruning(data: Split, args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Any]]:
    """Scores the data while a net trains on it, then trains new nets on what is kept."""
    right = data.train_y
    data = redraw_labels(data, args.wrong, seed)
    wrong = data.train_y != right
    scoring = DualScoreSampler.wrap(
        loader(data, seed),
        prune_ratio=args.prune_ratio,
        score_epochs=args.score_epochs,
        window=args.window,
        seed=seed,
    )
    model = new_net(data, seed)
    optimizer = new_muon(model)
    for _ in range(args.score_epochs):
        for x, y in scoring:
            logits = model(x)
            scoring.record(logits, y)
            step(optimizer, logits, y)

    table = scoring.table
    subsets = {
        "all data": torch.arange(len(data.train_y)),
        "random": torch.from_numpy(table.select(args.prune_ratio, method="random", seed=seed)),
        "by score": torch.from_numpy(table.select(args.prune_ratio, seed=seed)),
    }
    for name, kept in subsets.items():
        model = new_net(data, seed)
        part = data._replace(train_x=data.train_x[kept], train_y=data.train_y[kept])
        batches = loader(part, seed)
        trained = train(model, new_muon(model), batches, data, steps=args.prune_steps)
        yield f"b. {name}", {**trained, **labels(table, kept, wrong), "examples": len(kept)}


def labels(table: ScoreTable, kept: Tensor, wrong: Tensor) -> dict[str, Any]:
    """Counts wrong labels, and names the examples left out whose labels are least believed."""
    out = torch.ones(len(wrong), dtype=torch.bool)
    out[kept] = False
    believed = torch.from_numpy(table.mean_prob).clone()
    believed[kept] = 2.0
    return {
        "wrong": int(wrong.sum()),
        "wrong_left_out": int((wrong & out).sum()),
        "wrong_kept_share": float(wrong[kept].float().mean()),
        "least_believed": believed.argsort()[:12].tolist() if out.any() else [],
    }


def redraw_labels(data: Split, share: float, seed: int) -> Split:
    """Draws the labels of a share of the training examples anew; the test part stays right."""
    g = torch.Generator().manual_seed(seed)
    hit = torch.rand(len(data.train_y), generator=g) < share
    drawn = torch.randint(int(data.train_y.max()) + 1, data.train_y.shape, generator=g)
    return data._replace(train_y=torch.where(hit, drawn, data.train_y))


# --- c. data arrives in four parts: go on from the converged model, or start again


def warm(data: Split, args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Any]]:
    """Converges on what has arrived, four times over; the last time is what counts."""
    data = distorted(arriving(data), seed)
    for name in ("cold start", "warm start", "dash_shrink", "uniform_shrink"):
        model = new_net(data, seed)
        for arrived in range(PARTS if name == "cold start" else 1, PARTS + 1):
            count = len(data.train_y) * arrived // PARTS
            seen = data._replace(train_x=data.train_x[:count], train_y=data.train_y[:count])
            if arrived > 1 and name == "dash_shrink":
                dataset = TensorDataset(seen.train_x, seen.train_y)
                dash_shrink(model, DataLoader(dataset, BATCH))  # oldest first, not shuffled
            elif arrived > 1 and name == "uniform_shrink":
                uniform_shrink(model, 0.3)
            optimizer = torch.optim.SGD(model.parameters(), lr=CONVERGE_LR, momentum=0.9)
            goal = {"steps": args.max_steps, "until": 0.999}
            last = train(model, optimizer, loader(seen, seed), data, **goal)
        yield f"c. {name}", {**last, "examples": len(data.train_y)}


def arriving(data: Split) -> Split:
    """Lets the first 800 images arrive, and tests on all others."""
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    count = min(800, len(data.train_y))
    return Split(x[:count], y[:count], x[count:], y[count:])


# --- shared by the three parts


def new_net(data: Split, seed: int) -> nn.Module:
    """Three convolutions with batch norm and a linear head; 24 thousand parameters on digits."""
    torch.manual_seed(seed)
    channels, layers = [data.train_x.shape[1], 16, 32, 64], []
    for c_in, c_out, stride in zip(channels, channels[1:], (1, 2, 2), strict=False):
        conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
    classes = int(data.train_y.max()) + 1
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def new_muon(model: nn.Module, lr: float = MUON_LR) -> Muon:
    return Muon(model, lr=lr, adjust_lr_fn="match_rms_adamw")


def loader(data: Split, seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    dataset = TensorDataset(data.train_x, data.train_y)
    return DataLoader(dataset, BATCH, shuffle=True, generator=generator)


def step(optimizer: torch.optim.Optimizer, logits: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits, y).backward()
    optimizer.step()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader,
    data: Split,
    *,
    steps: int,
    until: float = 2.0,
) -> dict[str, Any]:
    """Trains for ``steps`` steps, or until an epoch's training accuracy reaches ``until``.

    Returns:
        "test_accuracy" after the last step, "steps" taken, and "curve": [step, test accuracy]
        about twenty times.
    """
    curve: list[list[float]] = []
    done, start = 0, time.perf_counter()
    every = max(1, min(steps, 400) // 20)
    accuracy = 0.0
    # Equal steps: the rate falls to zero over them. Until convergence: nobody knows how many.
    end = 0.0 if until > 1.0 else 1.0
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, end, total_iters=steps)
    while done < steps and accuracy < until:
        right = 0
        for x, y in batches:
            model.train()
            logits = model(x)
            step(optimizer, logits, y)
            schedule.step()
            right += int((logits.argmax(1) == y).sum())
            done += 1
            if done % every == 0:
                curve.append([done, test_accuracy(model, data)])
            if done == steps:
                break
        accuracy = right / len(batches.dataset)  # type: ignore[arg-type]
    if not curve or curve[-1][0] != done:
        curve.append([done, test_accuracy(model, data)])
    return result(curve, start)


def result(curve: list[list[float]], start: float) -> dict[str, Any]:
    """Return what the report reads of one run."""
    seconds = round(time.perf_counter() - start, 2)
    accuracy, steps = curve[-1][1], curve[-1][0]
    return {"test_accuracy": accuracy, "steps": steps, "seconds": seconds, "curve": curve}


@torch.no_grad()
def test_accuracy(model: nn.Module, data: Split) -> float:
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(data.test_x.split(1000), data.test_y.split(1000), strict=True)
    )
    return right / len(data.test_y)


def limit(data: Split, examples: int) -> Split:
    """Keeps the first examples of a large data set, so that the run stays a quick one."""
    return Split(*(part[:examples] for part in data)) if examples else data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="digits", help="digits, fashion-mnist, cifar10, or a folder"
    )
    parser.add_argument("--limit", type=int, default=4000, help="examples used at most; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="seeds from --seed on")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps in part a")
    parser.add_argument("--prune-steps", type=int, default=180, help="and in part b")
    parser.add_argument("--max-steps", type=int, default=2000, help="steps at most in part c")
    parser.add_argument("--wrong", type=float, default=0.2, help="labels redrawn in part b")
    parser.add_argument("--prune-ratio", type=float, default=0.5, help="fraction removed")
    parser.add_argument("--score-epochs", type=int, default=10)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--figure", default="quickstart.png", help="where the figure goes")
    parser.add_argument("--json", action="store_true", help="print results as JSON, no table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
