# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_written_by_two.py: trains with sources that somebody writes, and tells what came of it."""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

import conftest  # sets the environment before torch
import scripted
import tiny
from endpoint_server import asked, says, sends, serving
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.privileged import AllOf, Critic, FirstOf, Reflection, Skills, When, Written


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


def critique(prompts: list, rollouts: list) -> list[str]:
    """Of some rollouts."""
    return ["" if rollout.index % 3 == 1 else f"Number {rollout.index}." for rollout in rollouts]


def failing_critique(prompts: list, rollouts: list) -> list[str]:
    """On the process that holds the last rollout."""
    if any(rollout.index == 3 for rollout in rollouts):
        raise OSError("no critic today")
    return critique(prompts, rollouts)


def failing_condition(rollout: Any, group: list) -> bool:
    if rollout.wanted and rollout.index == 3:
        raise KeyError("no condition today")
    return True


def endpoint() -> dict[str, Any]:
    """A server of this process, which knows no answer to "It is 3", the words of the last rollout."""
    server = SERVERS.enter_context(serving())
    server.answer = lambda body: sends(404, "no answer") if asked(body).endswith("It is 3") else says("Well.")
    return {"endpoint": {"url": server.url, "model": "m"}}


SERVERS = ExitStack()
SKILLS = {"size": 5, "k": 2, "max_new_tokens": 4, "examples": []}
CASES: dict[str, Any] = {  # the source, and rollouts of a prompt
    "skills, two groups": (lambda: Skills(author=summary, **SKILLS), 2),
    "skills, a group of both": (lambda: Skills(author=summary, **SKILLS), 4),
    "skills, one fails": (lambda: Skills(author=failing, **SKILLS), 2),
    "skills of the model": (lambda: Skills(**SKILLS), 4),
    "reflection": (lambda: Reflection(author=reflection), 4),
    "reflection of the model": (lambda: Reflection(max_new_tokens=4, examples=[]), 4),
    "critic": (lambda: Critic(author=critique), 4),
    "critic of the model, about the first two": (
        lambda: When(lambda rollout, group: rollout.index < 2, Critic(max_new_tokens=4, examples=[])),
        4,
    ),
    "critic before skills fails": (
        lambda: AllOf(Critic(author=failing_critique), Skills(author=summary, name="skills", **SKILLS)),
        4,
    ),
    "critic first, then skills, fails": (
        lambda: FirstOf(Critic(author=failing_critique), Skills(author=summary, **SKILLS)),
        4,
    ),
    "condition fails": (lambda: When(failing_condition, Skills(author=summary, **SKILLS)), 4),
    "endpoint fails": (lambda: Critic(author=endpoint()), 4),
    "endpoint fails and is skipped": (lambda: Critic(author=endpoint()), 4),
    "written by the model": (lambda: Written(column="answer", author="live", max_new_tokens=4), 4),
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
        observed.counts = source.counts
        state = source.state_dict() if hasattr(source, "state_dict") else None
        told.append([state, source.counts, [[asdict(view) for view in row] for row in views]])
        return views

    observed.setup, observed.uses_model, observed.counts = source.setup, True, source.counts
    options = {"per_device_train_batch_size": 4 // processes, "num_generations": group, "max_steps": 4}
    options |= {"policy_weight": 0.0, "use_cpu": True, "shuffle_dataset": False}
    options |= {"privileged_on_error": "skip"} if case.endswith("skipped") else {}
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
    SERVERS.close()
    logged = [
        {name: log.get(f"self_distillation/{name}") for name in source.counts} for log in trainer.state.log_history
    ]
    errors = [log.get("self_distillation/source_errors") for log in trainer.state.log_history]
    return json.loads(json.dumps({"calls": told, "error": error, "logged": logged[:4], "skipped": errors[:4]}))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    told = {case: run(folder, case, processes=2) for case in CASES}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
