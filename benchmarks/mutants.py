"""Changes one operator or number at a time in the pure functions, and asks the tests.

    OMP_NUM_THREADS=1 python benchmarks/mutants.py --minutes 20

A mutant that no test kills is printed. Either it changes nothing that a user could notice, or a
test is missing. Every mutant runs in a process of its own, forked from one that has imported
everything, with the code of one function replaced. Which mutants run is a draw by ``--seed``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SELECT = [f"prune/test_{name}.py" for name in ("select", "default", "topk", "anchor", "nested")]
PLAN = {  # module: the tests that hold it
    "data_prune.score.scores": ["prune/test_tracker.py", "prune/test_peers.py"],
    "data_prune.select.beta": SELECT,
    "data_prune.select.survey": SELECT,
    "data_prune.select.topk": SELECT,
    "data_prune.select.strata": SELECT,
    "warmstart.shrink.factors": ["warm/test_dash.py", "warm/test_units.py"],
    "warmstart.shrink.floors": ["warm/test_floors.py"],
    "torch_specgd.schedules.step_sizes": ["theory/test_schedules.py"],
    "torch_specgd.schedules.momentum_warmup": ["optimizers/test_momentum_warmup.py"],
    "torch_specgd.step.rules": ["optimizers/test_muon.py", "optimizers/test_muon_options.py"],
    "torch_specgd.triton_kernels.schedule.squares": ["engine/test_schedules.py"],
    "torch_specgd.triton_kernels.schedule.coefficients": ["engine/test_schedules.py"],
}
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: where it is, what it says, and the code that replaces the function's."""

    module: str
    function: str
    line: int
    change: str
    code: CodeType


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(PLAN), default=list(PLAN))
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]
    os.chdir(ROOT)
    modules = {name: importlib.import_module(name) for name in args.only}
    longest = {name: 20 + 10 * seconds(name) for name in modules}
    mutants = [m for name, module in modules.items() for m in mutants_of(name, module)]
    random.Random(args.seed).shuffle(mutants)
    counts: dict[str, Counter[str]] = {name: Counter() for name in modules}
    end = time.monotonic() + 60 * args.minutes
    for mutant in mutants:
        if time.monotonic() > end:
            break
        outcome = run(mutant.module, mutant, longest[mutant.module])
        counts[mutant.module][outcome] += 1
        if outcome == "survived":
            print(f"{mutant.module}:{mutant.line} {mutant.function}: {mutant.change}", flush=True)
    print(f"\n{'':52}{'mutants':>8}{'run':>6}{'killed':>8}{'survived':>10}")
    for name, count in counts.items():
        made = sum(m.module == name for m in mutants)
        print(
            f"{name:52}{made:8}{count.total():6}{count['killed']:8}{count['survived']:10}",
            flush=True,
        )


def seconds(module: str) -> float:
    """Run the module's tests here, so that forks find them imported; return how long they take."""
    start = time.monotonic()
    if tests(module):
        raise SystemExit(f"the tests of {module} fail without a mutant")
    return time.monotonic() - start


def tests(module: str) -> int:
    """Return pytest's exit status for the tests that hold a module."""
    paths = [str(ROOT / "tests" / path) for path in PLAN[module]]
    return int(pytest.main([*paths, "-x", "-q", "-p", "no:cacheprovider"]))


def run(module: str, mutant: Mutant, limit: float) -> str:
    """Return "killed" if a test fails or hangs with this mutant, else "survived"."""
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        functions(sys.modules[module])[mutant.function].__code__ = mutant.code
        forget()
        os._exit(int(tests(module) != 0))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


def forget() -> None:
    """Empty every cache of a function: it holds results from before the change."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in {plan.split(".")[0] for plan in PLAN}:
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()


def functions(module: ModuleType) -> dict[str, FunctionType]:
    """Return the functions and methods of a module by qualified name, without their wrappers."""
    found = {}
    for value in vars(module).values():
        for member in (value, *(vars(value).values() if inspect.isclass(value) else ())):
            member = inspect.unwrap(getattr(member, "__func__", member))
            member = member.fget if isinstance(member, property) else member
            if isinstance(member, FunctionType) and member.__module__ == module.__name__:
                found[member.__qualname__] = member
    return found


def mutants_of(name: str, module: ModuleType) -> Iterator[Mutant]:
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
                yield Mutant(name, qualified, line, f"{before}  ->  {after}", new)


def span(code: CodeType) -> tuple[int, int]:
    """Return the first and the last line of a function."""
    lines = [line for _, _, line in code.co_lines() if line]
    inner = [span(c)[1] for c in code.co_consts if isinstance(c, CodeType)]
    return code.co_firstlineno, max([*lines, *inner])


def find(code: CodeType, like: CodeType) -> CodeType | None:
    """Return the code of the same function inside a module's code."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if (inner.co_name, inner.co_firstlineno) == (like.co_name, like.co_firstlineno):
                return inner
            if found := find(inner, like):
                return found
    return None


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, int, object]]:
    """Yield (expression, line, function that changes it), in the order of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.BoolOp)) and type(node.op) in SWAPS:
            yield node, node.lineno, lambda n=node: setattr(n, "op", SWAPS[type(n.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, node.lineno, lambda n=node: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]())
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            yield node, node.lineno, lambda n=node: setattr(n, "value", other(n.value))


def other(value: float) -> float:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 2 * value or 1.0


if __name__ == "__main__":
    main()
