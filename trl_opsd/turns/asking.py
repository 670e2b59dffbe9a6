# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""First turns put to the source of the turns: which units go on, and what their second turn reads."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.privileged import Asker, Source, as_source, build_condition, build_source, rollouts_of
from trl_opsd.privileged.checks import check_needs, source_name
from trl_opsd.privileged.compose import restrict_to
from trl_opsd.privileged.conditions import Condition
from trl_opsd.prompts.length_limit import EncodedReading
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.rollouts.capture import whole_groups
from trl_opsd.rollouts.rollout import Rollout
from trl_opsd.rollouts.view import View
from trl_opsd.turns.options import TurnOptions


@dataclass(frozen=True)
class Asked:
    """
    First turns after the source was asked.

    Args:
        attempts (`list[Rollout]`): The local ones, `wanted` where the source was asked about them.
        contexts (`list[EncodedReading | None]`): What each one's second turn reads, `None` where the unit ends.
    """

    attempts: list[Rollout]
    contexts: list[EncodedReading | None]


class TurnSource:
    """
    Source of the turns with its condition, and the encoding of what it gives.

    Args:
        options ([`TurnOptions`]): Options with a `source`.
    """

    def __init__(self, options: TurnOptions):
        self.options = options
        self.source: Source = as_source(build_source(options.source, "turns.source"))
        self.condition: Condition | None = None
        if options.when is not None:
            self.condition = build_condition(options.when, "turns.when")
        self.counts: dict[str, float] = {}

    def check_run(self, has_reward: bool, units: int) -> None:
        """Check that the run has what source and condition need: rewards, and so many units of a prompt."""
        if self.condition is not None:
            who = f"The condition `{source_name(self.condition)}` of `turns.when`"
            check_needs(self.condition, who, has_reward, units)
        try:
            self.source.check_run(has_reward, units)
        except ValueError as error:
            raise ValueError(f"`turns.source`: {error}") from None

    def setup(self, args: Any, encoder: ViewEncoder, accelerator: Accelerator) -> None:
        """Take what a batch needs, before training."""
        self.encoder, self.accelerator, self.room = encoder, accelerator, args.max_completion_length or 0
        sampled_by_vllm = args.use_vllm and self.options.weights == "live"
        self.vllm_length = args.vllm_max_model_length if sampled_by_vllm else None
        self.asker = Asker(self.source, args.privileged_on_error, args.privileged_timeout)

    def ask(self, attempts: list[Rollout], group_size: int, step: int) -> Asked:
        """
        Ask about the local first turns. A collective.

        Args:
            attempts (`list[Rollout]`): In their order.
            group_size (`int`): Units of a prompt.
            step (`int`): Optimizer steps that are done.
        """
        with raise_on_all_ranks(self.accelerator, "the source of the turns", step):
            groups = whole_groups(attempts, group_size, self.accelerator)
            if self.condition is not None:
                groups = restrict_to(groups, self.condition)
            wanted = {one.index: one for one in rollouts_of(groups) if one.wanted}
            found = dict(zip(wanted, self.asker(groups), strict=True))
            known = self.source.counts  # after an error they may be those of the batch before
            self.counts = dict.fromkeys(known, 0) if self.asker.raised else dict(known)
            self.counts["source_errors"] = self.asker.skipped
        by_index = {one.index: one for one in rollouts_of(groups)}
        asked = [by_index[one.index] for one in attempts]
        with raise_on_all_ranks(self.accelerator, "the prompts of the second turns", step):
            views = [self._one_view(one, found.get(one.index, [])) for one in asked]
            contexts = self.encoder.second_prompts(asked, views, self.room)
            self.counts["dropped_contexts"] = len(list(filter(None, views))) - len(list(filter(None, contexts)))
            for context in contexts if self.vllm_length is not None else ():
                self._check_vllm_length(context)
        return Asked(asked, contexts)

    def _check_vllm_length(self, context: EncodedReading | None) -> None:
        if context is not None and len(context.ids) + self.room > self.vllm_length:
            raise ValueError(
                f"The second turn's prompt of {context.placed.rollout.where} has {len(context.ids)} tokens; with "
                f"`max_completion_length={self.room}` that is more than `vllm_max_model_length={self.vllm_length}`. "
                "Raise it, or shorten the contexts of `turns.source`."
            )

    def _one_view(self, attempt: Rollout, views: list[View]) -> View | None:
        if len(views) > 1:
            raise ValueError(
                f"`turns.source` must give one view of a first turn, and {source_name(self.source)} gave "
                f"{[view.name for view in views]} for {attempt.where}."
            )
        return views[0] if views else None
