"""``streamcl bridge``: records of Kafka or NATS JetStream as batches, exactly once."""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from streamcl.cli.common import add_connection, add_json, command, endpoint, group, keys, print_json
from streamcl.errors import ConfigError

if TYPE_CHECKING:
    from streamcl.bridges.bridge import Counts, Source
    from streamcl.bridges.choice import Choice
    from streamcl.bridges.records import Record
    from streamcl.client import Producer

SILENCE = 15.0  # seconds in which nothing moves, before the bridge connects anew and says why it waits
EXACTLY_ONCE = (
    "The daemon's log remembers how far each {part} has come: run again after whatever interruption, it goes on there; "
    "nothing is lost, nothing is learned twice, and nothing is committed to the broker. Ends on Ctrl-C or SIGTERM with 0; "
    "what is not stored by then is fetched again by the next start."
)


class Stopped(BaseException):
    """A signal asks the bridge to end."""


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    bridges = group(commands, "bridge", "Records of a broker as batches, exactly once.", "BROKER")
    _add_kafka(bridges)
    _add_nats(bridges)


def _add_kafka(bridges: Any) -> None:
    parser = command(
        bridges,
        "kafka",
        kafka,
        "Learn from a Kafka topic. " + EXACTLY_ONCE.format(part="partition"),
        "streamcl bridge kafka orders --bootstrap broker:9092 --label price --task orders",
    )
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument(
        "--bootstrap",
        metavar="HOST:PORT[,...]",
        help="brokers (default: bootstrap.servers of --config or --config-file, else localhost:9092)",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of librdkafka (SASL, TLS, ...); repeatable",
    )
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="a file of such lines; the place for passwords")
    parser.add_argument(
        "--partitions", type=_numbers, default=(), metavar="N,...", help="only these, so that several bridges share a topic"
    )
    _add_start(parser, "where a partition begins of which the daemon holds nothing yet: earliest, latest or an offset")
    _add_common(parser, "topic")


def _add_nats(bridges: Any) -> None:
    parser = command(
        bridges,
        "nats",
        nats,
        "Learn from a NATS JetStream stream. " + EXACTLY_ONCE.format(part="stream"),
        "streamcl bridge nats ORDERS --server nats://broker:4222 --label price --task orders",
    )
    parser.add_argument("stream_name", metavar="STREAM")
    parser.add_argument(
        "--server",
        default=os.environ.get("NATS_URL", "nats://localhost:4222"),
        metavar="URL[,...]",
        help="(default $NATS_URL, else nats://localhost:4222)",
    )
    parser.add_argument("--subject", default=">", metavar="FILTER", help="only messages of these subjects (default all)")
    for name, text in (
        ("creds", "credentials (JWT and seed)"),
        ("nkey", "an nkey's seed"),
        ("tls-ca", "certificates of authorities"),
        ("tls-cert", "this client's certificate"),
        ("tls-key", "its key"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
    _add_start(parser, "where to begin while the daemon holds nothing of the stream: earliest, latest or a sequence number")
    _add_common(parser, "topic")


def _add_start(parser: argparse.ArgumentParser, where: str) -> None:
    parser.add_argument(
        "--from",
        dest="start",
        type=_start,
        default="earliest",
        metavar="WHERE",
        help=f"{where} (default earliest; latest is taken anew at each start until the first batch is stored)",
    )


def _add_common(parser: argparse.ArgumentParser, task: str) -> None:
    """What every bridge takes."""
    from streamcl.bridges.choice import BOUNDARY_HEADER, FORMATS, TASKS_FROM

    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="json",
        help="of a record: an object of fields (json, msgpack), a line (csv), a table (arrow), a pair of arrays x and y "
        "(npz); json and msgpack also take a list of objects, and a field that is a list of numbers as features (default "
        "json)",
    )
    parser.add_argument("--columns", type=_names, default=(), metavar="A,B,C", help="of csv: the names of a line's cells")
    parser.add_argument("--label", metavar="FIELD", help="the target's field (default: label, target, class or y, by name)")
    parser.add_argument(
        "--features", type=_names, default=(), metavar="A,B", help="fields to learn from (default: all others)"
    )
    parser.add_argument("--drop", type=_names, default=(), metavar="A,B", help="fields to leave out")
    parser.add_argument(
        "--words", type=_names, default=(), metavar="A,B", help="fields that are words, though they look like numbers"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--task", help="the task of all records")
    where.add_argument(
        "--task-from",
        type=_task_from,
        default=task,
        metavar="WHERE",
        help=f"where it stands: {', '.join(TASKS_FROM)} (default {task}; of NATS, the stream; its key is the subject)",
    )
    parser.add_argument(
        "--boundary-header",
        default=BOUNDARY_HEADER,
        metavar="NAME",
        help=f"a record with this header closes its task, after its row if it has one (default {BOUNDARY_HEADER})",
    )
    parser.add_argument(
        "--boundary-field", metavar="FIELD", help="a row in which this field is true closes its task after it"
    )
    parser.add_argument("--rows", type=_positive, default=256, help="rows a batch (default 256)")
    parser.add_argument(
        "--linger", type=float, default=0.2, metavar="SECONDS", help="that a batch waits for them (default 0.2)"
    )
    parser.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="a record that cannot be learned: end with its place and the reason (default), or pass it over and count it",
    )
    parser.add_argument("--bad-records", type=Path, metavar="FILE", help="with --on-bad skip: append such records here")
    parser.add_argument(
        "--accept-loss", action="store_true", help="go on behind what the broker removed before it was read, and count it"
    )
    parser.add_argument("--until-end", action="store_true", help="end when there are no more records, with 0")
    parser.add_argument(
        "--patience", type=float, metavar="SECONDS", help="end with 1 after so long without the daemon (default: wait)"
    )
    parser.add_argument("--name", help="of the producers (default: made of the broker's names)")
    add_connection(parser, "stream")
    add_json(parser)


def kafka(options: argparse.Namespace) -> int:
    """Run the bridge to Kafka."""
    _check(options)
    from streamcl.bridges import kafka as broker

    return _run(
        options,
        lambda: broker.Kafka(
            options.topic,
            options.bootstrap,
            _say,
            config=broker.settings(options.config, options.config_file),
            only=options.partitions,
            start=options.start,
            accept_loss=options.accept_loss,
            name=options.name,
        ),
    )


def nats(options: argparse.Namespace) -> int:
    """Run the bridge to NATS."""
    _check(options)
    from streamcl.bridges import nats as broker

    files = broker.security(options.creds, options.nkey, options.tls_ca, options.tls_cert, options.tls_key)
    return _run(
        options,
        lambda: broker.Nats(
            options.stream_name,
            options.server.split(","),
            _say,
            options=files,
            subject=options.subject,
            start=options.start,
            accept_loss=options.accept_loss,
            name=options.name,
        ),
    )


def _run(options: argparse.Namespace, source: Callable[[], Source]) -> int:
    from streamcl.bridges.bridge import Bridge

    counts: Counts | None = None
    try:
        with _signals(), _set_aside(options) as aside:
            _first_contact(options)
            broker = source()
            try:
                bridge = Bridge(
                    broker,
                    _choice(options),
                    lambda name: _producer(options, name),
                    _say,
                    rows=options.rows,
                    linger=options.linger,
                    skip=options.on_bad == "skip",
                    set_aside=aside,
                    until_end=options.until_end,
                    patience=options.patience,
                )
                counts = bridge.counts
                bridge.run()
            finally:
                broker.close()
    except Stopped:
        pass
    finally:
        if counts is not None:
            _report(options, counts)
    return 1 if counts is not None and counts.failed else 0


def _first_contact(options: argparse.Namespace) -> None:
    """A daemon must be there at the start; later, it is waited for."""
    endpoint(options, "stream")


def _producer(options: argparse.Namespace, name: str) -> Producer:
    """Of one partition. Raises Unreachable."""
    from streamcl.client import Producer

    where = endpoint(options, "stream")  # anew each time: a daemon started again may listen elsewhere
    patience = SILENCE if options.patience is None else min(SILENCE, options.patience)
    return Producer(where, name, gather_bytes=0, timeout=patience, keys=keys(options))


def _say(text: str) -> None:
    print(f"streamcl: {text}", file=sys.stderr, flush=True)


def _choice(options: argparse.Namespace) -> Choice:
    from streamcl.bridges.choice import Choice

    return Choice(
        options.format,
        options.columns,
        options.label,
        options.features,
        options.drop,
        frozenset(options.words),
        options.task,
        options.task_from,
        options.boundary_header,
        options.boundary_field,
    )


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that contradict one another, or would have no effect."""
    if (options.format == "csv") != bool(options.columns):
        raise ConfigError("--columns names the cells of --format csv: give both or none")
    if options.bad_records is not None and options.on_bad != "skip":
        raise ConfigError("--bad-records keeps what --on-bad skip passes over; give both")
    if options.format == "npz" and (options.words or options.drop or options.boundary_field or len(options.features) > 1):
        raise ConfigError(
            "--format npz has two arrays, which --features and --label name; --words, --drop and "
            "--boundary-field are of fields"
        )
    if options.format == "npz" and options.task_from.startswith("field:"):
        raise ConfigError("--format npz has no fields: say --task, or --task-from topic, key or header:NAME")


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the bridge; a second one is not caught."""

    def stop(number: int, frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _set_aside(options: argparse.Namespace) -> Iterator[Callable[[Record, str], None]]:
    """Where bad records go: a file of JSON lines, values in Base64."""
    if options.bad_records is None:
        yield lambda record, reason: None
        return
    with options.bad_records.open("a") as file:

        def keep(record: Record, reason: str) -> None:
            value = None if record.value is None else base64.b64encode(record.value).decode()
            where = {"topic": record.topic, "partition": record.partition, "number": record.number}
            file.write(json.dumps({**where, "reason": reason, "value": value}) + "\n")
            file.flush()

        yield keep


def _report(options: argparse.Namespace, counts: Counts) -> None:
    found = counts.plain()
    if options.json:
        print_json(found)
        return
    passed = {name: found[name] for name in ("tombstones", "bad", "lost", "again", "unnumbered") if found[name]}
    said = "".join(f", {number} {SAID[name]}" for name, number in passed.items())
    print(
        f"{found['rows']} rows stored in {found['batches']} batches, of {found['records']} records read; "
        f"{found['boundaries']} tasks closed{said}"
    )


SAID = {
    "tombstones": "tombstones",
    "bad": "bad records passed over",
    "lost": "numbers lost",
    "again": "records that came again and were passed over",
    "unnumbered": "numbers without a record",
}


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    if not all(name.isdecimal() for name in _names(text)):
        raise argparse.ArgumentTypeError(f"expected partitions separated by commas, got {text!r}")
    return tuple(sorted({int(name) for name in _names(text)}))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _start(text: str) -> str:
    if text not in ("earliest", "latest") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected earliest, latest or an offset, got {text!r}")
    return text


def _task_from(text: str) -> str:
    kind, _, name = text.partition(":")
    if (kind in ("topic", "key") and text == kind) or (kind in ("header", "field") and name):
        return text
    raise argparse.ArgumentTypeError(f"expected topic, key, header:NAME or field:NAME, got {text!r}")
