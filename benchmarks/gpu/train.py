# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Part `train`: a tiny model is trained, interrupted and resumed, which must give the same weights to the last bit; then
bfloat16 under autocast with gradient checkpointing, and float16 under a loss scale.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

import tiny
from benchmarks.gpu.part import Part
from benchmarks.report import Row
from trl_opsd import OPSDConfig, OPSDTrainer


TEACHERS = ("base", "ema")
STEPS, SAVED = 4, 2
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_generations": 1,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}


def run(part: Part) -> None:
    for teacher in TEACHERS:
        part.attempt(f"train and resume, {teacher}", lambda kind=teacher: resumed(part, kind), need=8)
    precisions = {
        "bfloat16 under autocast, with checkpointing": {"bf16": True, "gradient_checkpointing": True},
        "float16 under a loss scale": {"fp16": True},
    }
    for name, options in precisions.items():
        part.attempt(name, lambda options=options: trained(part, **options), need=5)


def make_trainer(folder: Path, device: str, steps: int, **options: Any) -> OPSDTrainer:
    """A trainer on the tiny model and sixteen rows, a third of which have no context."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {number}?"}],
            "privileged_context": f"The answer is {number}." if number % 3 else None,
        }
        for number in range(16)
    ]
    tokenizer = tiny.tokenizer()
    args = OPSDConfig(str(folder), max_steps=steps, use_cpu=device == "cpu", **{**OPTIONS, **options})
    dataset = Dataset.from_list(rows)
    trainer = OPSDTrainer(model=tiny.model(tokenizer), args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses(trainer: OPSDTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def weights(trainer: OPSDTrainer) -> list[torch.Tensor]:
    return [param.detach().float().cpu().clone() for param in trainer.model.parameters()]


def difference(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Greatest absolute difference of any weight."""
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def resumed(part: Part, teacher: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        options = {"save_strategy": "steps", "save_steps": SAVED, "teacher_model_kind": teacher}
        whole = make_trainer(Path(folder), part.device, STEPS, **options)
        start = weights(whole)
        whole.train()
        again = make_trainer(Path(folder), part.device, STEPS, **options)
        again.train(resume_from_checkpoint=str(Path(folder) / f"checkpoint-{SAVED}"))
        return {
            "losses": losses(whole),
            "moved": difference(weights(whole), start),
            "resumed_differs_by": difference(weights(whole), weights(again)),
        }


def trained(part: Part, **options: Any) -> Row:
    if part.device == "cpu" and options.get("fp16"):
        return {"skipped": "float16 needs a GPU"}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), part.device, 2, **options)
        start = weights(trainer)
        trainer.train()
        return {"losses": losses(trainer), "moved": difference(weights(trainer), start)}
