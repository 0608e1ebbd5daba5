"""What the first batch fixes for every later one: shapes, kinds of numbers, and the map from labels to outputs; and which
of its rows a model is tried on.

Guarantees: checks change nothing; what a batch adds is applied separately, after it has been stored. Knows
nothing of sockets, files or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import Refused

Array = npt.NDArray[Any]

TRIED_ROWS = 32  # more would show nothing new and make the first acknowledgement slow
TRIED_BYTES = 16 << 20  # of x, at most, but at least one row
FEWEST, MOST_ALIKE = 2, 20  # different whole numbers that may be labels written as real numbers,
EACH = 5  # if a first batch, or file, has so many rows for each of them
GAUSSIAN = "model.likelihood = 'gaussian' (in a new state directory)"


@dataclass(frozen=True, slots=True)
class Signature:
    """The shape of one row of x and of y, and whether x holds real numbers or integers; and y, in the first batch.

    Real numbers (``<f2 <f4 <f8 |u1``) reach the model in the dtype it is trained in; integers (``<i4 <i8``, tokens
    for instance) as int64.
    """

    x_shape: tuple[int, ...]
    x_integer: bool
    y_shape: tuple[int, ...]
    y_real: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, x: Array, y: Array) -> Signature:
        """The signature of a batch."""
        return cls(x.shape[1:], x.dtype.kind == "i", y.shape[1:], y.dtype.kind == "f")

    def plain(self) -> dict[str, Any]:
        """As plain containers, for a message or a file."""
        shapes = {"x_shape": list(self.x_shape), "x_integer": self.x_integer, "y_shape": list(self.y_shape)}
        return {**shapes, "y_real": True} if self.y_real else shapes

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Signature:
        """What `plain` gave."""
        return cls(tuple(plain["x_shape"]), plain["x_integer"], tuple(plain["y_shape"]), plain.get("y_real", False))

    def check_x(self, x: Array) -> None:
        """Raise Refused ``bad_shape`` or ``bad_array`` where x is not rows of this signature."""
        if x.ndim == 0 or x.shape[1:] != self.x_shape:
            raise Refused("bad_shape", f"batch.x: expected {_rows(self.x_shape)}, got {list(x.shape)}")
        if (x.dtype.kind == "i") != self.x_integer:
            kind = "integers (<i4, <i8)" if self.x_integer else "real numbers (<f2, <f4, <f8, |u1)"
            raise Refused("bad_array", f"batch.x: expected {kind}, as in the first batch, got {x.dtype.str}")

    def check_y(self, y: Array) -> None:
        """Raise Refused ``bad_shape`` where y is not rows of this signature."""
        if y.ndim == 0 or y.shape[1:] != self.y_shape:
            raise Refused("bad_shape", f"batch.y: expected {_rows(self.y_shape)}, got {list(y.shape)}")


def _rows(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(["n", *map(str, shape)]) + "]"


def check_rows(x: Array, y: Array) -> None:
    """Raise Refused ``bad_shape`` unless x and y have the same positive number of rows and no empty dimension."""
    if x.ndim == 0 or y.ndim == 0 or len(x) == 0 or x.size == 0 or y.size == 0:
        raise Refused("bad_shape", f"batch: expected at least one row, got x {list(x.shape)} and y {list(y.shape)}")
    if len(x) != len(y):
        raise Refused("bad_shape", f"batch: expected as many rows in y as in x, got {len(x)} in x, {len(y)} in y")


def chosen(x: Array, y: Array) -> tuple[Array, Array]:
    """The rows of a first batch that a model is tried on: a few from all over it, since data often come sorted by label."""
    row = max(1, x.nbytes // max(1, len(x)))
    many = max(1, min(len(x), TRIED_ROWS, TRIED_BYTES // row))
    places = np.unique(np.linspace(0, len(x) - 1, many).round().astype(np.int64))
    return np.ascontiguousarray(x[places]), np.ascontiguousarray(y[places])


def like_labels(y: Array) -> str | None:
    """That real targets [n] of a first batch may be labels that were written as real numbers; None where they are not."""
    different = np.unique(y)
    if y.ndim != 1 or not few(len(different), len(y)) or (different % 1).any():
        return None
    return taken_for(len(different))


def few(different: int, rows: int) -> bool:
    """Whether so many different whole numbers in so many rows may be labels."""
    return FEWEST <= different <= min(MOST_ALIKE, rows // EACH)


def taken_for(different: int) -> str:
    """What so many different whole numbers that were written as real ones are taken for, and the remedy."""
    return (
        f"the targets are {different} different whole numbers, as labels are, but written as real ones, which go as "
        "measurements unless model.likelihood = 'categorical' was set before the first batch; if they are classes, set it "
        "on a new state directory, or write integers"
    )


COLUMNS = 10  # of a prediction, at first


@dataclass(slots=True)
class LabelMap:
    """The append-only map from the labels that producers send to the model's outputs.

    Which labels go together does not depend on the order in which they come, nor on how rows are cut into batches:

      * with a label 0, all are from 0 to classes-1 or, where `classes` is odd, from -(classes-1)/2 to (classes-1)/2;
      * without one, they are any numbers, at most `classes` of them: 1 to classes, say, or -1 and 1, or 100, 200 and 300.

    Label k is output k where there is such an output and no other label has it, `classes` is output 0, and a negative label
    counts from the last output down, on the same condition; any other takes the first output that is left. An output once
    given never moves; what a batch's new labels were given stands in its record.

    classes None: there is no bound, and every label takes the next output. named: labels stand for words.
    """

    classes: int | None
    outputs: dict[int, int] = field(default_factory=dict)
    named: bool = False

    @property
    def known(self) -> int:
        """How many outputs have been given, up to the last one."""
        return max(self.outputs.values(), default=-1) + 1

    @property
    def direct(self) -> bool:
        """Whether label k is output k (true too while there are no labels)."""
        return all(label == output for label, output in self.outputs.items()) and self._in_range(self.outputs)

    def _in_range(self, labels: Iterable[int]) -> bool:
        top = len(self.outputs) if self.classes is None else self.classes
        return all(0 <= label < top for label in labels)

    def new_labels(self, y: Array) -> tuple[int, ...]:
        """The labels of y not yet in the map, in order of appearance; raises Refused ``bad_label``, changes nothing."""
        if y.dtype.kind not in "iu":
            raise Refused("bad_label", no_integers(y))
        if y.ndim != 1:
            raise Refused("bad_shape", f"batch.y: expected one label a row, [n], got {list(y.shape)}")
        if self._knows_all(y):
            return ()
        first = np.unique(y, return_index=True)[1]
        fresh = tuple(int(y[i]) for i in np.sort(first) if int(y[i]) not in self.outputs)
        self._check(fresh)
        return fresh

    def _knows_all(self, y: Array) -> bool:
        """Whether every label of y has an output already: the common case, found in two passes over y."""
        top = 4 * len(self.outputs) if self.classes is None else self.classes
        if not self.outputs or y.min() < 0 or y.max() > top:
            return self.classes is None and all(label in self.outputs for label in np.unique(y).tolist())
        return all(label in self.outputs for label in np.flatnonzero(np.bincount(y)).tolist())

    def _check(self, fresh: tuple[int, ...]) -> None:
        together = {*self.outputs, *fresh}
        if self.classes is None:
            return
        if len(together) > self.classes:
            raise Refused(
                "bad_label",
                f"batch.y: {self.classes} outputs, {len(self.outputs)} of them taken, cannot hold {len(fresh)} new "
                f"labels such as {fresh[-1]}; set model.classes to the number of labels there will be",
            )
        if not self._go_together(together) and self._go_together(
            self.outputs
        ):  # else they did by an earlier version's rule
            zero = "label 0 has come before" if 0 in self.outputs else "label 0 comes too"
            wrong = next(label for label in (*fresh, *self.outputs) if not 0 <= label < self.classes)
            raise Refused(
                "bad_label",
                f"batch.y: expected labels 0 to {self.classes - 1} (model.classes = {self.classes}), since {zero}, got "
                f"{wrong}; number the labels from 0, or set model.classes to one more than the largest",
            )

    def _go_together(self, labels: Iterable[int]) -> bool:
        classes = len(self.outputs) if self.classes is None else self.classes
        reach = (classes - 1) // 2 if classes % 2 else -1
        return 0 not in labels or self._in_range(labels) or all(abs(label) <= reach for label in labels)

    def places(self, fresh: Iterable[int]) -> tuple[int, ...]:
        """The outputs that labels found by `new_labels` get; changes nothing."""
        if self.classes is None:
            return tuple(self.known + place for place, _ in enumerate(fresh))
        taken, places = set(self.outputs.values()), []
        for label in fresh:
            wanted = label if label >= 0 else label + self.classes
            wanted = 0 if wanted == self.classes else wanted
            free = 0 <= wanted < self.classes and wanted not in taken
            places.append(wanted if free else next(output for output in range(self.classes) if output not in taken))
            taken.add(places[-1])
        return tuple(places)

    def add(self, fresh: Iterable[int], places: Iterable[int] | None = None) -> None:
        """Give outputs to labels that `new_labels` has found: those given, else those of `places`."""
        fresh = tuple(fresh)
        self.outputs.update(zip(fresh, self.places(fresh) if places is None else places, strict=True))

    def take(self, fresh: tuple[int, ...], places: tuple[int, ...]) -> None:
        """Give outputs to labels as a stored batch has them, those of an earlier version as that did."""
        if fresh and not places:
            self.add_as_before(fresh)
        else:
            self.add(fresh, places)

    def add_as_before(self, fresh: Iterable[int]) -> None:
        """For records without outputs, of an earlier version: the first batch decided.

        If all of its labels lay in 0..classes-1, label k was output k; otherwise each took the next output.
        """
        fresh = tuple(fresh)
        direct = self.direct if self.outputs else self._in_range(fresh)
        for label in fresh:
            self.outputs[label] = label if direct else len(self.outputs)

    def to_outputs(self, y: Array) -> npt.NDArray[np.int64]:
        """The output index of every label of y, int64."""
        if self.direct:
            return y.astype(np.int64)
        values, inverse = np.unique(y, return_inverse=True)
        return np.array([self.outputs[int(value)] for value in values], np.int64)[inverse]

    def order(self) -> list[int]:
        """The outputs that have a label, in the order of their labels."""
        return [self.outputs[label] for label in sorted(self.outputs)]

    def columns(self) -> npt.NDArray[np.int64]:
        """The label of every column of a prediction where there is no bound: of those that have come, in their order.

        But as long as these are numbers from 0 to 9 alone, the columns are all of these, as version 1 has them: column k is
        label k, and -1 stands for one that has not come.
        """
        known = sorted(self.outputs)
        if self.named or not all(0 <= label < COLUMNS for label in known):
            return np.array(known, np.int64)
        return np.array([label if label in self.outputs else -1 for label in range(COLUMNS)], np.int64)

    def labels(self) -> npt.NDArray[np.int64]:
        """The label of every output, [classes], -1 where none has been seen yet."""
        labels = np.full(self.known if self.classes is None else self.classes, -1, np.int64)
        for label, output in self.outputs.items():
            labels[output] = label
        return labels


def no_integers(y: Array, against: str = "") -> str:
    """What is wrong with targets that are not labels, and what they may have been meant as.

    against: the setting that takes labels only, whatever the likelihood.
    """
    gaussian = f"{GAUSSIAN} without {against}, which is for labels only" if against else GAUSSIAN
    got = f"batch.y: expected integer labels (<i8, <i4 or |u1) for model.likelihood = 'categorical', got {y.dtype.str}"
    if y.size and bool((np.trunc(y) == y).all()):
        return f"{got}; if these whole numbers are labels, send them as integers; if they are measurements, set " + gaussian
    return f"{got} such as {float(y.flat[int((np.trunc(y) != y).argmax())]):g}; to learn real numbers, set {gaussian}"
