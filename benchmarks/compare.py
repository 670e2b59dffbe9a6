# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Comparison of methods on one task with one budget, beside plain settings and controls without and with a wrong context.

Each run is one JSON file in the folder `--output`; a finished one is not run again, a failed one is. At the end, and
with no contender named, the folder's table and picture are made of all its runs.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

from benchmarks.controls import control_of
from benchmarks.environment import ROOT
from benchmarks.kept import kept
from benchmarks.report import figure, save, table
from examples.demo import DIVERGENCE, answers
from trl_opsd.cli import train as opsd
from trl_opsd.examples import data, smollm2, tasks
from trl_opsd.methods import method_names, method_of
from trl_opsd.rollouts.view import PLACEHOLDER


RECIPES = ROOT / "recipes"
KEPT = (DIVERGENCE, "loss", "reward", "self_distillation/view_share", "self_distillation/repetition")
OPTIONS = ("max_steps", "eval_steps", "eval_rows", "model", "data")  # a run with others is another run


@dataclass(frozen=True)
class Task:
    """
    Task that the contenders learn.

    Args:
        plain, mixed (`str`): Recipes of the plain settings, without and with the reward.
        reward (`str`): The reward that `mixed` learns from.
        budget (`dict[str, Any]`): What all contenders have in common.
        wrong_pi (`Any`): Source of the wrong contexts, as many as a method reads at once.
        score (`Callable`): From answers and held-out rows to 1 or 0 each.
    """

    plain: str
    mixed: str
    reward: str
    budget: dict[str, Any]
    wrong_pi: Any
    score: Callable[[list[str], list[tasks.Row]], list[float]]


TASKS = {
    "addition": Task(
        "smollm2_addition.yaml",
        "smollm2_addition_grpo.yaml",
        "trl_opsd.examples.tasks.correct_sum",
        {"per_device_train_batch_size": 16, "max_completion_length": 24, "learning_rate": 2e-5},
        {"other_row": {"count": 8}},
        lambda texts, rows: tasks.correct_sum(texts, [row["answer"] for row in rows]),
    ),
    "json": Task(
        "smollm2_json.yaml",
        "smollm2_json.yaml",
        "trl_opsd.examples.tasks.valid_json",
        {"per_device_train_batch_size": 8, "max_completion_length": 32, "learning_rate": 3e-5},
        {"fixed": {"context": "Reply in one short sentence."}},  # every row's own context says the same
        lambda texts, rows: tasks.valid_json(texts),
    ),
}
PLAIN: dict[str, tuple[bool, dict[str, Any]]] = {  # whether the reward is there, and options
    "base": (False, {}),
    "live": (False, {"teacher_model_kind": "live"}),
    "ema": (False, {"teacher_model_kind": "ema"}),
    "base_reverse": (False, {"distillation_alpha": 1.0}),
    "base_entry_clip": (False, {"distillation_entry_clip": 0.05}),
    "base_mixed": (True, {}),
    "live_mixed": (True, {"teacher_model_kind": "live"}),
    "grpo": (True, {"distillation_weight": 0.0}),
}


def setting(name: str, task: str) -> tuple[Path, dict[str, Any]]:
    """
    Recipe and further options of a contender: a method, a plain setting, or either with `+no_pi` or `+wrong_pi`.

    A method whose own recipe is for another task stands, with its defaults, on the recipe of the plain settings.

    Raises:
        ValueError: If there is none of that name.
    """
    name, _, control = name.partition("+")
    if name not in PLAIN and name not in method_names():
        raise ValueError(f"There is no {name!r}: it must be one of {[*PLAIN, *method_names()]}.")
    own = RECIPES / "methods" / f"{name}.yaml"
    if name in method_names() and Path(yaml.safe_load(own.read_text())["dataset_name"]).name == task:
        recipe, options = own, {}
    else:
        mixed, options = PLAIN.get(name) or (method_of(name).needs_reward, {"method": name})
        recipe = RECIPES / (TASKS[task].mixed if mixed else TASKS[task].plain)
        rewarded = {"reward_funcs": TASKS[task].reward, "num_generations": 4} if mixed else {}
        if name in method_names() and method_of(name).reads_reward and not mixed:  # rewards that train nothing
            rewarded = {"reward_funcs": TASKS[task].reward, "policy_weight": 0.0}
        options = {**rewarded, **options}
    if control and control not in ("no_pi", "wrong_pi"):
        raise ValueError(f"A control is no_pi or wrong_pi, got {control!r}.")
    if control:
        contexts = TASKS[task].wrong_pi if control == "wrong_pi" else None
        turns = turns_of(name, recipe, options)
        if turns is not None:  # whose source makes the contexts
            turns = {**turns, "source": control_of(turns["source"], contexts)}
            return recipe, {**options, "turns": json.dumps(turns)}
        source = control_of(source_of(name, recipe, options), contexts)
        options = {**options, "privileged_source": json.dumps(source), "privileged_template": PLACEHOLDER}
    return recipe, options


def turns_of(name: str, recipe: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """Turns of a contender that have a source: those of its recipe or of its method."""
    own = yaml.safe_load(recipe.read_text()) | options
    defaults = method_of(name).defaults if name in method_names() else {}
    turns = own.get("turns") or defaults.get("turns")
    return turns if turns and turns.get("source") else None


def source_of(name: str, recipe: Path, options: dict[str, Any]) -> Any:
    """Description of the source of a contender: that of its recipe, its method, or the column that the recipe names."""
    own = yaml.safe_load(recipe.read_text()) | options
    defaults = method_of(name).defaults if name in method_names() else {}
    source = own.get("privileged_source") or defaults.get("privileged_source")
    known = {"template": "privileged_template", "place": "privileged_place", "column": "privileged_column"}
    return source or {"column": {option: own[name] for option, name in known.items() if name in own}}


class Scores(TrainerCallback):
    """Share of right greedy answers to the held-out prompts, before training and every few steps."""

    def __init__(self, task: Task, rows: list[tasks.Row], every: int) -> None:
        self.task, self.rows, self.every = task, rows, every
        self.scores: dict[int, float] = {}
        self.texts: dict[int, list[str]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.look(state, kwargs)

    def look(self, state: Any, kwargs: dict[str, Any]) -> None:
        texts = answers(kwargs["model"], kwargs["processing_class"], [row["prompt"] for row in self.rows])
        right = self.task.score(texts, self.rows)
        self.scores[state.global_step], self.texts[state.global_step] = sum(right) / len(right), texts[:3]
        print(f"step {state.global_step}: {sum(right) / len(right):.1%} right; {texts[0]!r}", flush=True)


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one contender and score it."""
    print(f"{args.task}, {name}, seed {seed}", flush=True)
    task = TASKS[args.task]
    recipe, options = setting(name, args.task)
    options = {**task.budget, **options, "seed": seed, "max_steps": args.max_steps, "disable_tqdm": "true"}
    options["output_dir"] = args.output / "models" / f"{args.task}-{name}-{seed}"
    if args.model:
        options |= {"model_name_or_path": args.model, "dataset_name": args.data}
    line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    script_args, training_args, model_args, dataset_args = opsd.parse(["--config", str(recipe), *line])
    dataset = opsd.load_data(script_args, dataset_args)
    rows = dataset["test"].to_list()[: args.eval_rows]
    scores = Scores(task, rows, args.eval_steps)
    trainer = opsd.build_trainer(script_args, training_args, model_args, dataset, [scores])
    start = time.monotonic()
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "scores": scores.scores,
        "texts": scores.texts,
        "metrics": {name: [log[name] for log in logs if name in log] for name in KEPT},
        "step_seconds": [log["step_time"] for log in logs],
        "seconds": time.monotonic() - start,
        "threads": torch.get_num_threads(),
    }


def result_of(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A run's results: those in its file, or new ones."""
    path = args.output / f"{args.task}-{name}-{seed}.json"
    key = {"task": args.task, "contender": name, "seed": seed}
    for option in OPTIONS:
        value = getattr(args, option)
        key[option] = str(value) if isinstance(value, Path) else value
    result = kept(path, key, lambda: run(name, seed, args))
    gc.collect()
    return result


def main(args: argparse.Namespace) -> None:
    args.output = args.output.absolute()
    args.output.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    for name in args.contenders:
        setting(name, args.task)  # a name that does not fit is a mistake, not a failed run
    if args.contenders and not args.model:
        smollm2.prepare()
        data.prepare(args.task)
    for seed in args.seeds:
        for name in args.contenders:
            result_of(name, seed, args)
    print(report_of(args.output))


def report_of(output: Path) -> str:
    """Table and picture of each task, of all runs in the folder."""
    results = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"))]
    parts = []
    for task in sorted({one["task"] for one in results}):
        own = [one for one in results if one["task"] == task]
        done: dict[str, list[dict[str, Any]]] = {}
        for one in sorted(own, key=lambda one: one["contender"]):
            if "error" not in one:
                done.setdefault(one["contender"], []).append(one)
        failed = [f"- `{one['contender']}`, seed {one['seed']}: {one['error']}" for one in own if "error" in one]
        draw(done, output / f"{task}.png")
        parts.append(f"## {task}\n\n{scores_table(done)}" + "\n".join(["\n\nFailed:\n", *failed] if failed else []))
    text = "\n\n".join(parts) + "\n"
    (output / "table.md").write_text(text)
    return text


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def scores_table(done: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds by step, and the last score of each seed."""
    steps = sorted({int(step) for runs in done.values() for one in runs for step in one["scores"]})
    rows = []
    for name, runs in done.items():
        method = name.split("+")[0]
        label = method_of(method).label if method in method_names() else ""
        scores = [[one["scores"][str(step)] for one in runs if str(step) in one["scores"]] for step in steps]
        cells = [f"{mean(found):.1%}" if found else "" for found in scores]
        last = ", ".join(f"{one['seed']}: {one['scores'][max(one['scores'], key=int)]:.1%}" for one in runs)
        moved = [one["metrics"][DIVERGENCE] for one in runs if one["metrics"][DIVERGENCE]]
        gap = f"{mean([one[0] for one in moved]):.2f} -> {mean([one[-1] for one in moved]):.2f}" if moved else ""
        seconds = mean([value for one in runs for value in one["step_seconds"]])
        rows.append([f"`{name}`", label, *cells, last, gap, f"{seconds:.1f}"])
    head = ["contender", "label", *(f"step {step}" for step in steps), "last, by seed", "divergence", "s a step"]
    return table(head, rows)


def draw(done: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Score by step, one panel a contender and one line a seed, which a mean would hide."""
    columns = min(4, max(len(done), 1))
    made, panels = figure(columns, -(-len(done) // columns) or 1, 2.6, 2.2, sharex=True, sharey=True)
    for axes, (name, runs) in zip(panels, done.items(), strict=False):
        for one in runs:
            steps = [int(step) for step in one["scores"]]
            axes.plot(steps, [100 * score for score in one["scores"].values()], marker=".", label=f"seed {one['seed']}")
        axes.set_title(name, fontsize="medium")
    for axes in panels[len(done) :]:
        axes.set_axis_off()
    if done:
        panels[0].legend(fontsize="small")
    made.supxlabel("step")
    made.supylabel("right held-out answers, %")
    save(made, path)
