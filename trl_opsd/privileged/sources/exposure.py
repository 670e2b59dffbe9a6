# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Parts of a solution as contexts."""

import math
import re
from dataclasses import dataclass
from numbers import Number

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource, rollout_rng
from trl_opsd.privileged.checks import column_of, text_of
from trl_opsd.rollouts.rollout import Group, Rollout
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
            on a line of its own at the end, unless `hide_answer`.
        hide_answer (`bool`): Whether the answer is taken out of what is shown, wherever it stands for itself and not
            within a longer number or word (the views of AVSD, 2605.20643).
        seed (`int`): Of `"random"`.

    Raises:
        ValueError: For options that do not fit, and when asked, for a solution in which the answer can't be found.
    """

    column: str = "solution"
    share: float | str = 1.0
    end_share: float | None = None
    steps: int | None = None
    separator: str = r"\n\s*\n"
    answer: str | None = None
    hide_answer: bool = False
    seed: int = 0

    NAME = "exposure"
    COLUMN_FIELDS = ("column", "answer")

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = [share for share in (self.share, self.end_share) if share is not None and share != "random"]
        if not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares):
            raise ValueError(f"`share` and `end_share` lie between 0 and 1, or `share` is 'random'; got {shares}.")
        if (self.end_share is None) != (self.steps is None) or (self.steps is not None and self.steps < 1):
            raise ValueError("`end_share` and `steps` (at least 1) belong together: set both or none.")
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
        cuts = [match.span() for match in self._between.finditer(solution.strip())]
        ends = [start for start, _ in cuts] + [len(solution.strip())]
        count = math.floor(self._share(rollout) * len(ends) + 1e-9)  # 0.3 * 10 is 2.9999999999999996
        text = solution.strip()[: ends[count - 1]] if count else ""
        if answer is not None and self.hide_answer:
            text = _whole(answer).sub("...", text)
        elif answer is not None and not _whole(answer).search(text):
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
            value = column_of(rollout, self.answer, "answer")
            if value is not None and not isinstance(value, (str, Number)):
                raise ValueError(
                    f"The column `{self.answer}` of {rollout.where} must be text, a number or None, got {value!r}."
                )
            value = int(value) if isinstance(value, float) and value.is_integer() else value
            answer = None if value is None or value != value else str(value).strip() or None
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


def _whole(answer: str) -> re.Pattern[str]:
    """Pattern of an answer where it stands for itself: 5 is neither in 15 nor in 2.5, and A not in AND."""
    before = r"(?<!\d)(?<!\d[.,])" if answer[0].isdigit() else r"(?<![A-Za-z])" if answer[0].isalpha() else ""
    after = r"(?![.,]?\d)" if answer[-1].isdigit() else r"(?![A-Za-z])" if answer[-1].isalpha() else ""
    return re.compile(before + re.escape(answer) + after)
