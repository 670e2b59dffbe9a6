# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Part of a solution as context, its share chosen by a learned controller."""

from dataclasses import dataclass
from typing import Any

from trl_opsd.options import Count, NonNegative, Share
from trl_opsd.privileged.base import TextSource
from trl_opsd.privileged.exposure_controller import ExposureController
from trl_opsd.privileged.sources.exposure import PartialExposure
from trl_opsd.rollouts.rollout import Group
from trl_opsd.rollouts.step_summary import StepSummary
from trl_opsd.rollouts.view import Views


@dataclass
class AdaptiveExposure(TextSource):
    """
    First floor(share * m) of a solution's m segments, and its answer, with a share that a controller learns to choose
    (ATESD, 2605.11458). A row whose solution is `None`, or of which nothing is left, has no view.

    A small network reads the progress, the moving average of the share, the loss, the gap and the student's entropy,
    and the share is drawn from the Beta distribution that it gives. It holds for some optimizer steps, and the falls of
    the loss within them are its reward (REINFORCE). The paper's numbers are not known: the defaults are ours.

    Args:
        column (`str`): Column with the solution.
        answer (`str`, *optional*): What is the answer, as in the source `exposure`; it is always shown.
        separator (`str`): Regular expression between segments. The default is an empty line.
        hold (`int`): Optimizer steps of a share. Its rollouts should be of these steps: with generation batches that
            last for several, set a multiple of them.
        look_ahead (`int`): Steps whose falls of the loss count, fewer than `hold`.
        discount (`float`): Factor on each further fall.
        learning_rate (`float`): Of the controller. 0 draws every share from one distribution.
        entropy_target, entropy_weight (`float`): The squared excess of the distribution's entropy over the target costs
            so much. The even distribution has the largest entropy, 0.
        seed (`int`): Of the controller.

    Raises:
        ValueError: For options that do not fit, and when asked, for a solution in which the answer can't be found.
    """

    column: str = "solution"
    answer: str | None = None
    separator: str = r"\n\s*\n"
    hold: Count = 5
    look_ahead: Count = 3
    discount: Share = 0.9
    learning_rate: NonNegative = 0.05
    entropy_target: float = -0.5
    entropy_weight: NonNegative = 0.01
    seed: int = 0

    NAME = "adaptive_exposure"
    COLUMN_FIELDS = ("column", "answer")
    observes_steps = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.look_ahead >= self.hold:
            raise ValueError(
                f"`look_ahead` is {self.look_ahead} and `hold` {self.hold}: keep it below, as losses under different "
                "shares can't be compared."
            )
        self.controller = ExposureController(
            self.hold, self.look_ahead, self.discount, self.learning_rate, self.entropy_target, self.entropy_weight,
            self.seed,
        )  # fmt: skip
        self._part = PartialExposure(
            self.column, self.controller.share, separator=self.separator, answer=self.answer, place=self.place,
            template=self.template, role=self.role, weight=self.weight, name=self.name, policy=self.policy,
            chat_template_kwargs=self.chat_template_kwargs, reader=self.reader,
        )  # fmt: skip

    def column_options(self) -> list[tuple[str, str]]:
        return self._part.column_options()

    def __call__(self, groups: list[Group]) -> Views:
        self._part.share = self.controller.share
        return self._part(groups)

    @property
    def counts(self) -> dict[str, float]:
        """The present share, once over all processes."""
        return {"exposure_share": self.controller.share / (self.run.num_processes if self.run else 1)}

    def observe_step(self, summary: StepSummary) -> None:
        self.controller.observe(summary)

    def state_dict(self) -> dict[str, Any]:
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state)
        self._part.share = self.controller.share
