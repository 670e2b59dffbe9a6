# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of tests/test_written_by_two.py: trains with sources that somebody writes, and tells what came of it."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

import conftest  # sets the environment before torch
import scripted
import tiny
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.privileged import Reflection, Skills


ROWS = [{"prompt": [{"role": "user", "content": f"{i} + 1?"}], "answer": str(i + 1)} for i in range(8)]
SUMMARY = "Success: {}\nMistakes: None.\nWorkflow: Count."


def summary(prompts: list, rollouts: list) -> list[str]:
    """Of the best attempt's text; not of the form for the third task."""
    texts = [SUMMARY.format(rollout.text) for rollout in rollouts]
    return ["?" if one.row["answer"] == "3" else text for one, text in zip(rollouts, texts, strict=True)]


def failing(prompts: list, rollouts: list) -> list[str]:
    """On the process that writes about the last task."""
    if any(rollout.row["answer"] == "8" for rollout in rollouts):
        raise OSError("no summary today")
    return summary(prompts, rollouts)


def reflection(prompts: list, rollouts: list) -> list[str]:
    """Quotes the whole rollout."""
    return [f"Quote: {rollout.text}\nExplanation: It was number {rollout.index}." for rollout in rollouts]


SKILLS = {"size": 5, "k": 2, "max_new_tokens": 4, "examples": []}
CASES: dict[str, Any] = {  # the source, and rollouts of a prompt
    "skills, two groups": (lambda: Skills(author=summary, **SKILLS), 2),
    "skills, a group of both": (lambda: Skills(author=summary, **SKILLS), 4),
    "skills, one fails": (lambda: Skills(author=failing, **SKILLS), 2),
    "skills of the model": (lambda: Skills(**SKILLS), 4),
    "reflection": (lambda: Reflection(author=reflection), 4),
    "reflection of the model": (lambda: Reflection(max_new_tokens=4, examples=[]), 4),
}


def numbered(prompts: list, trainer: Any) -> dict[str, Any]:
    """Each rollout says its number in the global batch."""
    tokenizer = trainer.processing_class
    first = trainer.accelerator.process_index * len(prompts)
    ids = [tokenizer(f"It is {first + i}<|im_end|>")["input_ids"] for i in range(len(prompts))]
    logps = [[0.0] * len(one) for one in ids]
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": logps}


def run(folder: Path, case: str, processes: int) -> dict[str, Any]:
    """Four steps of four rollouts: at each the state, counts and views, and the error at the end, if any."""
    tokenizer = tiny.tokenizer()
    make, group = CASES[case]
    source = make()
    told: list[Any] = []

    def observed(groups: list) -> list:
        views = source(groups)
        state = source.state_dict() if hasattr(source, "state_dict") else None
        told.append([state, source.counts, [[asdict(view) for view in row] for row in views]])
        return views

    observed.setup, observed.uses_model = source.setup, True
    options = {"per_device_train_batch_size": 4 // processes, "num_generations": group, "max_steps": 4}
    options |= {"policy_weight": 0.0, "use_cpu": True, "shuffle_dataset": False}
    trainer = OPSDTrainer(
        tiny.model(tokenizer),
        scripted.right,
        OPSDConfig(str(folder), **{**conftest.ARGS, **options}),
        Dataset.from_list(ROWS),
        processing_class=tokenizer,
        rollout_func=numbered,
        privileged=observed,
    )
    error = None
    try:
        trainer.train()
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return json.loads(json.dumps({"calls": told, "error": error}))


def main(folder: Path) -> None:
    from on_cpu import leave  # hides the GPUs, which the tests that import this file may want

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    told = {case: run(folder, case, processes=2) for case in CASES}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
