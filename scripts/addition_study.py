# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Which settings hold on a context of its own for each problem? Two-digit sums with the solution as context, one run:

python scripts/addition_study.py base --seed 1

Each run adds its scores, its metrics and some answers to demo/addition_study.jsonl; `--table` prints what is there.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import TrainerCallback

import opsd
import smollm2
import tasks
from demo import DIVERGENCE, answers
from trl_opsd.privileged import teacher_prompt


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "demo" / "addition_study.jsonl"
PURE, MIXED = ("smollm2_addition.yaml", "smollm2_addition_grpo.yaml")
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "base": (PURE, []),
    "live": (PURE, ["--teacher_model_kind", "live"]),
    "ema": (PURE, ["--teacher_model_kind", "ema"]),
    "base_reverse": (PURE, ["--distillation_alpha", "1.0"]),
    "base_entry_clip": (PURE, ["--distillation_entry_clip", "0.05"]),
    "base_mixed": (MIXED, []),
    "live_mixed": (MIXED, ["--teacher_model_kind", "live"]),
    "grpo": (MIXED, ["--distillation_weight", "0.0"]),
}
KEPT = (DIVERGENCE, "self_distillation/loss", "self_distillation/repetition", "completions/clipped_ratio", "reward")


class Accuracy(TrainerCallback):
    """Greedy accuracy on the held-out problems, with the bare prompt and, once at the start, with the solution."""

    def __init__(self, rows: list[tasks.Row], template: str, every: int) -> None:
        self.rows, self.template, self.every = rows, template, every
        self.scores: dict[int, float] = {}
        self.texts: dict[int, list[str]] = {}
        self.teacher = 0.0

    def accuracy(self, model: Any, tokenizer: Any, prompts: list) -> tuple[float, list[str]]:
        texts = answers(model, tokenizer, prompts)
        right = tasks.correct_sum(texts, [row["answer"] for row in self.rows])
        return sum(right) / len(right), texts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        prompts = []
        for row in self.rows:
            prompts.append(teacher_prompt(row["prompt"], row["privileged_context"], self.template, "after_user"))
        self.teacher, _ = self.accuracy(kwargs["model"], kwargs["processing_class"], prompts)
        self.look(state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.look(state, kwargs)

    def look(self, state: Any, kwargs: dict[str, Any]) -> None:
        prompts = [row["prompt"] for row in self.rows]
        score, texts = self.accuracy(kwargs["model"], kwargs["processing_class"], prompts)
        self.scores[state.global_step], self.texts[state.global_step] = score, texts[:3]
        print(f"step {state.global_step}: {score:.1%} of the held-out sums are right; {texts[0]!r}", flush=True)


def run(setting: str, seed: int, max_steps: int, every: int) -> dict[str, Any]:
    recipe, options = SETTINGS[setting]
    command = ["--config", str(ROOT / "recipes" / recipe), "--seed", str(seed), "--max_steps", str(max_steps), *options]
    command += ["--output_dir", f"demo/output/addition_study/{setting}-{seed}", "--disable_tqdm", "true"]
    script_args, training_args, model_args, dataset_args = opsd.parse(command)
    dataset = opsd.load_data(script_args, dataset_args)
    accuracy = Accuracy(dataset["test"].to_list(), training_args.privileged_template, every)
    trainer = opsd.build_trainer(script_args, training_args, model_args, dataset, [accuracy])
    start = time.monotonic()
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "setting": setting,
        "seed": seed,
        "teacher": accuracy.teacher,
        "accuracy": accuracy.scores,
        "texts": accuracy.texts,
        "metrics": {name: [log[name] for log in logs if name in log] for name in KEPT},
        "step_seconds": [log["step_time"] for log in logs],
        "seconds": time.monotonic() - start,
        "threads": torch.get_num_threads(),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a run, accuracy by step, and how the divergence and the repetition moved."""
    steps = sorted({int(step) for result in results for step in result["accuracy"]})
    lines = [f"| setting | seed | {' | '.join(f'step {step}' for step in steps)} | divergence | repetition |"]
    lines.append("| --- " * (len(steps) + 4) + "|")
    for result in sorted(results, key=lambda result: (result["setting"], result["seed"])):
        scores = [result["accuracy"].get(str(step)) for step in steps]
        cells = ["" if score is None else f"{score:.1%}" for score in scores]
        for name in (DIVERGENCE, "self_distillation/repetition"):
            values = result["metrics"][name]
            cells.append(f"{sum(values[:3]) / 3:.2f} -> {sum(values[-3:]) / 3:.2f}" if values else "")
        lines.append(f"| {result['setting']} | {result['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="?", choices=sorted(SETTINGS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max_steps", type=int, default=25)
    parser.add_argument("--eval_steps", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the runs so far")
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.setting:
        smollm2.prepare()
        tasks.prepare("addition", Path("demo/data/addition"))
        result = run(args.setting, args.seed, args.max_steps, args.eval_steps)
        with RESULTS.open("a") as file:
            file.write(json.dumps(result) + "\n")
    if args.table or not args.setting:
        print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))


if __name__ == "__main__":
    main()
