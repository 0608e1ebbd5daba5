"""What `bench exact` measures: text, joint training of the same features, updates; and how it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_sentences import CONFIG, WORDS, written

from streamcl.bench.exact import streams, text, widths
from streamcl.bench.exact.updates import updates
from streamcl.cli import main
from streamcl.errors import DataError

KNOWN = ["the", "cat", "cats", ".", "$", "unaffable", "cafe"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files as in the Brown corpus: a genre prefers words of its own."""
    rng, lines = np.random.default_rng(0), []
    for number, genre in enumerate(text.GENRES):
        for file in range(6):
            name = f"c{'abcde'[number]}{file:02d}"
            words = rng.choice(KNOWN, 1500, p=np.roll([0.4, *[0.1] * 6], number))
            (tmp_path / name).write_text("\n\n\t" + " ".join(f"{word}/nn" for word in words))
            lines.append(f"{name} {genre}")
    (tmp_path / "cats.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.campaign
def test_genres_one_after_another_are_the_batch_solution(corpus: Path, tmp_path: Path) -> None:
    weights = str(written(tmp_path / "weights", {**CONFIG, "max_position_embeddings": text.LENGTH}))
    data = text.domains(corpus, weights, 0)
    assert data.x.shape[1] == text.LENGTH
    assert data.x.dtype == np.dtype("<i4")
    assert (data.x[:, 0] == WORDS.index("[CLS]")).all()
    assert (data.x[:, -1] == WORDS.index("[SEP]")).all()
    assert (data.x[:, 1:-1] > WORDS.index("[SEP]")).all()
    assert np.bincount(data.test_y).min() > 0
    (found,) = text.compare(corpus, weights, [0])
    assert found.apart < 1e-8
    assert found.after[0] == 1.0
    assert found.after[-1] == found.exact
    assert found.exact > 0.7
    assert found.exact > found.joint - 0.05


def test_more_features_than_rows_cost_no_accuracy() -> None:
    found = list(widths.compare(streams.digits(0), 0, (20, 300), (100, 10_000)))
    assert [(each.rows, each.width) for each in found] == [(100, 20), (100, 300)]  # as many rows as there are
    assert found[1].accuracy > found[0].accuracy + 0.05


def test_tags_and_quotes_are_taken_off_words(corpus: Path) -> None:
    (corpus / "ca00").write_text("``/`` The/at half/abn and/or/cc ''/'' ./.")
    assert text.texts(corpus, "news")[0] == '" The half and/or " .'


def test_what_is_no_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"there is no cats\.txt"):
        text.texts(tmp_path, "news")
    (tmp_path / "cats.txt").write_text("ca01 news\n")
    with pytest.raises(DataError, match="four files or more of the genre 'news', found 1"):
        text.texts(tmp_path, "news")
    assert main(["bench", "exact", "--only", "text"]) == 2
    assert "expected --corpus DIR" in capsys.readouterr().err


@pytest.mark.campaign
def test_nothing_tuned_comes_near_joint_training_of_the_same_features(tmp_path: Path) -> None:
    """Two classes of digits a task, in one pass: at least 0.985, and no half point below."""
    out = tmp_path / "figures.json"
    assert main(["bench", "exact", "--only", "classes", "--methods", "exact", "joint", "--json", str(out)]) == 0
    exact, joint = (row["accuracies"][0] for row in json.loads(out.read_text())["rows"])
    assert exact >= 0.985
    assert exact >= joint - 0.005


@pytest.mark.campaign
def test_a_refreshed_head_is_told_of_every_class() -> None:
    images = streams.digits(0)
    few = streams.Images(images.x[::8], images.y[::8], images.test_x, images.test_y)
    (found,) = streams.compare(lambda seed: few, [0], ["classes"], ["refreshed"])
    assert found.accuracies[0] > 0.2  # of ten classes, which only its last task's body was made for


def test_updates_are_timed_beside_the_bare_product() -> None:
    found = list(updates(widths=(20,), rounds=1))
    assert [each.batch for each in found] == [64, 1024]
    assert all(each.share == each.sums / each.bare > 0 for each in found)
