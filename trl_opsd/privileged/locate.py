# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Location of quotes in a rollout: characters of its text, and the tokens that hold them."""

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedTokenizerBase

from trl_opsd.rollouts.rollout import Rollout


_BROKEN = "\ufffd"  # what decoders put for bytes that make no character, or none yet
_MOST_BYTES = 4  # of a character in UTF-8


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of tokens, without special tokens and without the clean-up of spaces: so each token's part stays as it is
    when others follow."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def find_quote(text: str, quote: str, threshold: float) -> tuple[int, int] | None:
    """
    Span of a quote in a text: its first exact occurrence, or else the part that takes the fewest edits.

    White space does not count, neither in the text nor in the quote; upper and lower case differ.

    Args:
        text (`str`): Text to search.
        quote (`str`): Quote to find.
        threshold (`float`): From 0 to 1: least share of the quote's characters that need no edit (1 minus the
            Levenshtein distance over the quote's length). `1.0` takes exact quotes only.

    Returns:
        `tuple[int, int]` or `None`: Characters `text[start:end]`, or `None` if no part is similar enough.
    """
    positions = [i for i, character in enumerate(text) if not character.isspace()]
    bare, wanted = "".join(text[i] for i in positions), "".join(quote.split())
    if not wanted or not bare:
        return None
    start = bare.find(wanted)
    end = start + len(wanted)
    if start < 0 and threshold == 1:
        return None
    if start < 0:
        edits = _edits(bare, wanted, anywhere=True)
        end = int(edits.argmin())
        if end == 0 or 1 - edits[end] / len(wanted) < threshold:
            return None
        before = bare[max(end - 2 * len(wanted), 0) : end]
        start = end - int(_edits(before[::-1], wanted[::-1], anywhere=False).argmin())
    return (positions[start], positions[end - 1] + 1) if start < end else None


def _edits(text: str, quote: str, anywhere: bool) -> np.ndarray:
    """Fewest edits that make the quote out of a part of the text, by where the part ends, `(len(text) + 1,)`. The part
    begins anywhere, or where the text does."""
    characters = np.array([ord(character) for character in text])
    ends = np.arange(len(text) + 1)
    edits = np.zeros_like(ends) if anywhere else ends
    for count, character in enumerate(quote, 1):
        kept = edits[:-1] + (characters != ord(character))
        edits = np.concatenate([[count], np.minimum(kept, edits[1:] + 1)])
        edits = np.minimum.accumulate(edits - ends) + ends  # characters of the text that the quote lacks
    return edits


def token_span(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, end: int) -> tuple[int, int]:
    """
    Tokens that hold a span of characters.

    A character of several tokens (bytes of UTF-8) takes them all. Tokens without text, such as special ones, are not
    taken at the edges. It takes a number of decodings that grows with the logarithm of the number of tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any.
        ids (`list[int]`): The tokens.
        start, end (`int`): Characters `[start, end)`, at least one, of [`decoded`]`(tokenizer, ids)`, which is
            `tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`.

    Returns:
        `tuple[int, int]`: Tokens `ids[first:last]`.

    Raises:
        ValueError: If there are no such characters.
    """
    whole = decoded(tokenizer, ids)
    if not 0 <= start < end <= len(whole):
        raise ValueError(f"A text of {len(whole)} characters has none from {start} to {end}.")

    def begun(count: int) -> bool:
        """Whether the first `count` tokens hold something of the first character."""
        lengths = []
        for some in range(count, min(count + _MOST_BYTES, len(ids) + 1)):
            text = decoded(tokenizer, ids[:some])
            lengths.append(len(text))
            if not text.endswith(_BROKEN):
                break
        return min(lengths) > start  # some decoders put one sign for each byte of a character that is not whole yet

    def complete(count: int) -> bool:
        """Whether they hold all up to the last character."""
        for some in range(count, max(count - _MOST_BYTES, 0), -1):
            text = decoded(tokenizer, ids[:some])
            if text[:end] == whole[:end]:
                return True
            if not text.endswith(_BROKEN):
                break
        return False

    return _first(begun, 1, len(ids)) - 1, _first(complete, 1, len(ids))


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """First number from `low` to `high` from which on `holds` is true."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def locate(
    tokenizer: PreTrainedTokenizerBase, rollout: Rollout, quote: str, threshold: float
) -> tuple[int, int] | None:
    """
    Tokens of a quote in a rollout, within the student's own turns: not in tool results.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The student's.
        rollout ([`Rollout`]): Rollout whose turns are searched in order, for the exact quote first.
        quote (`str`), threshold (`float`): As in [`find_quote`].

    Returns:
        `tuple[int, int]` or `None`: Tokens of `completion_ids`, or `None` if it holds no such quote.
    """
    for similarity in (1.0, threshold):
        for turn in rollout.turns:
            ids = rollout.completion_ids[turn.start : turn.end]
            if found := find_quote(decoded(tokenizer, ids), quote, similarity):
                first, last = token_span(tokenizer, ids, *found)
                return turn.start + first, turn.start + last
    return None
