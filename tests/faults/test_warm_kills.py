"""Writers that are killed at any line: old or new, whole, and the next run goes through."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import specgd_common.files
from faults import killed_child
from faults.killed_child import SCALE
from faults.warm_runs import INDEX, contents, read_shards, run, shards, state
from warmstart import uniform_state_dict

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
WRITERS = (str(Path(specgd_common.files.__file__)), os.sep + os.path.join("warmstart", "files"))
KILLS = 12 * SCALE


def in_child(work: Callable[[], object], kill_at: int = 0) -> int:
    """Run with the lines of the writers alone counted."""
    return killed_child.in_child(work, WRITERS, kill_at)


def one_file(folder: Path, suffix: str, old: bool) -> tuple[list[object], Path]:
    """A command that writes one file and its report, over older ones or not."""
    source, out, report = folder / f"in{suffix}", folder / "out" / f"o{suffix}", folder / "r.json"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(state(), source)
    out.parent.mkdir()
    if old:
        save(state(7.0), out)
        report.write_text("old")
    force = ["--force"] if old else []
    return ["uniform", source, "-o", out, "--report", report, *force], out


@pytest.mark.parametrize("old", [False, True], ids=["new", "over old"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_one_file_is_old_or_new_and_never_without_its_factors(
    tmp_path: Path, suffix: str, old: bool
) -> None:
    """A killed run has changed nothing, or left the file with the report that undoes it."""
    command, _ = one_file(tmp_path, suffix, old)
    before = contents(tmp_path)
    lines = in_child(lambda: run(*command))
    after = contents(tmp_path)
    name = f"out/o{suffix}"
    assert after.keys() == before.keys() | {name, "r.json"}
    for k in range(KILLS):
        restore(tmp_path, before)
        in_child(lambda: run(*command), kill_at=1 + k * (lines - 1) // (KILLS - 1))
        left = contents(tmp_path)
        assert left.get(name) in (before.get(name), after[name])
        assert left.get("r.json") in (before.get("r.json"), after["r.json"])
        if left.get(name) != before.get(name):
            assert left["r.json"] == after["r.json"]
        status, _, error = run(*command)
        assert status == 0 or left.get(name) == after[name], error
        assert contents(tmp_path) == after  # nothing strange is left


@pytest.mark.parametrize("old", [False, True], ids=["new", "over old"])
def test_what_an_index_names_is_whole(tmp_path: Path, old: bool) -> None:
    """A killed run leaves the old shards or the new ones under the index, never some of each."""
    source, out = shards(tmp_path / "in", state()), tmp_path / "out" / INDEX
    sets = [uniform_state_dict(state())[0]]
    if old:
        shards(out.parent, state(7.0))
        sets.append(state(7.0))
    force = ["--force"] if old else []
    command = ["uniform", source, "-o", out, "--report", tmp_path / "r.json", *force]
    before = contents(tmp_path)
    lines = in_child(lambda: run(*command))
    after = contents(tmp_path)
    written = {"r.json", f"out/{INDEX}", *(f"out/m-{i}.safetensors" for i in range(3))}
    assert after.keys() == before.keys() | written
    for k in range(2 * KILLS):
        restore(tmp_path, before)
        in_child(lambda: run(*command), kill_at=1 + k * (lines - 1) // (2 * KILLS - 1))
        if out.exists():
            found = read_shards(out)
            assert any(all(torch.equal(found[n], s[n]) for n in s) for s in sets)
        else:
            assert not old
        whole = contents(tmp_path) == after
        status, _, error = run(*command)
        assert status == 0 or whole or same_but_strays(tmp_path, after), error
        assert run(*command, "--force")[0] == 0
        assert contents(tmp_path) == after


def same_but_strays(folder: Path, after: dict[str, bytes]) -> bool:
    """Killed when all was done but for the removal of the unpredictable names."""
    left = contents(folder)
    return all(left.get(k) == v for k, v in after.items())


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """By the clock, inside of torch's and safetensors' own writing as well."""
    big = {f"l{i}.weight": torch.ones(256, 256) for i in range(16)}
    delays = random.Random(0)
    for suffix in (".safetensors", ".pt"):
        source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
        save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
        save(big, source)
        save({"old.weight": torch.ones(2, 2)}, out)
        old = out.read_bytes()
        command = ["uniform", source, "-o", out, "--force"]
        assert run(*command)[0] == 0
        new = out.read_bytes()
        for _ in range(6 * SCALE):
            out.write_bytes(old)
            child = os.fork()
            if child == 0:
                run(*command)
                os._exit(0)
            time.sleep(delays.uniform(0.0, 0.1))  # no condition: the moment is what is drawn
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert out.read_bytes() in (old, new)
            assert run(*command)[0] == 0
            assert {p.name for p in tmp_path.iterdir()} <= {
                "in.safetensors", "in.pt", "out.safetensors", "out.pt"
            }  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".index.json"])
def test_a_full_disk_is_one_line(tmp_path: Path, suffix: str) -> None:
    """Whatever does not fit any more: what was there stays, nothing else is left."""
    resource = pytest.importorskip("resource")
    if suffix == ".index.json":
        source, out = shards(tmp_path / "in", state()), tmp_path / "out" / INDEX
        shards(out.parent, state(7.0))
        command: list[object] = ["uniform", source, "-o", out, "--force"]
    else:
        command, _ = one_file(tmp_path, suffix, old=True)
    before = contents(tmp_path)
    for limit in (0, 100, 300):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status, _, error = run(*command)
            os.write(writing, f"{status} {error}".encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        assert said.startswith("2 error: ")
        assert said.count("\n") == 1
        assert "too large" in said
        assert contents(tmp_path) == before


def test_reports_are_old_or_new(tmp_path: Path) -> None:
    """A report of the library is written as the command line's are."""
    report = uniform_state_dict(state())[1]
    path = tmp_path / "r.json"
    lines = in_child(lambda: report.to_json(path, factors=True))
    new = path.read_bytes()
    for k in range(KILLS):
        path.write_text("old")
        in_child(lambda: report.to_json(path, factors=True), 1 + k * (lines - 1) // (KILLS - 1))
        assert path.read_bytes() in (b"old", new)
        report.to_json(path, factors=True)
        assert contents(tmp_path) == {"r.json": new}


def restore(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder hold these files alone."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "out").mkdir(exist_ok=True)
