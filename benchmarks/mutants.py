"""Changes one operator, number or name at a time in the pure functions, and asks the tests.

    OMP_NUM_THREADS=1 python benchmarks/mutants.py --minutes 20

A mutant that no test kills is printed. Either it changes nothing that a user could notice, or a
test is missing. Tests run once without a mutant, to see which of them enter which function. Every
mutant then runs in a fork of that process, with the code of one function replaced, against the
tests that enter this function, the fastest first, and no longer than ``--seconds``. Rows that are
in ``--out`` are not run again, but for survivors with ``--again``: give these more seconds.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import importlib
import inspect
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import NamedTuple

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).parents[1]
ENGINE = "torch_specgd.triton_kernels"


def each(pattern: str, names: str) -> list[str]:
    """Return the pattern with each of the names in the place of its star."""
    return [pattern.replace("*", name) for name in names.split()]


PLAN = (  # (modules, the test files that hold them)
    (["data_prune.score.scores"], each("prune/test_*.py", "edges tracker peers")),
    (
        each("data_prune.select.*", "beta noise plan planner strata survey together topk wishes"),
        each(
            "prune/test_*.py",
            "edges noise order plans select default topk anchor nested wishes together",
        ),
    ),
    (
        each("warmstart.shrink.*", "factors floors"),
        each("warm/test_*.py", "factors floors dash units lora invariance agreement"),
    ),
    (
        each("torch_specgd.schedules.*", "momentum_warmup step_sizes"),
        ["optimizers/test_momentum_warmup.py", "theory/test_schedules.py"],
    ),
    (
        [
            *each("torch_specgd.step.*", "adamw rules"),
            *each(f"{ENGINE}.*", "multi_tensor random_bits"),
        ],
        [
            *each("engine/test_*.py", "multi_tensor random_bits"),
            *each("optimizers/test_*.py", "adamw_step rules muon_options light_state"),
        ],
    ),
    (
        each("torch_specgd.step.*", "precondition second_moment"),
        each("optimizers/test_*.py", "precondition rules muon_options"),
    ),
    (
        each(f"{ENGINE}.schedule.*", "named schedule squares"),
        each("engine/test_*.py", "schedules squares"),
    ),
)
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
PAIRS = ("min max", "minimum maximum", "argmin argmax", "any all", "floor ceil", "left right")
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
# What these say is for a reader, or cannot be seen from outside.
SILENT = ("strict", "copy", "stacklevel", "maxsize", "kind")
CONSTANT = "a constant"
PLACE = ("module", "function", "change", "nth")


class Mutant(NamedTuple):
    """One change: where it is, what it says, and what carries it out in this process."""

    module: str
    function: str
    line: int
    change: str
    apply: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/mutants.csv"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=3, help="of tests for a mutant, at most")
    parser.add_argument("--again", action="store_true", help="run survivors of the file again")
    parser.add_argument("--only", nargs="+", help="names of modules")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]
    args.out, end = args.out.resolve(), time.monotonic() + 60 * args.minutes
    args.out.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], deadline=None)
    settings.load_profile("mutants")
    print(f"{'':52}{'mutants':>8}{'run':>6}{'killed':>8}{'survived':>10}")
    for names, paths in PLAN:
        names = [name for name in names if name in (args.only or names)]
        turn(names, paths, args, end)


def turn(names: list[str], paths: list[str], args: argparse.Namespace, end: float) -> None:
    """Run what is left of some modules' mutants, and print what is known of them."""
    modules = [importlib.import_module(name) for name in names]
    made = (
        made_of(module) for made_of in (mutants_of, defaults_of, constants_of) for module in modules
    )
    mutants, done = numbered(chain.from_iterable(made)), outcomes(args.out)
    wanted = (None, args.again and "survived")
    left = {place: mutant for place, mutant in mutants.items() if done.get(place) in wanted}
    if left and time.monotonic() < end:
        examples = [f"test_docs.py::test_docstring_examples[{name}]" for name in names]
        tests = [f"{ROOT}/tests/{path}" for path in (*paths, *examples)]
        options = ["-q", "-pno:cacheprovider", "--no-header", "--no-summary", "--assert=plain"]
        pytest.main([*tests, *options], plugins=[Loop(left, modules, args, end)])
        done = outcomes(args.out)
    for name in names:
        own = {place: mutant for place, mutant in mutants.items() if mutant.module == name}
        count = Counter(done.get(place) for place in own)
        print(
            f"{name:52}{len(own):8}{len(own) - count[None]:6}{count['killed']:8}"
            f"{count['survived']:10}",
            flush=True,
        )
        for place, mutant in own.items():
            if done.get(place) == "survived":
                print(f"  :{mutant.line} {mutant.function}: {mutant.change}", flush=True)


def numbered(mutants: Iterable[Mutant]) -> dict[tuple[str, ...], Mutant]:
    """Return mutants by what tells one from all others, also when its file changes elsewhere."""
    found: dict[tuple[str, ...], Mutant] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for mutant in mutants:
        place = (mutant.module, mutant.function, mutant.change)
        found[(*place, str(seen[place]))] = mutant  # one expression may stand there twice
        seen[place] += 1
    return found


def outcomes(out: Path) -> dict[tuple[str, ...], str]:
    """Return what a file says of each mutant, the later row where it has two."""
    if not out.exists():
        return {}
    with out.open(newline="") as file:
        return {tuple(row[name] for name in PLACE): row["outcome"] for row in csv.DictReader(file)}


class Loop:
    """Runs mutants in the place of pytest's own loop over the tests."""

    def __init__(
        self,
        left: dict[tuple[str, ...], Mutant],
        modules: list[ModuleType],
        args: argparse.Namespace,
        end: float,
    ) -> None:
        self.left, self.modules, self.args, self.end = left, modules, args, end

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run mutants until the turn ends; True tells pytest that the tests are done."""
        entered = entering(session.items, self.modules)
        new = not self.args.out.exists()
        with self.args.out.open("a", newline="") as file:
            table = csv.writer(file)
            if new:
                table.writerow([*PLACE, "line", "outcome", "tests"])
            for place, mutant in self.left.items():
                if time.monotonic() > self.end:
                    break
                items, total = [], 0.0
                for seconds, item in sorted(
                    entered[mutant.module, mutant.function], key=itemgetter(0)
                ):
                    total += seconds
                    if not items or total < self.args.seconds:
                        items.append(item)
                outcome = run(mutant, items, 20 + 10 * total)
                table.writerow([*place, mutant.line, outcome, len(items)])
                file.flush()
        return True


def entering(
    items: list[pytest.Item], modules: list[ModuleType]
) -> dict[tuple[str, str], list[tuple[float, pytest.Item]]]:
    """Run every test once; return by function how long each test takes that enters it."""
    owner = {
        code: (module.__name__, name)
        for module in modules
        for name, function in functions(module).items()
        for code in codes(function.__code__)
    }
    found = defaultdict(list)
    for item in items:
        seen: set[tuple[str, str]] = set()

        def profile(
            frame: FrameType, event: str, _: object, seen: set[tuple[str, str]] = seen
        ) -> None:
            if event == "call" and frame.f_code in owner:
                seen.add(owner[frame.f_code])

        start = time.process_time()
        sys.setprofile(profile)
        failed = fails(item)
        sys.setprofile(None)
        if failed:
            raise SystemExit(f"{item.nodeid} fails without a mutant")
        seconds = time.process_time() - start
        for place in (*seen, *{(module, CONSTANT) for module, _ in seen}):
            found[place].append((seconds, item))
    return found


def fails(item: pytest.Item) -> bool:
    """Run one test; say whether it failed."""
    before = item.session.testsfailed
    item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
    return item.session.testsfailed > before


def run(mutant: Mutant, items: list[pytest.Item], limit: float) -> str:
    """Return "killed" if a test fails or hangs with this mutant, else "survived"."""
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        for item in items[:1]:
            item.config.pluginmanager.unregister(name="terminalreporter")
        mutant.apply()
        forget()
        os._exit(int(any(fails(item) for item in items)))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


def forget() -> None:
    """Empty every cache of a function: it holds results from before the change."""
    for module in ours():
        for value in list(vars(module).values()):
            getattr(value, "cache_clear", lambda: None)()


def ours() -> list[ModuleType]:
    """Return every module of this distribution that is imported."""
    parts = {names[0].split(".")[0] for names, _ in PLAN}
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] in parts]


def functions(module: ModuleType) -> dict[str, FunctionType]:
    """Return the functions and methods of a module by qualified name, without their wrappers."""
    found = {}
    for value in vars(module).values():
        for member in (value, *(vars(value).values() if inspect.isclass(value) else ())):
            member = inspect.unwrap(getattr(member, "__func__", member))
            member = getattr(member, "func", member)  # a cached property's
            member = member.fget if isinstance(member, property) else member
            if isinstance(member, FunctionType) and member.__module__ == module.__name__:
                found[member.__qualname__] = member
    return found


def mutants_of(module: ModuleType) -> Iterator[Mutant]:
    """Yield every mutant of every function whose code can be exchanged."""
    path = Path(inspect.getfile(module))
    tree = ast.parse(path.read_text())
    count = sum(1 for _ in changes(tree))
    known = functions(module)
    for index in range(count):
        changed = copy.deepcopy(tree)
        node, line, change = next(c for i, c in enumerate(changes(changed)) if i == index)
        before = ast.unparse(node)
        change()
        after = ast.unparse(node)
        code = compile(changed, str(path), "exec", dont_inherit=True)
        for qualified, function in known.items():
            old, new = function.__code__, find(code, function.__code__)
            # The code of a function is without its defaults: a change there leaves it equal.
            if new is None or new == old or new.co_freevars != old.co_freevars:
                continue
            if span(old)[0] <= line <= span(old)[1]:
                yield Mutant(
                    module.__name__,
                    qualified,
                    line,
                    f"{before}  ->  {after}",
                    partial(setattr, function, "__code__", new),
                )


def defaults_of(module: ModuleType) -> Iterator[Mutant]:
    """Yield a mutant for every default of a function that is a number."""
    for qualified, function in functions(module).items():
        line, positional = function.__code__.co_firstlineno, function.__defaults__ or ()
        for i, value in enumerate(positional):
            if isinstance(value, (bool, int, float)):
                changed = (*positional[:i], other(value), *positional[i + 1 :])
                change = f"default {i}: {value}  ->  {other(value)}"
                apply = partial(setattr, function, "__defaults__", changed)
                yield Mutant(module.__name__, qualified, line, change, apply)
        for key, value in (function.__kwdefaults__ or {}).items():
            if isinstance(value, (bool, int, float)):
                changed = (function.__kwdefaults__ or {}) | {key: other(value)}
                change = f"{key}={value}  ->  {key}={other(value)}"
                apply = partial(setattr, function, "__kwdefaults__", changed)
                yield Mutant(module.__name__, qualified, line, change, apply)


def constants_of(module: ModuleType) -> Iterator[Mutant]:
    """Yield a mutant for every number of a module, changed wherever it is imported."""
    for key, value in list(vars(module).items()):
        own = key.isupper() and f"\n{key} = " in inspect.getsource(module)
        if own and isinstance(value, (bool, int, float)):
            apply = partial(replace_everywhere, key, value)
            yield Mutant(
                module.__name__, CONSTANT, 0, f"{key} = {value}  ->  {other(value)}", apply
            )


def replace_everywhere(key: str, value: float) -> None:
    """Change a constant in every module of ours that has it."""
    for module in ours():
        if vars(module).get(key) == value:
            setattr(module, key, other(value))


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of every function inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from codes(inner)


def span(code: CodeType) -> tuple[int, int]:
    """Return the first and the last line of a function."""
    lines = [line for part in codes(code) for _, _, line in part.co_lines() if line]
    return code.co_firstlineno, max(lines)


def find(code: CodeType, like: CodeType) -> CodeType | None:
    """Return the code of the same function inside a module's code."""
    place = (like.co_name, like.co_firstlineno)
    return next((c for c in codes(code) if (c.co_name, c.co_firstlineno) == place), None)


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, int, Callable[[], None]]]:
    """Yield (expression, line, function that changes it), in the order of the tree."""
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg in SILENT)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.BoolOp)) and type(node.op) in SWAPS:
            yield node, node.lineno, lambda n=node: setattr(n, "op", SWAPS[type(n.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, node.lineno, lambda n=node: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]())
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            yield node, node.lineno, lambda n=node: setattr(n, "value", other(n.value))
        elif isinstance(node, ast.Constant) and node.value in NAMES:
            yield node, node.lineno, lambda n=node: setattr(n, "value", NAMES[n.value])
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, node.lineno, lambda n=node: setattr(n, "attr", NAMES[n.attr])
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node, node.lineno, lambda n=node: setattr(n, "id", NAMES[n.id])


def other(value: float) -> float:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 2 * value or 1.0


if __name__ == "__main__":
    main()
