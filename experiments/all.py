"""Every experiment with one command: result files, figures and the tables of the docs.

    python -m experiments.all --quick         # minutes: each on its smallest setting, with asserts
    python -m experiments.all                 # hours: runs what the result files lack, then reports
    python -m experiments.all --only theory   # programs whose name begins so
    python -m experiments.all --reports       # figures and tables from the result files alone

A program that is stopped loses one run: what is in experiments/results/ is not run again. Where a
program's data is not there (a package of data, a folder of wheels), it is left out, and said so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Command lines of a full run, where they are not the bare program. What only reads comes after.
RUNS = {
    "muon_from_adamw": ("", "--found"),
    "prune_fashion_mnist": ("", "--noise 0.2", "--steps 4000 --csv {results}/{name}_4000.csv"),
    "prune_grid": ("", "--half confirm", "--half again", "--half third", "--dynamic"),
    "warm_real_files": (),  # needs a folder of downloaded wheels
    "warm_verdict": ("", "--half confirm"),
}
REPORTS = {
    "muon_figures": "",
    "muon_one_rate": "--report",
    "muon_rules": "--report",
    "muon_tried": "--report",
    "prune_grid_report": "",
    "prune_equal_seconds": "--report",
    "prune_fashion_mnist": "--report",
    "prune_seconds": "--report",
    "theory_plasticity": "--figure",
    "warm_breadth": "--report",
    "warm_quarter": "--report",
    "warm_verdict": "--report",
    "warm_chunks": "--summary",
    "warm_mechanism": "--summary",
    "warm_features": "--summary",
    "prune_report": "",
    "tables": "",
    "lora_report": "",
    "papers": "",
}
# Packages and commands that not everybody has: without them a program is left out.
NEEDS = {
    "muon_trainer": "transformers",
    "theory_lora": "peft",
    "lora_pretrained": "peft",
    "warm_real_files": "safetensors",
}


def programs() -> list[str]:
    """Names of the files that can be run, in alphabetical order."""
    return [
        path.stem
        for path in sorted(HERE.glob("*.py"))
        if path.stem != "all" and '__name__ == "__main__"' in path.read_text()
    ]


def has_quick(name: str) -> bool:
    """Whether a program has a setting of seconds."""
    text = (HERE / f"{name}.py").read_text()
    return any(way in text for way in ('"--quick"', "is_quick(", "command_line("))


def command_lines(names: list[str], quick: bool, reports: bool) -> list[tuple[str, str]]:
    """(program, arguments), reports after what they read."""
    if quick:
        return [(name, "--quick") for name in names if has_quick(name)]
    results = HERE / "results"
    lines = [
        (name, arguments.format(results=results, name=name))
        for name in names
        if name not in REPORTS or name in RUNS or REPORTS[name]
        for arguments in RUNS.get(name, ("",))
    ]
    return [*([] if reports else lines), *((n, a) for n, a in REPORTS.items() if n in names)]


def run(name: str, arguments: str) -> bool:
    """Run one program; say how long it took, and what it printed if it failed."""
    needed = NEEDS.get(name)
    if needed is not None and find_spec(needed) is None and shutil.which(needed) is None:
        print(f"{name}: left out, {needed} is not installed", flush=True)
        return True
    start = time.perf_counter()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *arguments.split()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False,
    )  # fmt: skip
    state = "" if done.returncode == 0 else "  FAILED"
    print(f"{name} {arguments}: {time.perf_counter() - start:.1f} s{state}", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smallest settings, no result files")
    parser.add_argument("--reports", action="store_true", help="figures and tables alone")
    parser.add_argument("--only", default="", metavar="PREFIX")
    args = parser.parse_args()
    names = [name for name in programs() if name.startswith(args.only)]
    lines = command_lines(names, args.quick, args.reports)
    # Full runs one after the other: several write to one result file, and reports read them all.
    with ThreadPoolExecutor(max_workers=os.cpu_count() if args.quick else 1) as pool:
        held = list(pool.map(lambda line: run(*line), lines))
    failed = [line for line, fine in zip(lines, held, strict=True) if not fine]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(lines)} failed: {failed}")


if __name__ == "__main__":
    main()
