"""What a user asks of a selection besides a ratio: lists, groups, classes, weights."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prune import (
    DualScoreSampler,
    ScoreTable,
    beats_random,
    read_keys,
    select_parquet,
    write_keys,
)
from data_prune.__main__ import main
from data_prune.report.evaluate import split_holdout
from prune.tables import METHODS, make_table
from reference import dual as naive

DRAWN = [method for method in METHODS if method != "ccs"]


@pytest.mark.parametrize("method", DRAWN)
@pytest.mark.parametrize("per_class", [True, False])
def test_lists_are_obeyed_and_the_number_stays(method, per_class):
    """A rare disease must stay, a licence may be withdrawn; the budget is the same."""
    table = make_table()
    ranked = np.argsort(table.score)
    keep, drop = ranked[:40], np.r_[ranked[-200:], ranked[300:350]]
    options = {"method": method, "per_class": per_class}
    kept = table.select(0.8, keep=keep, drop=drop, **options)
    assert len(kept) == 200
    assert np.isin(keep, kept).all()
    assert not np.isin(drop, kept).any()
    without = table.select(0.8, **options)
    free = np.setdiff1d(without, np.r_[keep, drop])
    # The others are chosen as they were, but for classes that the lists have left less room.
    assert np.isin(free, kept).sum() >= 0.95 * len(free)
    if per_class:
        sizes = np.bincount(table.label[kept])
        assert abs(sizes - 0.2 * np.bincount(table.label)).max() < 1  # shares, rounded
    same = table.select(0.8, keep=[], drop=np.array([], dtype=int), **options)
    assert same.tolist() == without.tolist()


def test_more_of_a_class_must_stay_than_its_share():
    """The other classes pay for it, down to the smallest share."""
    label = np.repeat([0, 1, 2], [900, 60, 40])
    table = make_table(label=label)
    keep = np.flatnonzero(label == 2)
    kept = table.select(0.95, keep=keep, per_class=True, min_per_class=3)
    assert np.bincount(label[kept]).tolist() == [7, 3, 40]
    kept = table.select(0.95, drop=np.flatnonzero(label == 0), per_class=True)
    assert np.bincount(label[kept], minlength=3).tolist()[0] == 0


def test_keys_and_digits_name_examples():
    """Lists come from files: keys of a stream, or digits."""
    table = make_table(100, key=np.array([f"k{i}" for i in range(100)], dtype=object))
    kept = table.key[table.select(0.9, keep=["k3", "k9", "k3"], drop=["k4"])]
    assert {"k3", "k9"} <= set(kept)
    assert 5 in make_table(100).select(0.9, keep=["5"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": [1, 2000]}, ValueError, "keep must be in the table of 1000 examples, got 2000"),
        ({"drop": ["a"]}, TypeError, "drop must be integers as the table's are, got 'a'"),
        ({"keep": [3], "drop": [3]}, ValueError, "keep names 3, which drop or within leaves out"),
        ({"keep": range(101)}, ValueError, "keep names 101 examples, and only 100 are to be kept"),
        ({"drop": range(950)}, ValueError, "drop and within leave 50 examples, 100 are to be kept"),
        ({"keep": [3], "method": "ccs"}, ValueError, "do not combine with method 'ccs'"),
        (
            {"groups": np.arange(9)},
            ValueError,
            r"one value for each of 1000 examples, got shape \(9",
        ),
        (
            {"groups": np.zeros(1000)},
            TypeError,
            "groups must be integers or strings, got .*float64",
        ),
        (
            {"groups": np.array(["a", None] * 500, dtype=object)},
            TypeError,
            "groups must be integers or strings, got None",
        ),
        ({"groups": "patient"}, ValueError, r"groups must be in the table, .*, got 'patient'"),
        (
            {"classes": np.full(1000, 0.5)},
            TypeError,
            "classes must be integers or names, got dtype f",
        ),
        ({"classes": "label", "per_class": False}, ValueError, "classes need per_class=True"),
        (
            {"weights": np.full(1000, -1.0)},
            ValueError,
            "weights must be finite and at least 0, got -1",
        ),
        ({"weights": np.full(1000, np.nan)}, ValueError, "weights must be finite .* got nan"),
        (
            {"weights": np.ones(1000), "method": "top"},
            ValueError,
            "weights are for methods that draw",
        ),
        (
            {"groups": "label", "method": "ccs"},
            ValueError,
            "groups do not combine with method 'ccs'",
        ),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(options, error, message):
    """One line that names the value."""
    with pytest.raises(error, match=message):
        make_table().select(0.9, **options)


def test_any_column_makes_classes():
    """Every hospital its share, at least two of each, whatever the labels are."""
    site = np.array(["oslo", "bern", "rome"], dtype=object)[np.repeat([0, 1, 2], [800, 190, 10])]
    table = make_table()
    kept = table.select(0.9, classes=site, min_per_class=2)
    names, counts = np.unique(site[kept].astype(str), return_counts=True)
    assert dict(zip(names, counts, strict=True)) == {"oslo": 79, "bern": 19, "rome": 2}
    settings = table.plan(0.9, classes=site, min_per_class=2).settings
    assert settings["quotas"] == {"bern": 19, "oslo": 79, "rome": 2}
    by_label = table.select(0.9, per_class=True)
    assert table.select(0.9, classes="label").tolist() == by_label.tolist()


def test_weights_multiply_the_weight_of_the_draw():
    """Twice the weight, twice the chance; weight 0 only where nothing else is left."""
    table = make_table(200, score=np.full(200, 0.1), mean_prob=np.full(200, 0.5))
    weights = np.where(np.arange(200) < 100, 2.0, 1.0)
    drawn = np.zeros(2)
    for seed in range(300):
        kept = table.select(0.95, method="weighted", weights=weights, seed=seed)
        drawn += np.bincount(kept // 100, minlength=2)
    # 2,000 and 1,000 draws: three standard errors of their ratio.
    assert drawn[0] / drawn[1] == pytest.approx(2.0, rel=0.12)
    for method in ("plausible", "beta", "weighted", "random"):
        options = {"method": method, "weights": weights - 1, "per_class": False}
        assert table.select(0.5, **options).max() < 100
        assert len(table.select(0.2, **options)) == 160


def test_the_easy_end_is_the_other_end():
    """With little data the easy examples are the better ones."""
    table = make_table()
    easy = table.select(0.7, method="easy", by="mean_prob")
    assert easy.tolist() == np.sort(np.argsort(-table.mean_prob, kind="stable")[:300]).tolist()
    hard = table.select(0.3, method="top")
    assert set(table.select(0.7, method="easy")) == set(range(1000)) - set(hard)


def grouped(seed=0):
    """A hundred patients with one to forty images each."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(100), rng.integers(1, 40, 100))
    rng.shuffle(patient)
    return make_table(len(patient), seed=seed), np.array([f"p{i}" for i in patient], dtype=object)


@pytest.mark.parametrize("method", DRAWN)
@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9])
def test_groups_stay_together(method, ratio):
    """One patient's images in the kept part and in the pruned part leak from one into the other."""
    table, patient = grouped()
    kept = table.select(ratio, method=method, groups=patient, per_class=False)
    inside = set(patient[kept])
    assert not inside & set(np.delete(patient, kept))
    assert abs(len(kept) - (1 - ratio) * len(table)) <= 20  # half of the largest group
    settings = table.plan(ratio, method=method, groups=patient, per_class=False).settings
    assert settings["kept"] == len(kept)
    assert (settings["groups"], settings["kept_groups"]) == (100, len(inside))


def test_a_group_competes_by_the_mean_of_its_members():
    """Against plain loops over the members."""
    table, patient = grouped()
    score = {}
    for name, value in zip(patient, table.score, strict=True):
        score.setdefault(name, []).append(float(value))
    order = sorted(score, key=lambda name: -sum(score[name]) / len(score[name]))
    expected = naive.fill_groups(order, {k: len(v) for k, v in score.items()}, len(table) // 2)
    kept = table.select(0.5, method="top", groups=patient)
    assert set(patient[kept]) == expected


def test_lists_and_classes_of_groups():
    """A named image keeps its patient; every site has its share of patients' images."""
    table, patient = grouped()
    site = np.array([int(name[1:]) % 3 for name in patient])
    keep, drop = np.flatnonzero(patient == "p7")[:1], np.flatnonzero(patient == "p8")[:1]
    kept = table.select(0.6, groups=patient, classes=site, keep=keep, drop=drop)
    assert (patient[kept] == "p7").sum() == (patient == "p7").sum()
    assert "p8" not in patient[kept]
    wanted = 0.4 * np.bincount(site)
    assert abs(np.bincount(site[kept]) - wanted).max() <= 20  # half of the largest group
    both = np.flatnonzero(patient == max(set(patient), key=list(patient).count))[:2]
    with pytest.raises(ValueError, match="1 groups have examples in keep and in drop"):
        table.select(0.6, groups=patient, keep=both[:1], drop=both[1:])
    with pytest.raises(ValueError, match=r"keep names \d+ examples, and only 20 are to be kept"):
        table.select(
            0.99, groups=patient, keep=np.flatnonzero(np.isin(patient, ["p1", "p2", "p3"]))
        )


@pytest.mark.parametrize("size", [7, 50, 83])
@pytest.mark.parametrize("classes", [2, 5, 30])
def test_groups_of_many_classes_add_up(size, classes):
    """Each class within half a group of its share was, of all of them, half the data too much."""
    patient = np.arange(1000) // size
    table = make_table(label=patient % classes)
    for ratio in (0.2, 0.5, 0.9):
        kept = table.select(ratio, groups=patient)
        assert abs(len(kept) - 1000 * (1 - ratio)) <= size / 2


def test_one_group_that_is_too_large_still_gives_something():
    """Nothing kept is no selection."""
    table = make_table(100)
    kept = table.select(0.9, groups=np.repeat([0, 1], [60, 40]), per_class=False)
    assert len(kept) == 40


def test_the_held_out_part_is_of_other_patients():
    """A patient in training and in the test part makes any selection look good."""
    table, patient = grouped()
    seen = []

    def run(kept, held_out, seed):
        assert not set(patient[kept]) & set(patient[held_out])
        assert abs(len(held_out) - 0.2 * len(table)) <= 20
        seen.append((len(kept), tuple(sorted(set(patient[kept])))))
        return float(table.score[kept].mean())

    options = {"groups": patient, "keep": [int(np.flatnonzero(patient == "p3")[0])]}
    result = beats_random(run, table, 0.5, repeats=3, method="top", **options)
    assert result.verdict == "yes"
    assert len(seen) == 6
    assert all("p3" in names for _, names in seen) or not any("p3" in names for _, names in seen)
    pool, held_out = split_holdout(table, 0.2, np.arange(len(table), dtype=np.uint64))
    plain = split_holdout(table, 0.2)
    assert pool.tolist() == plain[0].tolist()
    assert held_out.tolist() == plain[1].tolist()


def test_a_sampler_passes_wishes_on():
    """The loader of a training run keeps patients together, and so does its comparison."""
    table, patient = grouped()
    options = {"groups": patient, "drop": [0]}
    sampler = DualScoreSampler(range(len(table)), 0.5, table=table, select_options=options)
    kept = set(sampler)
    assert kept == set(table.select(0.5, groups=patient, drop=[0]).tolist())
    assert patient[0] not in patient[sorted(kept)]

    def run(kept, held_out, seed):
        assert not set(patient[kept]) & set(patient[held_out])
        return float(seed % 2)

    assert sampler.beats_random(run, repeats=2).difference == 0.0


def test_arrays_follow_their_rows_into_a_comparison():
    """Weights and classes are those of the rest, not of the first rows."""
    table = make_table(200)
    weights = (np.arange(200) % 2).astype(float)

    def run(kept, held_out, seed):
        return float(weights[kept].mean())

    options = {"weights": weights, "classes": np.arange(200) % 5, "drop": range(10)}
    result = beats_random(run, table, 0.7, repeats=3, **options)
    assert result.selected == (1.0, 1.0, 1.0)


def test_a_table_of_groups_alone_is_its_rows():
    """Where every group has one member, groups change nothing but the order of ties."""
    table = make_table()
    for method in DRAWN:
        one = table.select(0.6, method=method, groups=np.arange(1000))
        assert one.tolist() == table.select(0.6, method=method).tolist(), method
    assert isinstance(table, ScoreTable)


# --- the same from Parquet, and from the command line


def write_shards(folder, table, **more):
    """Three files with further columns, as a data set on disk has them."""
    frame = table.to_frame("arrow")
    for name, values in more.items():
        frame = frame.append_column(name, pa.array(values))
    folder.mkdir()
    for i, rows in enumerate(np.array_split(np.arange(len(table)), 3)):
        pq.write_table(frame.slice(rows[0], len(rows)), folder / f"{i}.parquet")


def keys_in(path):
    return sorted(pq.read_table(path)["key"].to_pylist())


@pytest.mark.parametrize("method", ["plausible", "top", "weighted"])
def test_every_door_selects_the_same(tmp_path, method):
    """Memory, a folder of files and the command line, with all wishes at once."""
    table, patient = grouped()
    site = np.array([f"s{int(name[1:]) % 3}" for name in patient], dtype=object)
    weight = 1.0 + (np.arange(len(table)) % 4)
    write_shards(tmp_path / "in", table, patient=patient, site=site, weight=weight)
    keep, drop = [3, 9], [int(np.flatnonzero(patient == "p8")[0])]
    weights = {} if method == "top" else {"weights": weight}
    arrays = {"groups": patient, "classes": site, **weights}
    options = {"method": method, "keep": keep, "drop": drop, "min_per_class": 2, "seed": 4}
    kept = table.key[table.select(0.7, **arrays, **options)].tolist()
    names = {"groups": "patient", "classes": "site"} | ({"weights": "weight"} if weights else {})
    settings = select_parquet(tmp_path / "in", tmp_path / "out", 0.7, **names, **options)
    assert keys_in(tmp_path / "out") == kept
    assert settings["quotas"] == table.plan(0.7, **arrays, **options).settings["quotas"]
    write_keys(tmp_path / "keep.txt", keep)
    write_keys(tmp_path / "drop.npy", drop)
    command = ["select", str(tmp_path / "in"), "-r", "0.7", "--method", method, "--seed", "4"]
    command += ["--keep", str(tmp_path / "keep.txt"), "--drop", str(tmp_path / "drop.npy")]
    command += ["--min-per-class", "2", "--groups", "patient", "--classes", "site"]
    command += ["--weights", "weight"] if weights else []
    lists = ["-o", str(tmp_path / "kept.csv"), "--dropped", str(tmp_path / "rest.txt")]
    assert main([*command, *lists]) == 0
    assert [int(key) for key in read_keys(tmp_path / "kept.csv")] == kept
    rest = [int(key) for key in read_keys(tmp_path / "rest.txt")]
    assert rest == np.setdiff1d(table.key, kept).tolist()
    assert main([*command, *lists]) == 2  # nothing is overwritten


@pytest.mark.parametrize("options", [{}, {"per_class": False}, {"method": "weighted"}])
def test_lists_and_rows_alone_from_files(tmp_path, options):
    """Without groups: quotas, floors and lists as in memory, one file or many."""
    table = make_table()
    site = np.arange(1000) % 7
    write_shards(tmp_path / "in", table, site=site)
    ranked = np.argsort(table.score).tolist()
    lists = {"keep": ranked[:30], "drop": ranked[-100:]}
    select_parquet(tmp_path / "in", tmp_path / "out", 0.8, **lists, **options)
    assert keys_in(tmp_path / "out") == table.select(0.8, **lists, **options).tolist()
    select_parquet(tmp_path / "in" / "0.parquet", tmp_path / "kept.npy", 0.8, **options)
    first = table.take(range(334))
    kept = np.load(tmp_path / "kept.npy")
    assert kept.tolist() == first.key[first.select(0.8, **options)].tolist()
    if options.get("per_class") is not False:
        select_parquet(tmp_path / "in", tmp_path / "sites", 0.8, classes="site", **options)
        assert keys_in(tmp_path / "sites") == table.select(0.8, classes=site, **options).tolist()


@pytest.mark.parametrize("name", ["weight", "weights", "forced", "group", "groups", "id2"])
@pytest.mark.parametrize("method", ["plausible", "top", "random"])
def test_a_column_of_any_name_wishes_nothing(tmp_path, name, method):
    """A frame's own column "weight" or "forced" is a number to rank by, until it is asked for."""
    table = make_table()
    mine = dataclasses.replace(table, peers={**table.peers, name: 1.0 + np.arange(1000) % 5})
    kept = table.select(0.8, method=method)
    assert mine.select(0.8, method=method).tolist() == kept.tolist()
    mine.to_parquet(tmp_path / "s.parquet")
    select_parquet(tmp_path / "s.parquet", tmp_path / "out", 0.8, method=method)
    assert keys_in(tmp_path / "out") == table.key[kept].tolist()
    by = {"method": "top", "by": name, "keep": [0], "drop": [4], "groups": np.arange(1000)}
    names = {**by, "groups": "key"}
    select_parquet(tmp_path / "s.parquet", tmp_path / "ranked", 0.8, **names)
    kept = table.key[mine.select(0.8, **by)].tolist()
    assert keys_in(tmp_path / "ranked") == kept
    assert set(range(9, 1000, 5)) < set(kept)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"keep": [1, 5000, 6000]},
            ValueError,
            r"keep must be in .*in, got 5000 and 1 more",
        ),
        ({"keep": ["x"]}, TypeError, "keep must be integers as the table's are, got 'x'"),
        ({"keep": [1], "drop": [1]}, ValueError, "keep names 1, which drop leaves out"),
        ({"groups": "patient"}, ValueError, "has no column 'patient'; it has"),
        (
            {"groups": [1, 2]},
            TypeError,
            "groups must be the name of a column of the files, got list",
        ),
        ({"classes": "half"}, TypeError, "classes must be integers or names, got dtype float64"),
        ({"groups": "holes"}, ValueError, "'holes' must have a value in every row, got"),
        ({"weights": "aum"}, ValueError, "weights must be finite and at least 0, got -"),
        ({"within": [1]}, ValueError, "within is for a table in memory"),
        ({"dropped": "rest.json"}, ValueError, r"must end in .txt, .csv, .npy, got 'rest.json'"),
    ],
)
def test_wishes_that_files_cannot_meet(tmp_path, options, error, message):
    """One line, and nothing is left behind."""
    table = make_table()
    holes = [None if i % 9 == 0 else f"p{i % 5}" for i in range(1000)]
    write_shards(tmp_path / "in", table, half=np.full(1000, 0.5), holes=holes)
    with pytest.raises(error, match=message):
        select_parquet(tmp_path / "in", tmp_path / "out", 0.9, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_report_takes_the_same_options(tmp_path):
    """What will be selected is what is described."""
    table, patient = grouped()
    write_shards(tmp_path / "in", table, patient=patient)
    pq.write_table(pq.read_table(tmp_path / "in"), tmp_path / "s.parquet")
    page = tmp_path / "r.html"
    command = ["report", str(tmp_path / "s.parquet"), "-o", str(page), "-r", "0.5"]
    assert main([*command, "--groups", "patient"]) == 0
    kept = len(table.select(0.5, groups=patient))
    assert f"{kept:,} of {len(table):,} examples" in page.read_text()
    assert "kept_groups" in page.read_text()
