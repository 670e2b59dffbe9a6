# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The student's own prompt as the only view: plain on-policy distillation from the teacher's weights."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from trl_opsd.options import OneOf, Positive, check_fields
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import Source
from trl_opsd.rollouts.rollout import Group
from trl_opsd.rollouts.view import READERS, View, Views


@dataclass
class Bare(Source):
    """
    The student's own prompt as the view of every rollout: the teacher differs in its weights alone.

    Args:
        name, weight, reader, policy: Of each view, as in [`View`].
    """

    name: str = "privileged"
    _: KW_ONLY
    weight: Positive = 1.0
    reader: Annotated[str, OneOf(READERS)] = "teacher"
    policy: bool = True

    NAME = "bare"

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: list[Group]) -> Views:
        view = View(name=self.name, weight=self.weight, reader=self.reader, policy=self.policy)
        return [[view] if rollout.wanted else [] for rollout in rollouts_of(groups)]
