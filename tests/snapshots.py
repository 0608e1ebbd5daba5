"""A checkpoint's metadata as tests need it."""

from __future__ import annotations

from streamcl import snapshot
from streamcl.schema import Signature
from streamcl.snapshot import OpenTaskState

META = snapshot.Meta(
    fingerprint={"model": {"factory": "ä"}},
    next_lsn=7,
    steps=20,
    samples=40,
    batches=5,
    consolidations=3,
    train_loss=0.5,
    labels=[(0, 0), (-1, 2)],
    open_task=OpenTaskState("t", 4, suspects=((5, 8),)),
    prequential={"overall": {"accuracy": [40, 0.5]}},
    drift={"seen": b"bytes"},
    signature=Signature((3,), False, ()),
    ledger=2,
    sequences={"p": (0, 9)},
)
