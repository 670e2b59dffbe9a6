# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rehearsal: generation and rows beside a training, by TRL's own members of the trainer."""

from collections.abc import Callable
from typing import Any

from trl import GRPOTrainer

from trl_opsd.rollouts.rollout import Messages


def training_rows(trainer: GRPOTrainer, numbers: list[int]) -> list[dict[str, Any]]:
    """Rows of `train_dataset` with the columns that training sees."""
    dataset = trainer._remove_unused_columns(trainer.train_dataset, description="training")
    return [dataset[number] for number in numbers]


def generation_batches(trainer: GRPOTrainer, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """
    The local part of each generation batch of some rows: each row as often as it is sampled, groups side by side. Rows
    that fill no whole batch are left out.

    Args:
        trainer (`GRPOTrainer`): Gives the sizes.
        rows (`list[dict]`): The rows, the same on every process.
    """
    size = trainer.args.generation_batch_size // trainer.num_generations
    local = trainer.args.generation_batch_size // trainer.accelerator.num_processes
    first = trainer.accelerator.process_index * local
    batches = []
    for start in range(0, len(rows) - size + 1, size):
        batch = [row for row in rows[start : start + size] for _ in range(trainer.num_generations)]
        batches.append(batch[first : first + local])
    return batches


def pop_metrics(trainer: GRPOTrainer) -> dict[str, list[float]]:
    """Values by name that were logged in training since the last call or log."""
    metrics = dict(trainer._metrics["train"])
    trainer._metrics["train"].clear()
    return metrics


def generate_from(
    trainer: GRPOTrainer,
    rows: list[dict[str, Any]],
    prompts: list[str | Messages],
    prompt_ids: list[list[int]],
    write: Callable[[list[list[int]]], list[list[int]]],
) -> tuple[list[list[int]], list[list[int]] | None, list]:
    """
    TRL's generation with tools and environments, by another writer, which leaves no metrics. A collective.

    Args:
        trainer (`GRPOTrainer`): Gives generation, tools and environments.
        rows (`list[dict]`): Those of this process, with which environments are reset.
        prompts (`list`): Their prompts.
        prompt_ids (`list[list[int]]`): What the writer reads instead of their prompts.
        write (`Callable`): From token ids of prompts to those of completions.

    Returns:
        Token ids of each, with 0 at tool results and 1 elsewhere (`None` without tools), and decoded completions.
    """
    for environment, row in zip(trainer.environments or (), rows, strict=False):
        left_out = {"environment"} if trainer._multi_environment else set()
        environment.reset(**{name: value for name, value in row.items() if name not in left_out})
    replaced = {
        "_tokenize_prompts": lambda prompts: (prompt_ids, None, {}),
        "_generate_single_turn": lambda ids, *_, **__: (write(ids), None),
        "rollout_func": None,
    }
    before = {name: vars(trainer)[name] for name in replaced if name in vars(trainer)}
    logged = {mode: {name: list(values) for name, values in own.items()} for mode, own in trainer._metrics.items()}
    vars(trainer).update(replaced)
    try:
        _, ids, masks, completions, *_ = trainer._generate(prompts)
    finally:
        for name in replaced:
            del vars(trainer)[name]
        vars(trainer).update(before)
        for mode, values in logged.items():
            trainer._metrics[mode].clear()
            trainer._metrics[mode].update(values)
    return ids, masks, completions
