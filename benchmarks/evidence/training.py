# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Phases of a contender on the lab model, and the scores on held-out questions beside them."""

import tempfile
import time
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.evidence import rows as rows_module
from benchmarks.evidence.experiments import CHECK, ROWS, SOLUTION, Options
from benchmarks.lab.contexts import Example
from benchmarks.lab.make import held_out, load
from benchmarks.lab.pretraining import encode, padded
from benchmarks.lab.scores import answers
from benchmarks.lab.tasks import TASKS, correct, feedback_on
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.phases.collect import collect


LOOKS = 3  # scores within a run, beside that of the start
MOST = 36  # tokens of an answer
COLLECTED = 256  # prompts of a phase that collects
COMMON: Options = {
    "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False, "save_strategy": "no",
    "use_cpu": True, "dataloader_pin_memory": False, "lr_scheduler_type": "constant",
    "per_device_train_batch_size": ROWS, "learning_rate": 2e-5,
}  # fmt: skip
KEPT = (
    "reward", "self_distillation/divergence", "completions/mean_length", "self_distillation/leak/quotes",
    "self_distillation/turns/first_reward", "self_distillation/turns/second_reward",
    "self_distillation/turns/unit_share", "self_distillation/vpd/right", "self_distillation/vpd/wrong",
    "self_distillation/exposure_share",
)  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """
    What all runs have in common.

    Args:
        folder (`Path`): The lab model.
        task (`str`): Task of the lab.
        problems (`int`): Held-out questions.
        steps (`int`): Optimizer steps of a contender.
    """

    folder: Path
    task: str
    problems: int
    steps: int

    @cached_property
    def asked(self) -> list[str]:
        return held_out(TASKS[self.task], self.problems)


@dataclass
class Score:
    """Scores of a model on the held-out questions: right greedy and sampled answers, and those with a context."""

    lab: Lab
    tokenizer: PreTrainedTokenizerBase
    most: int = MOST

    def greedy(self, model: PreTrainedModel) -> list[str]:
        return answers(model, self.tokenizer, self.lab.asked, most=self.most)

    def all(self, model: PreTrainedModel) -> dict[str, Any]:
        """
        Scores after a training: `right`, a digit a question; shares of answers that are right when sampled, when
        greedy in every step, and when the model reads a hint or the solution; loss of critiques.
        """
        asked, task, greedy = self.lab.asked, TASKS[self.lab.task], self.greedy(model)
        sampled = answers(model, self.tokenizer, asked, sample=True, most=self.most)
        notes = [feedback_on(task.worked(one, lambda: False), one) for one in asked]
        hinted = [f"{one} feedback: {note}" for one, note in zip(asked, notes, strict=True)]
        solved = [one + SOLUTION.format(privileged_context=task.worked(one)) for one in asked]
        return {
            "right": "".join(str(int(one)) for one in correct(greedy, asked)),
            "every_step": mean([float(feedback_on(*one) == "all right") for one in zip(greedy, asked, strict=True)]),
            "sampled": mean(correct(sampled, asked)),
            "with_hint": mean(correct(answers(model, self.tokenizer, hinted, most=self.most), asked)),
            "with_solution": mean(correct(answers(model, self.tokenizer, solved, most=self.most), asked)),
            "critique_loss": self.critique_loss(model),
            "answers": greedy[:2],
        }

    def critique_loss(self, model: PreTrainedModel) -> float:
        """Nats a token of true feedback on careless attempts at the held-out questions."""
        shown = []
        for question in self.lab.asked:
            attempt = TASKS[self.lab.task].worked(question, lambda: False)
            asked = CHECK.format(question=question, attempt=attempt)
            shown.append(encode(self.tokenizer, Example(asked, feedback_on(attempt, question))))
        ids, labels = padded(shown)
        with torch.no_grad():
            return model.eval()(input_ids=ids, labels=labels).loss.item()


@cache
def scores_at_the_start(lab: Lab) -> dict[str, Any]:
    model, tokenizer = load(lab.folder)
    return Score(lab, tokenizer).all(model)


@dataclass
class Looks(TrainerCallback):
    """Greedy scores within a training, by the steps of the whole contender; their time is taken off the run's."""

    score: Score
    every: int
    before: int
    scores: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            start = time.process_time()
            asked = self.score.lab.asked
            self.scores[self.before + state.global_step] = mean(correct(self.score.greedy(kwargs["model"]), asked))
            self.seconds += time.process_time() - start


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def share(digits: str) -> float:
    return digits.count("1") / len(digits)


class Contender:
    """
    Phases of one contender on one seed.

    Args:
        lab ([`Lab`]): What all runs have in common.
        seed (`int`): Of everything after the lab model.
    """

    def __init__(self, lab: Lab, seed: int):
        self.lab, self.seed = lab, seed
        model, self.tokenizer = load(lab.folder)
        self.score = Score(lab, self.tokenizer)
        self.weights: dict[int, dict[str, torch.Tensor]] = {0: _copied(model)}  # by the number of the phase
        self.collected: dict[int, Dataset] = {}
        self.steps, self.seconds, self.tokens = 0, 0.0, 0.0
        self.scores: dict[int, float] = {0: share(scores_at_the_start(lab)["right"])}
        self.metrics: dict[str, list[float]] = {}
        self.counts: dict[str, int] = {}

    def run(self, phases: list[Options]) -> dict[str, Any]:
        """Run all phases; the last one's model is scored."""
        with tempfile.TemporaryDirectory() as folder:
            for number, phase in enumerate(phases, 1):
                options = dict(phase)
                getattr(self, f"_{options.pop('run')}")(number, options, Path(folder))
        model = self._model(max(self.weights))
        return {
            "scores": self.scores, **self.score.all(model), "steps_done": self.steps, "tokens": self.tokens,
            "collected": self.counts, "seconds": round(self.seconds, 1), "metrics": self.metrics,
        }  # fmt: skip

    def _model(self, number: int) -> PreTrainedModel:
        model, _ = load(self.lab.folder)
        model.load_state_dict(self.weights[number])
        return model

    def _steps(self, options: Options) -> int:
        return max(1, round(options.pop("steps", 1.0) * self.lab.steps))

    def _looks(self, steps: int) -> Looks:
        return Looks(self.score, max(1, min(steps, self.lab.steps // LOOKS)), self.steps)

    def _trainer(self, options: Options, folder: Path, **given: Any) -> OPSDTrainer:
        reward = getattr(rows_module, options.pop("reward"), None) if "reward" in options else None
        start, teacher = options.pop("model", 0), options.pop("teacher", None)
        given["logging_steps"] = min(5, given["max_steps"])
        options = {"max_completion_length": MOST, **COMMON, **options, **given, "seed": self.seed}
        self.score.most = options["max_completion_length"]
        if teacher is not None:
            self._model(teacher).save_pretrained(folder / "teacher")
            self.tokenizer.save_pretrained(folder / "teacher")
            options |= {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(folder / "teacher")}
        args = OPSDConfig(str(folder / "opsd"), **options)
        rows = rows_module.make_rows(self.lab.task)
        trainer = OPSDTrainer(self._model(start), reward, args, rows, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self, number: int, options: Options, folder: Path) -> None:
        steps = self._steps(options)
        self._fit(number, self._trainer(options, folder, max_steps=steps), steps)

    def _collect(self, number: int, options: Options, folder: Path) -> None:
        layouts, keep = options.pop("layouts"), options.pop("keep")
        trainer, start = self._trainer(options, folder, max_steps=1), time.process_time()
        found = collect(trainer, COLLECTED, layouts=layouts, keep=keep)
        self.seconds += time.process_time() - start
        self.collected[number] = Dataset.from_list([row for part in found.rows.values() for row in part])
        self.counts |= {layout: len(part) for layout, part in found.rows.items()}

    def _sft(self, number: int, options: Options, folder: Path) -> None:
        steps, rows = self._steps(options), self.collected[options.pop("rows")]
        args = SFTConfig(str(folder / "sft"), max_steps=steps, seed=self.seed, logging_steps=min(5, steps), **COMMON)
        model = self._model(options.pop("model", 0))
        trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)
        self._fit(number, trainer, steps)

    def _fit(self, number: int, trainer: OPSDTrainer | SFTTrainer, steps: int) -> None:
        looks, start = self._looks(steps), time.process_time()
        trainer.add_callback(looks)
        trainer.train()
        self.seconds += time.process_time() - start - looks.seconds
        self.scores |= looks.scores
        self.steps += steps
        logs = [log for log in trainer.state.log_history if "loss" in log]
        self.tokens += logs[-1].get("num_tokens", 0)
        for name in KEPT:
            if values := [log[name] for log in logs if name in log]:
                self.metrics[name.removeprefix("self_distillation/")] = [float(f"{value:.4g}") for value in values]
        self.weights[number] = _copied(trainer.model)


def _copied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
