# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Token study: sampled tokens to the same score. Short answers are learnt from a teacher that reads a rule and four
examples, and by GRPO from a graded reward, on one task and with one learning rate.

Each run adds its scores to demo/token_study.jsonl; `--table` prints what is there.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from benchmarks.environment import ROOT
from benchmarks.report import table
from examples.demo import answers
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.examples import smollm2, tasks
from trl_opsd.prompts.teacher_prompt import teacher_prompt


RESULTS = ROOT / "demo" / "token_study.jsonl"
MOST_WORDS = 12
RULE = "Always answer in one short sentence of at most ten words."
COMMON = {
    "max_completion_length": 48,
    "learning_rate": 3e-5,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
}
METHODS: dict[str, dict[str, Any]] = {
    "self-distillation": {"per_device_train_batch_size": 8, "num_generations": 1, "policy_weight": 0.0},
    "GRPO": {"per_device_train_batch_size": 16, "num_generations": 8, "distillation_weight": 0.0},
}


def words(text: str) -> int:
    return len(text.split())


def is_short(text: str) -> bool:
    """One whole sentence of at most twelve words, and of three at least: an answer, not a way round the rule."""
    text = text.strip()
    return 3 <= words(text) <= MOST_WORDS and bool(re.fullmatch(r"[^.!?]+[.!?]", text))


def short_answer(completions: Iterable[Any], **kwargs: Any) -> list[float]:
    """Reward that a model can climb from anywhere: 1 for a short answer, else less the longer it is, half at most."""
    texts = [tasks.text_of(completion) for completion in completions]
    return [1.0 if is_short(text) else 0.5 * MOST_WORDS / max(words(text), MOST_WORDS) for text in texts]


def data() -> dict[str, list[tasks.Row]]:
    context = [{"role": "system", "content": RULE}]
    for question, answer in tasks.JSON_EXAMPLES:
        context += [*tasks.user(question), {"role": "assistant", "content": answer}]
    return {
        split: [{**row, "privileged_context": context} for row in rows] for split, rows in tasks.json_task().items()
    }


class Score(TrainerCallback):
    """Share of greedy held-out answers that are short, and the tokens sampled so far, until the score is reached."""

    def __init__(self, rows: list[tasks.Row], every: int, target: float):
        self.rows, self.every, self.target = rows, every, target
        self.tokens, self.points, self.texts, self.teacher = 0.0, [], [], 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        prompts = [
            teacher_prompt(row["prompt"], row["privileged_context"], args.privileged_template, args.privileged_place)
            for row in self.rows
        ]
        self.teacher, _ = self.score(kwargs, prompts)
        self.look(state, control, kwargs)

    def score(self, kwargs: dict[str, Any], prompts: list[tasks.Messages]) -> tuple[float, list[str]]:
        texts = answers(kwargs["model"], kwargs["processing_class"], prompts)
        return sum(map(is_short, texts)) / len(texts), texts

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "completions/mean_length" in logs:
            self.tokens += logs["completions/mean_length"] * args.per_device_train_batch_size
            if state.global_step % self.every == 0:
                self.look(state, control, kwargs)

    def look(self, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
        score, texts = self.score(kwargs, [row["prompt"] for row in self.rows])
        self.points.append({"step": state.global_step, "tokens": round(self.tokens), "score": score})
        self.texts = texts[:3]
        print(f"step {state.global_step}, {self.tokens:.0f} tokens: {score:.1%} short; {texts[0]!r}", flush=True)
        control.should_training_stop |= score >= self.target  # it is set already at the last step


def run(method: str, args: argparse.Namespace) -> dict[str, Any]:
    splits = data()
    score = Score(splits["test"], args.eval_steps, args.target)
    config = OPSDConfig(
        f"demo/output/token_study/{method}", seed=args.seed, max_steps=args.max_steps, **COMMON | METHODS[method]
    )
    trainer = OPSDTrainer(
        "demo/models/smollm2-135m",
        reward_funcs=short_answer if method == "GRPO" else None,
        args=config,
        train_dataset=Dataset.from_list(splits["train"]),
        callbacks=[score],
    )
    start = time.monotonic()
    trainer.train()
    return {
        "method": method,
        "seed": args.seed,
        "target": args.target,
        "teacher": score.teacher,
        "points": score.points,
        "texts": score.texts,
        "seconds": time.monotonic() - start,
        "threads": torch.get_num_threads(),
    }


def runs_table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a run."""
    rows = []
    for result in results:
        first, last = result["points"][0], result["points"][-1]
        scores = [f"{score:.0%}" for score in (result["teacher"], first["score"], last["score"])]
        reached = "yes" if last["score"] >= result["target"] else "no"
        rows.append([result["method"], result["seed"], *scores, last["step"], f"{last['tokens']:,}", reached])
    head = ["method", "seed", "teacher", "before", "at the end", "steps", "sampled tokens", "reached"]
    return table(head, rows)


def main(args: argparse.Namespace) -> None:
    os.chdir(ROOT)
    if not args.table:
        smollm2.prepare()
        for method in args.methods:
            result = run(method, args)
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
    print(runs_table([json.loads(line) for line in RESULTS.read_text().splitlines()]))
