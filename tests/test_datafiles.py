"""Data files: the same rows from CSV, Parquet and NPZ, whatever the block size; errors that name the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamcl.datafiles import Columns, open_data
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
    assert x.dtype.str == "<f4"
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
        ("a.txt", "1,2", None, ".csv, .parquet or .npz"),
        ("a.csv", "a,b\n1,\n", None, "column 'b', row 0"),
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
