# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The demo, from nothing to a trained model, a picture, a token report and answers before and after, on a laptop's CPU:

python examples/demo.py

It gives commands that you can give yourself, and shows what they leave behind.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING


# Several GPUs would make the Trainer split each small batch over them; the demo is one process on one device.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trl_opsd.cli import main as command  # noqa: E402


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trl_opsd.examples.tasks import Messages

MODEL, DATA, TRAINED = Path("demo/models/smollm2-135m"), Path("demo/data/json"), Path("demo/output/smollm2-json")
DIVERGENCE, STUDENT, TEACHER = "self_distillation/divergence", "eval_avg@1", "eval_teacher/privileged/avg@1"
MAX_NEW_TOKENS = 48
SHOWN = 6


def call(line: str) -> None:
    """Give a command of the package, and show it first."""
    print(f"\n$ trl-opsd {line}", flush=True)
    command.main(line.split())


def answers(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: "Sequence[Messages]") -> list[str]:
    """Greedy answers, which use no random numbers: looking at the model does not change its training."""
    import torch

    texts = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True, tokenize=False)
    # Padding on the right would put a gap between the prompt and the answer.
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    inputs = inputs.to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    model.train(was_training)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def answers_of(folder: Path, questions: Sequence[str]) -> list[str]:
    """Answers of a saved model to bare questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
    prompts = [[{"role": "user", "content": question}] for question in questions]
    return answers(model, AutoTokenizer.from_pretrained(folder), prompts)


def draw(metrics: Sequence[dict], path: Path) -> None:
    """Score and divergence over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, label, style in (
        (STUDENT, "student, bare question", "o-"),
        (TEACHER, "teacher, with rule and examples", "--"),
    ):
        points = [(log["step"], log[name]) for log in metrics if name in log]
        left.plot(*zip(*points, strict=True), style, label=label, color="grey" if style == "--" else None)
    left.set(xlabel="optimizer step", ylabel="held-out answers that are valid JSON", ylim=(-0.05, 1.05))
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.04), fontsize="small")
    points = [(log["step"], log[DIVERGENCE]) for log in metrics if DIVERGENCE in log]
    right.plot(*zip(*points, strict=True), "o-", markersize=3, color="tab:red")
    right.set(xlabel="optimizer step", ylabel="KL(teacher ‖ student) per token (nats)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    figure.suptitle("SmolLM2-135M learns to answer in JSON by self-distillation")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(questions: Sequence[str], before: Sequence[str], after: Sequence[str]) -> None:
    """A table of answers, and the shares of valid JSON."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trl_opsd.examples.tasks import is_valid_json

    table = Table("held-out question", "before training", "after", show_lines=True)
    rows = [row for row in zip(questions, before, after, strict=True) if row[0].startswith("What is")]
    for row in rows[:SHOWN]:
        table.add_row(*(Text(" ".join(text.split())) for text in row))  # an answer may hold what rich takes for markup
    console = Console()
    console.print(table)
    shares = [sum(map(is_valid_json, texts)) / len(texts) for texts in (before, after)]
    console.print(
        f"Valid JSON in greedy answers to {len(questions)} held-out questions: {shares[0]:.0%} before, {shares[1]:.0%} "
        "after.",
        style="bold",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--eval_steps", type=int, default=5, help="steps between two looks at the held-out questions")
    args = parser.parse_args()
    os.chdir(ROOT)  # the recipe's paths start at the repository's root

    call("data json")
    with open(DATA / "test.jsonl", encoding="utf-8") as file:
        questions = [json.loads(line)["prompt"][-1]["content"] for line in file]
    start = time.monotonic()
    call(
        f"train --config smollm2_json --max_steps {args.max_steps} --seed {args.seed} --eval_strategy steps "
        f"--eval_steps {args.eval_steps} --eval_on_start true --eval_teacher_prompts {len(questions)} "
        "--per_device_eval_batch_size 12 --log_tokens 4 --log_tokens_probe 5"
    )
    minutes = (time.monotonic() - start) / 60
    with open(TRAINED / "metrics.jsonl", encoding="utf-8") as file:
        metrics = [json.loads(line) for line in file]
    draw(metrics, Path("demo/progress.png"))
    show(questions, answers_of(MODEL, questions), answers_of(TRAINED, questions))
    print(f"Training and evaluations took {minutes:.1f} minutes.")
    call(f"report {TRAINED} --out demo/report.html")
    print(f"Curves: demo/progress.png. All numbers: {TRAINED}/metrics.jsonl. Settings: {TRAINED}/run.json.")
    print(f'\nTalk to it: trl-opsd chat {TRAINED} "What is a volcano?" --beside {MODEL}')


if __name__ == "__main__":
    main()
