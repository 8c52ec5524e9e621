"""Text as tokens: a tokenizer out of a GGUF file, and the text to read."""

import pathlib
from collections.abc import Mapping
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

_CONTROL = 3  # llama.cpp's type of control tokens, which have no text.

# The patterns that cut text into words, by the tokenizer's name in the file. They are
# applied before GPT-2's pattern; Llama 3's replaces it.
_CUTS = {
    "gpt-2": r"(?!)",
    "smollm": r"\p{N}",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def tokenizer(metadata: Mapping[str, Any]) -> Any:
    """The byte-level tokenizer that a GGUF file describes.

    Raises:
      ImportError: if ``tokenizers`` is not installed.
      ValueError: if the file describes a tokenizer of another kind.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    kind, cut = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind != "gpt2" or cut not in _CUTS:
        raise ValueError(
            f"The tokenizer is {kind}/{cut}, but only gpt2 with one of "
            f"{', '.join(_CUTS)} can be read."
        )
    words = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS[cut]), "isolated"),
            pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=cut != "llama-bpe"
            ),
        ]
    )
    made.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    made.add_special_tokens(
        [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    )
    return made


class Text(NamedTuple):
    """Two texts that share nothing."""

    calibration: str
    evaluation: str


def read(path: pathlib.Path | None = None) -> Text:
    """Splits a text: three quarters calibrate, one quarter evaluates.

    Args:
      path: a file, whose last quarter evaluates. None takes Python's language
        reference, which every installation has. Every fourth topic evaluates; topics
        repeat each other, so its paragraphs are left out of the rest.
    """
    if path is not None:
        words = path.read_text()
        cut = len(words) * 3 // 4
        return Text(words[:cut], words[cut:])
    pages = [topics[name] for name in sorted(topics)]
    evaluation = "\n".join(pages[3::4])
    del pages[3::4]
    known = set(evaluation.split("\n\n"))
    parts = "\n".join(pages).split("\n\n")
    return Text("\n\n".join(p for p in parts if p not in known), evaluation)


def sequences(tokens: list[int], count: int, length: int) -> np.ndarray:
    """Cuts tokens into ``[count, length]``, evenly spaced over the whole text.

    Raises:
      ValueError: if there are too few.
    """
    whole = len(tokens) // length
    if whole < count:
        raise ValueError(
            f"The text has {whole} sequences of {length} tokens, fewer than {count}."
        )
    cut = np.array(tokens[: whole * length], np.int32).reshape(whole, length)
    return cut[np.arange(count) * whole // count]
