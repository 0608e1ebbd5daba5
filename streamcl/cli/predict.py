"""``streamcl predict``: a data file's rows, answered; as lines, or as a file of predictions beside the rows' keys.

A file of predictions (CSV, Parquet) has the columns that say which row is which (``--keep``; left to itself, the columns
that are not sent, such as identifiers) as they are written, and behind them

    predicted                 the label, or the mean (``predicted.0`` and so on where a row has several)
    probability.LABEL         of each label that was seen, or of each output
    variance                  of each mean

An NPZ file has the arrays alone; beside `probs`, `labels` are its columns', as in JSON; where a label is -1, `unseen` has
the places of the columns whose -1 is none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_connection, add_json, command, print_fields, print_json, reader
from streamcl.cli.files import Agreement, add_columns, opened, predicted, read_as, say
from streamcl.cli.readable import ago
from streamcl.errors import DataError, Refused

if TYPE_CHECKING:
    import pyarrow as pa

    from streamcl.client import Prediction, Reader
    from streamcl.datafiles import Array, DataFile, Reading, Schema

PREDICT_ROWS = 4096
SILENT_SECONDS = 10.0  # a follower hears its daemon every two
SCORES = frozenset({"accuracy", "rmse"})
ENDINGS = (".csv", ".parquet", ".npz")


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "predict",
        predict,
        "Predict every row of a data file, one line each; with targets in it, score the predictions too. The score, and "
        "how the file was read, go to standard error, beside the predictions (with --out or --json, they are "
        "among the results).",
        "streamcl predict test.csv --label price --out answers.csv",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--samples",
        type=int,
        default=0,
        help="average over this many draws of the outputs, as far as the posterior leaves them open",
    )
    asked.add_argument(
        "--uncertainty",
        action="store_true",
        help="the same without draws: corrected probabilities, or variances with the outputs' own",
    )
    parser.add_argument(
        "--task", help="the task that the rows are of, where model.scenario is task: answers are then among its labels"
    )
    add_columns(
        parser,
        "the target's column or array, if the file has one (default: one named label, target, class or y; else the last "
        "column, if the model takes one column fewer; reported)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write the predictions to this file: .csv or .parquet, a row each, with labels and probabilities; or .npz, "
        "its arrays (labels: of the columns of probs, -1 or empty where none has come; of a stream that has a label -1, "
        "unseen: the places of those columns; with --json likewise)",
    )
    parser.add_argument(
        "--keep",
        action="append",
        metavar="COLUMNS",
        help="with --out FILE.csv or .parquet: the columns of the input that stand in front of its predictions (default: "
        "those that are not sent, such as identifiers); names, separated by commas, or once each",
    )
    add_connection(parser, "predict")
    add_json(parser)


def predict(options: argparse.Namespace) -> None:
    """Predict a file's rows."""
    import numpy as np

    _refuse_odd_use(options)
    with reader(options) as daemon:
        file, (answers, targets) = _asked(options, daemon)
    arrays = {name: np.concatenate([answer.arrays[name] for answer in answers]) for name in answers[0].arrays}
    if "probs" in arrays and answers[0].labels is not None:
        labels = np.concatenate([answer.label for answer in answers])
        arrays["label"] = labels.astype(str) if labels.dtype.kind == "O" else labels
    if answers[0].note is not None:
        print(answers[0].note, file=sys.stderr)
    say_behind(answers[-1].behind)
    if options.out is not None:
        _write(options, file.data, arrays, answers[-1])
    y = np.concatenate(targets) if targets else None
    if y is not None and "label" in arrays and answers[-1].labels is not None:
        y = _among(file, y, [answers[-1].labels.tolist()[place] for place in answers[-1].seen])
    _report(options, file, arrays, y, answers[-1])


def _among(file: Agreement, y: Array, known: list[Any]) -> Array | None:
    """Targets, with a note where some are no labels of the stream; None where none is: then nothing could be right."""
    from streamcl.datafiles.choice import listed

    told = dict.fromkeys(y.ravel().tolist())
    other = [each for each in told if each not in known]
    if not other:
        return y
    said = (
        f"{listed([repr(each) for each in other])}, where the stream's labels are {listed(list(map(repr, sorted(known))))}"
    )
    if len(other) == len(told):
        file.notes.append(f"{file.data.path}: not scored: its targets are {said}")
        return None
    file.notes.append(f"{file.data.path}: rows count as wrong whose targets have not come yet: {said}")
    return y


def say_behind(behind: Mapping[str, Any] | None) -> None:
    """Of a follower's answer, on standard error, where it may be older than what the daemon would have answered."""
    if behind is None:
        return
    if behind["seconds"] is None or behind["seconds"] > SILENT_SECONDS:
        since = "since it started" if behind["seconds"] is None else f"for {ago(behind['seconds'])}"
        print(f"streamcl: this follower has not heard its daemon {since}; there may be newer parameters", file=sys.stderr)
    elif behind["rows"] or behind["records"] or behind["steps"]:
        print(f"streamcl: this follower is {behind['rows']} rows behind its daemon, and fetches them", file=sys.stderr)


def _refuse_odd_use(options: argparse.Namespace) -> None:
    ending = None if options.out is None else options.out.suffix.lower()
    if ending is not None and ending not in ENDINGS:
        raise DataError(f"--out {options.out}: expected a file that ends with {', '.join(ENDINGS)}")
    if options.keep and ending not in (".csv", ".parquet"):
        raise DataError("--keep: the columns of a file of predictions; add --out FILE.csv or --out FILE.parquet")


def _asked(options: argparse.Namespace, daemon: Reader) -> tuple[Agreement, tuple[list[Prediction], list[Array]]]:
    """A file, its rows' predictions and their targets.

    A table without a column named like a target may still have one: its last column, if the model takes one fewer.
    """
    known = predicted(daemon)
    data = opened(options, options.file, PREDICT_ROWS, labelled=options.label is not None, known=known)
    try:
        agreement = Agreement(data, options.numbers)
        answered = _answers(options, daemon, agreement)
    except Refused as refused:
        if (
            refused.code != "bad_shape"
            or data.choice.label is not None
            or len(data.choice.features) < 2
            or options.features
        ):
            _say(options, data.reading)
            raise
        try:
            agreement = Agreement(opened(options, options.file, PREDICT_ROWS, known=known), options.numbers)
            answered = _answers(options, daemon, agreement)
        except (Refused, DataError):  # its last column is no target either: what is wrong is what was said first
            _say(options, data.reading)
            raise refused from None
    _say(options, agreement.data.reading)
    return agreement, answered


def _say(options: argparse.Namespace, reading: Reading) -> None:
    say(options, reading, sys.stdout if options.out is not None else sys.stderr)


def _answers(options: argparse.Namespace, daemon: Reader, agreement: Agreement) -> tuple[list[Prediction], list[Array]]:
    def ask(x: Array, y: Array | None, schema: Schema | None) -> Prediction:
        asked = {"samples": options.samples, "uncertainty": options.uncertainty, "task": options.task}
        return daemon.predict(x, **asked, schema=schema)

    answers = list(agreement.blocks(ask, ask))
    form = agreement.form or agreement.data.form()
    pairs = [form.of(x, y) for x, y in agreement.data.blocks()]
    return answers, [agreement.data.targets(y) for _, y in pairs if y is not None]


def _report(options: argparse.Namespace, file: Agreement, arrays: dict[str, Any], y: Any, answer: Prediction) -> None:
    import numpy as np

    summary: dict[str, Any] = {"rows": len(next(iter(arrays.values()))), "version": answer.version}
    if y is not None:
        summary |= _scored(file, arrays, y)
    if options.json:
        named = {name: array.tolist() for name, array in _named(answer).items()}
        print_json(summary | named | {name: array.tolist() for name, array in arrays.items()} | {"read": read_as(file)})
        return
    notes = sys.stdout if options.out is not None else sys.stderr
    print(*file.notes, sep="\n", end="\n" if file.notes else "", file=notes)
    if options.out is not None:
        print_fields(summary)
        return
    name = next(name for name in ("label", "mean", "probs") if name in arrays)
    for value in arrays[name]:
        print(value if np.ndim(value) == 0 else " ".join(f"{v:.6g}" for v in np.ravel(value)))
    sys.stdout.flush()
    for kind in SCORES & summary.keys():
        print(f"{kind} {summary[kind]:.4g} over {summary['rows']} rows", file=sys.stderr)


def _scored(file: Agreement, arrays: dict[str, Any], y: Any) -> dict[str, float]:
    """The score; if the targets do not fit this model, says so instead."""
    try:
        return scores(arrays, y)
    except DataError as error:
        file.notes.append(f"{file.data.path}: not scored: {error}")
        return {}


def scores(arrays: dict[str, Any], y: Any) -> dict[str, float]:
    """Accuracy, or the root mean square error. Raises DataError if the targets' shape differs from the predictions'."""
    import numpy as np

    name = next(name for name in ("label", "probs", "mean") if name in arrays)
    predicted = arrays[name]
    if predicted.size != y.size or len(predicted) != len(y):
        raise DataError(f"expected targets of shape {list(predicted.shape)}, as the predictions, got {list(y.shape)}")
    y = y.reshape(predicted.shape)
    if name == "mean":
        return {"rmse": float(np.sqrt(np.mean((predicted.astype(np.float64) - y) ** 2)))}
    return {"accuracy": float(np.mean(predicted == y if name == "label" else (predicted > 0.5) == y))}


# -- a file of predictions ---------------------------------------------------------------------------------------------


def _write(options: argparse.Namespace, data: DataFile, arrays: dict[str, Array], answer: Prediction) -> None:
    if options.out.suffix.lower() == ".npz":
        import numpy as np

        named = {name: _without_objects(array) for name, array in _named(answer).items()}
        with options.out.open("wb") as out:
            np.savez(out, **arrays, **named)  # type: ignore[arg-type]
        return
    import pyarrow as pa
    from pyarrow import csv, parquet

    kept = data.cells(_kept(data, options.keep))
    columns = dict(_columns(arrays, answer))
    both = sorted(columns.keys() & kept.keys())
    if both:
        raise DataError(f"{data.path}: column {both[0]!r} has the name of a column of predictions; name others with --keep")
    table = pa.table({**kept, **columns})
    if options.out.suffix.lower() == ".csv":
        csv.write_csv(_flat(table), options.out)
    else:
        parquet.write_table(table, options.out)


def _kept(data: DataFile, asked: Sequence[str] | None) -> list[str]:
    """The columns that say which row is which."""
    if asked is None:
        return [name for name in data.choice.left_out if name in data.names]
    from streamcl.datafiles.choice import each_named

    return each_named(data.path, data.names, asked, "--keep")


def _named(answer: Prediction) -> dict[str, Array]:
    """The labels of the columns of `probs`; of a stream that has a label -1, also which columns have none."""
    import numpy as np

    named = {} if answer.labels is None else {"labels": answer.labels}
    return named if answer.unseen is None else named | {"unseen": np.array(answer.unseen, np.int64)}


def _without_objects(labels: Array) -> Array:
    """Words as NumPy's own text, empty where no word has come; numbers as they are."""
    return labels if labels.dtype.kind != "O" else labels.astype(object, copy=True).astype(str)


def _columns(arrays: dict[str, Array], answer: Prediction) -> Iterator[tuple[str, Array]]:
    """Every column of predictions by its name, [n]."""
    if "mean" in arrays:
        yield from _numbered("predicted", arrays["mean"])
        yield from _numbered("variance", arrays["variance"])
    elif "label" in arrays:
        yield "predicted", arrays["label"]
        labels = answer.labels
        assert labels is not None
        for place in sorted(answer.seen, key=lambda place: labels[place]):  # all numbers, or all words
            yield f"probability.{labels[place]}", arrays["probs"][:, place]
    else:
        yield from _numbered("predicted", (arrays["probs"] > 0.5).astype("<i8"))
        yield from _numbered("probability", arrays["probs"])


def _numbered(name: str, values: Array) -> Iterator[tuple[str, Array]]:
    flat = values.reshape(len(values), -1)
    for place, column in enumerate(flat.T):
        yield (name if values.ndim == 1 else f"{name}.{place}"), column.copy()


def _flat(table: pa.Table) -> pa.Table:
    """With dictionaries as the words they stand for, which CSV has no other way to write."""
    import pyarrow as pa

    plain = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column for column in table.columns
    ]
    return pa.table(dict(zip(table.column_names, plain, strict=True)))
