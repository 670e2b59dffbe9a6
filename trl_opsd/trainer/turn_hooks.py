# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Turns in a run: their set-up and checks, and what the trainer's hooks make of their roles."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset

from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.config.validation import check_turn_sizes
from trl_opsd.monitoring.metrics import Sums, reduce_sums
from trl_opsd.privileged import Run
from trl_opsd.privileged.checks import check_column
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.rollouts.rollout import Rollout
from trl_opsd.trainer.setup_checks import context_length, named_datasets
from trl_opsd.turns.options import turn_options
from trl_opsd.turns.sampler import Turns
from trl_opsd.turns.units import SCORED


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer


def turns_of(args: OPSDConfig, others: dict[str, Any], train_dataset: Any, eval_dataset: Any) -> Turns | None:
    """
    Turns of a run, `None` without.

    Args:
        args ([`OPSDConfig`]): Options.
        others (`dict[str, Any]`): Arguments of the trainer that sample or prompt otherwise, by name.
        train_dataset, eval_dataset (`Any`): As the trainer is given them.

    Raises:
        ValueError: If one of these is given beside turns, or a dataset lacks a column that they read.
    """
    options = turn_options(args.turns)
    if options is None:
        return None
    for name, value in others.items():
        if value:
            raise ValueError(f"`turns` sample the rollouts, and so does `{name}`: leave one of them out.")
    turns = Turns(options)
    datasets = named_datasets(train_dataset, eval_dataset)
    if options.given is not None and isinstance(train_dataset, (Dataset, IterableDataset)):
        check_column(options.given, train_dataset, "train_dataset", "turns.given")
    for name, dataset in datasets.items():
        if turns.source is not None and isinstance(dataset, (Dataset, IterableDataset)):
            turns.source.check(dataset, name)
    return turns


def check_turns(args: OPSDConfig, turns: Turns | None, has_reward: bool) -> None:
    """
    Check that a run has the groups and the rewards that its turns need.

    Raises:
        ValueError: If rows can't be dealt in units, or source or condition look at rewards that are not there.
    """
    if turns is None:
        return
    check_turn_sizes(args)
    if turns.asking is not None:
        turns.asking.check_run(has_reward, args.num_generations // turns.options.size)


def set_up_turns(trainer: "OPSDTrainer", encoder: ViewEncoder, run: Run) -> Run:
    """
    Prepare the turns of a trainer, if it has some. Its teacher is there already.

    Args:
        trainer ([`OPSDTrainer`]): The trainer.
        encoder ([`ViewEncoder`]): From contexts to prompts.
        run ([`~trl_opsd.privileged.Run`]): What sources are given.

    Returns:
        The run as the privileged source is given it, with the source of the turns.

    Raises:
        ValueError: If the teacher's weights, which are to write, are sharded.
    """
    turns = trainer.turns
    if turns is None:
        return run
    if turns.options.weights == "teacher" and trainer.teacher.backend.gathers_whole_modules:
        raise ValueError(
            "`turns`: `weights: teacher` writes with whole weights, and this engine shards them. Use DDP or ZeRO-2, or "
            "leave `weights` out."
        )
    turns.setup(trainer.args, encoder, trainer.accelerator, run, context_length(trainer.model))
    trainer.parts["turns"] = turns
    return replace(run, turn_source=turns.source)


def scored_rewards(rewards: torch.Tensor, rollouts: list[Rollout], accelerator: Accelerator) -> torch.Tensor:
    """Rewards of all processes, `nan` for rows in roles that TRL does not compare. A collective."""
    scored = torch.tensor([one.role in SCORED for one in rollouts], device=rewards.device)
    return rewards.masked_fill(~accelerator.gather(scored).unsqueeze(1), torch.nan)


def credited(advantages: torch.Tensor, trainer: "OPSDTrainer") -> torch.Tensor:
    """Advantages of the local rows by the method's credit, in the table of completions too; TRL's own without."""
    collected = trainer.collected
    credit = trainer.method.credit(collected.groups)
    if credit is None:
        return advantages
    values = [credit[one.index] for one in collected.rollouts]
    table = trainer._logs["advantages"]
    for place, value in enumerate(reversed(gather_object(values)), start=1):
        if place <= len(table):
            table[-place] = value
    return torch.tensor(values, dtype=advantages.dtype, device=advantages.device)


def turn_sums(turns: Turns, rollouts: list[Rollout], accelerator: Accelerator) -> Sums:
    """
    Metrics of the turns of a generation batch. A collective.

    Args:
        turns ([`Turns`]): That have sampled it.
        rollouts (`list[Rollout]`): Its local rollouts.
        accelerator (`Accelerator`): Reduces over processes.
    """
    if not turns.units:
        return {}
    first = [unit.attempt.total for unit in turns.units]
    second = {one.attempt.index: one for one in rollouts if one.role in ("second", "distil")}  # one text of each unit
    rewards = [one.total for one in second.values()]
    values = {
        "turns/first_reward": [value for value in first if value == value],
        "turns/second_reward": [value for value in rewards if value == value],
        "turns/unit_share": [float(unit.goes_on) for unit in turns.units],
        "turns/second_length": [float(len(one.completion_ids)) for one in second.values()],
    }
    counts = {} if turns.asking is None else turns.asking.counts
    sums = {name: (sum(own), len(own)) for name, own in values.items()}
    sums |= {f"turns/{name}": (value, None) for name, value in counts.items()}
    return reduce_sums(accelerator, sums)
