# SPDX-License-Identifier: Apache-2.0
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from raw_sets.cirr import make

from data_scripts import cirr, cirr_submission
from data_scripts.cirr_submission import main, read_queries, write_submission

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "fixtures" / "cirr"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A tiny CIRR of 18 test pairs and 54 test images, prepared without images."""
    folder = tmp_path_factory.mktemp("cirr")
    source = make(folder / "raw", images=None)
    cirr.main(["--source", str(source), "--output", str(folder / "set"), "--annotations-only"])
    return folder / "set"


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip("the annotation files of CIRR are not on this machine")
    return cirr.read(REAL)


@pytest.fixture
def queries(dataset):
    return read_queries(dataset)


@pytest.fixture
def rankings(queries):
    """Pair id → all 54 images, shuffled by the id."""
    return shuffled(queries)


def shuffled(queries, others=None):
    """Rankings by chance: of all images, or of the group and so many others."""
    names = sorted({name for query in queries for name in (query["reference"], *query["subset"])})
    result = {}
    for query in queries:
        chance = random.Random(query["query_id"])
        group = {query["reference"], *query["subset"]}
        ranked = sorted(group.union(names if others is None else chance.sample(names, others)))
        chance.shuffle(ranked)
        result[query["query_id"]] = ranked
    return result


def read_both(paths):
    return [json.loads(path.read_text()) for path in paths]


def test_both_files_have_the_best_without_the_reference(queries, rankings, tmp_path):
    paths = write_submission(rankings, queries, tmp_path / "new" / "folder")
    assert paths == (tmp_path / "new/folder/recall.json", tmp_path / "new/folder/recall_subset.json")
    for content, metric in zip(read_both(paths), ("recall", "recall_subset"), strict=True):
        assert list(content) == ["version", "metric", *(str(27090 + i) for i in range(18))]
        assert (content["version"], content["metric"]) == ("rc2", metric)
    recall, subset = read_both(paths)
    for query in queries:
        ranked = [name for name in rankings[query["query_id"]] if name != query["reference"]]
        assert recall[query["query_id"]] == ranked[:50]
        assert subset[query["query_id"]] == [name for name in ranked if name in query["subset"]][:3]


def test_a_ranking_may_be_without_the_reference_and_come_one_by_one(queries, rankings, tmp_path):
    expected = read_both(write_submission(rankings, queries, tmp_path))
    by_id = {query["query_id"]: query["reference"] for query in queries}
    without = (
        (int(i), tuple(name for name in ranked if name != by_id[i])) for i, ranked in reversed(rankings.items())
    )
    assert read_both(write_submission(without, queries, tmp_path)) == expected


def change(rankings, pair_id, ranking):
    return {**rankings, pair_id: ranking}


def test_pair_ids_that_are_missing_or_unknown_are_named(queries, rankings, tmp_path):
    del rankings["27093"], rankings["27107"]
    with pytest.raises(ValueError, match="2 pairs without a ranking: 27093, 27107; expected the 18 pairs of test1"):
        write_submission(rankings, queries, tmp_path)
    more = {**rankings, **{str(i): [] for i in range(12060, 12067)}}
    with pytest.raises(ValueError, match="7 unknown pair ids: 12060, 12061, 12062, 12063, 12064, …; expected the 18"):
        write_submission(more, queries, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_is_wrong_with_a_ranking_is_said(queries, rankings, tmp_path):
    query = queries[4]
    pair_id, ranked, group = query["query_id"], rankings[query["query_id"]], query["subset"]
    others = [name for name in ranked if name not in group and name != query["reference"]]
    wrong = {
        "2 names are no images of test1: dev-0-0-img0, x": [*ranked, "dev-0-0-img0", "x"],
        f"images ranked more than once: {ranked[3]}": [*ranked, ranked[3]],
        "49 images are ranked beside the reference; expected at least 50": [*group, *others[:44]],
        f"images of its group are not in the ranking: {group[2]}": [name for name in ranked if name != group[2]],
        "expected a list of names": "test1-0-0-img0",
        "the ranking is None": None,
        r"the ranking is \[1, 2\]": [1, 2],
    }
    for message, ranking in wrong.items():
        with pytest.raises(ValueError, match=f"pair {pair_id}: .*{message}"):
            write_submission(change(rankings, pair_id, ranking), queries, tmp_path)
    assert not any(tmp_path.iterdir())
    write_submission(change(rankings, pair_id, [*others[:45], *group]), queries, tmp_path)  # 50 will do


def test_two_rankings_of_one_pair_are_refused(queries, rankings, tmp_path):
    with pytest.raises(ValueError, match="pair 27090 has two rankings"):
        write_submission([*rankings.items(), ("27090", rankings["27090"])], queries, tmp_path)


def test_a_file_that_the_server_would_refuse_is_not_written(queries, rankings, tmp_path, monkeypatch):
    monkeypatch.setattr(cirr_submission, "MAX_BYTES", 15_000)
    with pytest.raises(ValueError, match="recall.json would have .* bytes; the server takes 15,000 at most"):
        write_submission(rankings, queries, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_the_files_of_before(queries, rankings, tmp_path, monkeypatch):
    before = [path.read_bytes() for path in write_submission(rankings, queries, tmp_path)]
    written = Path.write_bytes

    def no_space(path, data):
        written(path, data[:100])
        if "subset" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="No space"):
        write_submission({i: ranked[::-1] for i, ranked in rankings.items()}, queries, tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize("kind", ["rankings.json", "rankings.json.gz", "rankings.parquet"])
def test_the_command_takes_json_and_parquet(dataset, queries, rankings, tmp_path, kind):
    expected = read_both(write_submission(rankings, queries, tmp_path / "expected"))
    path = tmp_path / kind
    if kind.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"query_id": list(rankings), "ranking": list(rankings.values())}), path)
    else:
        data = ("\ufeff" + json.dumps(rankings)).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    arguments = ["--dataset", str(dataset), "--rankings", str(path), "--output", str(tmp_path / "out")]
    assert read_both(main(arguments)) == expected


def test_an_id_that_stands_twice_in_a_json_file_is_seen(dataset, rankings, tmp_path):
    text = json.dumps(rankings)
    (tmp_path / "twice.json").write_text(text[:-1] + ", " + text[1:])
    with pytest.raises(ValueError, match="two rankings"):
        main(["--dataset", str(dataset), "--rankings", str(tmp_path / "twice.json"), "--output", str(tmp_path)])


def test_a_mistake_is_one_message_and_status_2(dataset, tmp_path):
    (tmp_path / "rankings.json").write_text("[1]")
    line = [sys.executable, "-m", "data_scripts.cirr_submission", "--rankings", str(tmp_path / "rankings.json")]
    line += ["--output", str(tmp_path / "out"), "--dataset"]
    result = subprocess.run([*line, str(dataset)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "holds list" in result.stderr
    with pytest.raises(FileNotFoundError, match="has no composed/test-"):
        main([*line[3:-1], "--dataset", str(tmp_path)])
    assert not (tmp_path / "out").exists()


def test_other_files_of_rankings_are_refused(dataset, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"query_id": ["1"], "names": [["a"]]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    (tmp_path / "c.json").write_text('{"1": ["a"')
    (tmp_path / "d.json").write_text('{"27090": {"a": 1}}')
    wrong = {
        "a.parquet": "lacks the columns ranking",
        "b.parquet": "b.parquet is not Parquet",
        "c.json": "is not JSON",
        "d.json": "pair 27090",
    }
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            main(["--dataset", str(dataset), "--rankings", str(tmp_path / name), "--output", str(tmp_path / "out")])


def test_the_real_test_split_makes_files_that_the_server_takes(real, tmp_path):
    queries = list(real.tables["composed"].splits["test"])
    paths = write_submission(shuffled(queries, others=200), queries, tmp_path)
    assert all(path.stat().st_size <= 5_000_000 for path in paths)
    pair_ids = {query["query_id"] for query in queries}
    for content, size in zip(read_both(paths), (50, 3), strict=True):
        assert len(content) == 4150 and content.keys() - pair_ids == {"version", "metric"}
        assert {len(set(content[pair_id])) for pair_id in pair_ids} == {size}
        assert all(query["reference"] not in content[query["query_id"]] for query in queries)


def test_rankings_by_chance_hit_in_the_subset_as_often_as_chance_has_it(real, tmp_path):
    queries = list(real.tables["composed"].splits["query"])  # of val, whose targets are known
    _, subset = read_both(write_submission(shuffled(queries, others=60), queries, tmp_path))
    for k in (1, 2, 3):
        hits = sum(query["target"] in subset[query["query_id"]][:k] for query in queries)
        assert 100 * hits / len(queries) == pytest.approx(20 * k, abs=2.5)  # three standard deviations at least
