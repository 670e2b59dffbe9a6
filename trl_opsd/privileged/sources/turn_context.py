# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contexts of the second turns as contexts of the teacher."""

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated

from trl_opsd.options import OneOf, check_fields
from trl_opsd.privileged.asking import call, rollouts_of
from trl_opsd.privileged.base import Run, Source
from trl_opsd.privileged.compose import mask_unwanted, restrict_to
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import READERS, View, Views


BARE = ("first", "distil", "given")  # roles that are trained under the bare prompt
UNDER_CONTEXT = ("second", "reread")


@dataclass
class TurnContext(Source):
    """
    Context of a rollout's unit under `turns`. A rollout that is trained under the bare prompt has it as its view. One
    that is trained under the context has the bare prompt as its view, named `"bare"`.

    `first` rollouts about which the source of the turns was not asked are asked about now.

    Args:
        roles (`list[str]`): Roles whose rollouts have a view.
        name, reader: Of the context's view, as in [`View`].
    """

    roles: list[str] = field(default_factory=lambda: ["distil"])
    _: KW_ONLY
    name: str = "privileged"
    reader: Annotated[str, OneOf(READERS)] = "teacher"

    NAME = "turn_context"

    def __post_init__(self) -> None:
        check_fields(self)
        for role in self.roles:
            if role not in BARE + UNDER_CONTEXT:
                raise ValueError(f"`roles` names {role!r}: they are among {[*BARE, *UNDER_CONTEXT]}.")

    @property
    def uses_model(self) -> bool:
        return self.run is not None and "first" in self.roles and self.run.turn_source.uses_model

    @property
    def counts(self) -> dict[str, float]:
        """Those of the source of the turns, where it is asked about first turns."""
        return self.run.turn_source.counts if self.run is not None and "first" in self.roles else {}

    def setup(self, run: Run) -> None:
        if run.turn_source is None:
            raise ValueError("The source `turn_context` shows the context of `turns`: set `turns` with a `source`.")
        super().setup(run)

    def __call__(self, groups: list[Group]) -> Views:
        asked: dict[int, list[View]] = {}
        if "first" in self.roles:
            firsts = [first for group in groups if (first := [one for one in group if one.role == "first"])]
            left = restrict_to(firsts, lambda rollout, _: not _was_asked(rollout))
            with self.raise_on_all_ranks(self.require_run().turn_source):
                found = mask_unwanted(left, call(self.require_run().turn_source, left))
            asked = {one.index: views for one, views in zip(rollouts_of(left), found, strict=True) if views}
        return [self._views(one, asked.get(one.index, [])) for one in rollouts_of(groups)]

    def _views(self, rollout: Rollout, asked: list[View]) -> list[View]:
        if rollout.role not in self.roles or not rollout.wanted:
            return []
        if rollout.role in UNDER_CONTEXT:
            return [View(name="bare", prompt=rollout.attempt.prompt, reader=self.reader)]
        found = asked if rollout.turn_view is None else [rollout.turn_view]
        return [replace(view, name=self.name, reader=self.reader, span=None) for view in found]


def _was_asked(rollout: Rollout) -> bool:
    return rollout.attempt is not None and rollout.attempt.wanted
