# SPDX-License-Identifier: Apache-2.0
"""Photos from folders, Parquet and streams: ids, metadata, order, and that nothing is read before it is asked for."""

import datetime
import decimal
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import photo_name, picture, write_photos

from modeling_mclfir.catalogue import FolderSource, ParquetSource, StreamSource, open_source, parquet_source
from modeling_mclfir.catalogue.metadata import metadata_of
from modeling_mclfir.data.images import decode_image


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def same(item, number: int) -> bool:
    return np.array_equal(np.asarray(decode_image(item.load())), np.asarray(picture(number)))


def test_a_folder(tmp_path):
    write_photos(tmp_path, range(7))
    (tmp_path / "notes.txt").write_text("no photo")
    source = FolderSource(tmp_path)
    items = list(source.items())
    assert [item.id for item in items] == sorted(photo_name(number) for number in range(7)) and source.count() == 7
    assert all(same(item, int(Path(item.id).stem)) for item in items) and items[0].metadata == {}
    found = open_source(source.describe()).find(["inner/003.png", "004.png", "nobody.png", "../004.png", "notes.txt"])
    assert sorted(found) == ["004.png", "inner/003.png"] and same(found["004.png"], 4)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")


def test_ranks_take_whole_batches_by_turns(tmp_path):
    source = FolderSource(write_photos(tmp_path, range(11)))
    whole = [[item.id for item in batch] for batch in source.batches(3)]
    assert [len(batch) for batch in whole] == [3, 3, 3, 2]
    shares = [[[item.id for item in batch] for batch in source.batches(3, rank, 2)] for rank in (0, 1)]
    assert shares == [whole[0::2], whole[1::2]]


def rows(count: int) -> dict:
    return {
        "sku": list(range(100, 100 + count)),
        "image": [png(number) for number in range(count)],
        "price": [None if number == 1 else number / 2 for number in range(count)],
        "attributes": [{"colour": ("red", "blue")[number % 2], "fit": None} for number in range(count)],
        "tags": [["a", "b"]] * count,
    }


def test_parquet_with_bytes(tmp_path):
    pq.write_table(pa.table(rows(5)), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.table(rows(2) | {"sku": [7, 8]}), tmp_path / "b.parquet")
    source = ParquetSource(tmp_path, id_column="sku")
    items = list(source.items())
    assert [item.id for item in items] == ["100", "101", "102", "103", "104", "7", "8"] and source.count() == 7
    assert items[1].metadata == {"attributes.colour": "blue"}
    assert items[2].metadata == {"price": 1.0, "attributes.colour": "red"}
    assert all(same(item, number) for number, item in enumerate(items[:5]))
    # Rows are read on; an earlier one begins again.
    assert same(items[3], 3) and same(items[2], 2) and same(items[4], 4)
    found = open_source(source.describe()).find(["8", "102", "nobody"])
    assert sorted(found) == ["102", "8"] and same(found["8"], 1) and same(found["102"], 2)
    with pytest.raises(ValueError, match=r"no column of ids \(id, item_id, image_id\).*sku.*--id_column"):
        ParquetSource(tmp_path)
    with pytest.raises(ValueError, match="'photo'.*--image_column"):
        ParquetSource(tmp_path, "sku", "photo")
    with pytest.raises(ValueError, match="'price' of .*double; expected bytes"):
        ParquetSource(tmp_path, "sku", "price")
    with pytest.raises(FileNotFoundError, match="nothing"):
        ParquetSource(tmp_path / "nothing")


def test_parquet_with_paths_and_structs(tmp_path):
    write_photos(tmp_path / "photos", range(3))
    table = pa.table({"id": ["a", "b", None], "path": [f"photos/{photo_name(number)}" for number in range(3)]})
    pq.write_table(table, tmp_path / "paths.parquet")
    items = list(ParquetSource(tmp_path / "paths.parquet").items())
    assert [item.id for item in items] == ["a", "b", None] and all(same(item, n) for n, item in enumerate(items))
    cells = [{"bytes": png(0), "path": "x/0.png"}, {"bytes": None, "path": f"photos/{photo_name(1)}"}]
    pq.write_table(pa.table({"id": ["a", "b"], "image": cells}), tmp_path / "structs.parquet")
    items = list(ParquetSource(tmp_path / "structs.parquet").items())
    assert [item.id for item in items] == ["a", "b"] and all(same(item, n) for n, item in enumerate(items))
    assert items[0].metadata == {}
    assert [item.id for item in ParquetSource(tmp_path / "structs.parquet", "image.path").items()][0] == "x/0.png"


def test_images_are_read_where_they_are_asked_for_only(tmp_path, monkeypatch):
    pq.write_table(pa.table(rows(12)), tmp_path / "a.parquet", row_group_size=4)
    opened, ask = [], parquet_source._Images._row
    monkeypatch.setattr(
        parquet_source._Images, "_row", lambda self, number: opened.append((self._group, number)) or ask(self, number)
    )
    items = list(ParquetSource(tmp_path, id_column="sku").items())
    assert opened == []
    assert same(items[6], 6) and opened == [(1, 2)]


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"id": [str(row) for row in range(600)], "image": [rng.bytes(50_000) for _ in range(600)]})
    # A page is read as a whole; by default it has a thousand rows.
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=600, write_batch_size=16)
    del table
    before, most = pa.total_allocated_bytes(), 0
    for batch in ParquetSource(tmp_path / "a.parquet").batches(16):
        for item in batch:
            assert len(item.load()) == 50_000
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10e6, f"{most:,} of 30,000,000 bytes of images"


def test_a_data_set_of_data_scripts(tiny_data):
    source = ParquetSource(tiny_data, split="query")
    items = list(source.items())
    assert len(items) == source.count() == 16 and source.id_column == "image.path"
    assert len({item.id for item in items}) == 16 and "attributes.category" in items[0].metadata
    assert not any(name.startswith("image") for name in items[0].metadata)
    with pytest.raises(ValueError, match="no split 'shelf'; it has gallery, query, train, val"):
        ParquetSource(tiny_data, split="shelf")


def test_a_stream(tmp_path):
    for part in range(2):
        cells = [{"bytes": png(number), "path": None} for number in range(4 * part, 4 * part + 4)]
        names = [f"item {number}" for number in range(4 * part, 4 * part + 4)]
        table = pa.table({"id": names, "image": cells, "colour": ["red", "blue"] * 2})
        pq.write_table(table, tmp_path / f"train-{part}.parquet")
    source = StreamSource(str(tmp_path))
    items = list(source.items())
    assert [item.id for item in items] == [f"item {number}" for number in range(8)]
    assert all(same(item, number) for number, item in enumerate(items))
    assert items[1].metadata == {"colour": "blue"}
    shares = [[item.id for batch in source.batches(3, rank, 2) for item in batch] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == [item.id for item in items] and all(len(share) == 4 for share in shares)
    assert same(open_source(source.describe()).find(["item 5"])["item 5"], 5)
    with pytest.raises(ValueError, match="no column 'name'"):
        StreamSource(str(tmp_path), id_column="name")


def test_metadata():
    row = {
        "text": "",
        "count": np.int64(3),
        "share": np.float32(0.5),
        "nan": float("nan"),
        "sold": True,
        "none": None,
        "day": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("9.90"),
        "large": 2**64,
        "list": [1],
        "bytes": b"x",
        "deep": {"er": {"x": 1, "list": [2]}, "none": None},
    }
    assert metadata_of(row) == {
        "text": "", "count": 3, "share": 0.5, "sold": True, "day": "2026-01-02", "price": "9.90",
        "large": str(2**64), "deep.er.x": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="'made_by'.*rename"):
        metadata_of({"made_by": "me"})
    with pytest.raises(ValueError, match="kind of source 'cloud'"):
        open_source({"kind": "cloud"})
