"""Text into tokens: marks, padding, cutting, and what other tokenizers must have."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from longtake.data.text import END, START, TextTokenizer, read_tokenizer, train_tokenizer
from longtake.errors import UserError

pytest.importorskip("tokenizers")
TEXTS = ["a red car turns left", "a blue car turns right", "two cars wait", "a red boat sinks"]


@pytest.fixture(scope="module")
def trained() -> str:
    return train_tokenizer(TEXTS, 320)


def test_training_does_not_depend_on_the_order(trained):
    assert train_tokenizer(reversed(TEXTS * 2), 320) == trained
    assert TextTokenizer(trained, 8).size <= 320


def test_ids_start_end_and_are_padded(trained):
    made = TextTokenizer(trained, 10)
    ids = made(["a red car", ""])
    assert ids.shape == (2, 10)
    assert ids.dtype == torch.int64
    assert ids[:, 0].tolist() == [made.start] * 2
    assert ids[1].tolist() == [made.start, made.end] + [0] * 8
    end = ids[0].tolist().index(made.end)
    assert (ids[0, end + 1 :] == 0).all()
    assert int(ids.max()) < made.size


def test_a_long_text_keeps_its_end(trained):
    made = TextTokenizer(trained, 5)
    ids = made(["a red car turns left and right and left"])[0]
    whole = TextTokenizer(trained, 40)(["a red car turns left and right and left"])[0]
    assert ids[-1] == made.end
    assert torch.equal(ids[:4], whole[:4])


@example("before <|endoftext|> after")
@given(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=30))  # Cn: younger than this Python
def test_every_text_has_tokens_and_comes_back(text):
    made = TextTokenizer(train_tokenizer(TEXTS, 320), 200)
    ids = made([text])[0]
    import unicodedata

    assert made.decode(ids) == unicodedata.normalize("NFC", text).lower().strip()


def test_a_file_of_ones_own(tmp_path, trained):
    path = tmp_path / "tokenizer.json"
    path.write_text(trained)
    assert read_tokenizer(path) == trained
    path.write_text(trained.replace(START, "<s>").replace(END, "</s>"))
    other = TextTokenizer(read_tokenizer(path), 6)
    assert other(["a"])[0, 0] == other.start


def test_what_is_no_tokenizer_is_refused(tmp_path, trained):
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        read_tokenizer(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json is not a tokenizer\.json"):
        read_tokenizer(tmp_path / "a.json")
    bare = json.loads(trained.replace(START, "<x>").replace(END, "<y>"))
    (tmp_path / "b.json").write_text(json.dumps(bare))
    unmarked = TextTokenizer(read_tokenizer(tmp_path / "b.json"), 6, "b.json")  # Loong has marks of its own
    with pytest.raises(UserError, match=r"b\.json has no marks"):
        unmarked(["a"])
    with pytest.raises(UserError, match="no captions to train a tokenizer on"):
        train_tokenizer([], 300)
