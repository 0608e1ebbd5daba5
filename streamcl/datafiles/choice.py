"""Which columns of a table, or arrays of an NPZ file, are data, which one is the target, and which are left out.

Decides from names and from what the user said, never from values. What cannot be decided is refused.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamcl.errors import DataError

LABEL_NAMES = ("label", "labels", "target", "targets", "class")
COORDINATE = "y"  # a target's name, and a coordinate's: taken as the target if nothing suggests a coordinate
SHOWN = 12
LAST = "the last column"  # why one was taken for the target
MISTAKEN = 0.6


@dataclass(frozen=True, slots=True)
class Columns:
    """What the user said about a file.

    x, label: the names of an NPZ file's arrays; label: also a table's target. features, drop: a table's columns, each
    text one name or several separated by commas. header: whether a text file's first line has names; None to find out.
    Columns of a table may be named by their number, from 0, or from -1 backwards. labelled: whether a target is
    expected; if not, one is taken only if its name is a target's.
    """

    x: str | None = None
    label: str | None = None
    labelled: bool = True
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    header: bool | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which column is what. label_why: how the target was found. left_out: columns not used, and why."""

    features: tuple[str, ...]
    label: str | None
    label_why: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def used(self) -> tuple[str, ...]:
        """Everything that is read."""
        return self.features if self.label is None else (*self.features, self.label)


def choose(path: Path, names: Sequence[str], said: Columns, indexes: Mapping[str, str]) -> Choice:
    """Features and target of a table. indexes: columns that are row names, and how that is known; used only if named.

    Raises DataError for names that the table lacks, for contradictions, and if the target cannot be determined.
    """
    features = each_named(path, names, said.features, "--features")
    drop = each_named(path, names, said.drop, "--drop")
    label = None if said.label is None else _named(path, names, said.label, "--label")
    _refuse_contradictions(path, label, features, drop)
    left_out = dict.fromkeys(drop, "--drop")
    left_out |= {name: why for name, why in indexes.items() if name not in {*drop, *features, label}}
    taken = left_out.keys() | set(features)
    free = [name for name in names if name not in taken]
    why = "--label"
    if label is None:
        label, why = _find_label(path, free, said.labelled, bool(features))
    if not features:
        features = [name for name in free if name != label]
    used = {*features, label}
    left_out |= {name: "not of --features" for name in free if name not in used}
    if not features:
        beside = "" if label is None else f" beside the label {label!r}"
        raise DataError(f"{path}: expected at least one column of data{beside}; it has {listed(names)}")
    order = [name for name in names if name in left_out]
    return Choice(tuple(features), label, why, {name: left_out[name] for name in order})


def _refuse_contradictions(path: Path, label: str | None, features: Collection[str], drop: Collection[str]) -> None:
    both = [name for name in features if name in drop]
    if both:
        raise DataError(f"{path}: --features and --drop both name {both[0]!r}; expected it in one of them")
    if label is not None and label in drop:
        raise DataError(f"{path}: --label and --drop both name {label!r}; expected it in one of them")
    if label is not None and label in features:
        raise DataError(f"{path}: --label and --features both name {label!r}; a target cannot be a feature")


def each_named(path: Path, names: Sequence[str], texts: Sequence[str], option: str) -> list[str]:
    """Every column that an option names; a text that is itself a column's name is not split at its commas.

    Raises DataError for names that the table lacks, or that are given twice.
    """
    found: list[str] = []
    for text in texts:
        parts = [text] if text in names else [part.strip() for part in text.split(",")]
        found += [_named(path, names, part, option) for part in parts]
    twice = next((name for name, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: {option} names {twice!r} twice; expected each column once")
    return found


def _named(path: Path, names: Sequence[str], text: str, option: str) -> str:
    """The column of this name, else of this number."""
    if text in names:
        return text
    try:
        return names[int(text)]
    except (ValueError, IndexError):
        raise DataError(f"{path}: no column {text!r} ({option}){near(text, names)}; it has {listed(names)}") from None


def near(text: str, names: Sequence[str]) -> str:
    """The nearest name, as a question; empty if none is near."""
    plain = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(text.casefold(), list(plain), n=1, cutoff=MISTAKEN)
    return f", did you mean {plain[found[0]]!r}?" if found else ""


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many, the first and the last.

    >>> listed(["a", "b"]), listed([str(n) for n in range(100)])
    ('a, b', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... 99 (100 in all)')
    """
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN - 1])}, ... {names[-1]} ({len(names)} in all)"


def _find_label(path: Path, names: Sequence[str], wanted: bool, chosen: bool) -> tuple[str | None, str]:
    """The target if the user named none: by its name, else the last column. chosen: the features were named."""
    named = [name for name in names if _without_number(name) in LABEL_NAMES]
    if len(named) > 1:
        raise _cannot_tell(path, named)
    if named:
        return named[0], "by its name"
    weak = [name for name in names if _without_number(name) == COORDINATE]
    if len(weak) > 1:
        raise _cannot_tell(path, weak)
    if weak:
        if any(name.casefold() == "x" for name in names) and names[-1] != weak[0]:
            raise _cannot_tell(path, [weak[0], names[-1]], " (y may be a coordinate, beside x)")
        return weak[0], "by its name"
    if not wanted:
        return None, ""
    if chosen:
        if len(names) == 1:
            return names[0], "the only column that is not a feature"
        raise (
            _cannot_tell(path, names) if names else DataError(f"{path}: expected a column beside --features as the target")
        )
    return (names[-1], LAST) if names else (None, "")


def _without_number(name: str) -> str:
    """A name without the suffix that distinguishes it from another of the same name."""
    return re.sub(r"\.\d+\Z", "", name).casefold()


def _cannot_tell(path: Path, names: Sequence[str], hint: str = "") -> DataError:
    return DataError(f"{path}: which column is the target: {listed(names)}?{hint} Say it with --label")
