"""What happens in the ingest process, for people: into the view, the metrics, the chronicle, the audit log and the log.

Decides nothing, and whatever decides asks nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from streamcl.daemon import words
from streamcl.daemon.chronicle import Chronicle
from streamcl.daemon.metrics import Metrics
from streamcl.daemon.sockets import Peer
from streamcl.daemon.tasks import Tasks, in_words
from streamcl.daemon.view import View
from streamcl.entries import Closing, Confirmed, Consolidated, Entry, Forgotten, RolledBack, by_drift
from streamcl.errors import Refused
from streamcl.gauge import Measured
from streamcl.protocol import messages
from streamcl.protocol.session import StreamSession
from streamcl.storage.audit import Audit
from streamcl.storage.history import History
from streamcl.storage.log import TornTail
from streamcl.storage.records import Batch
from streamcl.version import __version__

NOTED = {"held": "failed", "still-aside": "failed", "rollback-failed": "failed"}  # kinds of entries as events
AUDITED = frozenset(  # requests of operators that change anything
    {"boundary", "revisit", "abandon", "forget", "retry", "drop", "rollback", "checkpoint", "pause", "resume", "stop"}
)
ALARMS = frozenset({"drift", "score"})  # of what ends tasks by itself: something has changed
DISK_FULL = "the disk is full; nothing is taken in until there is room"


class Observers:
    """One method for each kind of thing that happens; what holds it together is where it is shown."""

    def __init__(
        self,
        session: StreamSession,
        tasks: Tasks,
        view: View,
        metrics: Metrics,
        chronicle: Chronicle,
        history: History,
        audit: Audit,
    ) -> None:
        self.session, self.tasks = session, tasks
        self.view, self.metrics, self.chronicle, self.history, self.audit = view, metrics, chronicle, history, audit
        self.log = structlog.get_logger()

    # -- the process ---------------------------------------------------------------------------------------------

    def recovered(self, torn: TornTail | None) -> None:
        """What was on disk is taken over; `torn`, what was cut off the log's end."""
        self.metrics.kept(self.session)
        if torn is not None:
            self.view.torn_bytes = torn.nbytes
            self.log.warning("cut off a torn tail", path=str(torn.path), offset=torn.offset, nbytes=torn.nbytes)
        for task, problem in self.tasks.unreadable.items():
            self.log.error("rows that could not be learned, and were kept, cannot be read", task=task, problem=problem)
            self.chronicle.note("failed", f"its kept rows cannot be read: {problem}", task)
        self._followed(self.history.latest_penalties())
        self._evaluated({task: Measured(accuracy) for task, accuracy in self.history.latest_accuracies().items()})

    def started(self, certificate_expiry: float | None) -> None:
        """Everything is bound."""
        self.metrics.certificate(certificate_expiry)
        self.chronicle.note("started", f"streamcl {__version__}")

    def turned(self) -> None:
        """A turn of the loop is over."""
        self.chronicle.tick(self.view.progress)

    def heard(self) -> None:
        """The other processes have been heard, whether or not they had anything to say."""
        self.metrics.trainer_up.set(self.view.trainer_up())
        self.metrics.ingested(self.session)
        self.metrics.forgotten(self.view.past(), len(self.view.at_chance))

    def reloaded(self, problem: str | None, certificate_expiry: float | None) -> None:
        """Policy, token and certificate are read again; with a problem, the old ones stay."""
        self.audit.write("reload", "ok" if problem is None else "failed", reason=problem)
        if problem is not None:
            self.log.error("the old policy, token and certificate stay", reason=problem)
            self.chronicle.note("failed", f"the old policy, token and certificate stay: {problem}")
            return
        self.metrics.certificate(certificate_expiry)
        self.log.info("policy, token and certificate read again")

    def turned_away(self, notes: Iterable[Mapping[str, Any]]) -> None:
        """Clients that the gate turned away, here or at the predictor."""
        for note in notes:
            action, rest = str(note["action"]), {name: value for name, value in note.items() if name != "action"}
            self.chronicle.note("refused", action)
            if action != "predict":  # counted by its code already
                self.metrics.rejected("not_allowed" if action == "key refused" else "too_large")
            self.audit.write(action, "refused", **rest)

    # -- the stream ----------------------------------------------------------------------------------------------

    def stored(self, producer: str, batch: Batch, nbytes: int) -> None:
        """A batch is in the log; and which outputs its labels were given that are not their own numbers."""
        self.metrics.received(producer)
        self.chronicle.stored(producer, batch.samples, nbytes)
        if batch.new_labels != batch.outputs:
            self._placed(batch)

    def _placed(self, batch: Batch) -> None:
        pairs = zip(batch.new_labels, batch.outputs, strict=True)
        moved = [f"label {label} is output {out}" for label, out in pairs if label != out]
        self.chronicle.note("labels", ", ".join(moved[:10]) + (", ..." if moved[10:] else ""), batch.task)

    def closed_or_reopened(self, who: str, producer: str, message: messages.Message) -> None:
        """A producer's message changes which task is open."""
        assert isinstance(message, messages.Batch | messages.Boundary | messages.Revisit)
        kind = "revisit" if isinstance(message, messages.Revisit) else "boundary"
        self.audit.write(kind, who=who, producer=producer, seq=message.seq, task=message.task)

    def duplicate(self) -> None:
        """A message came again and is stored already."""
        self.metrics.duplicates.inc()

    def refused(self, peer: Peer, refused: Refused, who: str, called: str) -> None:
        """A producer's message. who: as producer, called: as the policy has its key."""
        self.metrics.rejected(refused.code)
        if not refused.retryable:
            self.chronicle.note("refused", f"{who}: {refused.code}")
        if refused.code == "not_allowed":
            self.audit.write("stream", refused.code, who=called, key=peer.key, reason=refused.message)

    def full(self, reason: str) -> None:
        """The disk is."""
        self.log.error("the disk is full", reason=reason)
        self.chronicle.note("disk_full", DISK_FULL)

    def synced(self, seconds: float) -> None:
        """The log reached the disk."""
        self.metrics.fsync_duration.observe(seconds)

    def acknowledged(self, seconds: Sequence[float]) -> None:
        """Messages, each so long after it was stored."""
        for each in seconds:
            self.metrics.ack_latency.observe(each)

    def model_refused(self, producer: str, seq: int, reason: str) -> None:
        """The model does not fit the first batch."""
        self.chronicle.note("failed", f"the model is refused: {reason}")
        self.log.error("the first batch is refused with the model", producer=producer, seq=seq)

    # -- operators -----------------------------------------------------------------------------------------------

    def requested(self, peer: Peer, called: str, header: Mapping[str, Any], refused: Refused | None) -> None:
        """For the audit log: what changes anything, and what was not allowed."""
        kind, task = header.get("type"), header.get("task")
        if kind in AUDITED or (refused is not None and refused.code == "not_allowed"):
            self.audit.write(
                str(kind)[:32],
                "ok" if refused is None else refused.code,
                who=called,
                key=peer.key or None,
                task=task[:128] if isinstance(task, str) else None,
            )

    def request_refused(self, refused: Refused) -> None:
        """An operator's request is answered by an error, at once or later."""
        self.metrics.rejected(refused.code)

    def paused(self, paused: bool) -> None:
        """An operator has training wait, or go on."""
        text = "training waits; batches are stored" if paused else "training goes on"
        self.chronicle.note("paused" if paused else "resumed", text)

    # -- the other processes -------------------------------------------------------------------------------------

    def said(self, word: words.Word) -> None:
        """What a word of the supervisor or the trainer is to people; of `Done`, only what was not known before."""
        match word:
            case words.Crashed(role=role, reason=reason):
                self.view.failed(role, reason)
                self.chronicle.note("crashed", f"{role}: {reason}")
            case words.Trouble(role=role, reason=trouble):
                self._in_trouble(role, trouble)
            case words.TurnedAway():
                for code, number in word.codes.items():
                    self.metrics.rejected(code, number)
                self.turned_away(word.notes)
            case words.Serving(followers=number):
                self.metrics.followers.set(number)
            case words.Recovered():
                self.view.recovered_trainer()
            case words.Progress():
                self._progressed(word)
            case words.Done(entry=entry, warning=warning):
                self._done(entry, warning)
            case words.SetAside(failure=failure):
                self.metrics.quarantined.inc()
                self.chronicle.note("failed", failure.reason, failure.task)
            case words.Penalties(lsn=lsn, time=when, rows=rows):
                self.history.add_penalties(lsn, when, rows)
                self._followed({task: (penalty, rise) for task, penalty, rise in rows})
            case words.Moved(task=task, nats=nats):
                self.view.moved(task, nats)
            case words.Accuracies(lsn=lsn, time=when, rows=scores, beside=beside):
                self.history.add_accuracies(lsn, when, [score[:3] for score in scores])
                self.history.add_beside(lsn, when, beside)
                self._evaluated({task: Measured(accuracy, constant) for task, accuracy, _, constant in scores})
            case words.Noted(text=text, task=task):
                self.chronicle.note("warning", text, task)
            case words.Checkpointed(seconds=seconds, time=when):
                self.metrics.checkpoint_duration.observe(seconds)
                self.metrics.checkpoint_time.set(when)

    def _in_trouble(self, role: str, text: str | None) -> None:
        """A process dies again and again, or has recovered."""
        if text is None and self.view.troubles.pop(role, None) is not None:
            self.chronicle.note("recovered", f"the {role} has recovered")
        elif text is not None:
            self.view.troubles[role] = text
            self.chronicle.note("crashed", text)

    def _progressed(self, progress: words.Progress) -> None:
        self.view.progressed(progress)
        self.metrics.trained(progress)
        if progress.full is not None:
            self.chronicle.note("disk_full", f"the disk is full: {progress.full}")

    def _done(self, entry: Entry, warning: str | None) -> None:
        """A task was consolidated, for the first time or again, withdrawn, or its revisit abandoned."""
        kind, task, lsn = entry.kind, entry.task, entry.lsn
        self.metrics.kept(self.session)
        self.view.done(entry, warning)
        if isinstance(entry, Closing) and by_drift(entry):
            self._ended_itself(entry)
        if isinstance(entry, Consolidated) and entry.recurs is not None:
            self.metrics.recurred.inc()
            self.chronicle.note("recurs", entry.likeness or "", task, lsn)
        if not isinstance(entry, Confirmed):
            self.chronicle.note(NOTED.get(kind, kind), in_words(entry, self.tasks.reason(task)), task, lsn)
        if warning is not None:
            self.chronicle.note("warning", warning, task)
        if isinstance(entry, Consolidated):
            self.metrics.consolidated(entry)
            self.history.add_past(lsn + 1, entry.closed_at, self.view.past().rise)
        gone = entry.undone if isinstance(entry, RolledBack) else (task,) if isinstance(entry, Forgotten) else ()
        for name in gone:
            self.history.forget(name)
            self.metrics.forget_task(name)

    def _ended_itself(self, entry: Closing) -> None:
        """Nobody has asked for this boundary: what has, and why."""
        origin, reason = entry.origin or "drift", entry.reason or ""
        self.metrics.ended.labels(origin).inc()
        if origin == "drift":
            self.metrics.drift_detected.inc()
        if origin in ALARMS:
            self.log.warning(f"{origin}: the task is closed", task=entry.task, lsn=entry.lsn, reason=reason)
        self.chronicle.note(origin, reason if origin == "drift" else f"{entry.task}: {reason}", entry.task, entry.lsn)

    def _followed(self, penalties: dict[str, tuple[float, float]]) -> None:
        self.view.followed(penalties)
        self.metrics.followed(penalties)

    def _evaluated(self, measured: dict[str, Measured]) -> None:
        self.view.evaluated(measured)
        self.metrics.evaluated({task: each.accuracy for task, each in measured.items()})
