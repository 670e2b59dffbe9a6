# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Completions that give the privileged context away: they quote it, or speak of it."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trl_opsd.prompts.control_tokens import strings
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.view import View


LEAK_PHRASES = (
    "hint", "hints", "privileged", "provided solution", "provided solutions", "reference", "references", "secret",
    "secrets", "solution above", "solutions above",
)  # fmt: skip

# Scripts that set no spaces between words: Thai and Lao, Burmese, Khmer, kana, Chinese characters
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Leak:
    """
    What a completion gives away.

    Args:
        quote (`str`, *optional*): Its first words that stand in the context and not in what the student read.
        phrase (`str`, *optional*): The first of the phrases that it has and the student had not read.
    """

    quote: str | None = None
    phrase: str | None = None

    @property
    def shown(self) -> str | None:
        """As text, for the completions table."""
        found = [f"{kind}: {text}" for kind, text in (("quote", self.quote), ("phrase", self.phrase)) if text]
        return "; ".join(found) or None


def words(text: str) -> list[str]:
    """Words of a text, without case and punctuation. Where a script sets no spaces, a character is a word."""
    return _WORD.findall(text.casefold())


def _spaced(parts: list[str]) -> str:
    return f" {' '.join(parts)} "


class Phrases:
    """
    Phrases to look for: whole words, in any case.

    Args:
        phrases (`Iterable[str]`): The phrases.

    Raises:
        ValueError: If one has no word.
    """

    def __init__(self, phrases: Iterable[str]):
        phrases = list(phrases)
        spaced = [" ".join(words(phrase)) if isinstance(phrase, str) else "" for phrase in phrases]
        if "" in spaced:
            raise ValueError(f"A phrase is a text with a word in it, got {phrases[spaced.index('')]!r}.")
        longest_first = sorted(spaced, key=len, reverse=True)
        self._pattern = re.compile(f"(?<= )(?:{'|'.join(longest_first)})(?= )") if spaced else None

    def hits(self, written: list[str], read: str) -> list[str]:
        """Every occurrence among the words that were written, of phrases that the text that was read lacks."""
        found = self._pattern.findall(_spaced(written)) if self._pattern else []
        known = _spaced(words(read)) if found else ""
        return [phrase for phrase in found if f" {phrase} " not in known]


def _grams(parts: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(parts[i:] for i in range(n)), strict=False))


def written_and_read(prompt: str | Messages, completion: str | Messages) -> tuple[str, str]:
    """What the student wrote, with its reasoning and the arguments of its tool calls, and what it read: its prompt and
    the tools' results."""
    if isinstance(completion, str):
        return completion, "\n".join(strings(prompt))
    own = [message for message in completion if message["role"] == "assistant"]
    others = [message for message in completion if message["role"] != "assistant"]
    return "\n".join(strings(own)), "\n".join([*strings(prompt), *strings(others)])


def _told(view: View) -> str:
    """What the teacher reads of a view beside the student's prompt."""
    if isinstance(view.context, str):
        return view.text
    return "\n".join(strings(view.prompt if view.context is None else view.context))


def find_leaks(rollouts: list[Rollout], views: list[list[View]], n: int, phrases: Phrases) -> list[Leak]:
    """
    Look for leaks in each rollout.

    A context of fewer than `n` words can't be quoted: a right answer and a short one in the context are the same words.

    Args:
        rollouts (`list[Rollout]`): Rollouts.
        views (`list[list[View]]`): Views of each.
        n (`int`): Words in a row that make a quote. 0 looks for none.
        phrases ([`Phrases`]): What gives a context away by itself, also where there is none.
    """
    # Rows of a group often share a context
    grams_of: Any = functools.cache(lambda text: frozenset(_grams(words(text), n)))
    leaks = []
    for rollout, row in zip(rollouts, views, strict=True):
        text, read = written_and_read(rollout.prompt, rollout.completion)
        written, quote = words(text), None
        if n and row:
            contexts = [grams_of(_told(view)) for view in row]
            found = [gram for gram in _grams(written, n) if any(gram in context for context in contexts)]
            known = grams_of(read) if found else ()
            quote = next((" ".join(gram) for gram in found if gram not in known), None)
        hits = phrases.hits(written, read)
        leaks.append(Leak(quote, hits[0] if hits else None))
    return leaks
