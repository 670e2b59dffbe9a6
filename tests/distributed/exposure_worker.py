# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_adaptive_exposure.py: trains with a learned exposure, and leaves the controller's state."""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset

import conftest  # sets the environment before torch
import tiny
from trl_opsd import OPSDConfig, OPSDTrainer


ROWS = [
    {
        "prompt": [{"role": "user", "content": f"{i} + 1?"}],
        "solution": "\n\n".join(f"Step {j}." for j in range(8)),
        "answer": str(i + 1),
    }
    for i in range(8)
]


def rollouts(prompts: list, trainer: OPSDTrainer) -> dict:
    """Texts that are known by the place in the global batch, so that two ranks have those of one."""
    first = trainer.accelerator.process_index * len(prompts)
    ids = [trainer.processing_class(f"it is {first + i}<|im_end|>")["input_ids"] for i in range(len(prompts))]
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    options = {"per_device_train_batch_size": 4 // processes, "max_steps": 5, "optim": "sgd", "max_grad_norm": 0.0}
    trainer = OPSDTrainer(
        tiny.model(tiny.tokenizer()),
        args=OPSDConfig(
            output_dir=folder / "out",
            use_cpu=True,
            shuffle_dataset=False,
            privileged_source={"adaptive_exposure": {"answer": "answer", "hold": 2, "look_ahead": 1}},
            **{**conftest.ARGS, **options},
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny.tokenizer(),
        rollout_func=rollouts,
    )
    trainer.train()
    (folder / f"{rank}.json").write_text(json.dumps(trainer.privileged.state_dict()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
