"""The command line and the page: what a user looks at before he prunes."""

import html
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_prune import ScoreTable, read_keys
from data_prune.__main__ import main
from data_prune.report.figures import draw_beta, draw_classes
from data_prune.report.page import build_report, describe_selection
from data_prune.report.thumbnails import SIDE, thumbnail
from data_prune.report.wrong import wrong_labels
from reference import dual as naive


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


def figures(page):
    """Alternative texts of all images of a page."""
    return [html.unescape(alt) for alt in re.findall(r'<img[^>]* alt="([^"]*)" src="data:', page)]


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
    assert len(figures(text)) == 3
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
    assert "1,000 classes, 0 of them empty" in page
    assert "Each dot is a class" in page


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


def test_figures_say_what_they_show():
    """A person who does not see a plot reads its numbers, and they must be those of the data."""
    table = make_table()
    kept = table.select(0.9, method="beta", c_d=5.5)
    settings = table.plan(0.9, method="beta", c_d=5.5).settings
    first, second, third = figures(build_report(table, 0.9, method="beta", c_d=5.5))
    assert "Map of 2,000 examples" in first
    assert f"The 200 kept: median probability {np.median(table.mean_prob[kept]):.3g}" in first
    mean = settings["alpha"] / (settings["alpha"] + settings["beta"])
    assert f"has its mean at {mean:.3g}; mu_D is {settings['mu_d']:.3g}" in second
    least = min(describe_selection(table, kept)["classes"], key=lambda c: c["share"])
    assert f"Least: class {least['label']} with {least['kept']} of {least['examples']}" in third
    assert "Beta" not in figures(build_report(table, 0.5, method="random"))[1]


def test_a_table_without_labels_has_no_class_called_minus_one():
    """It looked like a data set with one class."""
    table = make_table(label=np.full(2000, -1))
    about = describe_selection(table, table.select(0.5))
    assert (about["classes"], about["empty"]) == ([], [])
    page = build_report(table, 0.5)
    assert "The table has no labels" in page
    assert "Likely wrong labels" not in page
    assert len(figures(page)) == 2
    half = make_table(label=np.where(np.arange(2000) % 2, -1, 3))
    labels = [c["label"] for c in describe_selection(half, half.select(0.5))["classes"]]
    assert labels == ["none", 3]


def test_every_class_is_drawn_however_many_and_however_rare():
    """Of 1,000 classes the 120 that kept least were drawn; a class of one looked well kept."""
    import matplotlib.figure

    for count in (8, 500):
        classes = [
            {"label": i, "examples": 1 + i, "kept": int(i % 3 > 0), "share": (i % 3 > 0) / (1 + i)}
            for i in range(count)
        ]
        axes = matplotlib.figure.Figure().add_subplot()
        draw_classes(axes, classes, 0.1)
        drawn = {t.get_text() for t in axes.get_legend().get_texts()}
        empty = sum(c["kept"] == 0 for c in classes)
        rare = sum(c["kept"] > 0 and c["examples"] < 10 for c in classes)
        assert {f"empty ({empty})", f"fewer examples than its share needs ({rare})"} <= drawn
        dots = sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o")
        assert len(axes.patches) + dots == count


def test_the_key_of_the_beta_figure_hides_no_line():
    """Inside the axes it lay on the dotted line at mu_D."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    FigureCanvasAgg(figure).draw()
    axes, table = figure.add_subplot(), make_table()
    draw_beta(axes, table, table.select(0.5), {"alpha": 9.0, "beta": 7.5, "mu_d": 0.5})
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
    assert axes.get_legend().get_window_extent().x0 >= 0


@pytest.mark.filterwarnings("ignore:.*highest scores belong to examples:UserWarning")
@pytest.mark.filterwarnings("ignore:.*have no complete window:UserWarning")
@pytest.mark.parametrize("method", ["plausible", "top", "random"])
def test_a_table_without_one_score_has_a_page(method):
    """A recording that saw nothing says so, in words instead of in nan."""
    nan = np.full(60, np.nan)
    table = make_table(60, score=nan, mean_prob=nan, peers={})
    page = build_report(table, 0.5, method=method)
    for words in ("unknown → unknown", "No example has a score.", "60 examples have no complete"):
        assert words in page
    assert " nan " not in re.sub(r"<[^>]*>", " ", page)


def test_long_names_leave_room():
    """Names of 60 letters pushed the bars off their figure, a key of 500 filled a screen."""
    import matplotlib.figure

    name = "a very long name of a class, which nobody wants to read {}"
    classes = [{"label": name.format(i), "examples": 9, "kept": 4, "share": 0.4} for i in range(25)]
    axes = matplotlib.figure.Figure().add_subplot()
    draw_classes(axes, classes, 0.5)
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert all(len(text) <= 16 for text in ticks)
    assert len(set(ticks)) == 25
    key = np.array([f"{'x' * 500}/{i}.jpg" for i in range(40)], dtype=object)
    page = build_report(make_table(40, key=key), 0.5)
    assert "x" * 65 not in page
    assert re.search(r"xxx/\d+\.jpg<", page)


def test_lists_name_examples_and_show_their_images():
    """Who prunes must see what goes: by key, by label, and as a picture."""
    label = np.array(["cat", "dog"], dtype=object)[np.arange(2000) % 2]
    keys = np.array([f"<{i}>.jpg" for i in range(2000)], dtype=object)
    table = make_table(label=label, key=keys)
    table.mean_prob[[3, 8]], table.score[[3, 8]] = 0.001, 1e-4
    read = []

    class Data:
        def __len__(self):
            return 2000

        def __getitem__(self, i):
            read.append(i)
            return {"image": torch.rand(3, 9, 9), "label": 0}

    page = build_report(table, 0.5, data=Data())
    best = int(np.argmax(table.score))
    assert f"<td>&lt;{best}&gt;.jpg</td>" in page
    assert "example <3>.jpg, label dog" in figures(page)
    assert {3, 8, best} <= set(read)
    assert len(read) <= 24
    with pytest.raises(ValueError, match="data must have 2000 examples as the table has, got 5"):
        build_report(table, 0.5, data=list(range(5)))


@pytest.mark.parametrize(
    "example",
    [
        Image.new("L", (200, 100)),
        torch.rand(1, 28, 28),
        np.zeros((40, 20, 3), np.uint8),
        (torch.randn(3, 16, 16), 7),
        {"text": "a", "pixel_values": np.random.default_rng(0).normal(size=(4, 8, 8))},
    ],
)
def test_images_of_every_kind_become_thumbnails(example):
    """Pillow, tensors in either order, bytes and floats, alone or in a tuple or dict."""
    with Image.open(io.BytesIO(thumbnail(example))) as picture:
        assert max(picture.size) == SIDE


@pytest.mark.parametrize("example", [7, "text", (torch.zeros(5), 1), {"a": np.zeros(3)}, None])
def test_what_is_no_image_has_no_thumbnail(example):
    assert thumbnail(example) is None


def test_likely_wrong_labels_are_ranked_by_what_is_usual_in_their_class():
    """A hard class is improbable as a whole: its labels are not wrong for that."""
    rng = np.random.default_rng(0)
    label = np.arange(2000) % 4
    p = np.where(label == 3, 0.2, 0.8) * rng.uniform(0.8, 1.2, 2000)
    bad = rng.choice(2000, 100, replace=False)
    p[bad] *= 0.2
    table = make_table(label=label, mean_prob=p, score=0.1 * (1 - p))
    found = wrong_labels(table)
    assert set(found.rows) == set(bad)
    assert len(found) == table.plan(0.5).settings["set_aside"]
    assert found.rows.tolist() == naive.wrong_labels(label, p)[:100]
    assert wrong_labels(table, 30).rows.tolist() == found.rows[:30].tolist()
    hard = wrong_labels(make_table(label=label, mean_prob=p, score=np.where(p < 0.3, 0.3, 0.01)))
    assert (len(hard), hard.merely_hard) == (0, True)
    with pytest.raises(ValueError, match="wrong labels need labels"):
        wrong_labels(make_table(label=np.full(2000, -1)))
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        wrong_labels(table, -1)


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".npy"])
def test_the_command_lists_likely_wrong_labels(tmp_path, capsys, suffix):
    """A list for a person (csv), or for a program."""
    table = make_table(label=np.array(["cat", "dog"], dtype=object)[np.arange(2000) % 2])
    table.mean_prob[7] = 1e-3
    table.to_parquet(tmp_path / "s.parquet")
    out = tmp_path / f"wrong{suffix}"
    assert main(["wrong", str(tmp_path / "s.parquet"), "-o", str(out), "--count", "3"]) == 0
    assert "3 labels listed" in capsys.readouterr().out
    assert read_keys(out).tolist()[0] in (7, "7")
    if suffix == ".csv":
        assert out.read_text().startswith("key,label,probability,class_median\n7,dog,0.001,")
    assert main(["wrong", str(tmp_path / "s.parquet"), "-o", str(tmp_path / "w.json")]) == 2
    assert "must end in .txt, .csv, .npy, got" in capsys.readouterr().err


def test_the_report_shows_the_images_of_a_saved_data_set(scores, tmp_path):
    """The command reads what ``save_to_disk`` wrote."""
    from datasets import Dataset, Features
    from datasets import Image as Picture

    rows = {"image": [Image.new("L", (8, 8), i % 255) for i in range(2000)]}
    Dataset.from_dict(rows, features=Features({"image": Picture()})).save_to_disk(tmp_path / "data")
    page = tmp_path / "r.html"
    assert main(["report", str(scores), "-o", str(page), "--data", str(tmp_path / "data")]) == 0
    assert len(figures(page.read_text())) > 3 + 12
