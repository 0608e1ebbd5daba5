"""The input stage: rows as they were sent become rows as the model takes them. Online; a function of the rows alone.

Of a table (rows with a schema), in the order that the first batch pinned:

    number     z = (x - centre) / scale, 0 where it is missing; and, where a number of the first batch is missing or its
               schema says that some may be, an input beside it that is 1 there
    category   one input a word, a place for each new word as it comes; one for a missing word, one for all words beyond
               those that have a place. Or, as an embedding: a fixed direction of 16 numbers, drawn from the word's bytes
    token      as it is

Of plain arrays, only where ``input.scale = "auto"``: z of every place of a row. A far value is drawn in: beyond 4 scales it
counts as ``4 + log(1 + |z| - 4)``. Centre and scale are mean and standard deviation of a sample of the rows, cut off at six
times the half-width of their middle two thirds, so that a few wild values do not set them (winsorised).

They follow the rows until they are frozen, which is at the first boundary (with an exact learner: after its first
`WARM_ROWS` rows, since its sums cannot be converted): what was consolidated keeps meaning what it meant. At that
boundary the task's rows are read again and encoded by what was frozen. Words keep finding places afterwards; there are
so many from the first batch on, since they are the model's inputs: at least `LEAST_PLACES`, twice the words of its
schema, at most `MOST_PLACES` (or those words). What lies beyond is counted (`told`), and so are missing numbers without
an input that says so.

Guarantees: bit for bit the same for the same rows, whatever the order of their columns. Knows nothing of torch or files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl import columns as tables
from streamcl.columns import Columns, Pinned, Words
from streamcl.config import Config, Input
from streamcl.errors import Refused
from streamcl.schema import Signature

Array = npt.NDArray[Any]

SAMPLE_ROWS, WARM_ROWS = 1024, 256
MOST_TOLD = 40  # columns in a status, and in a warning
LARGE, HUGE, UNLIKE = 30.0, 300.0, 30.0  # of a column's root mean square; and of its spread beside the others'
FAR, WILD = 4.0, 6.0
ELSEWHERE = 0.5  # of a task's rows, beyond which a column that is far there is told of
AGAIN, LEAST = 1.1, 1e-9  # rows more, until numbers are found again; a spread that is no more than rounding
LEAST_PLACES, MOST_PLACES = 8, 256
DIRECTION = 16  # numbers of an embedded word
SAMPLE, FOUND = "input.sample", "input.found"  # in a checkpoint


@dataclass(slots=True)
class Places:
    """The words of one column that have an input. taken: by word. most: how many there are. beyond: rows of other words."""

    most: int
    taken: dict[str, int]
    beyond: int = 0

    @property
    def width(self) -> int:
        """Inputs of the column: also one for a missing word, one for any beyond."""
        return self.most + 2

    def take(self, words: Sequence[str], codes: npt.NDArray[np.int64]) -> None:
        """Give a place to every word of a batch that has none, in order of appearance, as far as there are any."""
        present, first, counts = np.unique(codes[codes >= 0], return_index=True, return_counts=True)
        for index in np.argsort(first):
            word = words[present[index]]
            if word not in self.taken and len(self.taken) < self.most:
                self.taken[word] = len(self.taken)
            elif word not in self.taken:
                self.beyond += int(counts[index])

    def encode(self, words: Sequence[str], codes: npt.NDArray[np.int64], out: Array) -> None:
        """Into out [n, width], which is zero. A word that is not known is none of them, until all places are taken."""
        unknown = self.most + 1 if len(self.taken) == self.most else -1
        table = np.array([self.taken.get(word, unknown) for word in words] + [self.most], np.int64)
        places = table[codes]  # code -1, a missing word, is the last
        rows = np.flatnonzero(places >= 0)
        out[rows, places[rows]] = 1.0


def direction(word: str) -> npt.NDArray[np.float64]:
    """A word's own direction, of length 1: the same everywhere."""
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    drawn = np.random.default_rng(seed).standard_normal(DIRECTION)
    return drawn / math.sqrt(float(drawn @ drawn))


class Numbers:
    """Centre and scale of k numbers a row, found on a sample of the rows (reservoir sampling, Vitter 1985, algorithm R).

    rows: that there were; at: how many when they were found last, which is after every tenth more. most: of the sample.
    """

    def __init__(self, k: int, most: int) -> None:
        self.sample = np.empty((0, k))
        self.rows, self.at, self.most = 0, 0, most
        self.centre, self.scale = np.zeros(k), np.ones(k)

    def take(self, x: Array, seed: Sequence[int]) -> None:
        """More rows [n, k] float64, NaN where missing."""
        room = max(0, self.most - len(self.sample))
        self.sample = np.concatenate([self.sample, x[:room]])
        rest = x[room:]
        if len(rest):
            draws = np.random.default_rng(list(seed)).integers(0, self.rows + room + np.arange(1, len(rest) + 1))
            for row in np.flatnonzero(draws < self.most):
                self.sample[draws[row]] = rest[row]
        self.rows += len(x)
        if self.rows >= AGAIN * self.at:
            self.find()

    def find(self) -> None:
        """Centre and scale of the sample as it is; 0 and 1 where all are missing, scale 1 of a constant."""
        self.at = self.rows
        ordered, count = np.sort(self.sample, axis=0), (~np.isnan(self.sample)).sum(0)  # NaN last
        low, middle, high = (_quantile(ordered, count, share) for share in (0.16, 0.5, 0.84))
        spread = (high - low) / 2
        reach = np.where(spread > 0, WILD * spread, np.inf)
        kept = np.clip(self.sample, middle - reach, middle + reach)
        known, some = ~np.isnan(kept), np.maximum(count, 1)
        centre = np.where(known, kept, 0.0).sum(0) / some
        scale = np.sqrt(np.where(known, (kept - centre) ** 2, 0.0).sum(0) / some)
        self.centre = centre
        self.scale = np.where(scale > LEAST * np.abs(centre), scale, 1.0)

    def far(self, x: Array) -> npt.NDArray[np.bool_]:
        """Which of the numbers [n, k] are drawn in."""
        return np.abs((x - self.centre) / self.scale) > FAR

    def encode(self, x: Array) -> Array:
        """[n, k] float64; 0 where missing."""
        z = (x - self.centre) / self.scale
        far = np.abs(z) > FAR
        if far.any():
            z[far] = np.sign(z[far]) * (FAR + np.log1p(np.abs(z[far]) - FAR))
        return np.where(np.isnan(z), 0.0, z)


def _quantile(ordered: Array, count: Array, share: float) -> Array:
    """Of each column's first `count` numbers, linearly between them; 0 of none."""
    if not len(ordered):
        return np.zeros(ordered.shape[1])
    at = share * np.maximum(count - 1, 0)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    column = np.arange(ordered.shape[1])
    found = ordered[low, column] + (at - low) * (ordered[high, column] - ordered[low, column])
    return np.where(count > 0, found, 0.0)


class Inputs:
    """What the stage has found. pinned: the columns of a table. words: of its targets. frozen: its numbers change no more.

    active: whether anything is done but to put columns in order; before the first batch, it is not known.

    What holds it together: one function of the rows so far, from what is sent to what the model takes, and its state.
    """

    def __init__(self, settings: Input, seed: int = 0, exact: bool = False) -> None:
        self.settings, self.seed, self.exact = settings, seed, exact
        self.pinned: Pinned | None = None
        self.words = Words()
        self.shape: tuple[int, ...] | None = None  # of a row as it is sent
        self.frozen = False
        self._numbers: Numbers | None = None
        self._places: dict[str, Places] = {}
        self.unscaled: str | None = None  # of plain arrays: why their scale is in the model's way
        self._gaps: dict[str, int] = {}  # missing numbers of columns that have no input to say so
        self._far: list[int] = []  # rows since the last boundary, and of each number those that are drawn in; once frozen

    @classmethod
    def of(cls, config: Config) -> Inputs:
        """As configured; nothing has come yet."""
        return cls(config.input, config.train.seed, config.model.learner == "exact")

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether a batch has come."""
        return self.shape is not None

    @property
    def active(self) -> bool:
        """Whether rows are changed at all, but for the order of their columns."""
        return self._numbers is not None or bool(self._kinds("category"))

    @property
    def plain_arrays(self) -> bool:
        """Whether rows reach the model as they are sent, to the bit."""
        return self.pinned is None and not self.active

    @property
    def scaled(self) -> bool:
        """Whether numbers are brought to scale."""
        return self.settings.scale != "none"

    @property
    def warm(self) -> bool:
        """Whether an exact learner's numbers have all the rows that they are found on."""
        return self._numbers is None or self._numbers.rows >= WARM_ROWS

    def _kinds(self, kind: str) -> list[str]:
        return [] if self.pinned is None else [name for name, own in self.pinned.kinds.items() if own == kind]

    def _width_of(self, name: str, kind: str) -> int:
        if kind == "category":
            return self._places[name].width if name in self._places else DIRECTION + 1
        return 1 if name in self._gaps else 2

    def signature(self, sent: Signature) -> Signature:
        """Of rows as the model takes them."""
        if not self.active or self.pinned is None:
            return sent
        width = sum(self._width_of(name, kind) for name, kind in self.pinned.kinds.items())
        return Signature((width,), False, sent.y_shape, sent.y_real)

    # -- rows --------------------------------------------------------------------------------------------------------

    def begin(self, x: Array, columns: Columns | None, left_out: Sequence[str] = ()) -> None:
        """The first batch: what there will be."""
        self.shape = x.shape[1:]
        most = WARM_ROWS if self.exact else SAMPLE_ROWS
        if columns is None:
            if self.settings.scale == "auto" and x.dtype.kind != "i":
                self._numbers = Numbers(math.prod(self.shape), most)
            elif self.settings.scale == "tables" and not self.exact:
                self.unscaled = unscaled(x)
            return
        self.pinned = Pinned.of(columns, left_out)
        if self._kinds("number"):
            self._numbers = Numbers(len(self._kinds("number")), most)
            gaps = np.isnan(self._numbered(x, columns)).sum(0).tolist()
            may = {column.name for column in columns if column.missing}
            for name, count in zip(self._kinds("number"), gaps, strict=True):
                if count == 0 and name not in may:
                    self._gaps[name] = 0
        if self.settings.categories == "one-hot":
            self._places = {name: Places(_places_for(len(words)), {}) for name, _, words in self._categories(x, columns)}

    def take(self, x: Array, columns: Columns | None, lsn: int, new_words: Sequence[str] = ()) -> None:
        """A batch joins what is known of the rows."""
        self.words.add(new_words)
        if not self.active:
            return
        for name, codes, words in self._categories(x, columns):
            if name in self._places:
                self._places[name].take(words, codes)
        if self._gaps and x.dtype.kind == "f":
            gaps = np.isnan(self._numbered(x, columns)).sum(0).tolist()
            for name, more in zip(self._kinds("number"), gaps, strict=True):
                if name in self._gaps:
                    self._gaps[name] += int(more)
        if self._numbers is not None and self.frozen and self.scaled and not self.exact:
            far = self._numbers.far(self._numbered(x, columns)).sum(0)
            self._far = [len(x), *far.tolist()] if not self._far else (np.array([len(x), *far]) + self._far).tolist()
        if self._numbers is not None and not self.frozen:
            rows = self._numbered(x, columns)
            if self.exact:  # the first rows alone, however they are cut
                rows = rows[: WARM_ROWS - self._numbers.rows]
            self._numbers.take(rows, [self.seed, lsn])

    def encode(self, x: Array, columns: Columns | None) -> Array:
        """Rows as the model takes them; x itself where nothing is done to it.

        Raises Refused ``bad_shape bad_array`` where these are not the columns that were pinned.
        """
        if self.pinned is None:
            return x if self._numbers is None else self._plain_scaled(x)
        if not self.active:
            return tables.ordered(x, self._order(columns))
        out = np.zeros((len(x), self.signature(Signature(self.shape or (), False, ())).x_shape[0]))
        found = {name: (codes, words) for name, codes, words in self._categories(x, columns)}
        numbers = self._numbered(x, columns) if self._numbers is not None else np.empty((len(x), 0))
        z = numbers if self._numbers is None or not self.scaled else self._numbers.encode(numbers)
        at, places = 0, list[int]()
        for name, kind in self.pinned.kinds.items():
            width = self._width_of(name, kind)
            if kind == "category":
                self._encode_words(name, *found[name], out[:, at : at + width])
            else:
                places.append(at)
            at += width
        self._put(out, np.array(places, np.int64), numbers, z)
        return out

    def _put(self, out: Array, places: npt.NDArray[np.int64], sent: Array, z: Array) -> None:
        """Numbers at their places, and behind them, where there is an input for it, whether they are missing."""
        if self._numbers is None:
            return
        missing = np.isnan(sent)
        out[:, places] = z if self.scaled else np.where(missing, self._numbers.centre, sent)
        marked = np.array([name not in self._gaps for name in self._kinds("number")])
        out[:, places[marked] + 1] = missing[:, marked]

    def _encode_words(self, name: str, codes: npt.NDArray[np.int64], words: Sequence[str], out: Array) -> None:
        if name in self._places:
            self._places[name].encode(words, codes, out)
            return
        table = np.array([*(direction(word) for word in words), np.zeros(DIRECTION)])
        out[:, :DIRECTION] = table[codes]
        out[:, DIRECTION] = codes < 0

    def labels(self, y: Array, columns: Columns | None) -> Array:
        """Targets as labels: codes of words become the words' labels (-1: a word that never came); others stay."""
        named = None if columns is None else tables.target(columns)
        if named is None or named.categories is None:
            return y
        return self.words.to_labels(y, named.categories)

    def _order(self, columns: Columns | None) -> list[int]:
        assert self.pinned is not None
        if columns is not None:
            return self.pinned.order(columns)
        if self.pinned.has_words:
            raise Refused("bad_array", "expected a schema with these rows, since their stream has columns of words")
        return list(range(len(self.pinned.kinds)))

    def _numbered(self, x: Array, columns: Columns | None) -> Array:
        """The numbers of rows, [n, k] float64, in the pinned order."""
        if self.pinned is None:
            return x.reshape(len(x), -1).astype(np.float64)
        order = self._order(columns)
        places = [place for place, kind in zip(order, self.pinned.kinds.values(), strict=True) if kind == "number"]
        return x[:, places].astype(np.float64)

    def _plain_scaled(self, x: Array) -> Array:
        assert self._numbers is not None
        return self._numbers.encode(self._numbered(x, None)).reshape(x.shape)

    def _categories(self, x: Array, columns: Columns | None) -> list[tuple[str, npt.NDArray[np.int64], Sequence[str]]]:
        """Name, codes and words of every column of words, in the pinned order."""
        if self.pinned is None or columns is None or not self.pinned.has_words:
            return []
        sent = {column.name: (place, column.categories or ()) for place, column in enumerate(tables.features(columns))}
        return [(name, tables.codes_of(x[:, sent[name][0]]), sent[name][1]) for name in self._kinds("category")]

    def freeze(self) -> None:
        """Numbers are brought to scale by what is known now, from here on."""
        if self._numbers is not None and not self.frozen:
            self._numbers.find()
        self.frozen = True

    # -- said and kept ---------------------------------------------------------------------------------------------

    def counted(self) -> None:
        """At a boundary, once `told`: the next task's rows are counted by themselves."""
        self._far = []

    def told(self) -> list[str]:
        """What its user should know: words and missing numbers that have no input of their own, and columns that lie
        elsewhere in the newest task."""
        gaps = [
            f"column {name!r}: {count} numbers are missing, but none was in the first batch, so no input says so: they "
            "count as the column's mean. Say missing = true in the first batch's schema, on a new state directory"
            for name, count in self._gaps.items()
            if count
        ]
        words = [
            f"column {name!r}: {places.beyond} rows have words beyond the {places.most} that have an input of their own; "
            "they count as one word. Send more of its words in the first batch, or set input.categories = 'embedding', on "
            "a new state directory"
            for name, places in self._places.items()
            if places.beyond
        ]
        return [*gaps, *words, *self._elsewhere()][:MOST_TOLD]

    def _elsewhere(self) -> list[str]:
        if not self._far:
            return []
        rows, *drawn = self._far
        names = [repr(name) for name in self._kinds("number")] if self.pinned else [f"{n} of x" for n in range(len(drawn))]
        return [
            f"column {name}: {count} of this task's {rows} rows lie more than {FAR:g} standard deviations from where it "
            "was at the first boundary, which fixed its scale, and are squeezed together: what differs among them is "
            "learned badly. Let the first task have rows of all kinds, on a new state directory, or send a common scale"
            for name, count in zip(names, drawn, strict=True)
            if count > ELSEWHERE * rows
        ]

    def summary(self) -> dict[str, Any]:
        """For a status: of the columns of words, those with the most rows beyond their places."""
        most = sorted(self._places.items(), key=lambda pair: (-pair[1].beyond, pair[0]))[:MOST_TOLD]
        words = {name: {"words": len(p.taken), "places": p.most, "beyond": p.beyond} for name, p in most}
        rows = 0 if self._numbers is None else self._numbers.rows
        gaps = dict([(name, count) for name, count in self._gaps.items() if count][:MOST_TOLD])
        found = {"active": self.active, "frozen": self.frozen, "rows": rows, "categories": words, "unmarked_missing": gaps}
        found["unscaled"] = self.unscaled
        return found if self.begun else {}

    def plain(self) -> dict[str, Any] | None:
        """What a checkpoint has of it beside `state`; None of plain arrays taken as they are."""
        if not self.begun or self.plain_arrays:
            return None if self.unscaled is None else {"unscaled": self.unscaled}
        places = {name: [p.most, p.beyond, list(p.taken)] for name, p in self._places.items()}
        rows = None if self._numbers is None else [self._numbers.rows, self._numbers.at]
        return {
            "shape": list(self.shape or ()),
            "frozen": self.frozen,
            "places": places,
            "rows": rows,
            "gaps": self._gaps,
        } | ({"far": self._far} if self._far else {})

    def state(self) -> dict[str, Array]:
        """Its arrays: the sample, until it is frozen, and centre and scale [2, k]."""
        if self._numbers is None:
            return {}
        kept = {} if self.frozen else {SAMPLE: self._numbers.sample}
        return {**kept, FOUND: np.stack([self._numbers.centre, self._numbers.scale])}

    def load(
        self,
        pinned: Mapping[str, Any] | None,
        words: Sequence[str],
        plain: Mapping[str, Any] | None,
        arrays: Mapping[str, Array],
        sent: Signature | None = None,
    ) -> None:
        """Take over what `plain` and `state` gave. sent: of rows as they are sent, where there have been any."""
        self.words.add(words)
        self.shape = None if sent is None else sent.x_shape
        if plain is None or "shape" not in plain:
            self.unscaled = None if plain is None else plain["unscaled"]
            return
        self.shape, self.frozen = tuple(plain["shape"]), plain["frozen"]
        self.pinned = None if pinned is None else Pinned.from_plain(pinned)
        self._places = {
            name: Places(most, {word: place for place, word in enumerate(taken)}, beyond)
            for name, (most, beyond, taken) in plain["places"].items()
        }
        self._gaps, self._far = dict(plain["gaps"]), list(plain.get("far", ()))
        if FOUND in arrays:
            found = np.array(arrays[FOUND], np.float64)
            self._numbers = Numbers(found.shape[1], WARM_ROWS if self.exact else SAMPLE_ROWS)
            self._numbers.centre, self._numbers.scale = found[0].copy(), found[1].copy()
            self._numbers.rows, self._numbers.at = plain["rows"]
            if SAMPLE in arrays:
                self._numbers.sample = np.array(arrays[SAMPLE], np.float64)

    def description(self) -> dict[str, Any] | None:
        """For an export: each input of the model, in order, and how it is computed."""
        if self.plain_arrays:
            return None
        found: dict[str, Any] = {"far": FAR, "columns": []}
        number = 0
        kinds = self.pinned.kinds if self.pinned is not None else {}
        for name, kind in kinds.items():
            own: dict[str, Any] = {"name": name, "kind": kind}
            if kind == "number" and self._numbers is not None:
                own |= {"centre": float(self._numbers.centre[number]), "scale": float(self._numbers.scale[number])}
                own |= {"scaled": self.scaled, "indicator": name not in self._gaps}
                number += 1
            elif name in self._places:
                own |= {"words": list(self._places[name].taken), "places": self._places[name].most}
            found["columns"].append(own)
        if self.pinned is None and self._numbers is not None:
            found |= {"centre": self._numbers.centre.tolist(), "scale": self._numbers.scale.tolist()}
        return found


def unscaled(x: Array) -> str | None:
    """Why rows [n, ...] of a first batch, taken as they are, are hard to learn for a network; None where they are not."""
    if x.dtype.kind == "i" or x.ndim != 2:
        return None
    rows = x.astype(np.float64)
    size, spread = np.sqrt((rows**2).mean(0)), rows.std(0)
    place = int(size.argmax())
    varied = spread[spread > 0]
    apart = len(varied) and varied.max() > UNLIKE * np.median(varied)
    if size[place] <= HUGE and not (size[place] > LARGE and apart):
        return None
    return (
        f"plain arrays are taken as they are, and column {place} of x is of size {size[place]:.3g}"
        + (f", others of {np.median(varied):.3g}" if apart else "")
        + ": a network learns that badly. Set input.scale = 'auto' before the first rows (on a new state directory), or "
        "scale the rows"
    )


def encoded(inputs: Inputs, sent: Signature, x: Array, columns: Columns | None) -> Array:
    """Rows to be predicted, as the model takes them; raises Refused where they are not the columns of the stream."""
    if inputs.pinned is None:
        if columns is not None:
            raise Refused(
                "bad_shape",
                "header.schema: the first batch of this stream had no schema, so its columns have no names to be matched "
                "with; send the rows as a plain array, in the same order",
            )
        if inputs.active:
            sent.check_x(x)
        return inputs.encode(x, None)
    own = inputs.pinned.columns if columns is None else columns
    if columns is None and inputs.pinned.has_words:
        raise Refused("bad_array", "predict.x: expected a schema with these rows, since their stream has columns of words")
    tables.check(own)
    inputs.pinned.order(own)
    tables.check_rows(x, own, missing=inputs.settings.missing != "refuse", words=inputs.settings.categories != "refuse")
    return inputs.encode(x, own)


def _places_for(seen: int) -> int:
    """How many words a column has inputs for, by those in its first batch."""
    wanted = 1 << max(0, 2 * seen - 1).bit_length()
    return max(LEAST_PLACES, seen, min(wanted, MOST_PLACES))
