"""Which characters of a text each token stands for."""

from __future__ import annotations

from typing import Any

from ..errors import PromptError

Span = tuple[int, int]


def encoded_spans(text: str, tokenizer: Any, adds: bool = True) -> tuple[list[int], list[Span]]:
    """The tokens of a text, and for each its first character and the one after its last.

    A tokenizer without offsets (byT5's, ChatGLM's) is asked what its tokens read, from the first on.

    Args:
        adds: whether the tokenizer adds tokens of its own, which stand for no characters.

    Raises:
        PromptError: a tokenizer without offsets does not give the text back.
    """
    if getattr(tokenizer, "is_fast", True):
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=adds, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]
    ids = list(tokenizer(text, add_special_tokens=adds)["input_ids"])
    return ids, _by_decoding(text, ids, tokenizer)


def _by_decoding(text: str, ids: list[int], tokenizer: Any) -> list[Span]:
    """The characters of each token, by the letters that the tokens up to it read; spaces are not compared."""
    letters = [i for i, letter in enumerate(text) if not letter.isspace()]
    _check(text, ids, letters, tokenizer)

    spans, before, special = list[Span](), 0, set(tokenizer.all_special_ids)
    for i, token in enumerate(ids):
        after = len(_read(ids[: i + 1], tokenizer))
        end = letters[before - 1] + 1 if before else 0
        if token in special or _is_space(token, tokenizer) or before == len(letters):
            spans.append((end, end))
            continue
        last = max(after, before + 1) - 1  # a part of a character stands for all of it
        spans.append((letters[before], letters[last] + 1))
        before = after
    return spans


def _check(text: str, ids: list[int], letters: list[int], tokenizer: Any) -> None:
    written = "".join(text[i] for i in letters)
    read = _read(ids, tokenizer)
    if read.lower() != written.lower() or len(read) != len(written):
        raise PromptError(
            f"The tokenizer of this model reads {text!r} as {read!r} without spaces, so that no words can be found; "
            "leave out the characters that differ."
        )


def _read(ids: list[int], tokenizer: Any) -> str:
    """What some tokens read, without spaces and without the begin of a character at the end."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return "".join(text.split()).rstrip("\ufffd")


def _is_space(token: int, tokenizer: Any) -> bool:
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return bool(text) and text.isspace()
