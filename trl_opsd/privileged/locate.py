# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Location of quotes in a rollout: characters of its text, and the tokens that hold them."""

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from trl_opsd.rollouts.rollout import Rollout, reaches
from trl_opsd.rollouts.text import is_word, occurrences


_BROKEN = "\ufffd"  # what decoders put for bytes that make no character, or none yet
_MOST_BYTES = 4  # of a character in UTF-8


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of tokens, without special tokens and without the clean-up of spaces: so each token's part stays as it is
    when others follow."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def find_quote(text: str, quote: str, threshold: float) -> tuple[int, int] | None:
    """
    Span of a quote in a text: its first exact occurrence, of whole words if there is one; or else the first in another
    spelling, as [`occurrences`] finds it; or else the part that takes the fewest edits.

    White space counts as one space between two words or numbers and nowhere else; upper and lower case differ, but for
    another spelling. Of parts that take as few edits the first counts, with a length as near to the quote's as can be.

    Args:
        text (`str`): Text to search.
        quote (`str`): Quote to find.
        threshold (`float`): From 0 to 1: least share of the quote's characters that need no edit (1 minus the
            Levenshtein distance over the quote's length). `1.0` takes exact quotes only.

    Returns:
        `tuple[int, int]` or `None`: Characters `text[start:end]`, or `None` if no part is similar enough.
    """
    (bare, positions), (wanted, _) = _bare(text), _bare(quote)
    if not wanted or not bare:
        return None
    exact = _exact(bare, wanted)
    if threshold < 1 and (exact is None or not _is_whole(bare, *exact)):
        if spelled := occurrences(text, quote):
            return spelled[0]
    if exact is None and threshold < 1:
        exact = _nearest(bare, wanted, threshold)
    return None if exact is None else (positions[exact[0]], positions[exact[1] - 1] + 1)


def _bare(text: str) -> tuple[str, list[int]]:
    """Text without the white space that does not count, and the place of each of its characters."""
    found, places = [], []
    for match in re.finditer(r"\S+", text):
        if found and is_word(found[-1]) and is_word(match.group()[0]):
            found.append(" ")
            places.append(match.start() - 1)
        found += match.group()
        places += range(match.start(), match.end())
    return "".join(found), places


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a span begins and ends between words."""
    return not any(is_word(text[i - 1]) and is_word(text[i]) for i in (start, end) if 0 < i < len(text))


def _exact(text: str, quote: str) -> tuple[int, int] | None:
    """First occurrence, of whole words if there is one."""
    first = start = text.find(quote)
    while start >= 0 and not _is_whole(text, start, start + len(quote)):
        start = text.find(quote, start + 1)
    start = first if start < 0 else start
    return None if start < 0 else (start, start + len(quote))


def _nearest(text: str, quote: str, threshold: float) -> tuple[int, int] | None:
    """Part that takes the fewest edits, `None` if too many."""
    if not reaches(len(text) / len(quote), threshold):
        return None
    edits = _edits(text, quote, anywhere=True)
    fewest = min(edits)
    if fewest == len(quote) or not reaches(1 - fewest / len(quote), threshold):
        return None
    end = edits.index(fewest)
    while end < len(text) and edits[end + 1] == fewest:
        end += 1
    before = text[max(end - 2 * len(quote), 0) : end]
    lengths = [length for length, one in enumerate(_edits(before[::-1], quote[::-1], anywhere=False)) if one == fewest]
    length = min(lengths, key=lambda one: abs(one - len(quote)))
    return (end - length, end) if length else None


def _edits(text: str, quote: str, anywhere: bool) -> list[int]:
    """
    Fewest edits that make the quote out of a part of the text, by where the part ends (`len(text) + 1` numbers). The
    part begins anywhere, or where the text does.

    Rows of the table of distances are bits of whole numbers (Myers 1999, in the form of Hyyrö 2003), so that a text
    takes a few operations for each of its characters.
    """
    rows = (1 << len(quote)) - 1
    last = 1 << (len(quote) - 1)
    places: dict[str, int] = {}
    for row, character in enumerate(quote):
        places[character] = places.get(character, 0) | (1 << row)
    more, less, edits = rows, 0, [len(quote)]  # rows with one edit more, or less, than the row above them
    for character in text:
        equal = places.get(character, 0) | less
        diagonal = ((more + (equal & more)) ^ more) | equal
        right_less = more & diagonal
        right_more = less | (rows & ~(more | diagonal))
        edits.append(edits[-1] + bool(right_more & last) - bool(right_less & last))
        right_more = (right_more << 1) | (not anywhere)
        less = right_more & diagonal & rows
        more = ((right_less << 1) | ~(right_more | diagonal)) & rows
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
