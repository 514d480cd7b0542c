"""Update rules beside a tuned torch.optim.Muon: held-out loss, steps to the same loss, time.

    python experiments/muon_rules.py                       # appends what is missing to the CSV
    python experiments/muon_rules.py --only conv shampoo   # of a bed, of some contenders
    python experiments/muon_rules.py --seconds             # times of steps, in turns
    python experiments/muon_rules.py --report              # the section of docs/muon_results.md

Every contender is tuned on seed 0 in the same way: momenta 0.95, 0.9, 0.8, 0.6; rates of the
matrices, a factor of 1.5 apart; rates of AdamW, which steps everything else, a factor of 2 apart;
each as far as that helps, and again until none does. What was tuned then runs on six seeds that
tuned nothing, and our rules on fewer steps as well. pytorch_optimizer and heavyball take part where
they can be imported. Adapters want MiniLM and tweets; `lora_models` says how to get them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from bed import RESULTS, ROOT, append, fashion_mnist, read, replace_between, write
from muon_bed import QUICK, SETTINGS, Setting, lr_factor, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

from torch_specgd import Muon, Shampoo

OUT, TIMES = RESULTS / "muon_rules.csv", RESULTS / "muon_rules_seconds.csv"
SEEDS = (1, 2, 3, 4, 5, 6)
BEDS = {"width 96": 400, "conv": 400, "width 256": 200, "lora": 200, "width 96 long": 1600}  # steps
AUX, FACTOR = 3e-3, 1.5
MOMENTA = (0.95, 0.9, 0.8, 0.6)
FEWER = {"width 256": (0.88, 0.8), "lora": (0.88,)}  # of the steps; else 0.88, 0.84, 0.8
LEFT = [-1]  # runs until the program stops; below zero: none is the last
Matrices = list[nn.Parameter]


class Hyperball(Muon):
    """Muon whose matrices keep the norm that they start with (arXiv 2606.16899)."""

    def __init__(self, params: Matrices, lr: float, momentum: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=0.0)
        self.norms = [p.detach().norm() for p in params]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take Muon's step, then scale every matrix back."""
        loss = super().step(closure)
        with torch.no_grad():
            for p, norm in zip(self.param_groups[0]["params"], self.norms, strict=True):
                p.mul_(norm / p.norm())
        return loss


Maker = Callable[[Matrices, float, float], Optimizer]


def _soap(ps: Matrices, lr: float, momentum: float) -> Optimizer:
    from pytorch_optimizer import SOAP

    betas = (momentum, 0.95)
    return SOAP(ps, lr=lr, betas=betas, weight_decay=0.1, precondition_frequency=10)


def heavy(name: str) -> Maker:
    """Return a maker of one of heavyball's optimizers."""

    def make(ps: Matrices, lr: float, momentum: float) -> Optimizer:
        import heavyball

        heavyball.utils.compile_mode = None  # its own tuning takes minutes a shape
        optimizer: Optimizer = getattr(heavyball, name)(
            ps, lr=lr, betas=(momentum, 0.95), weight_decay=0.1, compile_step=False
        )
        return optimizer

    return make


def _torch(ps: Matrices, lr: float, momentum: float) -> Optimizer:
    return torch.optim.Muon(ps, lr=lr, momentum=momentum, adjust_lr_fn="original")


def _adamw(ps: Matrices, lr: float, momentum: float) -> Optimizer:
    return AdamW(ps, lr=lr, betas=(momentum, 0.95), weight_decay=0.1)


def muon(**options: Any) -> Maker:
    """Return a maker of Muon with these options."""
    return lambda ps, lr, momentum: Muon(ps, lr=lr, momentum=momentum, **options)


OUTPUTS = Shampoo(sides="outputs")
# What steps the hidden matrices, and the first rate that is tried; the most decisive come first.
CONTENDERS: dict[str, tuple[Maker, float]] = {
    "torch.optim.Muon": (_torch, 0.02),
    "element": (muon(second_moment="element"), 0.02),
    "contra, element": (muon(ns_coefficients="contra", second_moment="element"), 0.02),
    "shampoo, contra, element": (
        muon(precondition="shampoo", ns_coefficients="contra", second_moment="element"),
        0.02,
    ),
    "shampoo of outputs, contra, element": (
        muon(precondition=OUTPUTS, ns_coefficients="contra", second_moment="element"),
        0.02,
    ),
    "shampoo, element": (muon(precondition="shampoo", second_moment="element"), 0.02),
    "shampoo of outputs": (muon(precondition=OUTPUTS), 0.02),
    "shampoo": (muon(precondition="shampoo"), 0.02),
    "SOAP (pytorch_optimizer)": (_soap, 3e-3),
    "eigenbasis": (muon(precondition="eigenbasis"), 0.02),
    "neuron (NorMuon)": (muon(second_moment="neuron"), 0.02),
    "SOAP (heavyball)": (heavy("SOAP"), 3e-3),
    "Muon (heavyball)": (heavy("Muon"), 0.02),
    "Muon": (muon(), 0.02),
    "AdamW": (_adamw, 3e-3),
    "hyperball": (Hyperball, 0.02),
}
TIMED = (
    "torch.optim.Muon",
    "element",
    "contra, element",
    "shampoo, element",
    "shampoo of outputs",
    "eigenbasis",
    "neuron (NorMuon)",
)
OURS = (
    "element",
    "contra, element",
    "shampoo, contra, element",
    "shampoo of outputs, contra, element",
)  # what runs on fewer steps as well


class Run(NamedTuple):
    """What a row of the CSV is of; rates are strings, as they stand there."""

    bed: str
    contender: str
    lr: str
    momentum: str
    adamw_lr: str
    steps: int
    seed: int


class Result(NamedTuple):
    """What a run gives: losses in nats, accuracy in % (nan of text), CPU seconds a step."""

    held_out: float
    train: float
    accuracy: float
    seconds: float


def optimizers(run: Run, matrices: Matrices, others: Matrices) -> list[Optimizer]:
    """Make the contender for the matrices, and AdamW for everything else."""
    aside = AdamW(others, lr=float(run.adamw_lr), betas=(0.9, 0.95), weight_decay=0.0)
    return [CONTENDERS[run.contender][0](matrices, float(run.lr), float(run.momentum)), aside]


def on_text(run: Run, setting: Setting) -> Result:
    """Train the transformer."""
    clock: list[float] = []
    end = train(
        setting,
        lambda model: optimizers(run, model.matrices(), model.others()),
        run.seed,
        points=1,
        watch=lambda *_: clock.append(time.process_time()),
    )[-1]
    return Result(end.held_out, end.train, math.nan, per_step(clock))


def per_step(clock: Sequence[float]) -> float:
    """Return the mean time between steps, refreshes included."""
    return (clock[-1] - clock[0]) / (len(clock) - 1)


class Flat(nn.Conv2d):
    """A convolution whose weight is stored as the matrix (out, rest), which all optimizers take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.form = self.weight.shape
        self.weight = nn.Parameter(self.weight.detach().flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self._conv_forward(x, self.weight.view(self.form), self.bias)


def net() -> nn.Sequential:
    """Return a small convolution net for 28 x 28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(),
        Flat(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        Flat(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


@cache
def images(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Return images of Fashion-MNIST, (count, 1, 28, 28), and their labels."""
    x, y = fashion_mnist(split)
    x = torch.tensor(x[:count]).unsqueeze(1).float() / 255 - 0.286
    return x, torch.tensor(y[:count])


def on_images(run: Run, setting: Setting, count: int = 20_000) -> Result:
    """Train the convolution net."""
    x, y = images("train", count)
    torch.manual_seed(run.seed)
    model = net()
    matrices = [model[i].weight for i in (2, 5, 9)]
    ids = set(map(id, matrices))
    chosen = optimizers(run, matrices, [p for p in model.parameters() if id(p) not in ids])
    rates = [torch.optim.lr_scheduler.LambdaLR(o, lambda t: lr_factor(t, setting)) for o in chosen]
    clock: list[float] = []
    for _, some in zip(range(setting.steps), shuffled(count, run.seed), strict=False):
        loss = cross_entropy(model(x[some]), y[some])
        model.zero_grad()
        loss.backward()
        for o in (*chosen, *rates):
            o.step()
        clock.append(time.process_time())
    model.eval()
    (a, b), (fit, labels) = images("t10k", count // 2), (x[: count // 2], y[: count // 2])
    with torch.no_grad():
        found, known = model(a), model(fit)
    accuracy = 100 * float((found.argmax(1) == b).float().mean())
    losses = float(cross_entropy(found, b)), float(cross_entropy(known, labels))
    return Result(*losses, accuracy, per_step(clock))


def on_adapters(run: Run, setting: Setting) -> Result:
    """Train adapters of rank 8 on a pretrained MiniLM, which classifies tweets."""
    from lora_models import DATA, adapted, minilm

    bed = minilm(DATA)
    bed.model = adapted("minilm", bed.model, 8, run.seed)
    matrices, others = [], []
    for name, p in bed.model.named_parameters():
        if p.requires_grad:
            (matrices if "lora_" in name else others).append(p)
    chosen = optimizers(run, matrices, others)
    rates = [torch.optim.lr_scheduler.LambdaLR(o, lambda t: lr_factor(t, setting)) for o in chosen]
    clock: list[float] = []
    for _, batch in zip(range(setting.steps), bed.batches(run.seed), strict=False):
        loss = bed.loss(batch)
        bed.model.zero_grad()
        loss.backward()
        for o in (*chosen, *rates):
            o.step()
        clock.append(time.process_time())
    held_out, accuracy = bed.judge(bed.test)
    fit, _ = bed.judge([part[:600] for part in bed.train])
    return Result(held_out, fit, accuracy, per_step(clock))


def shuffled(count: int, seed: int) -> Iterator[Tensor]:
    """Yield batches of 64, epoch after epoch, a pure function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // 64 * 64].split(64)


def trained(run: Run) -> Result:
    """Train what a run's bed says."""
    if run.bed in ("conv", "lora"):
        return (on_images if run.bed == "conv" else on_adapters)(run, Setting(steps=run.steps))
    width = int(run.bed.split()[1])
    return on_text(run, replace(SETTINGS["plain"], width=width, steps=run.steps))


def results() -> dict[Run, Result]:
    """Return what the CSV holds."""
    found = {}
    for row in read(OUT):
        first = (row[name] for name in Run._fields[:5])
        run = Run(*first, steps=int(row["steps"]), seed=int(row["seed"]))
        found[run] = Result(*(float(row[name]) for name in Result._fields))
    return found


def measure(run: Run) -> Result:
    """Return what a run gives, out of the CSV if it is there."""
    if (known := results().get(run)) is not None:
        return known
    result = trained(run)
    append(OUT, [{**run._asdict(), **result._asdict()}])
    print(*run, *(f"{x:.4f}" for x in result), flush=True)
    LEFT.append(LEFT.pop() - 1)
    if LEFT[0] == 0:
        raise SystemExit(3)  # more is missing
    return result


def tuned(bed: str, name: str, result: Callable[[Run], Result] = measure) -> Run:
    """Return the best run of seed 0: momentum, rate and AdamW's rate in turn, while one helps."""

    def along(best: Run, field: str, values: Iterable[float]) -> Run:
        for value in values:
            other = best._replace(**{field: f"{value:.3g}"})
            if result(other).held_out >= result(best).held_out:
                break
            best = other
        return best

    lr = CONTENDERS[name][1]
    best = Run(bed, name, f"{lr:.3g}", f"{MOMENTA[0]:g}", f"{AUX:.3g}", BEDS[bed], 0)
    while True:
        before = best
        at = MOMENTA.index(float(best.momentum))
        best = along(best, "momentum", MOMENTA[at + 1 :])
        best = along(best, "momentum", MOMENTA[:at][::-1])
        for field, value, factor in (("lr", lr, FACTOR), ("adamw_lr", AUX, 2.0)):
            at = round(math.log(float(getattr(best, field)) / value, factor))
            best = along(best, field, (value * factor**i for i in itertools.count(at + 1)))
            best = along(best, field, (value * factor**i for i in itertools.count(at - 1, -1)))
        if best == before:
            return best


def compare(bed: str, name: str) -> None:
    """Tune a contender, then run what is missing of the seeds that tuned nothing."""
    best = tuned(bed, name)
    parts = (1.0, *FEWER.get(bed, (0.88, 0.84, 0.8))) if name in OURS else (1.0,)
    for part in parts:
        for seed in SEEDS:
            measure(best._replace(seed=seed, steps=round(part * BEDS[bed])))


def of_the_tuned(known: dict[Run, Result]) -> dict[Run, Result]:
    """Return runs without those of other seeds that took what a longer tuning gave up.

    Where a tuning is not done all stay, as those of 1,600 steps do.
    """
    best = {}
    for bed, name in {run[:2] for run in known}:
        try:
            best[bed, name] = tuned(bed, name, known.__getitem__)[2:5]
        except KeyError:
            continue
    return {
        run: x
        for run, x in known.items()
        if run.seed == 0 or best.get(run[:2], run[2:5]) == run[2:5]
    }


def time_steps(rounds: int = 3) -> None:
    """Time contenders in turns, so that what else the machine does meets all of them alike."""
    rows = []
    beds = {"width 96": 100, "conv": 100, "width 256": 25}  # steps
    for bed, turn, name in itertools.product(beds, range(rounds), TIMED):
        run = Run(bed, name, "0.03", "0.9", "0.003", beds[bed], turn)
        rows.append({"bed": bed, "contender": name, "turn": turn, "seconds": trained(run).seconds})
        print(*rows[-1].values(), flush=True)
    write(TIMES, rows)


def quick() -> None:
    """Try every rule for a few steps, without files."""
    for name in ("torch.optim.Muon", *OURS, "eigenbasis", "hyperball"):
        run = Run("quick", name, "0.02", "0.9", "0.003", QUICK.steps, 0)
        made = on_text(run, QUICK), on_images(run, QUICK, 640)
        assert all(math.isfinite(x.held_out) and x.seconds > 0 for x in made), (name, made)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="beds and contenders")
    parser.add_argument("--quick", action="store_true", help="a few steps, assertions, no files")
    parser.add_argument("--runs", type=int, help="stop after so many new runs, with exit code 3")
    parser.add_argument("--seconds", action="store_true", help="time steps, in turns")
    parser.add_argument("--report", action="store_true", help="write the section of the page")
    args = parser.parse_args()
    if args.report:
        from muon_rules_report import section

        text = section(of_the_tuned(results()), CONTENDERS, read(TIMES))
        replace_between(ROOT / "docs" / "muon_results.md", "muon_rules", text)
        return
    if unknown := [x for x in args.only if x not in (*BEDS, *CONTENDERS)]:
        parser.error(f"--only must name beds or contenders, got {unknown}")
    torch.set_num_threads(1)
    LEFT[0] = args.runs or -1
    if args.seconds:
        time_steps()
        return
    if args.quick:
        quick()
        return
    names = [x for x in CONTENDERS if x in args.only] or list(CONTENDERS)
    for bed in [x for x in BEDS if x in args.only] or list(BEDS):
        for name in names:
            try:
                compare(bed, name)
            except ImportError as error:
                print(f"{name} is left out: {error}", flush=True)


if __name__ == "__main__":
    main()
