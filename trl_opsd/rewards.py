# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Reward functions that belong to privileged contexts, for `reward_funcs`."""

from collections.abc import Callable, Iterable
from typing import Any

from trl_opsd.monitoring.leaks import LEAK_PHRASES, Phrases, written_and_read
from trl_opsd.options import NonNegative, checked
from trl_opsd.rollouts.text import words


@checked
def make_leak_penalty(phrases: Iterable[str] = LEAK_PHRASES, penalty: NonNegative = 0.1) -> Callable[..., list[float]]:
    """
    Make a reward function that takes something off for each phrase with which a completion speaks of what only the
    teacher has read (the leakage penalty of pi-Distill, 2602.04942).

    Args:
        phrases (`Iterable[str]`):
            Whole words, in any case. Those that stand in the prompt or in a tool's result do not count.
        penalty (`float`, *optional*, defaults to `0.1`):
            What each occurrence costs.

    Raises:
        ValueError: If a phrase has no word, or the penalty is negative.
    """
    wanted = Phrases(phrases)

    def leak_penalty(prompts: list, completions: list, **kwargs: Any) -> list[float]:
        """-0.1 for each occurrence of one of [`LEAK_PHRASES`]."""
        pairs = (written_and_read(*pair) for pair in zip(prompts, completions, strict=True))
        return [-penalty * len(wanted.hits(words(written), read)) for written, read in pairs]

    return leak_penalty


leak_penalty = make_leak_penalty()
