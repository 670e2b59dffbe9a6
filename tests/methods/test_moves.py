# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Every method moves what it trains, as far as it says, through the trainer on rollouts in which it has its views."""

from collections import Counter

import pytest
import torch
from datasets import Dataset

import tiny
from agents import SCRIPTS, agent_model, agent_tokenizer, follow_scripts, multiply
from batches import batch_of
from method_cases import WITHOUT_TURNS
from scripted import right
from trl_opsd.methods import method_of


TASKS = {"1 + 1?": "2", "2 + 3?": "5", "4 + 4?": "8", "3 + 3?": "6"}
TEXTS = [
    ["no", "it is 2", "7", "2"],
    ["5", "6", "it is 7", "2 + 3 = 5"],
    ["8", "9", "ten", "so 8"],
    ["5", "6", "6", "7"],
]
RATE = 1e-5


def rollouts(prompts, trainer):
    """Four of each prompt, the same in every batch."""
    seen, ids = Counter(), []
    for prompt in prompts:
        task = prompt[-1]["content"]
        ids.append(trainer.processing_class(TEXTS[[*TASKS].index(task)][seen[task]] + "<|im_end|>")["input_ids"])
        seen[task] += 1
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}


def critic(prompts, rollouts):
    return ["Kept: none\nCorrected: The sum is a small number."] * len(prompts)


def reflector(prompts, rollouts):
    return [f"Quote: {rollout.text}\nExplanation: That is too much." for rollout in rollouts]


def author_of_skills(prompts, rollouts):
    return ["Success: It counts.\nMistakes: It guesses.\nWorkflow: Count on your fingers."] * len(prompts)


STATES = {"antisd": {"gate": 1.0}}
# What they hold constant (a target, a ratio) moves with the student, so that their value tells less
SURROGATES = {"avsd", "eopd", "stop_grad_topk", "taid"}

# Instead of what a tiny model would have to write, and of weights that one step can't show
CHANGES = {
    "atesd": {"privileged_source": {"adaptive_exposure": {"answer": "answer"}}},  # the solution has one segment
    "feedback_alignment": {"privileged_source": {"critic": {"schema": "steps", "author": "test_moves.critic"}}},
    "hdpo": {"success_reward_threshold": 2.0, "distillation_weight": 1.0},
    "rosd": {"privileged_source": {"reflection": {"author": "test_moves.reflector"}}},
    "sdpg": {"distillation_weight": 1.0},
    "skill_sd": {"privileged_source": {"skills": {"author": "test_moves.author_of_skills"}}},
}


def made_trainer(make_trainer, folder, name):
    """A trainer of four groups with right and wrong rollouts, or, for the method of tools, of rollouts with errors."""
    method = method_of(name)
    options = {
        "per_device_train_batch_size": 16, "num_generations": 4, "reward_funcs": right, "shuffle_dataset": False,
        **CHANGES.get(name, {}),
    }  # fmt: skip
    if not method.needs_reward and "policy_weight" not in method.defaults:
        options["policy_weight"] = 0.0
    if name == "targeted_hint":
        options["reward_funcs"] = lambda completions, **_: [0.0, 0.1, 0.1, 0.0] * (len(completions) // 4)
        trainer = make_trainer(
            agent_model(), method=name, tools=[multiply], processing_class=agent_tokenizer(),
            max_completion_length=600, max_tool_calling_iterations=4, **options,
        )  # fmt: skip
        follow_scripts(trainer, SCRIPTS)
        return trainer
    tiny.model(tiny.tokenizer(), max_position_embeddings=4096).save_pretrained(folder / "model")
    rows = [
        {"prompt": [{"role": "user", "content": task}], "answer": answer}
        | dict.fromkeys(("privileged_context", "solution"), f"{task[:-1]} = {answer}")
        for task, answer in TASKS.items()
    ]
    return make_trainer(
        str(folder / "model"), Dataset.from_list(rows), method=name, rollout_func=rollouts,
        max_completion_length=200, **options,
    )  # fmt: skip


def held(function):
    """Its first result, from then on."""
    results = []

    def answer(*arguments):
        if not results:
            results.append(function(*arguments))
        return results[0]

    return answer


@pytest.mark.parametrize("name", WITHOUT_TURNS)
def test_a_small_step_gains_what_its_gradient_says(make_trainer, tmp_path, name):
    """
    That is rate |g|^2. Of the loss, while the teacher's answers stay and no reward counts; of the sampled tokens where
    the method makes advantages, each by its own.
    """
    trainer = made_trainer(make_trainer, tmp_path, name)
    trainer.method.schedule_state |= STATES.get(name, {})
    inputs, term, steps = batch_of(trainer), trainer.objective, []
    assert inputs["distillation"].counts.distilled_tokens > 0
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    sampled, make = trainer.args.distillation_mode == "sampled_token", term.sampled_advantages
    term._teacher_outputs = held(term._teacher_outputs)

    def kept(batch, stats):
        steps.append((make(batch, stats), stats["student_logps"]))
        return steps[-1][0]

    term.sampled_advantages = kept
    if not sampled:
        inputs["advantages"] = inputs["distillation"].advantages = torch.zeros_like(inputs["advantages"])
    before = trainer.compute_loss(trainer.model, inputs)
    before.backward()
    parameters = [one for one in trainer.model.parameters() if one.grad is not None]
    with torch.no_grad():
        for one in parameters:
            one -= RATE * one.grad
    after = trainer.compute_loss(trainer.model, inputs)
    gain = before.item() - after.item()
    if sampled:
        (advantages, old), (_, new) = steps
        gain = ((new - old) * advantages * mask).double().sum().item() / mask.sum().item()
    expected = RATE * sum(one.grad.double().square().sum().item() for one in parameters)
    assert gain > 0
    if name not in SURROGATES:
        assert gain == pytest.approx(expected, rel=0.03)
