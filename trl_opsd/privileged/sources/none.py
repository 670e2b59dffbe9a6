# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""No contexts at all: for runs whose methods learn from turns and rewards."""

from dataclasses import dataclass

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import Source
from trl_opsd.rollouts.rollout import Group
from trl_opsd.rollouts.view import Views


@dataclass
class NoViews(Source):
    """No view of any rollout, for a method that learns from the roles of `turns` without a teacher."""

    NAME = "none"

    def __call__(self, groups: list[Group]) -> Views:
        return [[] for _ in rollouts_of(groups)]
