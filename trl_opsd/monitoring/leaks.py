# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Completions that give the privileged context away: they quote it, or speak of it."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trl_opsd.prompts.control_tokens import strings
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.text import words
from trl_opsd.rollouts.view import View


LEAK_PHRASES = (
    "hint", "hints", "privileged", "provided solution", "provided solutions", "reference", "references", "secret",
    "secrets", "solution above", "solutions above",
)  # fmt: skip


@dataclass(frozen=True)
class Leak:
    """
    Leak of the privileged context into a completion.

    Args:
        quote (`str`, *optional*): Its first words that stand in the context and not in what the student read.
        phrase (`str`, *optional*): The first of the phrases that it has and the student had not read.
    """

    quote: str | None = None
    phrase: str | None = None

    @property
    def shown(self) -> str | None:
        """The leak as text, for the completions table."""
        found = [f"{kind}: {text}" for kind, text in (("quote", self.quote), ("phrase", self.phrase)) if text]
        return "; ".join(found) or None


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
        self._pattern = re.compile(f"(?<= )(?:{'|'.join(map(re.escape, longest_first))})(?= )") if spaced else None

    def hits(self, written: list[str], read: str) -> list[str]:
        """Every occurrence among the words that were written, of phrases that the text that was read lacks."""
        found = self._pattern.findall(_spaced(written)) if self._pattern else []
        known = _spaced(words(read)) if found else ""
        return [phrase for phrase in found if f" {phrase} " not in known]


def _grams(parts: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(parts[i:] for i in range(n)), strict=False))


def _sides(prompt: str | Messages, completion: str | Messages) -> tuple[Any, Any]:
    """Messages or text that the student wrote, and that it read: its prompt and the tools' results."""
    if isinstance(completion, str):
        return completion, prompt
    own = [message for message in completion if message["role"] == "assistant"]
    others = [message for message in completion if message["role"] != "assistant"]
    return own, [*([prompt] if isinstance(prompt, str) else prompt), *others]


def written_and_read(prompt: str | Messages, completion: str | Messages) -> tuple[str, str]:
    """Texts that the student wrote, with its reasoning and the arguments of its tool calls, and that it read: its
    prompt and the tools' results."""
    return tuple("\n".join(strings(side)) for side in _sides(prompt, completion))


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
    sides = [_sides(rollout.prompt, rollout.completion) for rollout in rollouts]
    shown = [view.shown for row in views for view in row]
    parts = [strings(one) for one in (*(own for own, _ in sides), *(other for _, other in sides), *shown)]
    texts = ["\n".join(part) for part in parts]
    written, read, contexts = texts[: len(sides)], texts[len(sides) : 2 * len(sides)], iter(texts[2 * len(sides) :])
    # Rows of a group often share a context
    grams_of: Any = functools.cache(lambda text: frozenset(_grams(words(text), n)))
    leaks = []
    for text, known, row in zip(written, read, views, strict=True):
        own, quote = words(text), None
        grams = [grams_of(next(contexts)) for _ in row] if n else []
        if grams:
            found = [gram for gram in _grams(own, n) if any(gram in context for context in grams)]
            before = grams_of(known) if found else ()
            quote = next((" ".join(gram) for gram in found if gram not in before), None)
        hits = phrases.hits(own, known)
        leaks.append(Leak(quote, hits[0] if hits else None))
    return leaks
