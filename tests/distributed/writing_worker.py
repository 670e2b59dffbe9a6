# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_writing.py: writes about its own prompts, and tells what a plain model writes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

import conftest  # sets the environment before torch
import tiny
from trl_opsd import OPSDConfig, OPSDTrainer


TEXTS = [f"{'very ' * (i % 4)}long {i}" for i in range(10)]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS[:6]]
NUMBERS = [(7, 0), (0, 3), (5, 6), (0, 0)]  # of prompts, on each of the processes


def alone(weights: dict[str, torch.Tensor], prompts: list, tokens: int, **template: Any) -> list[str]:
    """What a plain model with these weights writes to each prompt, one at a time."""
    tokenizer = tiny.tokenizer()
    model = tiny.model(tokenizer)
    model.load_state_dict(weights)
    told = []
    for prompt in prompts:
        if isinstance(prompt, list):
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **template)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        new = model.eval().generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
        told.append(tokenizer.decode(new, skip_special_tokens=True))
    return told


def run(folder: Path) -> dict[str, Any]:
    tokenizer = tiny.tokenizer()
    options = {**conftest.ARGS, "per_device_train_batch_size": 2, "use_cpu": True, "teacher_model_kind": "base"}
    rows = [{"prompt": chat, "privileged_context": "x"} for chat in CHATS]
    trainer = OPSDTrainer(
        tiny.model(tokenizer), None, OPSDConfig(str(folder), **options), Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)  # as in a training
    start = tiny.model(tokenizer).state_dict()
    torch.manual_seed(0)
    with torch.no_grad():
        for param in trainer.model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    weights = {"live": {n: v.clone() for n, v in trainer.model.state_dict().items()}, "teacher": start}
    told: dict[str, Any] = {}
    for side, own in weights.items():
        calls = []
        for numbers in NUMBERS:
            count = numbers[trainer.accelerator.process_index]
            prompts = TEXTS[:count]
            written = trainer.collector.run.write(prompts, weights=side, max_new_tokens=5)
            calls.append({"told": written, "alone": alone(own, prompts, 5)})
        told[side] = calls
    return told


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    told = run(folder)
    (folder / f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
