"""Words into tokens: byte-pair encoding through the library `tokenizers`.

A tokenizer is the JSON text of a `tokenizer.json`: one that was trained on a library's captions, or any that the
user brings, such as CLIP's. It travels with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
"""As CLIP calls them."""


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        message = "text needs the library tokenizers; install it with: pip install 'longtake[text]'"
        raise UserError(message, code=2) from None
    return tokenizers


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """Train byte-pair encoding on texts (lower-cased, bytes as alphabet: every text has tokens).

    Args:
        texts: of the library.
        vocabulary: most pieces, the 256 bytes and the two marks of start and end among them.

    Returns:
        The JSON text of the tokenizer; the same for the same texts, in any order.

    Raises:
        UserError: there is no text.
    """
    lines = sorted(set(texts))
    if not lines:
        raise UserError("there are no captions to train a tokenizer on; prepare the library with --captions")
    lib = _library()
    made = lib.Tokenizer(lib.models.BPE())
    made.normalizer = lib.normalizers.Sequence([lib.normalizers.NFC(), lib.normalizers.Lowercase()])
    made.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=max(vocabulary, 258),
        special_tokens=[START, END],
        initial_alphabet=sorted(lib.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(lines, trainer)
    return made.to_str()


def read_tokenizer(path: str | Path) -> str:
    """The JSON text of a `tokenizer.json`.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the tokenizer {path}: {getattr(error, 'strerror', error)}", code=2) from None
    TextTokenizer(text, 8, str(path))
    return text


def clipped(spans: Sequence[tuple[float, float, str]], t0: float, t1: float) -> list[tuple[float, float, str]]:
    """Of timed captions what lies within [t0, t1) seconds."""
    return [(max(a, t0), min(b, t1), text) for a, b, text in spans if a < t1 and b > t0]


def main_caption(spans: Sequence[tuple[float, float, str]]) -> str:
    """Of a clip's timed captions the one that holds for most of it; empty where there is none."""
    return max(spans, key=lambda span: span[1] - span[0], default=(0, 0, ""))[2]


class TextTokenizer:
    """Texts -> ids of a fixed length: start, pieces, end, then zeros; a longer text is cut before its end mark
    (as the released code of TATS does with CLIP's vocabulary).

    Args:
        json: the JSON text.
        length: ids a text.
        where: for messages.

    Raises:
        UserError: it is no tokenizer.
    """

    def __init__(self, json: str, length: int, where: str = "the model's tokenizer"):
        try:
            self.tokenizer = _library().Tokenizer.from_str(json)
        except UserError:
            raise
        except Exception as error:  # the library has no exception class of its own
            raise UserError(f"{where} is not a tokenizer.json ({error})", code=2) from None
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # a mark that a text spells is text
        self.length, self.size = length, 1 + max(self.tokenizer.get_vocab().values(), default=-1)
        marks = [self.tokenizer.token_to_id(mark) for mark in (START, END)]
        if None in marks:
            marks = [self.tokenizer.token_to_id(mark) for mark in ("<s>", "</s>")]
        self.where, (self.start, self.end) = where, marks

    def __call__(self, texts: list[str]) -> Tensor:
        """Ids (len(texts), length) int64, between the marks of start and end.

        Raises:
            UserError: the tokenizer has no such marks.
        """
        if self.start is None or self.end is None:
            raise UserError(f"{self.where} has no marks {START} and {END}, nor <s> and </s>", code=2)
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            pieces = self.tokenizer.encode(text, add_special_tokens=False).ids
            ids = [self.start, *pieces[: self.length - 2], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def decode(self, ids: Tensor) -> str:
        """The text of ids (length,), without marks and padding."""
        kept = ids.tolist()
        kept = kept[1 : kept.index(self.end)] if self.end in kept else kept[1:]
        return self.tokenizer.decode(kept).strip()
