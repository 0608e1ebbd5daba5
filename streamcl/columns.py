"""The columns of a table, as batches name them: matched by name to those of the first batch, whatever order they come in.

A table's x is one array [n, columns] of its features, in the order of its schema: numbers as they are, a missing one NaN;
words as codes, places in that batch's own ``categories``, a missing one NaN or -1. Any of the wire's dtypes serves, since
all of them hold codes exactly (``<i4`` where every column is of words). The target, named in the schema or not, is y.

Guarantees: checks change nothing and read nothing but what they are given. Knows nothing of sockets, files or torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamcl.errors import Refused

Array = npt.NDArray[Any]
Kind = Literal["number", "category", "token", "target"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Word = Annotated[str, msgspec.Meta(max_length=4096)]

LISTED = 24  # names in a message
TRUTHS = ("true", "false")
TRUTH, FIGURE, WORD = "True and False", "numbers", "words"  # what words look like
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
PINNED_BYTES = 28 << 10  # of names, which a welcome has beside much else


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column. categories: the words that a batch's codes stand for, of a category or of a target of words; of the first
    batch, also others that are to come. missing: with the first batch, whether numbers may be, though none is yet.
    """

    name: Name
    kind: Kind
    categories: tuple[Word, ...] | None = None
    missing: bool = False


Columns = tuple[Column, ...]


def features(columns: Iterable[Column]) -> Columns:
    """Those that are in x, in its order."""
    return tuple(column for column in columns if column.kind != "target")


def target(columns: Iterable[Column]) -> Column | None:
    """That of y."""
    return next((column for column in columns if column.kind == "target"), None)


def plain(columns: Iterable[Column]) -> list[dict[str, Any]]:
    """As a message has them."""
    found: list[dict[str, Any]] = msgspec.to_builtins(tuple(columns))
    return found


def from_plain(plain: Any) -> Columns:
    """What `plain` gave; raises msgspec.ValidationError."""
    found: Columns = msgspec.convert(plain, Columns)
    return found


def check(columns: Columns, rows: bool = True) -> None:
    """Raise Refused ``bad_header`` for columns that are no table's. rows: they come with some, whose words they have."""
    twice = next((name for name, count in Counter(column.name for column in columns).items() if count > 1), None)
    if twice is not None:
        raise _bad(f"expected each name once, got {twice!r} twice")
    kinds = Counter(column.kind for column in columns)
    if kinds["target"] > 1:
        raise _bad(f"expected at most one target, got {kinds['target']}; y is one array")
    if len(columns) == kinds["target"]:
        raise _bad("expected at least one column beside the target")
    if kinds["token"] and len(columns) - kinds["target"] != kinds["token"]:
        raise _bad("tokens go to the model as they are, as integers: expected every column but the target to be of them")
    for column in columns:
        _check_categories(column, rows)


def names_bytes(names: Sequence[str]) -> int:
    """What so many names take in a message."""
    return sum(len(name.encode()) + 22 for name in names)


def check_size(columns: Columns, left_out: Sequence[str]) -> None:
    """Raise Refused ``too_large`` for a first batch with more names than are kept."""
    size = names_bytes([*(column.name for column in columns), *left_out])
    if size > PINNED_BYTES:
        raise Refused(
            "too_large",
            f"header.schema: {len(columns)} names come to {size} bytes, of {PINNED_BYTES} at most; send the rows as a "
            "plain array without a schema, whose columns go by their positions",
        )


def _check_categories(column: Column, rows: bool) -> None:
    words, where = column.categories, f"column {column.name!r}"
    if column.kind == "category" and words is None and rows:
        raise _bad(f"{where}: expected `categories`, the words that this batch's codes stand for")
    if words is not None and column.kind not in ("category", "target"):
        raise _bad(f"{where}: `categories` are of a category or target, and this is a {column.kind}")
    if words is not None and len(set(words)) < len(words):
        raise _bad(f"{where}: expected each of its categories once")


def _bad(text: str) -> Refused:
    return Refused("bad_header", f"header.schema: {text}")


# -- pinned ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pinned:
    """What the first batch fixed: names and kinds of the features, in its order, and the target's name, None where it was
    not named. words: the targets are words. left_out: columns that its sender had and did not send, None where unknown."""

    kinds: Mapping[str, Kind]
    target: str | None = None
    words: bool = False
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: Columns, left_out: Sequence[str] = ()) -> Pinned:
        """Of a first batch."""
        named = target(columns)
        kinds = {column.name: column.kind for column in features(columns)}
        return cls(
            kinds,
            None if named is None else named.name,
            named is not None and named.categories is not None,
            tuple(left_out),
        )

    @property
    def names(self) -> list[str]:
        """Of the features, in the order in which the model has them."""
        return list(self.kinds)

    @property
    def columns(self) -> Columns:
        """Without categories, target last: for a message."""
        own = tuple(Column(name, kind) for name, kind in self.kinds.items())
        return own if self.target is None else (*own, Column(self.target, "target", () if self.words else None))

    @property
    def tokens(self) -> bool:
        """Whether the columns are integers that go to the model as they are."""
        return "token" in self.kinds.values()

    @property
    def has_words(self) -> bool:
        """Whether any feature is of words."""
        return "category" in self.kinds.values()

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"columns": plain(self.columns), "left_out": list(self.left_out)}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Pinned:
        """What `plain` gave."""
        return cls.of(from_plain(given["columns"]), given["left_out"])

    def order(self, columns: Columns) -> list[int]:
        """Where each pinned feature stands in a batch's x.

        Raises Refused ``bad_shape`` with both lists where the names are others, ``bad_array`` where a kind is another.
        """
        sent = features(columns)
        places = {column.name: place for place, column in enumerate(sent)}
        named = target(columns)
        if places.keys() != self.kinds.keys() or (named and self.target not in (None, named.name)):
            raise Refused("bad_shape", self._others(columns))
        for column in sent:
            if column.kind != self.kinds[column.name]:
                raise Refused(
                    "bad_array",
                    f"column {column.name!r}: expected a {self.kinds[column.name]}, as in the first batch, got a "
                    f"{column.kind}",
                )
        return [places[name] for name in self.kinds]

    def _others(self, columns: Columns) -> str:
        """Both lists side by side, and what is wrong."""
        mine = [*self.kinds, *([self.target] if self.target is not None and target(columns) is not None else [])]
        sent = [column.name for column in columns]
        missing = [name for name in mine if name not in sent]
        fresh = [name for name in sent if name not in mine]
        wrong = [f"missing: {_listed(missing)}"] * bool(missing) + [f"new: {_listed(fresh)}"] * bool(fresh)
        return (
            f"batch.schema: expected the columns of the first batch, {_listed(mine)}; got {_listed(sent)} "
            f"({'; '.join(wrong) or 'the target is another column'}). Columns are matched by name, in any order: rename "
            "them, leave new ones out, and fill in missing ones"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return f"[{shown}]" if len(names) <= LISTED else f"[{shown}, ... {names[-1]}: {len(names)} in all]"


# -- a batch -----------------------------------------------------------------------------------------------------------


def check_rows(x: Array, columns: Columns, *, missing: bool, words: bool) -> None:
    """Raise Refused where x does not hold these columns.

    missing: whether numbers may be. words: whether there may be columns of words. Codes ``bad_shape bad_array nonfinite``.
    """
    own = features(columns)
    if x.ndim != 2 or x.shape[1] != len(own):
        raise Refused(
            "bad_shape",
            f"batch.x: expected [n, {len(own)}], a column for each of the schema's but the target, got {list(x.shape)}",
        )
    for place, column in enumerate(own):
        if column.kind == "category":
            _check_codes(x[:, place], column, words)
    if own and own[0].kind == "token" and x.dtype.kind not in "iu":
        raise Refused("bad_array", f"batch.x: expected integers (<i8, <i4, |u1) for columns of tokens, got {x.dtype.str}")
    if not missing and x.dtype.kind == "f" and np.isnan(x).any():
        row, place = (int(k) for k in np.argwhere(np.isnan(x))[0])
        raise Refused(
            "nonfinite",
            f"batch.x: row {row}, column {own[place].name!r}: expected a number (input.missing = 'refuse'), it is missing",
        )


def _check_codes(codes: Array, column: Column, words: bool) -> None:
    if not words:
        raise Refused(
            "bad_array",
            f"column {column.name!r}: expected numbers (input.categories = 'refuse'), got words; set input.categories, or "
            "leave the column out",
        )
    known = codes[~np.isnan(codes)] if codes.dtype.kind == "f" else codes
    highest = len(column.categories or ()) - 1
    wrong = (known < -1) | (known > highest) | (known != np.floor(known))
    if wrong.any():
        raise Refused(
            "bad_array",
            f"column {column.name!r}: expected codes from 0 to {highest}, places in its categories, or -1 for a missing "
            f"word, got {known[int(wrong.argmax())]:g}",
        )


def ordered(x: Array, order: Sequence[int]) -> Array:
    """Columns of x as they were pinned; the array itself where they stand so already."""
    return x if list(order) == list(range(len(order))) else np.ascontiguousarray(x[:, list(order)])


def codes_of(column: Array) -> npt.NDArray[np.int64]:
    """Codes [n] as integers; -1 where a word is missing."""
    if column.dtype.kind == "f":
        column = np.where(np.isnan(column), -1, column)
    return column.astype(np.int64)


# -- targets that are words ----------------------------------------------------------------------------------------------


def sort_of(word: str) -> str:
    """What a word looks like."""
    if word.casefold() in TRUTHS:
        return TRUTH
    return FIGURE if NUMBER.fullmatch(word) else WORD


@dataclass(slots=True)
class Words:
    """The words of a target: label k is the k-th that came, for ever."""

    known: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def add(self, fresh: Iterable[str]) -> None:
        """More words, in the order of their labels."""
        for word in fresh:
            if word not in self.labels:
                self.labels[word] = len(self.known)
                self.known.append(word)

    def new(self, y: Array, words: Sequence[str]) -> tuple[str, ...]:
        """The words of a batch that are not known, in order of appearance; raises Refused ``bad_label``."""
        return tuple(words[code] for code in self._seen(y, words) if words[code] not in self.labels)

    def check_sort(self, y: Array, words: Sequence[str]) -> None:
        """Raise Refused ``bad_label`` where a batch's words are of another sort than all that came: numbers, or True and
        False, none of which has come; or True and False as they were not written before.

        A single row is no sign of it: labels beside words may be numbers.
        """
        if not self.known:
            return
        used = [words[code] for code in self._seen(y, words)]
        self._check_spelling(used)
        sorts = {sort_of(word) for word in used}
        new = not any(word in self.labels for word in used) and not sorts & {sort_of(word) for word in self.known}
        if new and len(y) > 1 and len(sorts) == 1 and sorts != {WORD}:
            raise Refused(
                "bad_label",
                f"batch.y: expected words, as this stream's targets are ({_listed([repr(word) for word in self.known])}), "
                f"got {sorts.pop()} ({_listed(used)}): is the target another column (--label)? Write them as the words "
                "that they stand for, or send them to a daemon of their own (--state-dir)",
            )

    def _check_spelling(self, used: Iterable[str]) -> None:
        written = {word.casefold(): word for word in self.known if sort_of(word) == TRUTH}
        for word in used:
            before = written.get(word.casefold(), word)
            if before != word and word not in self.labels:
                raise Refused(
                    "bad_label",
                    f"batch.y: expected {before!r}, as this stream's targets are written, got {word!r}: write it alike",
                )

    def _seen(self, y: Array, words: Sequence[str]) -> list[int]:
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise Refused("bad_label", f"batch.y: expected codes of words, integers [n], got {y.dtype.str} {list(y.shape)}")
        codes, first = np.unique(y, return_index=True)
        if len(codes) and (codes[0] < 0 or codes[-1] >= len(words)):
            odd = codes[0] if codes[0] < 0 else codes[-1]
            raise Refused(
                "bad_label",
                f"batch.y: expected codes from 0 to {len(words) - 1}, places in the target's categories, got {odd}; a "
                "target cannot be missing",
            )
        return [int(codes[place]) for place in np.argsort(first)]

    def to_labels(self, y: Array, words: Sequence[str], fresh: Sequence[str] = ()) -> npt.NDArray[np.int64]:
        """The label of every row, `fresh` being words that come next; -1 for a word that is not known."""
        labels = {**self.labels, **{word: len(self.known) + place for place, word in enumerate(fresh)}}
        table = np.array([labels.get(word, -1) for word in words], np.int64)
        return table[y] if len(table) else np.full(len(y), -1, np.int64)
