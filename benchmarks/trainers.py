# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Contenders of the step benchmark: the training part of a step of each trainer, on scripted rollouts.

What is timed is an accumulation window from the end of generation to the optimizer step: the trainer's own way of
making micro-batches, `compute_loss` and backward of each. Generation, rewards, tokenization and the optimizer are not.
TRL's experimental trainers are imported here and nowhere in the package.
"""

import random
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.profiler import profile
from transformers import PreTrainedModel, Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from benchmarks.measure import Timed
from benchmarks.rollouts import Model, Scenario
from trl_opsd import OPSDConfig, OPSDTrainer, PrivilegedSource, View


GROUP = 8
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
# Full vocabulary, forward KL, the student's own weights, and nothing that the others don't do
PEER = {
    "distillation_mode": "full_logits",
    "distillation_alpha": 0.0,
    "distillation_is_clip": None,
    "teacher_model_kind": "live",
    "max_prompt_length": None,
}


def length_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def arguments(scenario: Scenario, device: str, folder: str) -> dict[str, Any]:
    """Options that all trainers share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": scenario.batch,
        "gradient_accumulation_steps": scenario.rows // scenario.batch,
        "num_generations": min(GROUP, scenario.rows),
        "max_completion_length": scenario.completion[1],
        "gradient_checkpointing": scenario.checkpointing,
        "bf16": False,
        "use_cpu": device == "cpu",
        "shuffle_dataset": False,
        "report_to": "none",
        "save_strategy": "no",
    }


def numbered(count: int) -> list[str]:
    """Names of so many views."""
    return [f"view{number}" for number in range(count)]


def views_of(names: list[str]) -> PrivilegedSource:
    """A source of views of these names: the row's context with its words in another order, so of the same length."""

    def source(groups: list) -> list[list[View]]:
        return [[view(rollout, i) for i in range(len(names))] for group in groups for rollout in group]

    def view(rollout: Any, number: int) -> View:
        words = rollout.row["privileged_context"].split()
        random.Random(number).shuffle(words)
        return View(" ".join(words), name=names[number])

    return source


def make_trainer(kind: str, model: Model, data: list[dict], shared: dict[str, Any], **options: Any) -> Trainer:
    """A trainer of one of the four classes. With `lora=True` on an adapter; `views` and `reward` are OPSDTrainer's."""
    lora, views, reward = options.pop("lora", False), options.pop("views", None), options.pop("reward", False)
    common = {
        "model": model.model,
        "train_dataset": Dataset.from_list(data),
        "processing_class": model.tokenizer,
        "peft_config": LoraConfig(**LORA) if lora else None,
    }
    if kind == "GRPO":
        return GRPOTrainer(reward_funcs=length_reward, args=GRPOConfig(**shared, **options), **common)
    if kind == "OPSD":
        args = OPSDConfig(**shared, **options)
        source = views_of(views) if views else None
        return OPSDTrainer(reward_funcs=length_reward if reward else None, args=args, privileged=source, **common)
    if kind == "SDFT":
        template = "{prompt}\n\n{privileged_context}"
        args = SDFTConfig(**shared, **PEER, teacher_prompt_template=template, num_loss_tokens_to_skip=0, **options)
        return SDFTTrainer(args=args, **common)
    feedback = {
        "include_environment_feedback": True,
        "use_successful_as_teacher": False,
        "reprompt_template": "{prompt}{solution}{feedback}",
        "feedback_template": "\n\n{feedback_raw}",
    }
    args = SDPOConfig(**shared, **PEER, **feedback, **options)
    return SDPOTrainer(reward_funcs=length_reward, args=args, **common)


class Window:
    """An accumulation window of one trainer; a run of it returns the numbers of real tokens that it was about."""

    def __init__(self, kind: str, model: Model, scenario: Scenario, device: str, **options: Any):
        self.folder = tempfile.TemporaryDirectory()
        data, completions = scenario.data(), scenario.completions(model.tokenizer)
        shared = arguments(scenario, device, self.folder.name)
        self.trainer = trainer = make_trainer(kind, model, data, shared, **options)
        self.steps = shared["gradient_accumulation_steps"]
        if scenario.checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = trainer.model
        if trainer.accelerator.num_processes > 1:
            self.model = trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
        self.model.train()
        trainer.current_gradient_accumulation_steps = self.steps
        if kind in ("GRPO", "OPSD"):
            trainer._generate_single_turn = lambda *_, **__: (completions, None)
            hook = "_generate_and_score_completions"
        else:
            trainer._generate = lambda prompt_ids: (prompt_ids, completions)
            hook = "_prepare_training_batch"
        self.made = getattr(trainer, hook)(data)
        setattr(trainer, hook, self.generated)
        self.data = data

    def generated(self, _: list[dict]) -> dict[str, Any]:
        """Return the generation batch once more: each window splits, shuffles and orders it anew."""
        if isinstance(self.trainer, OPSDTrainer):
            self.trainer._generation += 1  # it plans the micro-batches of each generation once
        return dict(self.made)

    def __call__(self) -> dict[str, int]:
        trainer = self.trainer
        trainer.model.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # the same split into micro-batches in every run
        for step in range(self.steps):
            trainer._step = step
            inputs = trainer._prepare_inputs(self.data)
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(self.model, inputs)
            trainer.accelerator.backward(loss)
        trainer.model.zero_grad(set_to_none=True)
        return self.tokens()

    def tokens(self) -> dict[str, int]:
        made = self.made
        completion = int(made["completion_mask"].sum())
        counts = {"completion": completion, "student": completion + int(made["prompt_mask"].sum()), "teacher": 0}
        if "teacher_attention_mask" in made:
            counts["teacher"] = int(made["teacher_attention_mask"].sum())
        elif isinstance(self.trainer, OPSDTrainer):
            metrics = self.trainer._metrics["train"]
            views = sum(key.startswith("self_distillation/divergence/") for key in metrics) or 1
            length = metrics["self_distillation/teacher_prompt_length/mean"][0]
            counts["teacher"] = views * (completion + round(length * len(made["completion_mask"])))
        return counts


class Products(Window):
    """Window whose seconds are those of the matrix products alone, by torch's profiler."""

    NAMES = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")

    def __call__(self) -> Timed:
        with profile() as profiled:
            tokens = super().__call__()
        column = "self_device_time_total" if self.trainer.accelerator.device.type == "cuda" else "self_cpu_time_total"
        events = (event for event in profiled.key_averages() if event.key in self.NAMES)
        return Timed(sum(getattr(event, column) for event in events) / 1e6, tokens)


class BareTeacher:
    """
    The least that a teacher's forward can cost: the body without gradient on its real tokens. Rows are taken by length,
    and the time is scaled by the share of real tokens in what little padding is left.
    """

    def __init__(self, model: Model, scenario: Scenario, device: str):
        self.body: PreTrainedModel = model.model.to(device).eval().base_model
        tokenizer, rows = model.tokenizer, []
        for row, completion in zip(scenario.data(), scenario.completions(tokenizer), strict=True):
            *before, user = row["prompt"]
            content = f"{user['content']}\n\n{row['privileged_context']}"
            messages = [*before, {**user, "content": content}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            rows.append([*prompt, *completion])
        rows.sort(key=len)
        self.real = sum(map(len, rows))
        self.batches = []
        for first in range(0, len(rows), scenario.batch):
            part = rows[first : first + scenario.batch]
            width = len(part[-1])
            ids = torch.tensor([[*row, *[tokenizer.pad_token_id] * (width - len(row))] for row in part])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
            self.batches.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
        self.padded = sum(batch["input_ids"].numel() for batch in self.batches)

    @torch.no_grad()
    def __call__(self) -> Timed:
        start = time.perf_counter()
        for batch in self.batches:
            self.body(**batch, use_cache=False)
        if self.batches[0]["input_ids"].is_cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) * self.real / self.padded
        return Timed(seconds, {"completion": 0, "student": 0, "teacher": self.real})
