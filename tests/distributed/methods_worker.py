# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_in_two_processes.py: a tiny model with each method on rollouts that are known."""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset

import conftest  # sets the environment before torch
import tiny
from scripted import right
from trl_opsd import OPSDConfig, OPSDTrainer


# Half of them say 2, so that a group agrees; nobody says 8, so that a group fails
TEXTS = ["no", "it is 2", "7", "2", "so 5", "1 + 1 = 2", "it may be 6", "well, 2"]
TASKS = {"1 + 1?": "2", "4 + 4?": "8", "2 + 3?": "5", "3 + 3?": "6"}
SOURCES = {  # instead of an instruction that is the same in every row, or of a part of a solution of one segment
    "crisp": "column", "opcd": "column", "atesd": {"adaptive_exposure": {"answer": "answer"}},
}  # fmt: skip


def rollouts(prompts: list, trainer: OPSDTrainer) -> dict:
    """The rollouts of one prompt, half of them on each of two ranks; which one a rollout is says its text."""
    first = trainer.accelerator.process_index * len(prompts)
    ids = [trainer.processing_class(f"{TEXTS[first + i]}<|im_end|>")["input_ids"] for i in range(len(prompts))]
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}


def train(method: str, folder: Path, processes: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights after two steps, and the log."""
    rows = [
        {"prompt": [{"role": "user", "content": task}], "answer": answer}
        | dict.fromkeys(("privileged_context", "solution"), f"{task[:-1]} = {answer}")
        for task, answer in TASKS.items()
    ]
    own = {"privileged_source": SOURCES[method]} if method in SOURCES else {}
    trainer = OPSDTrainer(
        str(folder / "model"),
        reward_funcs=right,
        args=OPSDConfig(
            output_dir=folder / method,
            method=method,
            use_cpu=True,
            shuffle_dataset=False,
            optim="sgd",
            max_grad_norm=0.0,  # not clipped, so that the gradients' sizes show in the weights
            **{**conftest.ARGS, "num_generations": 8, "per_device_train_batch_size": 8 // processes, **own},
        ),
        train_dataset=Dataset.from_list(rows),
        rollout_func=rollouts,
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: one.detach().clone() for name, one in model.named_parameters()}, trainer.state.log_history


def main(folder: Path, methods: list[str]) -> None:
    torch.set_num_threads(1)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    tiny.model(tiny.tokenizer(), max_position_embeddings=4096).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    for method in methods:
        torch.save(train(method, folder, processes), folder / f"{method}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
