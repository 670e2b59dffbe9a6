# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Fixed contexts: rules or a system prompt to move into the weights, or a list to draw from."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource, rollout_rng
from trl_opsd.privileged.checks import check_context
from trl_opsd.rollouts.rollout import Group, Messages
from trl_opsd.rollouts.view import Views


@dataclass
class Fixed(TextSource):
    """
    Same context for every rollout (OPCD, 2602.12275), or one of several, drawn anew for each.

    Args:
        context (`str`, `list[dict]` or `list[str]`, *optional*): Text, chat messages, or texts to draw from.
        file (`str`, *optional*): A text file to read it from instead, which keeps it out of the saved options.
        seed (`int`): Of the draw.
    """

    context: str | Messages | list[str] | None = None
    file: str | None = None
    seed: int = 0
    _: KW_ONLY
    place: str = "system"

    NAME = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.context is None) == (self.file is None):
            raise ValueError("Fixed needs one of `context` and `file`.")
        if self.file is not None:
            self.context = Path(self.file).read_text(encoding="utf-8").strip()
        if not self.context:
            raise ValueError("Fixed has an empty context.")
        drawn = isinstance(self.context, list) and all(isinstance(one, str) for one in self.context)
        self._choices = self.context if drawn else [self.context]
        for number, one in enumerate(self._choices):
            check_context(one, f"Context {number} of Fixed")

    def __call__(self, groups: list[Group]) -> Views:
        return [[self.view(rollout_rng(r, self.seed, "fixed").choice(self._choices))] for r in rollouts_of(groups)]
