"""The daemon's metrics, by the names of the contract; the registry is injected.

Guarantees: the names and units of the contract, and a bounded number of label values: beyond `MAX_LABELS` producers
or tasks, a value counts under ``other``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

from streamcl.daemon.status import Following
from streamcl.daemon.words import Progress
from streamcl.entries import BY_ITSELF, Consolidated, Revisited
from streamcl.gauge import Past
from streamcl.protocol.session import StreamSession
from streamcl.version import __version__

MAX_LABELS = 1000
EXEMPLAR_CHARACTERS = 100  # of the 128 that OpenMetrics allows
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)

REJECTED = "Messages refused, by code."
FOLLOWERS = "Followers that have asked for publications in the last 30 seconds."

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Every metric of the contract in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._label_values: dict[str, set[str]] = {}

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"streamcl_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"streamcl_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"streamcl_{name}", text, buckets=buckets, registry=registry)

        self.batches_received = counter("batches_received", "Batches stored durably.", ("producer",))
        self.samples_trained = counter("samples_trained", "Rows learned from as they arrived.")
        self.batches_rejected = counter("batches_rejected", REJECTED, ("code",))
        self.duplicates = counter("duplicates", "Messages received again and not stored twice.")
        self.boundaries = counter("boundaries", "Tasks consolidated.")
        self.revisits = counter("revisits", "Tasks consolidated again.")
        self.quarantined = counter("quarantined", "How often a record could not be learned and was set aside.")
        self.held_tasks = gauge("held_tasks", "Tasks that could not be learned; their rows are kept.")
        self.set_aside_rows = gauge("set_aside_rows", "Rows of consolidated tasks that could not be learned and are kept.")
        self.drift_detected = counter("drift_detected", "Boundaries set by drift detection.")
        self.ended = counter("tasks_ended", "Tasks that the daemon ended itself, by what did (stream.boundary).", ("by",))
        self.recurred = counter("tasks_recurred", "Tasks whose rows look like an earlier one's (stream.recurring).")
        for origin in BY_ITSELF:
            self.ended.labels(origin)
        self.train_loss = gauge("train_loss", "Mean negative log likelihood of the newest batch or epoch, nats.")
        self.prequential_accuracy = gauge(
            "prequential_accuracy_ratio", "Share of rows that were predicted correctly before they were learned from."
        )
        self.task_penalty = gauge("task_penalty", "Penalty of a task's factor at the parameters.", ("task",))
        self.task_penalty_rise = gauge(
            "task_penalty_rise", "Rise of a task's penalty since its consolidation, nats per sample.", ("task",)
        )
        self.past_rise = gauge(
            "past_rise_nats", "Rise of the mean loss of all tasks since each was learned, estimated, nats per sample."
        )
        self.past_at_chance = gauge(
            "past_at_chance",
            "1 where all that the tasks before the newest had over guessing is estimated to be lost.",
        )
        self.tasks_at_chance = gauge("tasks_at_chance", "Tasks that are predicted no better than by guessing.")
        self.task_accuracy = gauge("task_accuracy_ratio", "Accuracy on a task's evaluation set.", ("task",))
        self.spool_bytes = gauge("spool_bytes", "Bytes of raw data on disk.")
        self.spool_budget = gauge("spool_budget_bytes", "Bytes of raw data that the open task may use.")
        self.open_task_bytes = gauge("open_task_bytes", "Bytes of raw data of the open task.")
        self.credit = gauge("credit_messages", "Messages that a producer may have unacknowledged; 0 if there is no room.")
        self.applied_lag = gauge("applied_lag_batches", "Durable batches not yet in a checkpoint.")
        self.ack_latency = histogram("ack_latency_seconds", "From a batch's arrival to its acknowledgement.", SHORT)
        self.fsync_duration = histogram("fsync_duration_seconds", "One sync of the log.", SHORT)
        self.train_step_duration = histogram("train_step_duration_seconds", "One training step.", SHORT)
        self.consolidation_duration = histogram(
            "consolidation_duration_seconds", "One task's epochs, Fisher and posterior.", LONG
        )
        self.checkpoint_duration = histogram("checkpoint_duration_seconds", "Writing and verifying a checkpoint.", LONG)
        self.checkpoint_time = gauge("checkpoint_last_success_timestamp_seconds", "When the newest checkpoint was written.")
        self.followers = gauge("followers", FOLLOWERS)
        self.trainer_up = gauge("trainer_up", "1 while the trainer process answers.")
        self._certificate_expiry: Gauge | None = None
        Info("streamcl_build", "Version of the daemon.", registry=registry).info({"version": __version__})

    def label(self, name: str, value: str) -> str:
        """`value`, or ``other`` once this label has too many values."""
        values = self._label_values.setdefault(name, set())
        if value not in values and len(values) >= MAX_LABELS:
            return "other"
        values.add(value)
        return value

    def received(self, producer: str) -> None:
        """A batch of this producer is in the log."""
        self.batches_received.labels(self.label("producer", producer)).inc()

    def rejected(self, code: str, number: int = 1) -> None:
        """So many messages were refused with this code."""
        self.batches_rejected.labels(code).inc(number)

    def trained(self, progress: Progress) -> None:
        """Take over what the trainer reported."""
        if progress.loss is not None:
            self.train_loss.set(progress.loss)
        if "accuracy" in progress.scores.overall:
            self.prequential_accuracy.set(progress.scores.overall["accuracy"])
        self.samples_trained.inc(progress.new_samples)
        for seconds in progress.step_seconds:
            self.train_step_duration.observe(seconds)

    def ingested(self, session: StreamSession) -> None:
        """Take over what the session holds."""
        self.applied_lag.set(session.stored_batches - session.applied_batches)
        self.spool_bytes.set(session.room.total_spool)
        self.spool_budget.set(session.terms.task_bytes)
        self.open_task_bytes.set(session.room.task_spool)
        self.credit.set(session.room.credit()["messages"])

    def kept(self, session: StreamSession) -> None:
        """Take over what could not be learned."""
        self.held_tasks.set(len(session.held))
        self.set_aside_rows.set(sum(session.set_aside.values()))

    def consolidated(self, entry: Consolidated) -> None:
        """A task was consolidated; the histogram's exemplar names it (OpenMetrics)."""
        (self.revisits if isinstance(entry, Revisited) else self.boundaries).inc()
        self.consolidation_duration.observe(entry.seconds, exemplar={"task": entry.task[:EXEMPLAR_CHARACTERS]})

    def certificate(self, expiry: float | None) -> None:
        """When the HTTP port's certificate expires, Unix seconds; None if there is none."""
        if expiry is None:
            return
        self._certificate_expiry = self._certificate_expiry or _certificate_gauge(self.registry)
        self._certificate_expiry.set(expiry)

    def followed(self, penalties: Mapping[str, tuple[float, float]]) -> None:
        """Take over each task's penalty and its rise."""
        for task, (penalty, rise) in penalties.items():
            label = self.label("task", task)
            self.task_penalty.labels(label).set(penalty)
            self.task_penalty_rise.labels(label).set(rise)

    def forgotten(self, past: Past, at_chance: int) -> None:
        """Take over what all tasks have lost together, and how many are at chance."""
        self.past_rise.set(math.nan if past.rise is None else past.rise)
        self.past_at_chance.set(bool(past.at_chance))
        self.tasks_at_chance.set(at_chance)

    def evaluated(self, accuracies: Mapping[str, float]) -> None:
        """Take over each task's accuracy on its evaluation set."""
        for task, accuracy in accuracies.items():
            self.task_accuracy.labels(self.label("task", task)).set(accuracy)

    def forget_task(self, task: str) -> None:
        """Drop a withdrawn task's values."""
        known = self._label_values.get("task", set())
        if task in known:
            known.remove(task)
            for values in (self.task_penalty, self.task_penalty_rise, self.task_accuracy):
                with contextlib.suppress(KeyError):  # it never had any
                    values.remove(task)

    def as_map(self) -> dict[str, float]:
        """Every sample of /metrics: ``name`` or ``name{label="value"}`` to value."""
        return _as_map(self.registry)


class FollowerMetrics:
    """A follower's metrics; those that a daemon has too are named alike."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"streamcl_{name}", text, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"streamcl_{name}", text, labels, registry=registry)

        self.connected = gauge("follower_connected", "1 while the daemon that is followed is heard.")
        self.serving = gauge("follower_serving", "1 while there is a publication that predictions come from.")
        self.heard = gauge("follower_silence_seconds", "Since the daemon was last heard; NaN if it never was.")
        self.rows = gauge(
            "follower_behind_rows", "Rows that the daemon's newest publication has learned beyond the served."
        )
        self.records = gauge("follower_behind_records", "Log records, likewise.")
        self.steps = gauge("follower_behind_steps", "Training steps, likewise.")
        self.problem = gauge("follower_problem", "1 while `status` has a problem that an operator must see to.")
        self.publications = counter("follower_publications", "Publications put in place.")
        self.fetched = counter("follower_fetched_bytes", "Bytes of publications received.")
        self.fetch_duration = Histogram(
            "streamcl_follower_fetch_duration_seconds",
            "From a publication's offer until it is in place.",
            buckets=LONG,
            registry=registry,
        )
        self.followers = gauge("followers", FOLLOWERS)
        self.batches_rejected = counter("batches_rejected", REJECTED, ("code",))
        self._certificate_expiry: Gauge | None = None
        Info("streamcl_build", "Version of the daemon.", registry=registry).info({"version": __version__})

    def rejected(self, code: str, number: int = 1) -> None:
        """So many messages were refused with this code."""
        self.batches_rejected.labels(code).inc(number)

    def certificate(self, expiry: float | None) -> None:
        """As of `Metrics`."""
        if expiry is not None:
            self._certificate_expiry = self._certificate_expiry or _certificate_gauge(self.registry)
            self._certificate_expiry.set(expiry)

    def stands(self, status: Following, publications: int, nbytes: int, seconds: Sequence[float]) -> None:
        """Take over what the status says, and what has come since: publications, bytes, and seconds that each took."""
        behind = {name: math.nan if value is None else value for name, value in status.behind.items()}
        self.connected.set(status.connected)
        self.serving.set(status.serves is not None)
        self.problem.set(status.problem is not None)
        self.heard.set(behind["seconds"])
        for name, shown in (("rows", self.rows), ("records", self.records), ("steps", self.steps)):
            shown.set(behind[name])
        self.followers.set(status.followers)
        self.publications.inc(publications)
        self.fetched.inc(nbytes)
        for each in seconds:
            self.fetch_duration.observe(each)

    def as_map(self) -> dict[str, float]:
        """As of `Metrics`."""
        return _as_map(self.registry)


def _as_map(registry: CollectorRegistry) -> dict[str, float]:
    return {
        _sample_name(sample.name, sample.labels): sample.value for family in registry.collect() for sample in family.samples
    }


def _certificate_gauge(registry: CollectorRegistry) -> Gauge:
    text = "When the certificate of the HTTP port expires."
    return Gauge("streamcl_certificate_expiry_timestamp_seconds", text, registry=registry)


def _sample_name(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
