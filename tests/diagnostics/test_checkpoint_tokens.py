# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Checkpoints beside each other: the same prompts, each model's own answers, values of a plain forward."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from conftest import length_reward
from trl_opsd.diagnostics import checkpoint_tokens


LORA = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)}
EMA = {"teacher_model_kind": "ema", "teacher_update_rate": 0.5}
CASES = {"base": {}, "LoRA": LORA, "ema": EMA, "mixed": {"reward_funcs": length_reward}}


@pytest.fixture
def with_context(rows):
    return Dataset.from_list([row for row in rows if row["privileged_context"]])


def trained(make_trainer, dataset, **options):
    torch.manual_seed(0)
    trainer = make_trainer(
        dataset=dataset, max_steps=2, save_strategy="steps", save_steps=1, learning_rate=0.05, **options
    )
    trainer.train()
    return trainer


def logps(model, prompt, completion):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1).tolist()


def near(values, expected):
    return values == pytest.approx(expected, rel=6e-3, abs=2e-3)


@pytest.mark.parametrize("case", CASES)
def test_each_checkpoint_answers_the_same_prompts(make_trainer, with_context, tmp_path, case):
    trained(make_trainer, with_context, **CASES[case])
    torch.manual_seed(0)
    trainer = make_trainer(dataset=with_context, **CASES[case])
    folders = [str(tmp_path / "out" / f"checkpoint-{step}") for step in (1, 2)]
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    groups = checkpoint_tokens(trainer, [folders[1], "start", folders[0]], rows=3)
    assert [group.label for group in groups] == ["out/checkpoint-2", "start", "out/checkpoint-1"]
    assert [group.same_weights for group in groups] == [False, True, False]
    for of_checkpoints in zip(*(group.rollouts for group in groups), strict=True):
        assert len({tuple(line["student_prompt"]["ids"]) for line in of_checkpoints}) == 1
        assert all(line["views"]["privileged"]["prompt"]["context"] for line in of_checkpoints)
        assert all(bool(line["rewards"]) == (case == "mixed") for line in of_checkpoints)
    assert [line["index"] for line in groups[0].rollouts] == [0, 1, 2]
    assert len({tuple(line["ids"]) for group in groups for line in group.rollouts}) > 3, "they answer otherwise"
    if case == "LoRA":
        trainer.model.load_state_dict(start)
        model = trainer.model.eval()
        for line in groups[1].rollouts:
            assert near(line["p"], logps(model, line["student_prompt"]["ids"], line["ids"]))
        return
    for group, folder in zip((groups[0], groups[2]), (folders[1], folders[0]), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        for line in group.rollouts:
            assert near(line["p"], logps(model, line["student_prompt"]["ids"], line["ids"]))
    if case == "ema":
        copies = trainer.teacher.weights.copies
        assert any(not torch.equal(copy.float(), start[name].float()) for name, copy in copies.items() if name in start)


def test_scores_without_a_reward(make_trainer, with_context, tokenizer):
    groups = checkpoint_tokens(
        make_trainer(dataset=with_context, score_func=length_reward, success_reward_threshold=2.0), ["start"], rows=8
    )
    for line in groups[0].rollouts:
        (score,) = length_reward([tokenizer.decode(line["ids"], skip_special_tokens=True)])
        assert line["rewards"] == {"score": score} and line["success"] == (score >= 2.0)
    assert len({line["success"] for line in groups[0].rollouts}) == 2


def test_mistakes(make_trainer, with_context, tmp_path):
    trained(make_trainer, with_context)
    folder = str(tmp_path / "out" / "checkpoint-1")
    trainer = make_trainer(dataset=with_context)
    for names, words in (
        (["nowhere"], "no folder nowhere.*'start'"),
        ([folder, folder], "named once"),
        ([str(tmp_path)], "Can't find a valid checkpoint"),
    ):
        with pytest.raises(ValueError, match=words):
            checkpoint_tokens(trainer, names)
    with pytest.raises(ValueError, match="holds all weights, and the recipe trains an adapter"):
        checkpoint_tokens(make_trainer(dataset=with_context, **LORA), [folder])
    with pytest.raises(ValueError, match="holds no state of an 'ema' teacher"):
        checkpoint_tokens(make_trainer(dataset=with_context, **EMA), [folder])
    with pytest.raises(ValueError, match="has no teacher"):
        checkpoint_tokens(make_trainer(distillation_weight=0.0, reward_funcs=length_reward), ["start"])
