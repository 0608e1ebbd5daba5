"""Files as spreadsheets, pandas, R, databases and instruments write them: each gives its numbers exactly, or is refused.

pandas and R are not needed: the bytes are those that they write. A case says how the file is called, what is in it, what
its user says, and either the arrays, with types and every value, or the words of the refusal. What a reading says to its
user is part of a case wherever something was guessed, left out or changed.
"""

from __future__ import annotations

import decimal
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamcl.datafiles import Columns, open_data
from streamcl.errors import DataError

Content = bytes | str | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A file and the outcome. x, y: values; says: words of the report; refused: words of the refusal."""

    id: str
    file: str
    content: Content
    said: Columns = field(default_factory=Columns)
    x: Any = None
    x_dtype: str = "<f8"
    y: Any = None
    y_dtype: str = "<i8"
    says: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def good(id: str, file: str, content: Content, x: Any, y: Any, *says: str, **fields: Any) -> Case:
    return Case(id, file, content, x=x, y=y, says=says, **fields)


def bad(id: str, file: str, content: Content, *refused: str, **fields: Any) -> Case:
    return Case(id, file, content, refused=refused, **fields)


def parquet(columns: Any, metadata: dict[str, Any] | None = None, **options: Any) -> Callable[[Path], None]:
    """Writes a table; metadata: what pandas says of its columns."""

    def write(path: Path) -> None:
        table = pa.table(columns)
        if metadata is not None:
            table = table.replace_schema_metadata({b"pandas": json.dumps(metadata).encode()})
        pq.write_table(table, path, **options)

    return write


def npz(**arrays: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


def archive(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for name in names:
            file.writestr(name, b"<x/>")
    return held.getvalue()


def npy(array: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def damaged(content: Callable[[Path], None], keep: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep)])

    return write


def fixed(values: Any, *shape: int) -> Any:
    lists = pa.array(np.asarray(values).reshape(-1))
    for width in reversed(shape):
        lists = pa.FixedSizeListArray.from_arrays(lists, width)
    return lists


def tensors(values: Any) -> Any:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.asarray(values))


INDEX = {"index_columns": ["__index_level_0__"]}
TWO = [[1.5, 2.0], [3.0, 4.25]]
LINES = "a,b,y\n1.5,2,0\n3,4.25,1\n"
HALVES = [[n + 0.5, n + 0.25] for n in range(4)]
COUNTED = np.arange(20).reshape(4, 5) ** 2
BIG = 2**60 + 1
STAMPS = 1.7e9 + np.arange(30)
GRID = np.arange(24.0).reshape(4, 2, 3)

TEXT = [
    # -- how cells are written -------------------------------------------------------------------------------------------
    good(
        "plain", "a.csv", LINES, TWO, [0, 1], "header: yes (line 1 has names)", "label: y (by its name)", "a, b as float64"
    ),
    good("no-newline-at-the-end", "a.csv", LINES.rstrip(), TWO, [0, 1]),
    good("crlf-of-windows", "a.csv", LINES.replace("\n", "\r\n"), TWO, [0, 1]),
    good("cr-of-old-excel-for-mac", "a.csv", LINES.replace("\n", "\r"), TWO, [0, 1]),
    good("blank-lines-between-and-behind", "a.csv", "\n\na,b,y\n\n1.5,2,0\n\n3,4.25,1\n\n\n", TWO, [0, 1]),
    good("blanks-around-cells", "a.csv", "a , b , y\n 1.5 , 2, 0\n3 ,4.25 , 1\n", TWO, [0, 1], "features: a, b as"),
    good("plus-signs", "a.csv", "a,b,y\n+1.5,+2,0\n+3,4.25,+1\n", TWO, [0, 1]),
    good("everything-quoted-by-databases", "a.csv", '"a","b","y"\n"1.5","2","0"\n"3","4.25","1"\n', TWO, [0, 1]),
    good("line-break-in-a-quoted-name", "a.csv", '"a\n[m]",b,y\n1.5,2,0\n3,4.25,1\n', TWO, [0, 1], "a\n[m], b"),
    good("scientific-notation", "a.csv", "a,b,y\n1.5e0,2E+00,0\n3e+0,42.5e-1,1\n", TWO, [0, 1]),
    good("points-without-digits", "a.csv", "a,y\n.5,0\n1.,1\n", [[0.5], [1.0]], [0, 1]),
    good("every-digit-of-a-float", "a.csv", "a,y\n0.1,0\n1700000000.123,1\n", [[0.1], [1700000000.123]], [0, 1]),
    good(
        "true-and-false-of-pandas",
        "a.csv",
        "a,y\nTrue,0\nFalse,1\n",
        [[1.0], [0.0]],
        [0, 1],
        "true and false taken as 1 and 0: a",
    ),
    good("whole-numbers-are-real-ones-here", "a.csv", "a,b,y\n1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1], "float64 [2]"),
    good(
        "large-identifiers-keep-their-digits",
        "a.csv",
        f"i,j,y\n{BIG},1,0\n3,4,1\n",
        [[BIG, 1], [3, 4]],
        [0, 1],
        x_dtype="<i8",
    ),
    good(
        "offset-that-float32-blurs", "a.csv", "t,y\n1700000000,0\n1700000001,1\n", [[1.7e9], [1.7e9 + 1]], [0, 1], "float32"
    ),
    good("labels-of-any-number", "a.csv", "a,y\n1.5,-7\n2.5,1000000\n", [[1.5], [2.5]], [-7, 1000000]),
    good(
        "real-targets", "a.csv", "a,price\n1.5,0.1\n2.5,3\n", [[1.5], [2.5]], [0.1, 3.0], "price (the last", y_dtype="<f8"
    ),
    good("one-row", "a.csv", "a,b,y\n1.5,2,0\n", [[1.5, 2.0]], [0]),
    good("one-row-without-a-header", "a.csv", "1.5,2,0\n", [[1.5, 2.0]], [0], "header: no (line 1 has numbers)"),
    good("a-single-column", "a.csv", "a\n1.5\n2\n", [[1.5], [2.0]], None, "no label", said=Columns(labelled=False)),
    good(
        "wide",
        "a.csv",
        ",".join(f"c{n}" for n in range(30_000)) + ",y\n" + ",".join(["0.5"] * 30_000) + ",1\n",
        [[0.5] * 30_000],
        [1],
        "(30000 in all)",
    ),
    # -- dialects --------------------------------------------------------------------------------------------------------
    good("semicolons", "a.csv", LINES.replace(",", ";"), TWO, [0, 1], "delimiter: semicolons"),
    good("excel-in-europe", "a.csv", "a;b;y\r\n1,5;2;0\r\n3;4,25;1\r\n", TWO, [0, 1], "decimal commas", "semicolons"),
    good("excel-in-europe-without-names", "a.csv", "1,5;2,0;0\n3,0;4,25;1\n", TWO, [0, 1], "header: no", "decimal commas"),
    good("excel-in-europe-thousandths", "a.csv", "a;y\n1,234;0\n2,345;1\n", [[1.234], [2.345]], [0, 1], "decimal commas"),
    good("r-write-csv2", "a.csv", '"";"a";"b";"y"\n"1";1,5;2;0\n"2";3;4,25;1\n', TWO, [0, 1], "left out: Unnamed: 0"),
    good("tabs", "a.tsv", LINES.replace(",", "\t"), TWO, [0, 1], "delimiter: tabs"),
    good("tabs-named-txt-with-decimal-commas", "a.txt", "a\tb\ty\n1,5\t2\t0\n3\t4,25\t1\n", TWO, [0, 1], "decimal commas"),
    good("quoted-decimal-commas-between-commas", "a.csv", 'a,b,y\n"1,5",2,0\n3,"4,25",1\n', TWO, [0, 1], "decimal commas"),
    good("bars-of-databases", "a.csv", LINES.replace(",", "|"), TWO, [0, 1], "delimiter: bars"),
    good(
        "numpy-savetxt",
        "a.txt",
        "1.5e+00 2.0e+00 0.0e+00\n3.0e+00 4.25e+00 1.0e+00\n",
        TWO,
        [0.0, 1.0],
        "blanks",
        y_dtype="<f8",
    ),
    good("aligned-by-blanks", "a.dat", "  a    b   y\n 1.5   2   0\n  3  4.25  1  \n", TWO, [0, 1], "delimiter: blanks"),
    good("excel-told-the-delimiter", "a.csv", "sep=;\na;b;y\n1.5;2;0\n3;4.25;1\n", TWO, [0, 1]),
    good("delimiter-at-each-end", "a.csv", "a,b,y,\n1.5,2,0,\n3,4.25,1,\n", TWO, [0, 1], "nothing follows it", "label: y"),
    good("delimiter-at-each-end-but-the-header", "a.csv", "a,b,y\n1.5,2,0,\n3,4.25,1,\n", TWO, [0, 1], "nothing follows"),
    good("delimiter-at-each-end-without-names", "a.csv", "1.5,2,0,\n3,4.25,1,\n", TWO, [0, 1], "nothing follows it"),
    good("comments-at-the-top", "a.csv", f"# logger 7\n# 2024-05-01\n{LINES}", TWO, [0, 1], "2 comment lines at the top"),
    good(
        "numpy-savetxt-with-a-header",
        "a.csv",
        "# y,a,b\n0,1.5,2\n1,3,4.25\n",
        TWO,
        [0, 1],
        "the comment at the top",
        "label: y",
    ),
    good(
        "a-comment-of-other-words",
        "a.csv",
        "# made today\n1.5,2,0\n3,4.25,1\n",
        TWO,
        [0, 1],
        "header: no",
        "1 comment line",
    ),
    # -- encodings -------------------------------------------------------------------------------------------------------
    good("utf8-mark-of-excel", "a.csv", b"\xef\xbb\xbf" + LINES.encode(), TWO, [0, 1], "features: a, b as"),
    good("utf8-mark-without-names", "a.csv", b"\xef\xbb\xbf1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1], "header: no"),
    good("utf16-of-excel-unicode-text", "a.txt", LINES.replace(",", "\t").encode("utf-16"), TWO, [0, 1], "UTF-16"),
    good(
        "latin1-header",
        "a.csv",
        "Größe,b,y\n1.5,2,0\n3,4.25,1\n".encode("latin-1"),
        TWO,
        [0, 1],
        "Größe, b",
        "Windows-1252",
    ),
    good("utf8-header", "a.csv", "Größe,β,y\n1.5,2,0\n3,4.25,1\n", TWO, [0, 1], "Größe, β"),
    good("gzip", "a.csv.gz", gzip.compress(LINES.encode()), TWO, [0, 1]),
    # -- header or not ---------------------------------------------------------------------------------------------------
    good(
        "numbers-without-names",
        "a.csv",
        "1.5,2,0\n3,4.25,1\n",
        TWO,
        [0, 1],
        "header: no",
        "features: 0, 1",
        "label: 2 (the last",
    ),
    good("header-denied", "a.csv", "1,2,0\n3,4,1\n", [[1, 2], [3, 4]], [0, 1], "no (--header)", said=Columns(header=False)),
    good("header-of-years", "a.csv", "2019,2020,y\n1.5,2,0\n3,4.25,1\n", TWO, [0, 1], "features: 2019, 2020"),
    good(
        "header-of-numbers-said",
        "a.csv",
        "2019,2020,7\n1.5,2,0\n3,4.25,1\n",
        TWO,
        [0, 1],
        "yes (--header)",
        said=Columns(header=True),
    ),
    good(
        "pandas-frame-without-names",
        "a.csv",
        "0,1,2,3,4\n" + "\n".join(",".join(map(str, row)) for row in COUNTED) + "\n",
        COUNTED[:, :4],
        COUNTED[:, 4],
        "header: yes (line 1 counts the columns from 0",
        "--header no",
    ),
    good(
        "pandas-frame-without-names-with-its-index",
        "a.csv",
        ",0,1,2\n0,1.5,2.0,0\n1,3.0,4.25,1\n",
        TWO,
        [0, 1],
        "counts the columns",
        "left out: Unnamed: 0 (row names",
    ),
    good("pandas-index", "a.csv", ",a,b,y\n0,1.5,2.0,0\n1,3.0,4.25,1\n", TWO, [0, 1], "left out: Unnamed: 0 (row names"),
    good("pandas-index-shuffled", "a.csv", ",a,b,y\n7,1.5,2.0,0\n2,3.0,4.25,1\n", TWO, [0, 1], "left out: Unnamed: 0"),
    good(
        "pandas-index-read-and-written-again",
        "a.csv",
        "Unnamed: 0,a,b,y\n0,1.5,2.0,0\n1,3,4.25,1\n",
        TWO,
        [0, 1],
        "left out: Unn",
    ),
    good("r-write-csv", "a.csv", '"","a","b","y"\n"Mazda",1.5,2,0\n"Fiat",3,4.25,1\n', TWO, [0, 1], "left out: Unnamed: 0"),
    good("r-write-table", "a.txt", '"a" "b" "y"\n"1" 1.5 2 0\n"2" 3 4.25 1\n', TWO, [0, 1], "left out: row.names"),
    good(
        "words-to-be-dropped-without-names",
        "a.csv",
        "ann,1.5,2,0\nbob,3,4.25,1\n",
        TWO,
        [0, 1],
        "header: no",
        said=Columns(drop=("0",)),
    ),
    # -- which column is what --------------------------------------------------------------------------------------------
    good(
        "x-y-label", "a.csv", "x,y,label\n1.5,2,0\n3,4.25,1\n", TWO, [0, 1], "label: label (by its name)", "features: x, y"
    ),
    good("label-in-the-middle", "a.csv", "a,Target,b\n1.5,0,2\n3,1,4.25\n", TWO, [0, 1], "label: Target (by its name)"),
    good("x-and-y", "a.csv", "x,y\n1.5,0\n3,1\n", [[1.5], [3.0]], [0, 1], "label: y"),
    good("no-name-of-a-target", "a.csv", "a,b,kind\n1.5,2,0\n3,4.25,1\n", TWO, [0, 1], "label: kind (the last column)"),
    good("label-said", "a.csv", "k,a,b\n0,1.5,2\n1,3,4.25\n", TWO, [0, 1], "label: k (--label)", said=Columns(label="k")),
    good(
        "label-said-by-number", "a.csv", "0,1.5,2\n1,3,4.25\n", TWO, [0, 1], "label: 0 (--label)", said=Columns(label="0")
    ),
    good(
        "label-said-from-behind",
        "a.csv",
        "1.5,2,0\n3,4.25,1\n",
        TWO,
        [0, 1],
        "label: 2 (--label)",
        said=Columns(label="-1"),
    ),
    good(
        "features-in-their-order",
        "a.csv",
        "b,t,y,a\n2,9,0,1.5\n4.25,9,1,3\n",
        TWO,
        [0, 1],
        "left out: t",
        said=Columns(features=("a,b",)),
    ),
    good(
        "a-comma-in-a-name",
        "a.csv",
        '"a,1",b,c,y\n1.5,2,word,0\n3,4.25,word,1\n',
        TWO,
        [0, 1],
        said=Columns(features=("a,1", "b")),
    ),
    good(
        "words-dropped",
        "a.csv",
        "a,name,b,when,y\n1.5,x,2,mon,0\n3,z,4.25,,1\n",
        TWO,
        [0, 1],
        "left out: name, when (--drop)",
        said=Columns(drop=("name,when",)),
    ),
    good(
        "names-twice", "a.csv", "a,a,y\n1.5,2,0\n3,4.25,1\n", TWO, [0, 1], "two columns are named 'a'; the second is 'a.1'"
    ),
    good(
        "an-index-that-is-wanted",
        "a.csv",
        ",a,y\n1.5,2,0\n3,4.25,1\n",
        TWO,
        [0, 1],
        said=Columns(features=("Unnamed: 0", "a")),
    ),
    # -- refused ---------------------------------------------------------------------------------------------------------
    *(
        bad(f"odd-{number}", "odd.csv", f"{cell},2,0\n3,4,1\n5,6,1\n", "odd.csv: line 1 has", "--header")
        for number, cell in enumerate(
            ("1d3", "0x10", "1_000", "1 000", "12.03.2024", "1.2.3", "$5", "5%", "(3)", "1e", "+-3", "€5")
        )
    ),
    bad("empty", "a.csv", "", "expected lines of as many numbers each, it is empty"),
    bad("blank-lines-only", "a.csv", "\n\n \n", "it is empty"),
    bad("comments-only", "a.csv", "# nothing\n", "it is empty"),
    bad("header-only", "a.csv", "a,b,y\n", "expected at least one row"),
    bad("one-column-where-a-label-is-wanted", "a.csv", "a\n1\n", "beside the label 'a'"),
    bad(
        "first-cell-empty",
        "a.csv",
        ",2,0\n3,4,1\n",
        "line 1, column '0': expected a number, it is empty; fill it, or drop the row",
    ),
    bad("empty-cell", "a.csv", "a,b,y\n1,2,0\n1,,0\n", "line 3, column 'b': expected a number, it is empty"),
    bad("empty-label", "a.csv", "a,b,y\n1,2,0\n1,2,\n", "line 3, column 'y'", "it is empty"),
    *(
        bad(f"missing-as-{number}", "a.csv", f"a,b,y\n1,2,0\n\n1,{word},0\n", "line 4, column 'b'", "fill it")
        for number, word in enumerate(
            ("NA", "nan", "NaN", "null", "NULL", "None", "N/A", "#N/A", "<NA>", "?", "-", "#DIV/0!")
        )
    ),
    bad("missing-in-the-first-row", "a.csv", "NA,2,0\n3,4,1\n", "line 1, column '0'", "it is 'NA'"),
    bad("infinite", "a.csv", "a,y\n1,0\ninf,1\n", "line 3, column 'a'", "finite"),
    bad("words-in-a-feature", "a.csv", "a,b,y\n1,red,0\n", "line 2, column 'b': expected numbers, got 'red'", "--drop"),
    bad("words-as-labels", "a.csv", "a,species\n1.5,setosa\n", "line 2, column 'species': expected numbers, got 'setosa'"),
    bad("words-as-labels-without-names", "a.csv", "1.5,2.5,setosa\n2.5,3.5,virginica\n", "line 1, column '2'", "'setosa'"),
    bad("dates", "a.csv", "when,a,y\n2024-05-01,1,0\n", "line 2, column 'when'", "'2024-05-01'", "leave the column out"),
    bad("units-below-the-names", "a.csv", "a,b,y\nm,kg,-\n1,2,0\n", "line 2, column 'a': expected numbers, got 'm'"),
    bad("percent", "a.csv", "a,y\n12%,0\n", "line 2, column 'a'", "'12%'"),
    bad("hexadecimal", "a.csv", "a,y\n0x1F,0\n", "line 2, column 'a'", "'0x1F'"),
    bad(
        "thousands-in-quotes",
        "a.csv",
        'a,y\n"1,234.5",0\n',
        "line 2, column 'a'",
        "thousands separator",
        "write it as 1234.5",
    ),
    bad("thousands-in-europe", "a.csv", "a;y\n1.234,5;0\n", "line 2, column 'a'", "write it as 1234.5"),
    bad(
        "thousands-or-decimals",
        "a.csv",
        'a,y\n"1,234",0\n"2,345",1\n',
        "line 2, column 'a'",
        "a decimal one, or a thousands separator",
    ),
    bad("both-decimal-marks", "a.csv", "a;b;y\n1.5;2;0\n3;4,25;1\n", "line 3, column 'b'", "one decimal mark"),
    bad(
        "decimal-marks-of-features-and-target",
        "a.csv",
        "a;b;y\n1;2;0\n1;2.5;0,5\n",
        "line 3, column 'y'",
        "column 'b' has a point",
    ),
    bad("true-among-numbers", "a.csv", "a,y\ntrue,0\n3,1\n", "line 3, column 'a'", "cells of one kind"),
    bad(
        "too-few-cells",
        "a.csv",
        "a,b,y\n1,2,0\n1,2\n",
        "line 3: expected lines of as many numbers each, 3 as in the others, got 2",
    ),
    bad("too-many-cells", "a.csv", "a,b,y\n1,2,0\n1,2,3,0\n", "line 3", "got 4"),
    bad("rows-of-nothing-of-excel", "a.csv", "a,b,y\n1,2,0\n,,\n", "line 3, column 'a'", "it is empty"),
    bad(
        "something-behind-the-last-delimiter",
        "a.csv",
        "a,y,\n1,0,\n1,0,\n" + "1,0,\n" * 200 + "1,0,note\n",
        "line 204",
        "'note'",
    ),
    bad("comment-in-the-middle", "a.csv", "a,y\n1,0\n# pause\n1,0\n", "line 3"),
    bad("text-above-the-table", "a.csv", "Station 7\nMay\na,b,y\n1,2,0\n3,4,1\n5,6,0\n", "line 1", "got 1"),
    bad("quotation-mark-left-open", "a.csv", 'a,b,y\n1,"2,0\n3,4,1\n', "line 2", "quotation mark"),
    bad("cut-off-within-quotation-marks", "a.csv", 'a,b,class\n1,2,x\n3,4,"y\n', "line 3", "may have been cut off"),
    bad("cut-off-without-an-end-of-line", "a.csv", 'a,b,class\n1,2,"x"\n3,4,"y', "line 3", "may have been cut off"),
    bad("cut-off-within-utf16", "a.csv", 'a,b,class\n1,2,"x"\n3,4,"'.encode("utf-16"), "line 3", "cut off"),
    bad("cut-off-between-blanks", "a.txt", '1 2 x\n3  4 y\n5 6 "z\n', "line 3", "may have been cut off"),
    bad("identifier-beyond-64-bits", "a.csv", "i,y\n123456789012345678901,0\n", "line 2, column 'i'", "more digits"),
    bad(
        "identifier-beside-fractions",
        "a.csv",
        f"i,b,y\n1,1,0\n{BIG},0.5,0\n",
        "line 3, column 'i'",
        "more digits",
        "--drop",
    ),
    bad("counting-row-of-few", "a.csv", "0,1\n1.5,0\n", "line 1 is 0,1", "--header yes or --header no"),
    bad("counting-rows", "a.csv", "0,1,2,3\n4,5,6,7\n", "line 1 is 0,1,2,...", "--header yes or --header no"),
    bad("counting-row-alone", "a.csv", "0,1,2,3,4\n", "--header yes or --header no"),
    bad("two-names-of-targets", "a.csv", "a,label,class\n1,2,0\n", "which column is the target: label, class", "--label"),
    bad(
        "two-columns-named-label",
        "a.csv",
        "a,label,label\n1,2,0\n",
        "which column is the target: label, label.1?",
        "--label",
    ),
    bad("a-decimal-comma-between-commas", "a.csv", "value\n1,5\n2,7\n", "line 1", "got 1"),
    bad("decimal-commas-between-commas", "a.csv", "a,b\n1,5,2\n3,7,2\n", "line 1", "got 2"),
    bad("coordinates", "a.csv", "x,y,z\n1,2,0\n", "which column is the target: y, z", "coordinate", "--label"),
    bad("no-such-label", "a.csv", LINES, "no column 'lable'", "it has a, b, y", said=Columns(label="lable")),
    bad("near-label", "a.csv", "a,b,price\n1,2,0\n", "did you mean 'price'?", said=Columns(label="pric")),
    bad("no-such-feature", "a.csv", LINES, "no column 'c' (--features)", said=Columns(features=("a,c",))),
    bad("no-such-number", "a.csv", LINES, "no column '3' (--drop)", said=Columns(drop=("3",))),
    bad("label-dropped", "a.csv", LINES, "--label and --drop both name 'y'", said=Columns(label="y", drop=("y",))),
    bad("label-as-feature", "a.csv", LINES, "a target cannot be a feature", said=Columns(label="y", features=("a,y",))),
    bad(
        "feature-dropped", "a.csv", LINES, "--features and --drop both name 'a'", said=Columns(features=("a",), drop=("a",))
    ),
    bad("feature-twice", "a.csv", LINES, "names 'a' twice", said=Columns(features=("a", "a"))),
    bad("everything-dropped", "a.csv", LINES, "at least one column of data", said=Columns(drop=("a,b",))),
    bad("x-of-a-table", "a.csv", LINES, "--x names an NPZ file's array", said=Columns(x="a")),
    bad("utf16-without-its-mark", "a.csv", LINES.encode("utf-16-le"), "UTF-16 without its mark", "UTF-8"),
    bad("utf32", "a.csv", LINES.encode("utf-32"), "UTF-32"),
    bad("parquet-named-csv", "a.csv", parquet({"a": [1.5], "y": [0]}), "this is a Parquet file", ".parquet"),
    bad("workbook-named-csv", "a.csv", archive("xl/workbook.xml"), "Excel workbook", "CSV UTF-8"),
    bad("opendocument-named-csv", "a.csv", archive("content.xml"), "OpenDocument", "CSV"),
    bad("zip-named-csv", "a.csv", archive("a.csv"), "ZIP archive", "unzip"),
    bad("npz-named-csv", "a.csv", npz(x=[1], y=[1]), "NPZ file", ".npz"),
    bad("gzip-named-csv", "a.csv", gzip.compress(LINES.encode()), "gzip", ".gz"),
    bad("gzip-cut-short", "a.csv.gz", gzip.compress(LINES.encode() * 99)[:40], "not a whole gzip file"),
    bad("bzip2", "a.csv", b"BZh91AY&SY", "bzip2"),
    bad("old-workbook", "a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel workbook"),
    bad("hdf5", "a.csv", b"\x89HDF\r\n\x1a\n", "HDF5"),
    bad("json-lines", "a.csv", '{"a": 1}\n', "JSON"),
    bad("page-of-an-error", "a.csv", "<!DOCTYPE html><html></html>", "HTML", "download"),
    bad("unknown-ending", "a.xlsx", archive("xl/workbook.xml"), "expected a file that ends with"),
]

PARQUET = [
    good("inches-in-a-name", "a.csv", 'a 5",b,y\n1.5,2,0\n3,4.25,1\n', TWO, [0, 1]),
    good("inches-in-a-comment", "a.csv", '# 5" pipes\n1.5,2,"0"\n3,4.25,1\n', TWO, [0, 1]),
    good("floats", "a.parquet", parquet({"a": [1.5, 3.0], "b": [2.0, 4.25], "y": [0, 1]}), TWO, [0, 1]),
    good(
        "float32-stays",
        "a.parquet",
        parquet({"a": pa.array([1.5, 3.0], pa.float32()), "b": pa.array([2.0, 4.25], pa.float32()), "y": [0, 1]}),
        TWO,
        [0, 1],
        x_dtype="<f4",
    ),
    good(
        "float16-stays",
        "a.parquet",
        parquet({"a": np.array([1.5, 3], "f2"), "y": [0, 1]}),
        [[1.5], [3]],
        [0, 1],
        x_dtype="<f2",
    ),
    good(
        "seconds-of-today",
        "a.parquet",
        parquet({"t": STAMPS, "y": [0, 1] * 15}),
        STAMPS[:, None],
        [0, 1] * 15,
        "float32, in which models compute",
    ),
    good(
        "integers-stay",
        "a.parquet",
        parquet({"i": 2**24 + np.arange(30), "y": [0, 1] * 15}),
        2**24 + np.arange(30)[:, None],
        [0, 1] * 15,
        x_dtype="<i8",
    ),
    good(
        "int32-stays", "a.parquet", parquet({"i": np.array([7, -8], "i4"), "y": [0, 1]}), [[7], [-8]], [0, 1], x_dtype="<i4"
    ),
    good(
        "uint8-stays",
        "a.parquet",
        parquet({"i": np.array([7, 255], "u1"), "y": [0, 1]}),
        [[7], [255]],
        [0, 1],
        x_dtype="|u1",
    ),
    good(
        "uint32-grows",
        "a.parquet",
        parquet({"i": np.array([7, 2**32 - 1], "u4"), "y": [0, 1]}),
        [[7], [2**32 - 1]],
        [0, 1],
        x_dtype="<i8",
    ),
    good(
        "large-integers-stay", "a.parquet", parquet({"i": [BIG, -BIG], "y": [0, 1]}), [[BIG], [-BIG]], [0, 1], x_dtype="<i8"
    ),
    good(
        "integers-beside-floats",
        "a.parquet",
        parquet({"i": [1, 3], "b": [2.5, 4.25], "y": [0, 1]}),
        [[1, 2.5], [3, 4.25]],
        [0, 1],
    ),
    good("true-and-false", "a.parquet", parquet({"a": [True, False], "y": [0, 1]}), [[1], [0]], [0, 1], x_dtype="|u1"),
    good(
        "true-as-a-target", "a.parquet", parquet({"a": [1.5, 3.0], "y": [True, False]}), [[1.5], [3]], [1, 0], y_dtype="|u1"
    ),
    good(
        "decimals-of-a-database",
        "a.parquet",
        parquet({"a": pa.array([decimal.Decimal("1.10"), decimal.Decimal("3.25")]), "y": [0, 1]}),
        [[1.1], [3.25]],
        [0, 1],
        "taken as 64-bit floats",
    ),
    good(
        "numbers-in-a-dictionary",
        "a.parquet",
        parquet({"a": pa.array([1.5, 3.0, 1.5]).dictionary_encode(), "y": [0, 1, 1]}),
        [[1.5], [3.0], [1.5]],
        [0, 1, 1],
    ),
    good(
        "pandas-index-of-a-shuffled-frame",
        "a.parquet",
        parquet({"a": [1.5, 3.0], "b": [2.0, 4.25], "k": [0, 1], "__index_level_0__": [7, 2]}, INDEX),
        TWO,
        [0, 1],
        "label: k (the last column)",
        "left out: __index_level_0__ (pandas's index",
    ),
    good(
        "pandas-index-with-a-name",
        "a.parquet",
        parquet({"a": [1.5, 3.0], "b": [2.0, 4.25], "k": [0, 1], "label": [7, 2]}, {"index_columns": ["label"]}),
        TWO,
        [0, 1],
        "label: k (the last column)",
        "left out: label (pandas's index, as the file says)",
    ),
    good(
        "pandas-index-of-a-range",
        "a.parquet",
        parquet({"a": [1.5, 3.0], "b": [2.0, 4.25], "y": [0, 1]}, {"index_columns": [{"kind": "range", "name": None}]}),
        TWO,
        [0, 1],
    ),
    good("pandas-words-that-are-none", "a.parquet", parquet({"a": [1.5], "y": [0]}, {"index_columns": 7}), [[1.5]], [0]),
    good("lists-of-doubles", "a.parquet", parquet({"v": [[1.5, 2.0], [3.0, 4.25]], "y": [0, 1]}), TWO, [0, 1], "[2]"),
    good(
        "lists-of-tokens",
        "a.parquet",
        parquet({"v": [[1, 2], [3, 4]], "y": [0, 1]}),
        [[1, 2], [3, 4]],
        [0, 1],
        x_dtype="<i8",
    ),
    good("large-lists", "a.parquet", parquet({"v": pa.array(TWO, pa.large_list(pa.float64())), "y": [0, 1]}), TWO, [0, 1]),
    good(
        "lists-of-fixed-size",
        "a.parquet",
        parquet({"v": fixed(GRID, 6), "y": [0, 1, 2, 0]}),
        GRID.reshape(4, 6),
        [0, 1, 2, 0],
    ),
    good("lists-in-lists", "a.parquet", parquet({"v": GRID.tolist(), "y": [0, 1, 2, 0]}), GRID, [0, 1, 2, 0], "[2, 3]"),
    good(
        "fixed-lists-in-fixed-lists", "a.parquet", parquet({"v": fixed(GRID, 2, 3), "y": [0, 1, 2, 0]}), GRID, [0, 1, 2, 0]
    ),
    good("tensors", "a.parquet", parquet({"v": tensors(GRID), "y": [0, 1, 2, 0]}), GRID, [0, 1, 2, 0], "[2, 3]"),
    good(
        "images-in-bytes",
        "a.parquet",
        parquet({"image": tensors(GRID.astype("u1")), "y": [0, 1, 2, 0]}),
        GRID,
        [0, 1, 2, 0],
        x_dtype="|u1",
    ),
    good("targets-in-lists", "a.parquet", parquet({"a": [1.5, 3], "y": TWO}), [[1.5], [3]], TWO, y_dtype="<f8"),
    good(
        "several-row-groups",
        "a.parquet",
        parquet({"a": np.arange(9) / 2, "y": range(9)}, row_group_size=2),
        np.arange(9)[:, None] / 2,
        range(9),
    ),
    good("pq", "a.pq", parquet({"a": [1.5], "y": [0]}), [[1.5]], [0]),
    good(
        "words-dropped-of-parquet",
        "a.parquet",
        parquet({"a": [1.5], "n": ["x"], "y": [0]}),
        [[1.5]],
        [0],
        "left out: n",
        said=Columns(drop=("n",)),
    ),
    bad(
        "ragged-lists",
        "a.parquet",
        parquet({"v": [[1.0, 2.0], [3.0]], "y": [0, 1]}),
        "row 1 (from 0), column 'v'",
        "2 as in the rows before, got 1",
    ),
    bad(
        "ragged-lists-in-lists",
        "a.parquet",
        parquet({"v": [[[1.0], [2.0]], [[3.0], [4.0, 5.0]]], "y": [0, 1]}),
        "row 1 (from 0), column 'v'",
    ),
    bad(
        "ragged-later",
        "a.parquet",
        parquet({"v": [[1.0, 2.0]] * 70_000 + [[1.0]], "y": [0] * 70_001}),
        "row 70000 (from 0)",
    ),
    bad("empty-lists", "a.parquet", parquet({"v": pa.array([[], []], pa.list_(pa.float64())), "y": [0, 1]}), "empty list"),
    bad(
        "nothing-in-a-list",
        "a.parquet",
        parquet({"v": [[1.0, 2.0], [3.0, None]], "y": [0, 1]}),
        "row 1 (from 0), column 'v'",
        "it is empty",
    ),
    bad(
        "lists-beside-numbers",
        "a.parquet",
        parquet({"v": TWO, "a": [1, 2], "y": [0, 1]}),
        "column 'v' has a list",
        "--features v",
    ),
    bad("empty-value", "a.parquet", parquet({"a": [1.5, None], "y": [0, 1]}), "row 1 (from 0), column 'a'", "it is empty"),
    bad(
        "nan",
        "a.parquet",
        parquet({"a": [1.5, 2.5, float("nan")], "y": [0, 1, 0]}),
        "row 2 (from 0), column 'a'",
        "nan",
        "fill it",
    ),
    bad(
        "nan-in-a-list",
        "a.parquet",
        parquet({"v": [[1.0], [float("inf")]], "y": [0, 1]}),
        "row 1 (from 0), column 'v'",
        "inf",
    ),
    bad(
        "words",
        "a.parquet",
        parquet({"a": ["red", "blue"], "y": [0, 1]}),
        "column 'a': expected numbers, got string",
        "'red'",
        "--drop",
    ),
    bad(
        "numbers-in-words",
        "a.parquet",
        parquet({"a": ["1.5", "2"], "y": [0, 1]}),
        "column 'a': expected numbers, got string",
        "'1.5'",
    ),
    bad(
        "categories-of-pandas",
        "a.parquet",
        parquet({"a": pa.array(["r", "b"]).dictionary_encode(), "y": [0, 1]}),
        "column 'a': expected numbers",
    ),
    bad("words-as-labels-of-parquet", "a.parquet", parquet({"a": [1.5], "label": ["cat"]}), "column 'label'", "'cat'"),
    bad(
        "timestamps",
        "a.parquet",
        parquet({"t": pa.array([0], pa.timestamp("ns")), "y": [0]}),
        "column 't'",
        "seconds since",
    ),
    bad("days", "a.parquet", parquet({"t": pa.array([0], pa.date32()), "y": [0]}), "column 't'", "date32", "--drop"),
    bad("structs", "a.parquet", parquet({"s": [{"a": 1}], "y": [0]}), "column 's': expected numbers, got struct"),
    bad("bytes", "a.parquet", parquet({"s": [b"\xff\x00"], "y": [0]}), "column 's': expected numbers, got binary"),
    bad("nothing-at-all", "a.parquet", parquet({"a": [None, None], "y": [0, 1]}), "column 'a'", "null"),
    bad(
        "unsigned-beyond",
        "a.parquet",
        parquet({"a": np.array([1, 2**63], "u8"), "y": [0, 1]}),
        "row 1 (from 0), column 'a'",
        "beyond 64-bit",
    ),
    bad(
        "identifiers-beside-floats",
        "a.parquet",
        parquet({"i": [1, BIG], "b": [0.5, 1.5], "y": [0, 1]}),
        "row 1 (from 0), column 'i'",
        "more digits",
    ),
    bad(
        "no-rows",
        "a.parquet",
        parquet({"a": pa.array([], pa.float64()), "y": pa.array([], pa.int64())}),
        "at least one row",
    ),
    bad("no-parquet", "a.parquet", "nonsense", "not a Parquet file"),
    bad("csv-named-parquet", "a.parquet", LINES, "not a Parquet file"),
    bad("cut-short", "a.parquet", damaged(parquet({"a": [1.5], "y": [0]}), 0.7), "not a Parquet file"),
    bad(
        "header-of-parquet",
        "a.parquet",
        parquet({"a": [1.5], "y": [0]}),
        "--header is for text files",
        said=Columns(header=True),
    ),
]

NPZ = [
    good(
        "x-and-y-of-npz",
        "a.npz",
        npz(x=np.array(TWO, "f4"), y=[0, 1]),
        TWO,
        [0, 1],
        "features: x as float32 [2]",
        x_dtype="<f4",
    ),
    good("tokens-of-npz", "a.npz", npz(x=np.array([[1, 2], [3, 4]]), y=[0, 1]), [[1, 2], [3, 4]], [0, 1], x_dtype="<i8"),
    good(
        "keras-mnist",
        "a.npz",
        npz(x_test=[[9]], x_train=GRID.astype("u1"), y_test=[1], y_train=[0, 1, 2, 0]),
        GRID,
        [0, 1, 2, 0],
        "left out: x_test, y_test (another array)",
        x_dtype="|u1",
    ),
    good(
        "without-names", "a.npz", lambda path: np.savez(path, TWO, [0, 1]), TWO, [0, 1], "features: arr_0", "label: arr_1"
    ),
    good(
        "named-by-its-user",
        "a.npz",
        npz(pixels=TWO, kind=[0, 1], more=[1]),
        TWO,
        [0, 1],
        "left out: more",
        said=Columns(x="pixels", label="kind"),
    ),
    good("big-endian", "a.npz", npz(x=np.array(TWO, ">f8"), y=np.array([0, 1], ">i2")), TWO, [0, 1]),
    good("fortran-order", "a.npz", npz(x=np.asfortranarray(GRID), y=[0, 1, 2, 0]), GRID, [0, 1, 2, 0]),
    good("truth-values", "a.npz", npz(x=np.array([[True, False]]), y=[1]), [[1, 0]], [1], x_dtype="|u1"),
    good(
        "one-hot-targets",
        "a.npz",
        npz(x=TWO, y=np.eye(2)),
        TWO,
        np.eye(2),
        "label: y (by its name) as float64 [2]",
        y_dtype="<f8",
    ),
    good("one-number-a-row", "a.npz", npz(x=[1.5, 3.0], y=[0, 1]), [1.5, 3.0], [0, 1]),
    good("no-targets", "a.npz", npz(pixels=TWO), TWO, None, "no label", said=Columns(labelled=False)),
    good("compressed", "a.npz", lambda path: np.savez_compressed(path, x=TWO, y=[0, 1]), TWO, [0, 1]),
    bad("objects", "a.npz", npz(x=np.array([{"a": 1}], object), y=[0]), "array 'x'", "pickle"),
    bad("other-lengths", "a.npz", npz(x=TWO, y=[0, 1, 2]), "as many rows in x as in y", "2 in x, 3 in y"),
    bad("structured", "a.npz", npz(x=np.zeros(2, [("a", "f8")]), y=[0, 1]), "array 'x'", "structured"),
    bad("complex", "a.npz", npz(x=np.array(TWO, "c16"), y=[0, 1]), "array 'x'", "complex"),
    bad("words-of-npz", "a.npz", npz(x=TWO, y=["cat", "dog"]), "array 'y'", "words"),
    bad("dates-of-npz", "a.npz", npz(x=np.array(["2024-05-01"], "M8[D]"), y=[0]), "array 'x'", "dates"),
    bad("one-number", "a.npz", npz(x=np.float64(3), y=[0]), "array 'x'", "single number"),
    bad("nan-of-npz", "a.npz", npz(x=[[1.0], [np.nan]], y=[0, 1]), "row 1 (from 0), column 'x'", "nan"),
    bad("unsigned-beyond-of-npz", "a.npz", npz(x=np.array([[2**63]], "u8"), y=[0]), "array 'x'", "beyond 64-bit"),
    bad("no-rows-of-npz", "a.npz", npz(x=np.zeros((0, 2)), y=np.zeros(0, int)), "at least one row"),
    bad("no-numbers-in-a-row", "a.npz", npz(x=np.zeros((2, 0)), y=[0, 1]), "array 'x'"),
    bad("no-x", "a.npz", npz(a=TWO, b=[0, 1]), "expected arrays x and y, it has a, b", "--x and --label"),
    bad("no-such-array", "a.npz", npz(x=TWO, y=[0, 1]), "no array 'labels'", said=Columns(label="labels")),
    bad("no-archive", "a.npz", "nonsense", "not an NPZ file"),
    bad("npy-named-npz", "a.npz", npy(TWO), "one NumPy array without a name", "numpy.savez"),
    bad("workbook-named-npz", "a.npz", archive("xl/workbook.xml"), "Excel workbook"),
    bad("cut-short-of-npz", "a.npz", damaged(npz(x=TWO, y=[0, 1]), 0.6), "damaged"),
    bad(
        "features-of-npz", "a.npz", npz(x=TWO, y=[0, 1]), "--features and --drop are for tables", said=Columns(drop=("x",))
    ),
]

ZOO = [*TEXT, *PARQUET, *NPZ]
GOOD = [case for case in ZOO if not case.refused]
BAD = [case for case in ZOO if case.refused]


def written(case: Case, directory: Path) -> Path:
    path = directory / case.file
    match case.content:
        case bytes():
            path.write_bytes(case.content)
        case str():
            path.write_bytes(case.content.encode())
        case _:
            case.content(path)
    return path


def test_the_zoo_is_large_and_each_has_a_name_of_its_own() -> None:
    assert len({case.id for case in ZOO}) == len(ZOO) >= 60


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_a_file_gives_its_numbers_exactly(case: Case, tmp_path: Path) -> None:
    data = open_data(written(case, tmp_path), case.said, rows=3)
    reading = data.check()
    blocks = list(data.blocks())
    x = np.concatenate([block for block, _ in blocks])
    np.testing.assert_array_equal(x, np.asarray(case.x))
    assert x.dtype.str == case.x_dtype
    if case.y is None:
        assert all(block is None for _, block in blocks)
    else:
        y = np.concatenate([block for _, block in blocks if block is not None])
        np.testing.assert_array_equal(y, np.asarray(case.y))
        assert y.dtype.str == case.y_dtype
        assert reading.plain()["y"] == {"dtype": str(y.dtype), "shape": list(y.shape[1:])}
    assert reading.rows == data.count() == len(x)
    assert reading.plain()["x"] == {"dtype": str(x.dtype), "shape": list(x.shape[1:])}
    said = "\n".join(reading.lines())
    assert [words for words in case.says if words not in said] == [], said
    json.dumps(reading.plain())


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_a_file_is_refused_with_place_and_remedy(case: Case, tmp_path: Path) -> None:
    path = written(case, tmp_path)
    with pytest.raises(DataError) as caught:
        open_data(path, case.said).check()
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert [words for words in case.refused if words not in said] == [], said
