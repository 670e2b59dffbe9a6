# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Methods side by side on one task with one budget, beside plain settings and controls without and with a wrong context:

python scripts/compare_methods.py opsd rlsd opsd+no_pi opsd+wrong_pi grpo --task addition --seeds 1 2

Each run is one JSON file in the folder `--output`; a finished one is not run again, a failed one is. At the end, and
with no contender named, the folder's table and picture are made of all its runs.
"""

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from transformers import TrainerCallback

import opsd
import smollm2
import tasks
from comparison import report
from demo import DIVERGENCE, answers
from trl_opsd.methods import method_names, method_of


ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
KEPT = (DIVERGENCE, "loss", "reward", "self_distillation/view_share", "self_distillation/repetition")
TEMPLATE = yaml.safe_load((RECIPES / "smollm2_addition.yaml").read_text())["privileged_template"]


@dataclass(frozen=True)
class Task:
    """
    What the contenders learn.

    Args:
        plain, mixed (`str`): Recipes of the plain settings, without and with the reward.
        reward (`str`): The reward that `mixed` learns from.
        budget (`dict[str, Any]`): What all contenders have in common.
        no_pi, wrong_pi (`Any`): Sources of the controls.
        score (`Callable`): From answers and held-out rows to 1 or 0 each.
    """

    plain: str
    mixed: str
    reward: str
    budget: dict[str, Any]
    no_pi: Any
    wrong_pi: Any
    score: Callable[[list[str], list[tasks.Row]], list[float]]


TASKS = {
    "addition": Task(
        "smollm2_addition.yaml",
        "smollm2_addition_grpo.yaml",
        "tasks.correct_sum",
        {"per_device_train_batch_size": 16, "max_completion_length": 24, "learning_rate": 2e-5},
        {"empty": {"template": TEMPLATE}},
        {"other_row": {"template": TEMPLATE}},
        lambda texts, rows: tasks.correct_sum(texts, [row["answer"] for row in rows]),
    ),
    "json": Task(
        "smollm2_json.yaml",
        "smollm2_json.yaml",
        "tasks.valid_json",
        {"per_device_train_batch_size": 8, "max_completion_length": 32, "learning_rate": 3e-5},
        "empty",
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
        options = {**rewarded, **options}
    if control and control not in ("no_pi", "wrong_pi"):
        raise ValueError(f"A control is no_pi or wrong_pi, got {control!r}.")
    if control:
        source = _beside(name, getattr(TASKS[task], control))
        source = source if isinstance(source, str) else json.dumps(source)
        options = {**options, "privileged_source": source, "privileged_template": "{privileged_context}"}
    return recipe, options


def _beside(name: str, source: Any) -> Any:
    """A control's context as the method reads one.

    Raises:
        ValueError: If it reads several, and so none of its own stands for all.
    """
    if name not in method_names():
        return source
    method = method_of(name)
    if set(method.required) - {"privileged"}:
        raise ValueError(f"{name!r} reads several contexts of a rollout: it has no control with one.")
    own = method.defaults.get("privileged_source")
    if isinstance(own, dict) and "with_baselines" in own:
        return {"with_baselines": {**own["with_baselines"], "source": source}}
    return source


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


def kept(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A run's results: those in its file, or new ones. A failure is a result too."""
    path = args.output / f"{args.task}-{name}-{seed}.json"
    key = {"task": args.task, "contender": name, "seed": seed}
    key |= {option: getattr(args, option) for option in ("max_steps", "eval_steps", "eval_rows")}
    key |= {
        option: None if getattr(args, option) is None else str(getattr(args, option)) for option in ("model", "data")
    }
    if path.exists():
        result = json.loads(path.read_text())
        if "error" not in result and key.items() <= result.items():
            return result
    print(f"{args.task}, {name}, seed {seed}", flush=True)
    try:
        result = {**key, **run(name, seed, args)}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result = {**key, "error": f"{type(error).__name__}: {error}"}
    path.write_text(json.dumps(result, indent=1) + "\n")
    gc.collect()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="*", help="methods, plain settings, or either with +no_pi or +wrong_pi")
    parser.add_argument("--task", choices=sorted(TASKS), default="addition")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--max_steps", type=int, default=25)
    parser.add_argument("--eval_steps", type=int, default=5)
    parser.add_argument("--eval_rows", type=int, default=None, help="held-out rows; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "compare")
    parser.add_argument("--model", type=Path, help="another model than SmolLM2, with --data")
    parser.add_argument("--data", type=Path, help="folder of the task's rows for it")
    args = parser.parse_args()
    args.output = args.output.absolute()
    args.output.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    for name in args.contenders:
        setting(name, args.task)  # a name that does not fit is a mistake, not a failed run
    if args.contenders and not args.model:
        smollm2.prepare()
        tasks.prepare(args.task, Path("demo/data") / args.task)
    for seed in args.seeds:
        for name in args.contenders:
            kept(name, seed, args)
    print(report(args.output))


if __name__ == "__main__":
    main()
