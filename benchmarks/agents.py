# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Does a recipe with tools lower the rate of tool errors? Held-out tasks before and after training, with the rollouts:

python -m benchmarks agents --config smollm2_calculator_hint --rows 48 -- --seed 1

What stands after `--` goes to the recipe. The transcripts are in `output_dir`/_privileged (eval-*.jsonl).
"""

import argparse
import json
import os
from typing import Any

from benchmarks.environment import ROOT
from trl_opsd.cli import train as opsd
from trl_opsd.cli.errors import told
from trl_opsd.rollouts.rollout import Rollout
from trl_opsd.trainer.view_collector import CollectedViews


def counts(rollouts: list[Rollout]) -> dict[str, float]:
    """
    Rates over rollouts.

    Returns:
        `dict[str, float]`: `calls` and `errors` (numbers of tool calls that ran and that failed), `error_rate` (the
        second over the first), `no_call` (share of rollouts without any) and `success` (share with a total reward of 1
        or more).
    """
    calls = sum(len(turn.results) for rollout in rollouts for turn in rollout.turns)
    errors = sum(len(turn.errors) for rollout in rollouts for turn in rollout.turns)
    without = sum(not any(turn.results for turn in rollout.turns) for rollout in rollouts)
    return {
        "rollouts": len(rollouts),
        "calls": calls,
        "errors": errors,
        "error_rate": errors / max(calls, 1),
        "no_call": without / len(rollouts),
        "success": sum(rollout.total >= 1 for rollout in rollouts) / len(rollouts),
    }


def evaluated(trainer: Any, rows: Any) -> dict[str, float]:
    """Sample one completion for each row, as in training, and count."""
    rollouts: list[Rollout] = []
    collect = trainer.collector.collect

    def keep(*given: Any) -> CollectedViews:
        collected = collect(*given)
        rollouts.extend(collected.rollouts)
        return collected

    trainer.collector.collect = keep
    trainer.evaluate(rows)
    trainer.collector.collect = collect
    return counts(rollouts)


def main(args: argparse.Namespace) -> None:
    os.chdir(ROOT)  # the recipe's paths start at the repository's root
    options = [
        "--config",
        args.config,
        *args.options,
        "--log_privileged_context",
        "true",
        "--num_generations_eval",
        "1",
    ]
    with told():
        script_args, training_args, model_args, dataset_args = opsd.parse(options)
    dataset = opsd.load_data(script_args, dataset_args)
    rows = dataset[script_args.dataset_test_split]
    rows = rows.select(range(min(args.rows, len(rows))))
    trainer = opsd.build_trainer(script_args, training_args, model_args, dataset)
    before = evaluated(trainer, rows)
    print(f"before: {json.dumps(before)}", flush=True)
    trainer.train()
    print(f"after: {json.dumps(evaluated(trainer, rows))}")
