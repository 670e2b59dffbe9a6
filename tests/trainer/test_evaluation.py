# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The loss and the metrics of an evaluation are those of all its rows, however they are cut into batches."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from evaluations import ROWS, by_length, dataset, question, scripted
from families import FAMILIES, SMALL
from runs import SAMPLED
from trl_opsd import View
from trl_opsd.privileged import rollouts_of


PREFIX = "self_distillation/"
EVAL = f"eval_{PREFIX}"
MIXED = {"reward_funcs": by_length}
OFF_POLICY = {"policy_weight": 0.6, "distillation_weight": 1.7}
CASES = {
    "pure": {},
    "sequence mean": {"distillation_reduction": "sequence_mean"},
    "joint mean": {"distillation_reduction": "joint_token_mean"},
    "top-k, first tokens skipped": {
        "distillation_mode": "topk_logits", "distillation_topk": 4, "num_loss_tokens_to_skip": 2,
    },
    "hidden states": {
        "method": "unisd", "privileged_source": "column", "reward_funcs": by_length, "policy_weight": 0.0,
        "method_options": {"agreement": "none", "contrast": 0.0},
    },
    **{f"mixed, {kind}": {**MIXED, **OFF_POLICY, "loss_type": kind} for kind in ("grpo", "dapo", "bnpo", "luspo")},
    "mixed, truncated ones masked": {**MIXED, "mask_truncated_completions": True, "max_completion_length": 5},
    "sampled token": SAMPLED,
    **{
        f"sampled token, {kind}": {**MIXED, **SAMPLED, **OFF_POLICY, "loss_type": kind}
        for kind in ("grpo", "dapo", "bnpo", "dr_grpo", "sapo", "cispo", "vespo")
    },
    "advantages of a method": {**MIXED, "method": "rlsd"},
    "gap and advantages of a method": {**MIXED, "method": "avsd_tokens", "privileged_source": "column"},
}  # fmt: skip


def evaluated(make_trainer, size: int, **options) -> tuple[dict[str, float], list[float]]:
    """Metrics of an evaluation at a batch size, and the losses of its batches."""
    options = {"eval_dataset": dataset(), "num_generations": 2, **options}
    trainer = scripted(make_trainer(per_device_eval_batch_size=size, **options))
    losses, step = [], trainer.prediction_step

    def prediction_step(*arguments, **named):
        result = step(*arguments, **named)
        losses.append(result[0].item())
        return result

    trainer.prediction_step = prediction_step
    return trainer.evaluate(), losses


@pytest.mark.parametrize("case", CASES)
def test_no_batch_size_changes_it(make_trainer, case):
    """At the size of all rows it is that one batch's loss: TRL's and the distillation's, each of all its rows."""
    whole, (loss,) = evaluated(make_trainer, 2 * ROWS, **CASES[case])
    assert whole["eval_loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7) and abs(loss) > 1e-3
    names = [name for name in whole if name.startswith(EVAL)]
    assert len(names) > 15
    for size in (2, 4, 8):  # the last of them leaves a smaller batch
        cut, losses = evaluated(make_trainer, size, **CASES[case])
        assert len(losses) > 1
        for name in ("eval_loss", *names):
            assert cut[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "options", [{}, {**MIXED, "policy_weight": 0.6}, {**MIXED, **SAMPLED}], ids=["pure", "mixed", "sampled token"]
)
def test_a_balancing_loss_is_part_of_it(make_trainer, tokenizer, options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, **SMALL, **FAMILIES["qwen3_moe"],
    )  # fmt: skip
    values = []
    for coefficient in (0.0, 0.5):
        model = AutoModelForCausalLM.from_config(config)
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, coefficient
        torch.manual_seed(0)
        metrics, (loss,) = evaluated(make_trainer, 2 * ROWS, model=model, **options)
        assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
        values.append(loss)
    assert abs(values[1] - values[0]) > 0.05


def test_it_is_the_mean_of_the_distilled_tokens(make_trainer):
    """The value itself, from the metrics: a mean of batches' means would be smaller by their share without a view."""
    metrics, losses = evaluated(make_trainer, 2, eval_dataset=dataset(with_view=1))
    assert metrics["eval_loss"] == pytest.approx(metrics[f"{EVAL}loss"], rel=1e-5)
    assert sum(losses) / len(losses) < 0.2 * metrics["eval_loss"]


def test_amounts_are_those_of_the_evaluation(make_trainer):
    """Not of one of its batches: views that were too long, and the longest prompt."""
    long = Dataset.from_list([question(i, "word " * (40 if i < 2 else 1)) for i in range(ROWS)])
    for size in (2, 4, 12):
        options = {"eval_dataset": long, "teacher_max_length": 96, "teacher_overlong": "drop_view"}
        metrics, _ = evaluated(make_trainer, size, **options)
        assert metrics[f"{EVAL}dropped_views"] == 4 and metrics[f"{EVAL}view_share"] == pytest.approx(2 / 3)
        mean, longest = (metrics[f"{EVAL}teacher_prompt_length/{name}"] for name in ("mean", "max"))
        assert mean == longest > 0, "they are all of one length; a batch without a view has none"


@pytest.mark.parametrize("weights", [{"policy_weight": 0.0}, {}], ids=["pure", "mixed"])
@pytest.mark.parametrize(("best", "told"), [(None, False), ("loss", True), ("eval_loss", True), ("reward", False)])
def test_an_evaluation_without_a_view_has_no_loss(make_trainer, caplog, weights, best, told):
    """It is not the best one, as a loss of 0 would make it, and says so to whom it matters."""
    options = {"eval_dataset": dataset(with_view=0), "reward_funcs": by_length, "metric_for_best_model": best}
    metrics, _ = evaluated(make_trainer, 4, **options, **weights)
    assert math.isnan(metrics["eval_loss"])
    assert metrics[f"{EVAL}view_share"] == 0.0 and math.isfinite(metrics["eval_reward"])
    assert ("`eval_loss` is nan, as no rollout" in caplog.text and "`num_generations_eval`" in caplog.text) == told


def test_the_choice_of_the_best_checkpoint(make_trainer):
    """The model stands still, and has fewer views each time: the first, of all views, is the best, not the last."""

    def source(groups):
        return [[View("The sum.")] if one.row["n"] < 6 - 2 * one.step else [] for one in rollouts_of(groups)]

    rows = Dataset.from_list([question(i, None) | {"n": i} for i in range(ROWS)])
    trainer = scripted(
        make_trainer(
            dataset=rows, eval_dataset=rows, privileged=source, learning_rate=0.0, max_steps=3, eval_strategy="steps",
            eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True, eval_on_start=True,
            per_device_eval_batch_size=2,
        )
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry[f"{EVAL}view_share"] for entry in logs] == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0]
    for entry in logs[:-1]:
        assert entry["eval_loss"] == pytest.approx(entry[f"{EVAL}loss"], rel=1e-5)
    assert math.isnan(logs[-1]["eval_loss"])
    losses = [entry["eval_loss"] for entry in logs[1:3]]  # checkpoints begin after the first step
    assert trainer.state.best_metric == min(losses) and trainer.state.best_global_step == 1 + losses.index(min(losses))


@pytest.mark.parametrize("options", [{}, {"max_steps": 1}], ids=["before training", "in training"])
def test_metrics_carry_the_name_of_their_eval_set(make_trainer, options):
    sets = {"one": dataset(with_view=6), "other": dataset(with_view=2)}
    trainer = scripted(
        make_trainer(
            eval_dataset=sets, reward_funcs=by_length, per_device_eval_batch_size=4, eval_strategy="steps",
            eval_steps=1, metric_for_best_model=f"eval_other_{PREFIX}divergence", **options,
        )
    )  # fmt: skip
    if options:
        trainer.train()
    else:
        trainer.evaluate()
    logs = [entry for entry in trainer.state.log_history if "eval_one_loss" in entry or "eval_other_loss" in entry]
    assert len(logs) == 2
    for name, log in zip(sets, logs, strict=True):
        own = {key for key in log if key.startswith("eval_")}
        assert all(key.startswith(f"eval_{name}_") for key in own)
        assert {f"eval_{name}_{key}" for key in ("loss", "reward", f"{PREFIX}view_share", f"{PREFIX}loss")} <= own
    assert [log[f"eval_{name}_{PREFIX}view_share"] for name, log in zip(sets, logs, strict=True)] == [1.0, 1 / 3]
    metrics = trainer.evaluate()
    assert {f"eval_{name}_{PREFIX}divergence" for name in sets} <= metrics.keys(), "none takes another one's place"
    alone = trainer.evaluate(sets["one"])
    assert {"eval_loss", f"{EVAL}loss", "eval_reward"} <= alone.keys()
    assert not any(key.startswith("eval_other") for key in alone)


def test_a_set_named_like_a_metric_takes_nothing_else(make_trainer):
    trainer = scripted(make_trainer(eval_dataset=dataset(), per_device_eval_batch_size=4))
    metrics = trainer.evaluate(metric_key_prefix="test")
    assert "test_loss" in metrics and f"{EVAL}loss" in metrics, "TRL's own name where it is no eval set's"


def test_training_metrics_are_means_over_the_tokens_of_all_micro_batches(make_trainer):
    """Rows of unlike numbers of tokens, some without a view: the same metrics from one micro-batch and from several."""
    logs = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            dataset=dataset(with_view=5, count=8), per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            max_steps=1, shuffle_dataset=False,
        )  # fmt: skip
        scripted(trainer).train()
        logs.append(trainer.state.log_history[0])
    one, several = logs
    names = [name for name in one if PREFIX in name or name in ("loss", "entropy")]
    assert len(names) > 15
    for name in names:
        assert several[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    assert several["loss"] == pytest.approx(several[f"{PREFIX}loss"], rel=1e-5)


def test_the_slope_of_a_policy_loss_finds_a_part_of_its_advantages(make_trainer):
    """Against the difference of two losses, each of one part, where TRL's loss has ratios of 1."""
    from trl.trainer.utils import FusedCausalLMOutput

    from trl_opsd.trainer.evaluation import ObservedPolicy

    trainer = scripted(make_trainer(loss_type="sapo", **MIXED, **SAMPLED))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    generator = torch.Generator().manual_seed(0)
    shape = inputs["completion_mask"].shape
    logps, signs, parts = torch.randn(shape), torch.randn(shape).sign(), torch.rand(2, *shape, generator=generator)
    output = FusedCausalLMOutput(log_probs=logps, entropy=torch.ones(shape))
    policy = ObservedPolicy(trainer._policy_loss(inputs))
    with torch.no_grad():
        whole, first, second = (policy(output, signs * part).item() for part in (parts.sum(0), *parts))
        policy(output, signs * parts.sum(0))
    assert whole == pytest.approx(first + second, rel=1e-5)
    assert (policy.slope * signs * parts[0]).sum().item() == pytest.approx(first, rel=1e-5)
