# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What the training step leaves out changes no result: padding, idle rows, repeated prompts, repeated teachers."""

import itertools
import random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

import tiny
from conftest import backbone_inputs, length_reward
from trl_opsd import View
from trl_opsd.batches import micro_batches as batches
from trl_opsd.batches import teacher_plan
from trl_opsd.model import shared_prefix as prefix
from trl_opsd.model.shared_prefix import can_share_prefix, hidden_after_prefix
from trl_opsd.privileged import rollouts_of
from views import giving


PREFIX = "self_distillation/"
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


def question(number: int, words: int = 0) -> list[dict]:
    return [{"role": "user", "content": "What is " + "very " * words + f"{number}?"}]


def script(trainer) -> None:
    """Completions of 1 to 8 tokens in place of generation, from the prompt and the row alone."""

    def single_turn(prompt_ids, *args, **kwargs):
        draws = [random.Random(sum(ids) + 7 * row) for row, ids in enumerate(prompt_ids)]
        return [[draw.randrange(3, 250) for _ in range(draw.randrange(8))] + [2] for draw in draws], None

    trainer._generate_single_turn = single_turn


def trained(trainer) -> tuple[dict[str, torch.Tensor], list[dict]]:
    script(trainer)
    trainer.train()
    weights = {name: param.detach().clone() for name, param in trainer.model.named_parameters() if param.requires_grad}
    return weights, trainer.state.log_history


def prepared(trainer) -> list[dict]:
    """The micro-batches of the first generation batch."""
    script(trainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return trainer._buffered_inputs


def check_equal(one, other, names=("loss", f"{PREFIX}divergence", f"{PREFIX}gap/mean", f"{PREFIX}teacher_entropy")):
    (weights, history), (others, other_history) = one, other
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], **CLOSE, msg=lambda text, n=name: f"{n}: {text}")
    for log, other_log in zip(history[:-1], other_history[:-1], strict=True):
        for name in names:
            assert log[name] == pytest.approx(other_log[name], rel=1e-3, abs=1e-5), name


SEVERAL = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.3}
RUNS = {
    "pure": {},
    "sequence mean": {"distillation_reduction": "sequence_mean"},
    "mixed": {"reward_funcs": length_reward, "num_generations": 2},
    "mixed, two updates a buffer": {
        "reward_funcs": length_reward, "num_generations": 2, "steps_per_generation": 8, "num_iterations": 2,
        "max_steps": 3, "loss_type": "grpo",
    },
    "sampled token": {
        "reward_funcs": length_reward, "num_generations": 2, "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
    },
    "lora, no update twice": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"]), "steps_per_generation": 2},
    "multiple of 8": {"pad_to_multiple_of": 8},
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_order_and_padding_change_no_result(make_trainer, monkeypatch, run):
    lean = trained(make_trainer(**SEVERAL | RUNS[run]))
    monkeypatch.setattr("trl_opsd.batches.micro_batches.sort_by_length", lambda parts, window: parts)
    monkeypatch.setattr("trl_opsd.batches.micro_batches.trim_padding", lambda batch, multiple: batch)
    monkeypatch.setattr("trl_opsd.batches.micro_batches.without_idle_rows", lambda batch: batch)
    plain = trained(make_trainer(**SEVERAL | RUNS[run]))
    # Means over micro-batches depend on who shares one, but for the loss
    check_equal(lean, plain, names=("loss",))


@pytest.mark.parametrize("options", [{}, {"steps_per_generation": 8}, {"steps_per_generation": 2}])
def test_rows_stay_in_their_optimizer_step(make_trainer, monkeypatch, options):
    before = []
    original = batches.sort_by_length
    monkeypatch.setattr(
        batches, "sort_by_length", lambda parts, window: before.append((parts, window)) or original(parts, window)
    )
    after = prepared(make_trainer(**SEVERAL | options))
    ((parts, window),) = before

    def members(chunked):
        rows = [set(batch["distillation"].index.tolist()) for batch in chunked]
        return [set().union(*rows[start : start + window]) for start in range(0, len(rows), window)]

    # They are flat keys there
    kept = [set(part["distillation/index"][part["distillation/mask"].any(1)].tolist()) for part in parts]
    distilled = [set().union(*kept[start : start + window]) for start in range(0, len(kept), window)]
    assert all(expected <= got for expected, got in zip(distilled, members(after), strict=True))


def test_rows_stay_in_place_where_generation_batches_and_steps_overlap(make_trainer, monkeypatch):
    """Steps of four micro-batches, sampled six at a time: one of them spans two generation batches."""
    monkeypatch.setattr(batches, "sort_by_length", lambda parts, window: pytest.fail("a row would change its step"))
    assert len(prepared(make_trainer(**SEVERAL | {"gradient_accumulation_steps": 4, "steps_per_generation": 6}))) == 6


def test_micro_batches_hold_rows_of_like_length(make_trainer):
    parts = prepared(make_trainer(reward_funcs=length_reward, num_generations=2, **SEVERAL))
    padded = sum(part["completion_mask"].numel() + part["prompt_mask"].numel() for part in parts)
    full = sum(len(part["prompt_ids"]) for part in parts) * (
        max(p["prompt_mask"].shape[1] for p in parts) + max(p["completion_mask"].shape[1] for p in parts)
    )
    assert padded < 0.9 * full
    for part in parts:
        for name in ("prompt", "completion"):
            assert part[f"{name}_mask"].any(0).all(), "no column is padding for every row"


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "bnpo"},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.1},
        {"method": "dasd"},
        {"method": "reopold", "distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_averages_over_a_micro_batch_keeps_its_rows(make_trainer, monkeypatch, options):
    calls = []
    monkeypatch.setattr("trl_opsd.batches.micro_batches.sort_by_length", lambda parts, window: calls.append(1) or parts)
    parts = prepared(make_trainer(reward_funcs=length_reward, num_generations=2, **SEVERAL | options))
    assert not calls and [len(part["prompt_ids"]) for part in parts] == [2] * 4


def test_statistics_of_distilled_tokens_need_no_idle_rows(make_trainer):
    """They keep the rows that are distilled where TRL put them; the others leave it as in every method."""
    parts = prepared(make_trainer(method="dasd", **SEVERAL))
    assert all(part["distillation"].mask.any(1).all() or len(part["prompt_ids"]) == 1 for part in parts)
    assert sum(len(part["prompt_ids"]) for part in parts) < 8


def test_rows_without_a_view_cost_nothing(make_trainer, rows):
    for number, row in enumerate(rows):
        row["privileged_context"] = "The answer." if number in (0, 3) else None
    trainer = make_trainer(dataset=Dataset.from_list(rows), shuffle_dataset=False, **SEVERAL)
    parts = prepared(trainer)
    calls = backbone_inputs(trainer)
    for part in parts:
        trainer._compute_loss(trainer.model, part).backward()
    assert [int(part["distillation"].mask.any(1).sum()) for part in parts] == [2, 0, 0, 0]
    assert [len(ids) for ids in calls["student"]] == [2, 1, 1, 1], "one row where there is none, for the collectives"


# A prompt that rows share

CONFIGS = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "gemma2": Gemma2Config,  # sliding windows in every second layer
    "mistral": MistralConfig,  # sliding windows
}


def small(kind: str, **other):
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind](**sizes, **heads, initializer_range=0.3, **other)).eval()


def test_models_that_can_share_a_prefix():
    assert {kind: can_share_prefix(small(kind)) for kind in CONFIGS} == {
        "llama": True, "qwen3": True, "gemma2": False, "mistral": False
    }  # fmt: skip
    assert can_share_prefix(small("mistral", sliding_window=None))
    assert can_share_prefix(small("llama", attn_implementation="eager"))
    assert not can_share_prefix(small("llama", attn_implementation="flex_attention"))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_after_a_shared_prefix(kind, attention):
    model = small(kind, attn_implementation=attention)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :1] = 0  # prompts are padded on the left
    prompt_of = torch.tensor([2, 0, 0, 1, 2])
    completion_ids = torch.randint(3, 60, (5, 6), generator=generator)
    completion_mask = torch.ones_like(completion_ids)
    completion_mask[1, 2:] = completion_mask[4, 5:] = 0
    with torch.no_grad():
        got = hidden_after_prefix(model.base_model, ids, mask, prompt_of, completion_ids, completion_mask)
        whole = torch.cat([ids[prompt_of], completion_ids], 1)
        whole_mask = torch.cat([mask[prompt_of], completion_mask], 1)
        want = model.base_model(input_ids=whole, attention_mask=whole_mask).last_hidden_state[:, -7:-1]
    real = torch.cat([torch.ones(5, 1), completion_mask[:, :-1]], 1).bool()  # a state predicts the next token
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    other = model.base_model(input_ids=whole.roll(1, 0), attention_mask=whole_mask.roll(1, 0)).last_hidden_state
    assert not torch.allclose(other[:, -7:-1][real], want[real], atol=0.1), "prompts and completions matter"


GROUPS = [{"prompt": question(n, n % 2), "privileged_context": "A long hint. " * 4 + f"It is {n}."} for n in range(4)]
SHARED = {"num_generations": 4, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.3}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"teacher_model_kind": "live", "gradient_checkpointing": True},
        {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)},
        {"reward_funcs": length_reward, "distillation_mode": "sampled_token", "distillation_alpha": 1.0},
        {"reward_funcs": length_reward, "teacher_model_kind": "ema"},
    ],
    ids=["base", "live", "lora", "sampled", "ema"],
)
def test_a_shared_prefix_changes_no_result(make_trainer, monkeypatch, options):
    counts = []
    original = prefix.hidden_after_prefix
    monkeypatch.setattr(
        "trl_opsd.model.forward.hidden_after_prefix", lambda *args: counts.append(len(args[1])) or original(*args)
    )
    dataset = Dataset.from_list(GROUPS)
    shared = trained(make_trainer(dataset=dataset, **SHARED | options))
    assert counts == [2, 2, 2], "two prompts for eight rows, in each of two steps; the first read is checked before"
    plain = trained(make_trainer(dataset=dataset, teacher_share_prefix=False, **SHARED | options))
    assert len(counts) == 3
    check_equal(shared, plain)


def test_a_prefix_is_shared_only_where_it_pays(make_trainer, rows):
    (own,) = prepared(make_trainer(dataset=Dataset.from_list(rows)))
    (one,) = own["distillation"].teacher_batches
    assert not one.share_prefix and len(one.prompt_ids) == len(one.completion_ids)
    (group,) = prepared(make_trainer(dataset=Dataset.from_list(GROUPS), **SHARED))
    (one,) = group["distillation"].teacher_batches
    plain, shared = one.costs()
    assert one.share_prefix and shared < 0.5 * plain


def test_sliding_windows_read_every_prompt(make_trainer, tokenizer):
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    trainer = make_trainer(tiny.model(tokenizer, **options), dataset=Dataset.from_list(GROUPS), **SHARED)
    assert not any(one.share_prefix for part in prepared(trainer) for one in part["distillation"].teacher_batches)


# Several views


def views(groups):
    """Three views of unlike lengths; the second is missing in odd rows."""
    texts = {"short": "Hint.", "like": "Hints!", "long": "A hint of many words. " * 5}
    return [
        [
            View(f"{text} {rollout.group}", place="system", name=name)
            for name, text in texts.items()
            if name != "like" or rollout.index % 2 == 0
        ]
        for rollout in rollouts_of(groups)
    ]


@pytest.mark.parametrize("mode", [{}, {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}], ids=str)
def test_views_in_one_forward_change_no_result(make_trainer, monkeypatch, mode):
    options = {"privileged": views, "optim": "sgd", "learning_rate": 0.3, **mode}
    packed = trained(make_trainer(**options))
    monkeypatch.setattr(teacher_plan, "_MOST_VIEWS", 1)
    check_equal(
        packed, trained(make_trainer(**options)), ("loss", *(f"{PREFIX}divergence/{n}" for n in ("like", "long")))
    )


def test_views_of_like_length_share_a_forward(make_trainer):
    trainer = make_trainer(privileged=views)
    (part,) = prepared(trainer)
    calls = backbone_inputs(trainer)
    trainer._compute_loss(trainer.model, part)
    assert [batch.views for batch in part["distillation"].teacher_batches] == [["long"], ["short", "like"]]
    assert [len(ids) for ids in calls["teacher"]] == [4, 6]


# Several iterations over one buffer


@pytest.mark.parametrize(
    ("kind", "forwards"), [("base", 2), ("live", 6), ("ema", 6), ("snapshot", 4)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("mode", [{}, {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}], ids=str)
def test_a_teacher_that_stands_still_answers_once(make_trainer, kind, forwards, mode):
    """Two generation batches of one micro-batch, three updates each; the snapshot moves after the second and fourth."""
    sync = {"teacher_sync_steps": 2} if kind == "snapshot" else {}
    trainer = make_trainer(teacher_model_kind=kind, num_iterations=3, max_steps=6, **sync, **mode)
    calls = []
    teacher_forward = trainer.teacher.teacher_forward
    trainer.teacher.teacher_forward = lambda model: calls.append(1) or teacher_forward(model)
    trained(trainer)
    assert len(calls) == forwards


@pytest.mark.parametrize(("kind", "reader"), [("base", "teacher"), ("snapshot", "teacher"), ("base", "live")])
def test_answers_kept_over_iterations_change_no_result(make_trainer, monkeypatch, kind, reader):
    """Nor are those of a view that the student itself reads, beside a teacher that stands still."""
    sync = {"teacher_sync_steps": 2} if kind == "snapshot" else {}
    options = {"teacher_model_kind": kind, "num_iterations": 3, "max_steps": 5, "optim": "sgd", "learning_rate": 0.3}
    options["privileged"] = giving(View("It is an odd one.", reader=reader))
    kept = trained(make_trainer(**options, **sync))
    always_new = itertools.count()
    never_cached = property(lambda self: next(always_new), lambda self, value: None)
    monkeypatch.setattr("trl_opsd.teacher.Teacher.num_updates", never_cached)
    check_equal(kept, trained(make_trainer(**options, **sync)))
