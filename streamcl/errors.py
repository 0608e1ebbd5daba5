"""The exceptions of streamcl: one type for each decision a caller can take.

Every message says what was expected, what came, where, and the remedy.
"""

from __future__ import annotations


class StreamclError(Exception):
    """Base of everything streamcl raises on purpose."""


class ConfigError(StreamclError):
    """The configuration cannot be used; the operator must change it."""


class Refused(StreamclError):
    """The daemon (or the protocol) refused one message and changed nothing.

    code: one of the protocol's codes, such as ``bad_shape``.
    retryable: whether the same message may succeed later.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, seq: int | None = None, **fields: object
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.seq = seq
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


OF_ROWS = "expected rows such as it was taught"  # of what a model itself raises
NO_MODEL_YET = "there is no model yet: its shapes come with the first batch"


def no_model_yet() -> Refused:
    """``not_ready``: of what is asked before the first batch."""
    return Refused("not_ready", NO_MODEL_YET, retryable=True)


class Unreachable(StreamclError):
    """No answer from the daemon within the time allowed."""


class ModelRefused(StreamclError):
    """The model factory or its module cannot be used; the message names the remedy.

    private: whether the message contains text from the model itself, which may quote the data.
    """

    def __init__(self, message: str, private: bool = False) -> None:
        super().__init__(message)
        self.private = private


class WrongOutput(ModelRefused):
    """A model returned something that its likelihood cannot take, on rows that it could have handled."""


class Disbanded(StreamclError):
    """Other processes that share the work do not come any more, and `torchrun` can form a group without them."""


class Damaged(StreamclError):
    """Bytes on disk are not what was written: names the file, the offset and the remedy."""


class UnknownFormat(StreamclError):
    """A file was written by a newer streamcl; upgrade, and leave it as it is."""


class StateInUse(StreamclError):
    """Another daemon holds the state directory."""


class DataError(StreamclError):
    """A data file cannot be read as rows and targets; names the file, the place and the remedy."""


class NoRows(DataError):
    """It has none."""


def in_words(error: BaseException) -> str:
    """The type and text of an exception, even of one whose text cannot be had."""
    try:
        text = str(error)
    except Exception:
        text = "(it cannot say why)"
    return encodable(f"{type(error).__name__}: {text}")


def encodable(text: str) -> str:
    """Without what UTF-8 has no bytes for, such as the halves of characters that names of files may hold."""
    return text.encode(errors="replace").decode()
