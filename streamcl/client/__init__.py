"""Producer, Reader and Admin: the Python side of the protocol.

Guarantees: what `Producer.send` took is kept until the daemon holds it durably; it survives lost connections and
restarts of the daemon, and is never trained on twice. Every wait has an end: `timeout` seconds after the daemon last showed
progress, with what it last said about it. NumPy arrays and torch tensors go in, NumPy arrays come
out. Runs where torch is absent. One thread at a time may use a client, and only in the process that made it.
"""

from streamcl.client.admin import ADMIN, Admin, Export, ParameterVectors
from streamcl.client.producer import GATHER_BYTES, STREAM, Producer
from streamcl.client.reader import PREDICT, Prediction, Reader

__all__ = [
    "ADMIN",
    "GATHER_BYTES",
    "PREDICT",
    "STREAM",
    "Admin",
    "Export",
    "ParameterVectors",
    "Prediction",
    "Producer",
    "Reader",
]
