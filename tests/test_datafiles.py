"""Data files: the same rows from CSV, Parquet and NPZ, whatever the block size; errors that name the place."""

from __future__ import annotations

import doctest
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamcl.datafiles import Columns, choice, open_data
from streamcl.datafiles.text import _Feed
from streamcl.errors import DataError

X = np.arange(30, dtype="<f4").reshape(10, 3) / 4
Y = np.arange(10) % 3


def table(path: Path, y: Any = Y, name: str = "label") -> Path:
    columns = {f"f{i}": X[:, i] for i in range(3)}
    columns = {"f0": columns["f0"], name: y, "f1": columns["f1"], "f2": columns["f2"]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


def npz(path: Path) -> Path:
    np.savez(path, x=X, y=Y)
    return path


def rows(path: Path, columns: Columns | None = None, size: int = 4) -> tuple[np.ndarray, np.ndarray, list[int]]:
    blocks = list(open_data(path, columns, size).blocks())
    y = np.concatenate([b for _, b in blocks if b is not None]) if blocks[0][1] is not None else np.empty(0)
    return np.concatenate([a for a, _ in blocks]), y, [len(a) for a, _ in blocks]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_every_kind_gives_the_same_rows_in_blocks_of_one_size(tmp_path: Path, kind: str, size: int) -> None:
    path = npz(tmp_path / "a.npz") if kind == "npz" else table(tmp_path / f"a.{kind}")
    x, y, sizes = rows(path, size=size)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    assert y.dtype.str == "<i8"
    assert x.dtype.str == ("<f8" if kind == "csv" else "<f4")  # a text file says nothing of its numbers' precision
    assert sizes == [size] * (10 // size) + ([10 % size] if 10 % size else [])
    assert open_data(path).count() in (10, None)


def test_a_csv_without_a_header_has_its_label_last(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,2,0\n3,4,1\n")
    x, y, _ = rows(path)
    assert x.tolist() == [[1, 2], [3, 4]]
    assert y.tolist() == [0, 1]


def test_the_label_may_be_named_and_be_real(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", y=Y + 0.5, name="price")
    x, y, _ = rows(path, Columns(label="price"))
    assert y.tolist() == (Y + 0.5).tolist()
    assert x.shape == (10, 3)


def test_a_file_without_targets_gives_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert rows(path, Columns(labelled=False))[0].shape == (2, 2)
    np.savez(tmp_path / "b.npz", pixels=X)
    assert rows(tmp_path / "b.npz", Columns(labelled=False))[0].shape == (10, 3)


def test_a_column_of_lists_is_an_array(tmp_path: Path) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 3)
    pq.write_table(pa.table({"image": lists, "y": Y}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(rows(tmp_path / "a.parquet")[0], X)


def test_named_arrays_and_odd_dtypes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=X.astype(">f8"), labels=Y.astype("<u2"), other=Y)
    x, y, _ = rows(tmp_path / "a.npz")
    assert (x.dtype.str, y.dtype.str) == ("<f8", "<i8")
    assert rows(tmp_path / "a.npz", Columns(x="images", label="other"))[1].tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("name", "text", "columns", "said"),
    [
        ("a.doc", "1,2", None, ".csv, .parquet or .npz"),
        ("a.csv", "a,b\n1,\n", None, "line 2, column 'b'"),
        ("a.csv", "a,b\n1,red\n", None, "expected numbers"),
        ("a.csv", "a,b\n1,2\n", Columns(label="c"), "no column 'c'"),
        ("a.csv", "a\n1\n", None, "beside the label"),
        ("a.npz", "nonsense", None, "not an NPZ"),
        ("a.parquet", "nonsense", None, "a.parquet"),
    ],
)
def test_an_error_names_the_place(tmp_path: Path, name: str, text: str, columns: Columns | None, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        rows(tmp_path / name, columns)
    assert said in str(caught.value)


def test_a_pickle_in_an_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    with pytest.raises(DataError):
        rows(tmp_path / "a.npz")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_data(tmp_path / "none.csv")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_types_of_a_column_are_those_of_the_whole_file(tmp_path: Path) -> None:
    whole = 200_000
    path = write(tmp_path / "a.csv", "a,y\n" + "1,0\n" * whole + "0.5,1.5\n")
    x, y, _ = rows(path, size=50_000)
    assert x[-1].tolist() == [0.5]
    assert (y[0], y[-1], y.dtype.str) == (0.0, 1.5, "<f8")
    assert len(x) == whole + 1


@pytest.mark.parametrize(
    ("cell", "said"), [("red", "expected numbers, got 'red'"), ("", "it is empty"), ("nan", "it is 'nan'")]
)
def test_what_is_wrong_at_the_end_is_found_before_the_first_block(tmp_path: Path, cell: str, said: str) -> None:
    path = write(tmp_path / "a.csv", "a,y\n" + "1,0\n" * 300_000 + f"{cell},1\n")
    with pytest.raises(DataError, match="line 300002, column 'a'") as caught:
        next(open_data(path).blocks())
    assert said in str(caught.value)


def test_a_ragged_line_far_down_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,y\n" + "1,0\n" * 300_000 + '"1\n",2\n1,0,0\n')
    with pytest.raises(DataError, match=r"line 300004: .*, 2 as in the others, got 3"):
        open_data(path).check()


def test_lines_longer_than_a_read_are_read(tmp_path: Path) -> None:
    width, cell = 20_000, "0.25".ljust(90, "0")
    path = write(tmp_path / "a.csv", "\n".join([f"{cell}," * width + f"{label}" for label in (0, 1)]) + "\n")
    x, y, _ = rows(path)
    assert x.shape == (2, width)
    assert (x == 0.25).all()
    assert y.tolist() == [0, 1]


def test_a_file_in_latin1_from_far_down_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,note,y\n" + b"1,x,0\n" * 300_000 + "2,ß,1\n".encode("latin-1"))
    reading = open_data(path, Columns(drop=("note",))).check()
    assert any("Windows-1252" in note for note in reading.notes)
    assert reading.rows == 300_001


def test_rows_may_be_passed_over(tmp_path: Path) -> None:
    data = open_data(table(tmp_path / "a.csv"), rows=4)
    for skip in (0, 1, 4, 9, 10):
        blocks = list(data.blocks(skip))
        np.testing.assert_array_equal(np.concatenate([X[:0], *(x for x, _ in blocks)]), X[skip:])
        assert [len(x) for x, _ in blocks] == [4] * ((10 - skip) // 4) + [(10 - skip) % 4] * ((10 - skip) % 4 > 0)


def test_blocks_of_large_rows_are_of_fewer(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 1 << 19)), y=np.zeros(20, int))
    assert rows(tmp_path / "a.npz", size=256)[2] == [4] * 5  # of 4 MiB a row


@pytest.mark.parametrize("kind", ["integer", "real"])
def test_another_kind_of_numbers_only_without_a_change(tmp_path: Path, kind: Any) -> None:
    data = open_data(table(tmp_path / "a.parquet"))
    if kind == "integer":
        with pytest.raises(DataError, match=r"row 1 \(from 0\), column 'f0': a fraction"):
            data.form(kind)
    else:
        x, y = data.form(kind).of(*next(data.blocks()))
        assert (x.dtype, y is not None and y.dtype) == (np.float32, np.int64)


def test_whole_numbers_go_both_ways(tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "a.csv", "a,b,y\n1,2,0.0\n3,4,1.0\n"))
    (block,) = data.blocks()
    assert block[0].dtype.str == "<f8"
    assert data.whole_targets()
    x, y = data.form("integer", integer_targets=True).of(*block)
    assert y is not None
    assert (x.dtype.str, y.dtype.str) == ("<i8", "<i8")
    assert (x.tolist(), y.tolist()) == ([[1, 2], [3, 4]], [0, 1])
    large = open_data(write(tmp_path / "b.csv", f"a,y\n{2**53 + 1},0\n"))
    with pytest.raises(DataError, match="more digits"):
        large.form("real")


def test_a_file_that_is_written_to_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,y\n1,0\n")
    data = open_data(path)
    data.check()
    write(path, "a,y\n1,0\n2,0\n")
    with pytest.raises(DataError, match="changed while it was being read"):
        list(data.blocks())


def test_what_is_no_file_to_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path, said in ((tmp_path / "pipe.csv", "pipe"), (tmp_path, "directory"), (Path("-"), "standard input")):
        with pytest.raises(DataError, match=said):
            open_data(path)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(choice).attempted > 0
    assert doctest.testmod(choice).failed == 0


def test_nothing_reads_on_in_a_file_that_was_refused() -> None:
    """A thread of Arrow's that still did would abort Python as it ends."""
    feed = _Feed(iter([b"line\n"] * 1_000_000))
    reader = threading.Thread(target=lambda: [None for _ in iter(lambda: feed.read(1), b"")])
    reader.start()
    feed.end()
    reader.join(60)
    assert not reader.is_alive()
    assert feed.read() == b""


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("${:.2f}", "numbers with '$' beside them, as '$10.37': write them as plain numbers"),
        ("{:.2f} EUR", "numbers with 'EUR' beside them"),
        ("{:.2f}%", "numbers with '%' beside them"),
        ("({:.2f})", "numbers with '()' beside them"),
        ("A{:.2f}", "an identifier or free text: one a row"),
    ],
)
def test_of_numbers_that_are_left_out_for_what_stands_beside_them_that_is_said(
    written: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "prices.csv"
    lines = [f"{written.format(10.37 + 1.7 * row)},{row % 7},{row % 2}" for row in range(60)]
    path.write_text("\n".join(["price,quantity,label", *lines]) + "\n")
    assert told in open_data(path, Columns(label="label"), named=True).check().left_out["price"]
