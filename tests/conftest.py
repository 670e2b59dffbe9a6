# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tiny real models, tokenizers and data that every test can build in milliseconds, without a hub."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any


# Before torch is imported. One device: with several visible, the Trainer would try nn.DataParallel
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

import tiny
from devices import device
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.batches.distillation_batch import DistillationBatch


TESTS = Path(__file__).parent
DISTRIBUTED, KERNELS = TESTS / "distributed", TESTS / "kernels"
ARGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_generations": 1,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs in processes of its own is no quick test."""
    for item in items:
        if DISTRIBUTED in item.path.parents:
            item.add_marker(pytest.mark.engines)


@pytest.fixture(autouse=True, scope="session")
def quick() -> None:
    """One thread is fastest for tiny models; and every `train()` collects garbage, 0.3 s over all that imports left."""
    torch.set_num_threads(1)
    gc.freeze()


@pytest.fixture(autouse=True)
def default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where there is a GPU, tensors that a test of the kernels makes without naming a device are there. Trainers choose
    it by themselves, and their samplers of rows must not be moved."""
    moved = device() != "cpu" and KERNELS in request.path.parents
    with torch.device(device()) if moved else nullcontext():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.tokenizer()


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Sixteen rows of several widths; every third has no privileged context."""
    return [
        {
            "prompt": [{"role": "user", "content": "What is " + "very " * (i % 4) + f"{i}?"}],
            "privileged_context": f"The answer is {i}." if i % 3 else None,
        }
        for i in range(16)
    ]


@pytest.fixture
def make_trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list) -> Callable[..., OPSDTrainer]:
    """Build a trainer on the tiny model; keywords go to `OPSDConfig` or, where they are its arguments, to the trainer.
    With rewards, groups of two."""
    trainer_keys = {"reward_funcs", "peft_config", "eval_dataset", "tools", "rollout_func", "environment_factory"}
    trainer_keys |= {"privileged", "callbacks", "score_func", "quantization_config"}

    def make(model: Any = None, dataset: Any = None, config: type = OPSDConfig, **options: Any) -> OPSDTrainer:
        arguments = {name: options.pop(name) for name in list(options) if name in trainer_keys}
        cls = options.pop("trainer_class", OPSDTrainer)
        processing_class = options.pop("processing_class", tokenizer)
        groups = {"num_generations": 2} if "reward_funcs" in arguments else {}
        options = {"output_dir": str(tmp_path / "out"), **ARGS, **groups, **options}
        return cls(
            model=tiny.model(tokenizer) if model is None else model,
            args=config(**options),
            train_dataset=Dataset.from_list(rows) if dataset is None else dataset,
            processing_class=processing_class,
            **arguments,
        )

    return make


def length_reward(completions: list, **kwargs: Any) -> list[float]:
    """A reward that differs between completions: the number of characters, modulo 3."""
    return [float(len(c if isinstance(c, str) else c[0]["content"]) % 3) for c in completions]


def retaken(inputs: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch whose TRL keys a test has changed, with a `DistillationBatch` of them as they are now."""
    batch = inputs["distillation"]
    own = {name: value for name, value in inputs.items() if name != "distillation"}
    inputs = DistillationBatch.take(own | batch.flat())
    inputs["distillation"].teacher_batches = batch.teacher_batches
    return inputs


def backbone_inputs(trainer: OPSDTrainer) -> dict[str, list[list[list[int]]]]:
    """Token ids of every call of the backbone from now on, by who reads them: "student" or "teacher"."""
    calls: dict[str, list] = {"student": [], "teacher": []}
    reader, teacher_forward = ["student"], trainer.teacher.teacher_forward

    @contextmanager
    def observed(model):
        with teacher_forward(model) as teacher:
            reader[0] = "teacher"
            yield teacher
        reader[0] = "student"

    def record(_, args, kwargs):
        calls[reader[0]].append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).tolist())

    trainer.teacher.teacher_forward = observed
    trainer.teacher.model.base_model.register_forward_pre_hook(record, with_kwargs=True)
    return calls
