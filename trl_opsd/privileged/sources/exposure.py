# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Parts of a solution as contexts."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from trl_opsd.options import Count, Share
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource, rollout_rng
from trl_opsd.privileged.checks import column_of, text_of
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.text import occurrences
from trl_opsd.rollouts.view import View, Views


@dataclass
class PartialExposure(TextSource):
    r"""
    First floor(share * m) of a solution's m segments, and its answer (ATESD, 2605.11458). A row whose solution is
    `None`, or of which nothing is left, has no view.

    Args:
        column (`str`): Column with the solution.
        share (`float` or `str`): Share of the segments, from 0 to 1, or `"random"`, drawn evenly for each rollout.
            `0.0` with an answer is the answer alone.
        end_share (`float`, *optional*): Share at the end, which `share` moves to on a straight line.
        steps (`int`, *optional*): Optimizer steps that it takes to get there.
        separator (`str`): Regular expression between segments. The default is an empty line.
        answer (`str`, *optional*): What is the answer: the name of a column, or a regular expression after `regex:`
            whose last match in the solution it is (its first group, if it has one). With it the answer is always shown,
            unless `hide_answer`: on a line of its own at the end, if not in the whole solution.
        hide_answer (`bool`): Whether the answer is taken out of what is shown, in whatever spelling (1,000 and 1000),
            wherever it stands for itself and not within a longer number or word (the views of AVSD, 2605.20643). A
            number written in words or as a percentage is not found.
        seed (`int`): Of `"random"`.

    Raises:
        ValueError: For options that do not fit, and when asked, for a solution in which the answer can't be found.
    """

    column: str = "solution"
    share: Share | Literal["random"] = 1.0
    end_share: Share | None = None
    steps: Count | None = None
    separator: str = r"\n\s*\n"
    answer: str | None = None
    hide_answer: bool = False
    seed: int = 0

    NAME = "exposure"
    COLUMN_FIELDS = ("column", "answer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.end_share is None) != (self.steps is None):
            raise ValueError("`end_share` and `steps` belong together: set both or none.")
        if self.share == "random" and self.end_share is not None:
            raise ValueError("`share='random'` has no `end_share`: leave it out.")
        if self.hide_answer and self.answer is None:
            raise ValueError("`hide_answer` needs `answer`, which says what the answer is.")
        self._between = re.compile(self.separator)
        is_pattern = self.answer is not None and self.answer.startswith("regex:")
        self._pattern = re.compile(self.answer.removeprefix("regex:")) if is_pattern else None

    def column_options(self) -> list[tuple[str, str]]:
        return [pair for pair in super().column_options() if pair[0] != "answer" or self._pattern is None]

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) if rollout.wanted else [] for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        solution = text_of(rollout, self.column, "column")
        if solution is None:
            return []
        answer = self._answer(rollout, solution)
        whole = solution.strip()
        ends = [match.start() for match in self._between.finditer(whole)] + [len(whole)]
        count = math.floor(self._share(rollout) * len(ends) + 1e-9)  # 0.3 * 10 is 2.9999999999999996
        text = whole[: ends[count - 1]] if count else ""
        if answer is not None and self.hide_answer:
            text = _without(text, answer)
        elif answer is not None and (count < len(ends) or not occurrences(text, answer)):
            text = f"{text}\n\nAnswer: {answer}".strip()
        return [self.view(text)] if text.strip() else []

    def _share(self, rollout: Rollout) -> float:
        if self.share == "random":
            return rollout_rng(rollout, self.seed, "exposure").random()
        if self.end_share is None:
            return self.share
        return self.share + (self.end_share - self.share) * min(rollout.step / self.steps, 1.0)

    def _answer(self, rollout: Rollout, solution: str) -> str | None:
        if self.answer is None:
            return None
        if self._pattern is None:
            answer = self._column_answer(rollout)
            if answer is None and self.hide_answer:
                raise ValueError(
                    f"The column `{self.answer}` has no answer to hide in the column `{self.column}` of "
                    f"{rollout.where}. Fill it in, or set the solution to None there."
                )
            return answer
        group = 1 if self._pattern.groups else 0
        matches = [match for match in self._pattern.finditer(solution) if match.group(group)]
        if not matches:
            raise ValueError(
                f"`answer` ({self.answer!r}) matches nothing in the column `{self.column}` of {rollout.where}: "
                f"{solution[-80:]!r}. Correct the expression, or name a column with the answer."
            )
        return matches[-1].group(group).strip() or None

    def _column_answer(self, rollout: Rollout) -> str | None:
        value = column_of(rollout, self.answer, "answer")
        if value is None or value != value:  # pandas writes nan where there is none
            return None
        if not isinstance(value, (str, int, float)):
            raise ValueError(
                f"The column `{self.answer}` of {rollout.where}, which the option `answer` names, must hold a text "
                f"or a number, got {value!r}."
            )
        return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip() or None


def _without(text: str, answer: str) -> str:
    """Text with `...` in the place of an answer."""
    for start, end in reversed(occurrences(text, answer)):
        text = f"{text[:start]}...{text[end:]}"
    return text
