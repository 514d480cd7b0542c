"""The command line and the page: what a user looks at before he prunes."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prune import ScoreTable
from data_prune.__main__ import main
from data_prune.report.page import build_report, describe_selection


def make_table(n=2000, **changes):
    rng = np.random.default_rng(0)
    p = rng.beta(4, 1.5, n)
    columns = {
        "key": np.arange(n),
        "label": rng.integers(10, size=n).astype(np.int32),
        "score": (p * (1 - p) * rng.uniform(0.3, 1, n)).astype(np.float32),
        "mean_prob": p.astype(np.float32),
        "observed": np.full(n, 30),
        "peers": {"el2n": (1 - p).astype(np.float32), "aum": p.astype(np.float32)},
        "meta": {"epochs": 30, "window": 10, "nonfinite": 0},
    }
    return ScoreTable(**{**columns, **changes})


@pytest.fixture
def scores(tmp_path):
    make_table().to_parquet(tmp_path / "scores.parquet")
    return tmp_path / "scores.parquet"


def test_report_is_one_self_contained_page(scores, tmp_path, capsys):
    """It is mailed around: no script, no link, no file beside it."""
    page = tmp_path / "report.html"
    assert main(["report", str(scores), "-o", str(page), "-r", "0.9", "--c-d", "5.5"]) == 0
    assert "200 of 2,000 examples kept" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert not re.search(r"<script|<link|https?://|src=\"(?!data:)", text)
    for words in ("Kept share per class", "Beta", "Overlap", "c_d", "5.5", "el2n", "digest"):
        assert words in text
    assert main(["report", str(scores), "-o", str(page)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_empty_classes_are_called_out():
    """A class that vanishes must not hide among 1,000 bars."""
    label = np.repeat(np.arange(4), 500)
    score = np.where(label == 3, 0.0, 0.1) + np.arange(2000) * 1e-6
    table = make_table(label=label, score=score)
    about = describe_selection(table, table.select(0.9, method="top"))
    assert about["empty"] == [0, 1, 3]
    page = build_report(table, 0.9, method="top")
    assert "3 classes are empty after pruning: 0, 1, 3" in page
    assert "per_class=True" in page
    page = build_report(table, 0.999, per_class=True)
    assert "2 classes are empty after pruning" in page
    assert "per_class=True" not in page
    assert "A lower prune ratio" in page


def test_advice_knows_what_was_asked_for():
    """Who has given per_class=True must not be told to give it."""
    label = np.repeat(np.arange(4), [1900, 60, 39, 1])
    table = make_table(label=label)
    assert describe_selection(table, table.select(0.9, per_class=True))["empty"] == []
    assert "are empty" not in build_report(table, 0.9, per_class=True)
    page = build_report(table, 0.999, per_class=True)  # two are kept, of four classes
    assert "A lower prune ratio" in page
    assert "per_class=True (" not in page


def test_overlap_is_the_share_in_common():
    """A selection must overlap itself fully, and a random one by chance."""
    table = make_table()
    kept = table.select(0.8, method="top")
    about = describe_selection(table, kept)
    assert about["overlap"]["DUAL top-k"] == 1.0
    assert about["overlap"]["random"] == pytest.approx(0.2, abs=0.06)
    assert set(about["overlap"]) == {"random", "DUAL top-k", "el2n", "aum"}
    assert sum(c["kept"] for c in about["classes"]) == 400


def test_many_classes_and_odd_titles():
    """1,000 classes stay readable, and a title is text, not HTML."""
    table = make_table(label=np.arange(2000) % 1000)
    page = build_report(table, 0.5, title="<b>R&D</b>")
    assert "&lt;b&gt;R&amp;D&lt;/b&gt;" in page
    assert "the least kept are shown" in page


def test_select_writes_the_kept_rows_and_json(scores, tmp_path, capsys):
    """The same examples as from Python, with the settings for a script."""
    out = tmp_path / "kept.parquet"
    arguments = ["select", str(scores), "-o", str(out), "-r", "0.7", "--per-class", "--json"]
    assert main([*arguments, "--seed", "3"]) == 0
    settings = json.loads(capsys.readouterr().out)
    expected = make_table().select(0.7, per_class=True, seed=3)
    assert settings["kept"] == len(expected) == 600
    assert pq.read_table(out)["key"].to_pylist() == expected.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "1.5"], r"prune_ratio .* must be in \[0, 1\), got 1.5"),
        (["--c-d", "mnist"], "c_d must be a positive number"),
        (["--by", "grand"], "no column 'grand'"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_line(scores, tmp_path, capsys, arguments, message):
    """A script must see the failure, a person the reason."""
    assert main(["select", str(scores), "-o", str(tmp_path / "k.parquet"), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_warnings_and_errors_take_one_line_each(tmp_path, capsys):
    """No code of ours on a person's screen."""
    table = make_table(100, mean_prob=np.ones(100, np.float32))
    table.to_parquet(tmp_path / "s.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])
        assert main(["select", str(tmp_path / "s.parquet"), "-o", str(tmp_path / "k")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: the 10 highest scores belong to examples")


def test_a_closed_pipe_is_no_error(scores, tmp_path):
    """`... select | head -0`: the work is done and nobody wants to read of it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "data_prune", "select", str(scores), "--json"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "k.parquet")],
        stdout=writing, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(ScoreTable.from_parquet(tmp_path / "k.parquet")) == 1000


def test_a_file_of_the_records_name_is_not_replaced(scores, tmp_path, capsys):
    """The record of a selection lies beside it, and that name may be taken."""
    (tmp_path / "k.json").write_text('{"mine": 1}')
    assert main(["select", str(scores), "-o", str(tmp_path / "k")]) == 2
    assert "is no record of a selection and is not replaced" in capsys.readouterr().err
    assert not (tmp_path / "k").exists()
    (tmp_path / "k.json").write_text('{"kept": 3}')  # of a run that was killed
    assert main(["select", str(scores), "-o", str(tmp_path / "k")]) == 0
