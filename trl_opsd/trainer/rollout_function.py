# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`rollout_func` of a run, with what TRL takes for granted checked."""

from typing import Any

from trl import GRPOTrainer
from trl.trainer.grpo_trainer import RolloutFunc

from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.rollouts.rollout import Messages, named_by_prompt


class CheckedRolloutFunc:
    """
    A `rollout_func` whose errors reach every process, and whose token ids are checked. A call is a collective.

    Args:
        given (`Callable`): The user's function, from prompts and the trainer to TRL's dict.
    """

    def __init__(self, given: RolloutFunc):
        self.given = given

    def __call__(self, prompts: list[str | Messages], trainer: GRPOTrainer) -> dict[str, Any]:
        """
        Output of the function.

        Raises:
            ValueError: If prompts or completions are not one for each prompt, or one of them has no token.
        """
        with raise_on_all_ranks(trainer.accelerator, "`rollout_func`", trainer.state.global_step):
            output = self.given(prompts, trainer)
            for name in ("prompt_ids", "completion_ids"):
                _check_ids(name, output.get(name, [[0]] * len(prompts)), prompts)  # TRL names keys that are missing
        return output


def _check_ids(name: str, values: list[list[int]], prompts: list[str | Messages]) -> None:
    if len(values) != len(prompts):
        raise ValueError(f"`rollout_func` returned {len(values)} `{name}` for {len(prompts)} prompts.")
    for ids, prompt in zip(values, prompts, strict=True):
        if len(ids) == 0:
            raise ValueError(
                f"`rollout_func` returned empty `{name}` for {named_by_prompt(prompt)}. Return at least the token that "
                "ends it, such as `trainer.processing_class.eos_token_id`."
            )
