"""What to do about each refusal, printed after the daemon's own message."""

from __future__ import annotations

from streamcl.errors import NO_MODEL_YET, OF_ROWS, Refused
from streamcl.protocol.session import CLOSED_ALREADY, WITHDRAWN

REMEDIES = {
    "bad_header": "check the command's values against its --help",
    "bad_array": "send numbers of one of the dtypes <f4 <f8 <f2 <i8 <i4 |u1; streamcl's own clients convert others",
    "bad_shape": "every row must have the shape of the first batch ever sent; check --label and --x, or start another "
    "daemon with a --state-dir of its own for data of another shape; if the model was refused, correct it as the "
    "message says",
    "bad_label": "check --label, and model.classes and model.likelihood of the daemon (`streamcl config show`)",
    "nonfinite": "find and fix the values that are not finite, or leave these rows out",
    "too_large": "send fewer rows a batch (--rows)",
    "gap": "two processes send under one producer's name; give each its own (--producer)",
    "stale_epoch": "another process has taken over this producer's name; end it, or give this one another (--producer)",
    "task_mismatch": "close the open task with `streamcl boundary TASK` first, or deal with the one that is held; "
    "`streamcl "
    "status` says which it is",
    "task_closed": "send under a new task's name, or, in factor mode, reopen it with `streamcl revisit TASK` first",
    "unknown_task": "`streamcl tasks` lists the tasks that were learned, `streamcl status` shows the one that is open",
    "not_in_factor_mode": "a state directory keeps its mode: start a daemon with --posterior.mode factors on a new "
    "--state-dir, and send the tasks again",
    "no_credit": "wait until the trainer has caught up (`streamcl top` shows it), or close the task; then try again",
    "no_space": "make room on the daemon's disk; the daemon then continues by itself",
    "unlearnable": "correct the model or the configuration and restart the daemon, which then tries again by itself; "
    "or use "
    "`streamcl retry TASK`, or `streamcl drop TASK`; `streamcl quarantine` lists what is kept",
    "not_allowed": "have the role and names that this key needs granted to it in the daemon's policy (security.policy; "
    "SIGHUP makes the daemon read it again), or give another key with --key",
    "follower": "ask the daemon that it follows, which the message names (--stream, --admin, or that one's --state-dir)",
    "not_ready": "try again in a moment; `streamcl status` says what the daemon is doing",
    "internal": "this is a defect of streamcl: the daemon's log says more; please report it",
}

OF_MESSAGES = {  # by what they say, where their code's remedy would lead nowhere
    WITHDRAWN: "send under a new task's name; `streamcl tasks` lists the tasks that are still known",
    CLOSED_ALREADY: "nothing, its boundary is stored: `streamcl tasks` says what came of it, once it is consolidated",
    OF_ROWS: "leave these rows out, or have the model take them (then restart the daemon)",
    NO_MODEL_YET: "send rows first (`streamcl send`); if they are on their way, try again in a moment",
}


def remedy(refused: Refused) -> str | None:
    """What to do about a refusal: by its message where that says more than its code."""
    special = (text for said, text in OF_MESSAGES.items() if said in refused.message)
    return next(special, REMEDIES.get(refused.code))
