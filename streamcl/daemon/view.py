"""What the daemon shows of itself: status and tasks, from the session, the tasks' standing and the trainer's last words.

Read by operators, by producers that wait and by HTTP threads, while the loop goes on: each figure is whole, two of one
answer may be of different moments. Every answer is built afresh; nothing here decides anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from streamcl import columns as tables
from streamcl import gauge
from streamcl.config import Config, settled
from streamcl.daemon.chronicle import Chronicle
from streamcl.daemon.link import Link
from streamcl.daemon.status import Consolidating, Spool, Status
from streamcl.daemon.tasks import Tasks
from streamcl.daemon.words import Progress
from streamcl.entries import Confirmed, Consolidated, Entry, Held
from streamcl.gauge import Measured, Past
from streamcl.protocol.session import StreamSession
from streamcl.storage.quarantine import Failure
from streamcl.version import __version__

SILENCE_SECONDS = 30.0
PAUSED = "training is paused (`streamcl resume` lets it go on)"
LEAST_RISE = 1e-6  # nats a sample
SHOWN = ("task", "samples", "weight", "loss", "revisits", "penalty", "penalty_rise", "closed_at")


class View:
    """The daemon's state as others see it.

    What holds it together: every answer (`status`, `tasks`, the metrics' figures) is put together from the same few places,
    between which it must agree; each part of an answer is a method of its own. It changes nothing.
    """

    def __init__(self, config: Config, session: StreamSession, tasks: Tasks, link: Link, chronicle: Chronicle) -> None:
        self.config = config
        self.session, self.known, self.link, self.chronicle = session, tasks, link, chronicle
        self.started = time.monotonic()
        self.penalties: dict[str, tuple[float, float]] = {}
        self.measured: dict[str, Measured] = {}
        self.at_chance: set[str] = set()
        self._moved: tuple[str, float] | None = None  # by the open task, in nats
        self._past: Past | None = None  # found anew once something has changed
        self.troubles: dict[str, str] = {}  # of processes that die again and again, by role
        self.unmet: Callable[[], str | None] = lambda: None  # what a boundary's barrier waits for
        self.torn_bytes = 0
        self.progress = Progress(device=config.train.device)
        self._warning: str | None = None
        self._heard = 0.0
        self._problem: str | None = None

    # -- what happened -------------------------------------------------------------------------------------------

    @property
    def entries(self) -> dict[str, Consolidated]:
        """The newest ledger entry of each consolidated task."""
        return self.known.standing.tasks

    def recovered_trainer(self) -> None:
        """A trainer has started and restored its checkpoint."""
        self._problem, self._heard = None, time.monotonic()

    def progressed(self, progress: Progress) -> None:
        """The trainer reported."""
        self.progress, self._heard = progress, time.monotonic()

    def done(self, entry: Entry, warning: str | None) -> None:
        """A record took effect on the tasks, whose standing has it already."""
        if isinstance(entry, Consolidated | Confirmed):
            self._warning = warning
        for followed in (self.penalties, self.measured):
            for task in [task for task in followed if task not in self.entries]:
                del followed[task]
        self._moved = None
        self.at_chance &= self.entries.keys()
        self._judge([entry.task] if isinstance(entry, Consolidated) else list(self.entries))

    def followed(self, penalties: dict[str, tuple[float, float]]) -> None:
        """What tasks' penalties have come to, and their rises."""
        self.penalties.update(penalties)
        self._judge(penalties)

    def evaluated(self, measured: dict[str, Measured]) -> None:
        """What tasks' evaluation sets say."""
        self.measured.update(measured)
        self._judge(measured)

    def moved(self, task: str, nats: float) -> None:
        """What the open task's steps have cost the others so far."""
        self._moved, self._past = (task, nats), None

    def _judge(self, tasks: Iterable[str]) -> None:
        """Which of some tasks are at chance."""
        self._past = None
        for task in tasks:
            entry = self.entries.get(task)
            if entry is not None and gauge.at_chance(entry, self._rise(task), self.measured.get(task)):
                self.at_chance.add(task)
            else:
                self.at_chance.discard(task)

    def _rise(self, task: str) -> float | None:
        found = self.penalties.get(task)
        return None if found is None else found[1]

    def failed(self, role: str, message: str) -> None:
        """A process ended with an error; it is being started again."""
        self._problem = f"{role}: {message}"
        self._heard = 0.0 if role == "trainer" else self._heard

    # -- what waits ----------------------------------------------------------------------------------------------

    def working(self) -> bool:
        """Whether the daemon is making progress by itself, so that clients may go on waiting for it.

        Also while the trainer is silent: the supervisor ends one that makes no progress, and counts how often.
        """
        return self.trouble() is None and not self.link.paused and self._behind()

    def waiting(self) -> str | None:
        """Why what is stored is not learned now, or nothing more is taken in, and the remedy; None where nothing waits.

        The same text as long as the reason is the same.
        """
        if self.trouble() is not None:
            return self.trouble()
        if self.link.paused and self._behind():
            return PAUSED
        unmet = None if self._behind() else self.unmet()
        if unmet is not None:
            return unmet
        budget = self.session.terms.task_bytes
        if self.session.room.credit()["messages"] == 0 and not self._behind():
            task = self.session.open_task
            return (
                f"the disk budget of the open task {task!r} is used up ({budget} bytes, stream.task_bytes): close it "
                f"(`streamcl boundary {task}`), or raise the budget and restart"
            )
        return None

    def _behind(self) -> bool:
        """Whether the trainer has yet to learn, or to consolidate, what is stored."""
        progress = self.progress
        return progress.next_lsn < self.session.next_lsn or progress.consolidation is not None

    # -- what is shown -------------------------------------------------------------------------------------------

    def trainer_up(self) -> bool:
        """Whether the trainer has reported lately."""
        return time.monotonic() - self._heard < SILENCE_SECONDS and self._heard > 0.0

    def problem(self) -> str | None:
        """What an operator must deal with now, or None."""
        return self.trouble() or self._kept()

    def trouble(self) -> str | None:
        """What keeps the daemon from working, or None."""
        for trouble in list(self.troubles.values()):
            return trouble
        if self._problem is not None:
            return self._problem
        if self.session.room.full:
            return f"the disk of {self.config.state_dir} is full; nothing more is taken in until there is room"
        full = self.progress.full
        if full is not None:
            return f"the disk of {self.config.state_dir} is full: {full}"
        if self.link.paused and self.session.room.credit()["messages"] == 0:
            return f"{PAUSED}; the disk budget (stream.task_bytes) is used up, so producers wait"
        return None

    def _kept(self) -> str | None:
        """What could not be learned, with the remedy."""
        known = self.known
        if known.standing.held:
            task = next(iter(known.standing.held))
            more = f" (and {len(known.standing.held) - 1} more)" if len(known.standing.held) > 1 else ""
            return f"task {task!r}{more} is held: its rows could not be learned: {known.reason(task)}; {known.kept(task)}"
        if self.session.set_aside:
            task, rows = next(iter(self.session.set_aside.items()))
            return f"{rows} rows of task {task!r} are set aside: {known.reason(task)}; {known.kept(task)}"
        return None

    def not_ready(self) -> str | None:
        """Why the daemon is not ready, or None."""
        if self.problem() is not None:
            return self.problem()
        return None if self.trainer_up() else "the trainer does not answer"

    def past(self) -> Past:
        """What the tasks have lost together; with what the open one has done, as far as that was looked at."""
        if self._past is None:
            moved = None if self._moved is None or self._moved[0] != self.session.open_task else self._moved[1]
            rises = {task: rise for task, (_, rise) in list(self.penalties.items())} if self._keeps_factors else None
            self._past = gauge.past(self.known.standing, rises, moved, self._understates)
        return self._past

    @property
    def _understates(self) -> bool:
        """As of `gauge`, of the likelihood that was found."""
        sent = self.session.signature
        return gauge.understates(settled(self.config, sent is not None and sent.y_real))

    @property
    def _keeps_factors(self) -> bool:
        return self.config.posterior.mode == "factors"

    @property
    def _exact(self) -> bool:
        return self.config.model.learner == "exact"

    def warning(self) -> str | None:
        """The newest boundary's, and what is at chance, with the remedy."""
        own, lost = self._warning or "", self._forgotten() or ""
        return "; ".join(filter(None, (own, "" if lost in own else lost))) or None

    def _forgotten(self) -> str | None:
        lost = [task for task in list(self.entries) if task in self.at_chance]
        if lost:
            task, more = lost[0], len(lost) - 1
            entry, rise, measured = self.entries[task], self._rise(task), self.measured.get(task)
            told = gauge.task_warning(entry, rise, measured, self._keeps_factors, self._exact)
            return told + (f" (and {more} more: `streamcl tasks`)" if more else "")
        past = self.past()
        return gauge.past_warning(past, self._keeps_factors, self._exact) if past.at_chance else None

    def status(self) -> Status:
        """The contract's fields of `status`, then what else is known."""
        progress, session, chronicle = self.progress, self.session, self.chronicle
        return Status(
            version=__version__,
            state=self._state(),
            task=session.open_task,
            mode=self.config.posterior.mode,
            samples_seen=progress.samples,
            batches_durable=session.stored_batches,
            batches_applied=session.applied_batches,
            parameters=progress.parameters,
            curvature=progress.curvature,
            schema=None if session.columns is None else tables.plain(session.columns.columns),
            left_out=[] if session.columns is None else list(session.columns.left_out),
            inputs=progress.inputs,
            tasks=len(self.entries),
            past=self.past(),
            tasks_at_chance=len(self.at_chance),
            uptime_seconds=time.monotonic() - self.started,
            spool_bytes=session.room.total_spool,
            device=progress.device,
            workers=progress.workers,
            train_loss=progress.loss,
            prequential=progress.scores,
            consolidation=self._consolidation(),
            ingest_rate=chronicle.rates(),
            lag_batches=session.stored_batches - session.applied_batches,
            credit=session.room.credit(),
            task_bytes=Spool(session.room.task_spool, session.terms.task_bytes),
            producers_total=len(session.producers),
            events=list(chronicle.events),
            steps=progress.steps,
            problem=self.problem(),
            working=self.working(),
            waiting=self.waiting(),
            warning=self.warning(),
            torn_bytes=self.torn_bytes,
            held_tasks=len(self.known.standing.held),
            set_aside_rows=sum(session.set_aside.values()),
            quarantined=len(self.known.failures),
            last_quarantined=self.known.failures[-1] if self.known.failures else None,
        )

    def _state(self) -> str:
        if not self.trainer_up():
            return "recovering"
        if self.link.paused:
            return "paused"
        return "training" if self.progress.state == "idle" and self._behind() else self.progress.state

    def _consolidation(self) -> Consolidating | None:
        now = self.progress.consolidation
        if now is None:
            return None
        return Consolidating(self.progress.task, now.phase, now.epoch, now.epochs, now.fraction, now.seconds_left)

    def tasks(self) -> list[dict[str, Any]]:
        """One map a task, in the order they were first closed; `state` says whether it is consolidated or held.

        In factor mode with the task's penalty, its rise, and how well a revisit would repay: `revisit_rank` 1 is the
        best, None where it is not estimated to have lost anything, and `revisit_reason` says why.
        """
        entries = list(self.entries.values())
        ranks = self._ranks()
        consolidated = [self._task(entry, ranks.get(entry.task), entries) for entry in entries]
        return [
            *consolidated,
            *(self._held(entry) for task, entry in list(self.known.standing.held.items()) if task not in self.entries),
        ]

    def _held(self, entry: Held) -> dict[str, Any]:
        """A task of which nothing was learned yet."""
        shown = dict.fromkeys((*SHOWN, *gauge.FIGURES)) | {"revisits": 0, "weight": 0.0, "set_aside": 0, "state": "held"}
        ranked = {"revisit_rank": None, "revisit_reason": None} if self.config.posterior.mode == "factors" else {}
        return {**shown, **ranked, **{name: getattr(entry, name) for name in ("task", "samples", "closed_at")}}

    def quarantined(self) -> list[dict[str, Any]]:
        """What could not be learned and is kept, a map each: task, state, rows, reason.

        state: held; set-aside, a batch; or doubtful, one of the open task, which its boundary will try again.
        """
        held = [
            {
                "task": task,
                "state": "held",
                "rows": entry.samples,
                "reason": self.known.reason(task),
                "time": entry.closed_at,
            }
            for task, entry in list(self.known.standing.held.items())
        ]
        failures = {failure.lsn: failure for failure in self.known.failures}
        batches = [(task, lsn, rows) for task, entry in list(self.entries.items()) for lsn, rows in entry.aside]
        open_task = self.session.open_task
        doubtful = [
            {**_aside(failure.task, failure.rows, failure), "state": "doubtful"}
            for failure in self.known.failures
            if failure.task == open_task and failure.stage.startswith("batch")
        ]
        return [*held, *(_aside(task, rows, failures.get(lsn)) for task, lsn, rows in batches), *doubtful]

    def _ranks(self) -> dict[str, int]:
        """Tasks whose penalty has risen since they were learned, by more than rounding, the highest rise first."""
        penalties = list(self.penalties.items())  # the loop may add to them meanwhile
        risen = [(rise, task) for task, (_, rise) in penalties if task in self.entries and rise > LEAST_RISE]
        return {task: rank for rank, (_, task) in enumerate(sorted(risen, reverse=True), start=1)}

    def _task(self, entry: Consolidated, rank: int | None, entries: list[Consolidated]) -> dict[str, Any]:
        penalty, rise = self.penalties.get(entry.task, (None, None))
        shown = {name: getattr(entry, name, None) for name in SHOWN} | {"penalty": penalty, "penalty_rise": rise}
        shown |= gauge.figures(entry, rise, self.measured.get(entry.task), self._understates)
        shown["set_aside"] = entry.rows_aside
        shown["state"] = "held" if entry.task in self.known.standing.held else "consolidated"
        if entry.task in self.measured:
            shown["accuracy"] = self.measured[entry.task].accuracy
        if self.config.posterior.mode != "factors":
            return shown
        since = sum(other.lsn > entry.lsn for other in entries)
        reason = "it is not estimated to have lost anything" if rank is None else _reason(shown, since)
        return {**shown, "revisit_rank": rank, "revisit_reason": reason if rise is not None else None}


def _aside(task: str, rows: int, failure: Failure | None) -> dict[str, Any]:
    """A batch that was set aside."""
    known = {name: getattr(failure, name, None) for name in ("producer", "seq", "reason", "time")}
    return {"task": task, "state": "set-aside", "rows": rows, **known}


def _reason(shown: dict[str, Any], since: int) -> str:
    rise = gauge.lost(shown["penalty_rise"], shown["rise_bound"])
    tasks = "1 task" if since == 1 else f"{since} tasks"
    return f"estimated to have lost {rise} to the {tasks} learned since"
