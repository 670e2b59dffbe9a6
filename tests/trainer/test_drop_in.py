# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""TRL's documented usage on the subclass: what GRPOTrainer does, OPSDTrainer does, with the distillation term on."""

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, pipeline
from trl import GRPOConfig, GRPOTrainer

import tiny
from agents import Shop, agent_tokenizer, multiply, with_scripted_sampler
from batches import batch_of
from conftest import length_reward
from runs import assert_same_run, history
from trl_opsd import OPSDConfig, OPSDTrainer, View
from trl_opsd.privileged import rollouts_of
from trl_opsd.rollouts.view import shown_context
from trl_opsd.teacher.weights import CopiedWeights


DIVERGENCE = "self_distillation/divergence"


def trained(trainer):
    """Train, and check that the loss is a number and the distillation ran."""
    trainer.train()
    logs = [log for log in trainer.state.log_history if DIVERGENCE in log]
    assert logs and all(math.isfinite(log["loss"]) and log[DIVERGENCE] > 0 for log in logs)
    return trainer


# The trainer is GRPOTrainer


def test_signature_is_the_parents_plus_keywords():
    parent = list(inspect.signature(GRPOTrainer.__init__).parameters.values())
    own = list(inspect.signature(OPSDTrainer.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in own[: len(parent)]] == [(p.name, p.default, p.kind) for p in parent]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in own[len(parent) :])


@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"num_iterations": 2}, {"loss_type": "grpo"}])
def test_with_a_grpo_config_it_is_grpo_trainer_bit_for_bit(make_trainer, options):
    runs = []
    for cls in (GRPOTrainer, OPSDTrainer):  # one after the other: building a trainer sets the seed
        trainer = make_trainer(
            config=GRPOConfig, trainer_class=cls, reward_funcs=[length_reward], num_generations=2, **options
        )
        trainer.train()
        runs.append(trainer)
    assert_same_run(*runs)


@pytest.fixture(autouse=True)
def start_model_on_disk(tmp_path, tokenizer, monkeypatch):
    """`beta` loads the reference model by the name in the config: give the tiny model one."""
    folder = tmp_path / "start"
    tiny.model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    original = tiny.model

    def named(*args, **kwargs):
        model = original(*args, **kwargs)
        model.config._name_or_path = model.name_or_path = str(folder)
        return model

    monkeypatch.setattr(tiny, "model", named)
    return folder


def test_without_distillation_weight_it_is_grpo_trainer_bit_for_bit(make_trainer, rows):
    bare = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    plain = make_trainer(dataset=bare, config=GRPOConfig, trainer_class=GRPOTrainer, reward_funcs=[length_reward])
    plain.train()
    off = make_trainer(dataset=bare, distillation_weight=0.0, reward_funcs=[length_reward])
    off.train()
    assert_same_run(plain, off)
    assert off._tag_names == ["trl", "grpo"]


def test_the_parents_metrics_are_unchanged_in_the_mixed_case(make_trainer):
    """At the first step, before the terms have moved the weights apart, every metric of GRPO has the same value.

    Log-probs and entropy are the loss kernel's, which adds up in another order than TRL's: the last bit of a float32
    may differ.
    """
    plain = make_trainer(config=GRPOConfig, trainer_class=GRPOTrainer, reward_funcs=[length_reward], max_steps=1)
    plain.train()
    mixed = make_trainer(reward_funcs=[length_reward], max_steps=1)
    mixed.train()
    expected, got = history(plain)[0], history(mixed)[0]
    for name in expected.keys() - {"loss", "grad_norm"}:
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name


# Loss types, data, engines of TRL


@pytest.mark.parametrize("mode", ["full_logits", "sampled_token"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"])
def test_loss_types(make_trainer, loss_type, mode):
    alpha = 1.0 if mode == "sampled_token" else 0.0
    trained(
        make_trainer(
            reward_funcs=length_reward, loss_type=loss_type, distillation_mode=mode, distillation_alpha=alpha,
            gradient_accumulation_steps=2,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"beta": 0.1},
        {"num_iterations": 2},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.01},
        {"off_policy_mask_threshold": 0.5},
        {"scale_rewards": "batch"},
        {"gradient_checkpointing": True},
        {"cast_lm_head_to_fp32": True},
        {"pad_to_multiple_of": 16},
        {"distillation_is_clip": 2.0, "num_iterations": 2},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("mode", ["full_logits", "sampled_token"])
def test_grpo_options(make_trainer, options, mode):
    if mode == "sampled_token":
        options = {**options, "distillation_alpha": 1.0}
        options.pop("distillation_is_clip", None)
        options.pop("importance_sampling_level", None)  # one ratio for all tokens is refused
    trained(make_trainer(reward_funcs=length_reward, distillation_mode=mode, max_steps=3, **options))


@pytest.mark.parametrize("kind", ["text", "iterable", "rewarded_iterable"])
def test_dataset_kinds(make_trainer, rows, kind):
    if kind == "text":
        rows = [{**row, "prompt": row["prompt"][0]["content"]} for row in rows]
    dataset = Dataset.from_list(rows)
    options = {}
    if kind != "text":
        dataset = dataset.to_iterable_dataset()
    if kind == "rewarded_iterable":
        options["reward_funcs"] = length_reward
    trained(make_trainer(dataset=dataset, **options))


def test_generated_iterable_dataset_without_known_columns(make_trainer, rows):
    dataset = IterableDataset.from_generator(lambda: iter(rows))
    trained(make_trainer(dataset=dataset))


def test_remove_unused_columns_keeps_the_context(make_trainer):
    trained(make_trainer(remove_unused_columns=True))


def test_model_by_name(make_trainer, start_model_on_disk):
    trained(make_trainer(str(start_model_on_disk)))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="TRL's default of bf16 needs an accelerator")
def test_default_args(start_model_on_disk, rows, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trainer = OPSDTrainer(str(start_model_on_disk), reward_funcs=length_reward, train_dataset=Dataset.from_list(rows))
    assert isinstance(trainer.args, OPSDConfig) and trainer.args.output_dir == "start-OPSD"


@pytest.mark.parametrize("given", ["config", "model"])
@pytest.mark.parametrize("mode", ["full_logits", "sampled_token"])
def test_peft(make_trainer, tokenizer, given, mode):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    options = {"distillation_mode": mode, "distillation_alpha": 1.0}
    if given == "config":
        trainer = make_trainer(peft_config=config, **options)
    else:
        trainer = make_trainer(get_peft_model(tiny.model(tokenizer), config), **options)
    before = {name: param.clone() for name, param in trainer.model.named_parameters()}
    trained(trainer)
    for name, param in trainer.model.named_parameters():
        assert torch.equal(param, before[name]) != ("lora" in name), name


def test_rollout_func(make_trainer):
    def rollout(prompts, trainer):
        ids = [trainer._tokenizer("ab" * (i % 3 + 1))["input_ids"] + [2] for i in range(len(prompts))]
        prompt_ids = trainer._tokenize_prompts(prompts)[0]
        mask = [[1] * (len(row) - 2) + [0, 1] for row in ids]
        return {
            "prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[-1.0] * len(row) for row in ids],
            "env_mask": mask, "note": ["seen"] * len(prompts),
        }  # fmt: skip

    seen = []

    def source(groups):
        seen.extend(rollout.row["note"] for rollout in rollouts_of(groups))
        return [[View("Be brief.", place="system")] for _ in rollouts_of(groups)]

    trainer = make_trainer(rollout_func=rollout, privileged=source)
    inputs = batch_of(trainer)
    assert set(seen) == {"seen"}
    assert torch.equal(inputs["distillation"].mask, inputs["completion_mask"] * inputs["tool_mask"])
    assert (inputs["distillation"].mask.sum(1) == inputs["completion_mask"].sum(1) - 1).all()
    trained(make_trainer(rollout_func=rollout, privileged=source))


def test_mask_truncated_completions_carry_no_distillation(make_trainer):
    trainer = make_trainer(mask_truncated_completions=True, max_completion_length=4)
    inputs = batch_of(trainer)
    truncated = ~(inputs["completion_ids"] == trainer._tokenizer.eos_token_id).any(1)
    assert truncated.any() and not inputs["distillation"].mask[truncated].any()
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)


def test_num_loss_tokens_to_skip(make_trainer):
    trainer = make_trainer(num_loss_tokens_to_skip=3)
    batch = batch_of(trainer)["distillation"]
    assert not batch.mask[:, :3].any() and batch.mask[:, 3:].any()
    assert torch.equal(batch.shares.sum(0) > 0, batch.mask.bool()), "nor do they count in the metrics"


# Tools and environments


@pytest.fixture
def tool_tokenizer():
    return agent_tokenizer()


def test_tool_results_are_not_distilled_and_zero_where_contexts_agree(make_trainer, tool_tokenizer, rows):
    """The teacher reads tools, calls and results as the student does: with the same prompt, nothing to learn."""
    options = {
        "tools": [multiply], "max_completion_length": 400, "processing_class": tool_tokenizer,
        "max_tool_calling_iterations": 3, "teacher_model_kind": "live",
    }  # fmt: skip
    model = tiny.model(tool_tokenizer, max_position_embeddings=4096)
    trainer = make_trainer(model, privileged=lambda groups: [[View()] for _ in rollouts_of(groups)], **options)
    inputs = batch_of(with_scripted_sampler(trainer, "multiply"))
    assert (inputs["tool_mask"] == 0).any(), "there are tool results in the completions"
    assert torch.equal(inputs["distillation"].mask, inputs["completion_mask"] * inputs["tool_mask"])
    trainer._compute_loss(trainer.model, inputs).backward()
    assert trainer._metrics["train"][DIVERGENCE][-1] == 0.0
    assert max(param.grad.abs().max() for param in trainer.model.parameters()) == 0.0

    model = tiny.model(tool_tokenizer, max_position_embeddings=4096)
    trained(with_scripted_sampler(make_trainer(model, **options), "multiply"))


def test_environment(make_trainer, tool_tokenizer, rows):
    seen = []

    def source(groups):
        seen.extend(rollouts_of(groups))
        return [[View("Buy three.", place="system")] for _ in rollouts_of(groups)]

    trainer = make_trainer(
        tiny.model(tool_tokenizer, max_position_embeddings=4096),
        environment_factory=Shop, privileged=source, processing_class=tool_tokenizer, max_completion_length=400,
        num_generations=2,
    )  # fmt: skip
    assert trainer.policy_weight == 1.0, "the environment's reward turns the policy term on"
    assert trainer.reward_func_names == ["Shop"]
    trained(with_scripted_sampler(trainer, "buy"))
    assert all("The shop is open." in rollout.prompt[-1]["content"] for rollout in seen)
    assert {rollout.rewards["Shop"] for rollout in seen} == {3.0}


# Evaluation, checkpoints, the saved model


def test_evaluation(make_trainer, rows):
    trainer = make_trainer(
        eval_dataset=Dataset.from_list(rows[:8]), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4,
        num_iterations=2, log_completions=True, num_completions_to_print=0,
    )  # fmt: skip
    trainer.train()
    evals = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert len(evals) == 2
    for log in evals:
        # The loss of one batch is the mean over its tokens; of two, the mean of the two, not weighted by tokens
        assert log["eval_loss"] == pytest.approx(log[f"eval_{DIVERGENCE}"], rel=0.2)
        assert not any("reward" in name for name in log)


@pytest.mark.parametrize("kind", ["base", "live", "ema", "snapshot"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_resumed_equals_uninterrupted(make_trainer, tmp_path, kind, lora):
    options = {"teacher_model_kind": kind, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    if kind == "snapshot":
        options["teacher_sync_steps"] = 3
    if lora:
        options["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    if isinstance(whole.teacher.weights, CopiedWeights):
        for name, tensor in whole.teacher.weights.copies.items():
            assert torch.equal(tensor, resumed.teacher.weights.copies[name]), name
    assert history(whole)[2:4] == history(resumed)[2:4]


def test_resuming_with_another_teacher_is_refused(make_trainer, tmp_path, tokenizer):
    make_trainer(save_strategy="steps", save_steps=2).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    with pytest.raises(ValueError, match="holds no state of an 'ema' teacher but of 'base'"):
        make_trainer(teacher_model_kind="ema", max_steps=4).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="another `base` teacher"):
        make_trainer(tiny.model(tokenizer, seed=1), max_steps=4).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_model_loads_in_a_pipeline_without_a_trace_of_the_teacher(make_trainer, tmp_path, lora):
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None
    trainer = make_trainer(teacher_model_kind="ema", peft_config=peft_config, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (folder / weights).exists() and not list(folder.glob("*teacher*"))
    if lora:
        assert not [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("checkpoint")]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    own = dict(trainer.model.named_parameters())
    assert sum(param.numel() for param in loaded.parameters()) == sum(param.numel() for param in own.values())
    out = pipeline("text-generation", model=str(folder))([{"role": "user", "content": "Hi"}], max_new_tokens=3)
    assert out[0]["generated_text"][-1]["role"] == "assistant"


def test_model_card(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2, distillation_alpha=0.5)
    trainer.train()
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("- trl", "- opsd", "trained with OPSD", "papers/2601.18734", "zhao2026selfdistilled"):
        assert text in card
    assert "| `distillation_alpha` | `0.5` |" in card and "| `policy_weight` | `0.0` |" in card
    assert "None]" not in card and f'model="{tmp_path / "out"}"' in card
    assert trainer.model.model_tags == ["trl", "opsd"]


def test_the_card_of_a_method(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1, method="pw_opsd").train()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "papers/2605.21606" in card and "arXiv:2605.21606" in card and "2601.18734" not in card
    assert "| `method` | `'pw_opsd'` |" in card


def test_completions_table_has_context_and_gap(make_trainer, tmp_path):
    import pandas

    trainer = make_trainer(
        log_completions=True, log_privileged_context=True, num_completions_to_print=0, gradient_accumulation_steps=2
    )
    trainer.train()
    table = pandas.read_parquet(sorted(Path(tmp_path / "out" / "completions").glob("*.parquet"))[-1])
    assert len(table) == 8 and not any("reward" in name for name in table)
    with_view = table["privileged_context"].notna()
    assert table["mean_gap"].notna().equals(with_view)
    log = [entry for entry in trainer.state.log_history if DIVERGENCE in entry][-1]
    assert json.dumps(log)
    # Rows are shuffled between sampling and the loss: the column is right only if the gaps found their rows
    for row, rollout in zip(table.itertuples(), trainer.collected.rollouts, strict=True):
        assert row.privileged_context == rollout.row["privileged_context"] or pandas.isna(row.privileged_context)


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        ([], None),
        ([View("a")], "a"),
        ([View()], None),
        ([View(prompt="Q")], "Q"),
        ([View("a"), View(name="bare")], "[privileged] a\n[bare] "),
    ],
)
def test_contexts_of_the_completions_table(views, shown):
    assert shown_context(views) == shown
