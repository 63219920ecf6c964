# SPDX-License-Identifier: Apache-2.0
"""What every VectorStore must do, written once: a backend's test class inherits it and gives a `store` fixture.

The fixture is an empty store of any dim of at least 4 that searches exactly. Vectors hold small whole numbers, so that
sums are exact in any order; equal scores may come in any order.
"""

import numpy as np
import pytest

from modeling_mclfir.index.store import checked_filter, matches

COLOURS = ("red", "blue", "grün")


def vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, (count, dim)).astype(np.float32)


def some_metadata(count: int) -> list[dict]:
    kinds = [{}, {"price": 0.5}, {"price": 3, "sold": True}, {"sold": False, "note": None}]
    return [{"colour": COLOURS[place % 3], "place": place} | kinds[place % 4] for place in range(count)]


def fill(store, count: int = 40, prefix: str = "item") -> dict[str, tuple[np.ndarray, dict]]:
    """Add entries → the same as a dictionary: what the store must hold."""
    ids = [f"{prefix}-{place}" for place in range(count)]
    embeds, metadata = vectors(count, store.dim), some_metadata(count)
    store.add(ids, embeds, metadata)
    return {name: entry for name, entry in zip(ids, zip(embeds, metadata, strict=True), strict=True)}


def assert_best(store, model: dict, queries: np.ndarray, k: int, filter=None, exclude=()) -> None:
    """The store finds the best of the dictionary, whatever the order of equal scores."""
    wanted = checked_filter(filter)
    names = [name for name, entry in model.items() if matches(wanted, entry[1]) and name not in exclude]
    found = store.search(queries, k, filter, exclude)
    assert len(found.ids) == len(found.scores) == len(queries)
    for query, ids, scores in zip(queries, found.ids, found.scores, strict=True):
        exact = {name: float(model[name][0] @ query) for name in names}
        best = sorted(exact.values(), reverse=True)[:k]
        np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)
        assert scores.dtype == np.float32
        assert len(set(ids)) == len(ids) == len(best)
        np.testing.assert_allclose([exact[name] for name in ids], best, rtol=1e-5, atol=1e-5)


def assert_holds(store, model: dict, **filter) -> None:
    """The store has the entries of the dictionary, all of them and no others, each with its vector and metadata."""
    assert store.count() == len(model)
    seen = {}
    for batch in store.scroll(batch_size=7):
        assert 0 < len(batch) <= 7 and batch.embeds.shape == (len(batch), store.dim)
        for name, embed, metadata in zip(batch.ids, batch.embeds, batch.metadata, strict=True):
            assert name not in seen
            seen[name] = (embed, metadata)
    assert seen.keys() == model.keys()
    for name, (embed, metadata) in model.items():
        np.testing.assert_array_equal(seen[name][0], embed)
        assert seen[name][1] == {column: value for column, value in metadata.items() if value is not None}


class StoreContract:
    def test_an_empty_store_answers(self, store):
        found = store.search(vectors(2, store.dim), 3)
        assert found.ids == [[], []] and [len(scores) for scores in found.scores] == [0, 0]
        assert store.count() == 0 and store.count({"colour": "red"}) == 0
        assert list(store.scroll()) == [] and list(store.scroll_ids()) == []
        assert store.has(["nobody"]) == [False]
        assert store.remove(["nobody"]) == 0
        store.add([], np.zeros((0, store.dim)))
        assert store.count() == 0 and len(store.get([])) == 0

    @pytest.mark.parametrize("k", [1, 5, 40, 100])
    @pytest.mark.parametrize("num_queries", [1, 30])
    def test_search_finds_the_best(self, store, k, num_queries):
        model = fill(store)
        assert_best(store, model, vectors(num_queries, store.dim, seed=1), k)

    def test_no_queries(self, store):
        fill(store)
        found = store.search(np.zeros((0, store.dim), dtype=np.float32), 3)
        assert found.ids == [] and found.scores == []

    def test_entries_come_back_as_they_were(self, store):
        model = fill(store)
        assert_holds(store, model)
        names = ["item-7", "item-0", "item-39", "item-7"]
        found = store.get(names)
        assert found.ids == names
        np.testing.assert_array_equal(found.embeds, np.stack([model[name][0] for name in names]))
        assert found.metadata[3] == {"colour": "blue", "place": 7, "sold": False}
        assert [type(value) for value in found.metadata[0].values()] == [str, int, bool]

    def test_ids_alone(self, store):
        model = fill(store)
        store.remove(["item-3"])
        del model["item-3"]
        names = ["item-7", "nobody", "item-3", "item-0", "item-7", "item"]
        assert store.has(names) == [True, False, False, True, True, False]
        assert store.has([]) == [] and store.has(np.array(["item-1"])) == [True]
        pages = list(store.scroll_ids(batch_size=7))
        assert all(0 < len(page) <= 7 for page in pages)
        assert sorted(name for page in pages for name in page) == sorted(model)
        red = {name for name, (_, metadata) in model.items() if metadata["colour"] == "red"}
        assert {name for page in store.scroll_ids(filter={"colour": "red"}) for name in page} == red
        assert list(store.scroll_ids(filter={"colour": []})) == []

    def test_an_id_added_again_is_replaced_with_its_metadata(self, store):
        model = fill(store)
        embeds = 10 + vectors(3, store.dim, seed=2)
        names = ["item-3", "new", "item-5"]
        store.add(names, embeds, [{"colour": "red"}, {}, {"place": 5.5}])
        model |= dict(zip(names, zip(embeds, [{"colour": "red"}, {}, {"place": 5.5}], strict=True), strict=True))
        assert_holds(store, model)
        assert_best(store, model, vectors(3, store.dim, seed=3), 50)
        store.add(["item-3"], embeds[:1])
        assert store.get(["item-3"]).metadata == [{}]

    def test_what_is_removed_is_gone_and_may_come_again(self, store):
        model = fill(store)
        assert store.remove(["item-1", "nobody", "item-30"]) == 2
        assert store.remove(["item-1"]) == 0
        del model["item-1"], model["item-30"]
        assert_holds(store, model)
        assert_best(store, model, vectors(3, store.dim, seed=3), 50)
        with pytest.raises(KeyError, match="item-30"):
            store.get(["item-2", "item-30"])
        store.add(["item-1"], np.ones((1, store.dim)))
        model["item-1"] = (np.ones(store.dim, dtype=np.float32), {})
        assert_holds(store, model)

    @pytest.mark.parametrize(
        "filter",
        [
            {},
            {"colour": "red"},
            {"colour": ["red", "grün"]},
            {"colour": ("blue",), "sold": True},
            {"sold": False},
            {"sold": 1},
            {"place": True},
            {"place": 3},
            {"place": 3.0},
            {"place": [3.5, 1, "2"]},
            {"place": np.int64(4)},
            {"price": 3.0},
            {"price": [0.5, 3]},
            {"colour": "green"},
            {"colour": []},
            {"colour": "r\"ed' or true"},
            {"shape": "round"},
            {"note": "x"},
        ],
        ids=str,
    )
    def test_filters(self, store, filter):
        model = fill(store)
        wanted = checked_filter(filter)
        names = {name for name, entry in model.items() if matches(wanted, entry[1])}
        assert store.count(filter) == len(names)
        assert {name for batch in store.scroll(3, filter) for name in batch.ids} == names
        assert_best(store, model, vectors(2, store.dim, seed=4), 5, filter)
        assert_best(store, model, vectors(25, store.dim, seed=4), 50, filter)

    def test_exclude(self, store):
        model = fill(store)
        queries = vectors(2, store.dim, seed=5)
        assert_best(store, model, queries, 5, exclude=["item-0"])
        assert_best(store, model, queries, 50, {"colour": "red"}, exclude=[*list(model)[:30], "nobody", "nobody"])
        assert store.search(queries, 5, exclude=list(model)).ids == [[], []]

    def test_columns_of_several_kinds_and_odd_names(self, store):
        metadata = [{"a:b c": 1}, {"a:b c": "1"}, {"a:b c": 1.5}, {"a:b c": True}, {"naïve 名": 2**62 + 1}]
        names = ["with space", "名前", "quo'te\"", "back\\slash", "a/b:c"]
        embeds = vectors(5, store.dim)
        store.add(names, embeds, metadata)
        assert_holds(store, dict(zip(names, zip(embeds, metadata, strict=True), strict=True)))
        assert [store.count({"a:b c": value}) for value in (1, "1", 1.5, True, [1, True])] == [1, 1, 1, 1, 2]
        assert store.count({"naïve 名": 2**62 + 1}) == 1 and store.count({"naïve 名": 2**62}) == 0
        assert store.get(names[1:3]).ids == names[1:3]
        assert store.remove(names[:4]) == 4 and store.count() == 1

    def test_save_and_load(self, store, tmp_path):
        model = fill(store)
        store.remove(["item-4"])
        del model["item-4"]
        store.save(tmp_path / "copy")
        store.remove(["item-5"])
        with type(store).load(tmp_path / "copy") as copy:
            assert copy.dim == store.dim
            assert_holds(copy, model)
            assert_best(copy, model, vectors(3, store.dim, seed=6), 5, {"colour": "red"})
            copy.add(["new"], np.ones((1, store.dim)))
            assert copy.count() == 40 and store.count() == 38

    def test_loading_what_is_not_there(self, store, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing"):
            type(store).load(tmp_path / "nothing")

    def test_saving_over_something_else(self, store, tmp_path):
        (tmp_path / "thesis.tex").write_text("...")
        with pytest.raises(ValueError, match="empty|else"):
            store.save(tmp_path)
        assert (tmp_path / "thesis.tex").read_text() == "..."

    @pytest.mark.parametrize(
        "call, message",
        [
            (lambda store: store.add(["a"], np.zeros((1, store.dim + 1))), "Expected embeds"),
            (lambda store: store.add(["a"], np.zeros((2, store.dim))), "Expected embeds"),
            (lambda store: store.add(["a"], np.zeros(store.dim)), "Expected embeds"),
            (lambda store: store.add(["a"], np.full((1, store.dim), np.nan)), "finite"),
            (lambda store: store.add(["a"], np.full((1, store.dim), np.inf)), "finite"),
            (lambda store: store.add(["a"], [["x"] * store.dim]), "Expected embeds"),
            (lambda store: store.add(["a", "b", "a"], np.zeros((3, store.dim))), "'a' was given twice"),
            (lambda store: store.add("a", np.zeros((1, store.dim))), r"\['a'\]"),
            (lambda store: store.add([3], np.zeros((1, store.dim))), "got 3"),
            (lambda store: store.add([""], np.zeros((1, store.dim))), "not empty"),
            (lambda store: store.add(["\ud800"], np.zeros((1, store.dim))), "Unicode"),
            (lambda store: store.add(["a"], np.zeros((1, store.dim)), []), "metadata of 1"),
            (lambda store: store.add(["a"], np.zeros((1, store.dim)), [{"c": [1]}]), "'c' must be"),
            (lambda store: store.add(["a"], np.zeros((1, store.dim)), [{"c": float("nan")}]), "finite"),
            (lambda store: store.add(["a"], np.zeros((1, store.dim)), [{"c": 2**63}]), "64 bits"),
            (lambda store: store.add(["a"], np.zeros((1, store.dim)), [{3: 1}]), "column"),
            (lambda store: store.remove(["a", "a"]), "twice"),
            (lambda store: store.search(np.zeros((1, store.dim)), 0), "k must be"),
            (lambda store: store.search(np.zeros((1, store.dim)), -1), "k must be"),
            (lambda store: store.search(np.zeros((1, store.dim + 1)), 1), "Expected embeds"),
            (lambda store: store.search(np.full((1, store.dim), np.nan), 1), "finite"),
            (lambda store: store.search(np.zeros((1, store.dim)), 1, {"c": None}), "'c' must be"),
            (lambda store: store.search(np.zeros((1, store.dim)), 1, {"c": {"$gt": 1}}), "'c' must be"),
            (lambda store: store.search(np.zeros((1, store.dim)), 1, ["c"]), "maps columns"),
            (lambda store: store.count({"c": [None]}), "'c' must be"),
            (lambda store: store.scroll(0), "batch_size"),
            (lambda store: store.scroll_ids(0), "batch_size"),
            (lambda store: store.has([3]), "got 3"),
            (lambda store: store.scroll(10, {"c": object()}), "'c' must be"),
        ],
    )
    def test_mistakes(self, store, call, message):
        model = fill(store, 3)
        with pytest.raises(ValueError, match=message):
            call(store)
        assert_holds(store, model)

    def test_the_callers_arrays_stay_the_callers(self, store):
        embeds = vectors(3, store.dim)
        kept = embeds.copy()
        store.add(["a", "b", "c"], embeds)
        embeds[:] = 9
        np.testing.assert_array_equal(store.get(["a", "b", "c"]).embeds, kept)
        found = store.get(["a"])
        found.embeds[:] = 7
        np.testing.assert_array_equal(store.get(["a"]).embeds, kept[:1])

    def test_random_operations(self, store):
        """A dictionary does the same; vectors, names and choices from a seed."""
        rng, model = np.random.default_rng(0), {}
        names = [f"item-{place}" for place in range(60)]
        for step in range(80):
            some = [names[place] for place in rng.choice(60, rng.integers(1, 12), replace=False)]
            if step % 4 == 3:
                assert store.remove(some) == len(model.keys() & set(some))
                model = {name: entry for name, entry in model.items() if name not in some}
            else:
                embeds = vectors(len(some), store.dim, seed=step)
                metadata = [{"colour": str(rng.choice(COLOURS)), "step": step} for _ in some]
                store.add(some, embeds, metadata)
                model |= dict(zip(some, zip(embeds, metadata, strict=True), strict=True))
            if step % 10 == 9:
                assert_holds(store, model)
                assert_best(store, model, vectors(3, store.dim, seed=step), 5, {"colour": ["red", "blue"]}, some[:1])

    def test_a_closed_store(self, store):
        store.close()
        store.close()
