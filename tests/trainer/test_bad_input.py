# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Bad input ends in a `ValueError` that names the row and the option, before anything is trained."""

import functools
import re

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl.chat_template_utils import qwen3_chat_template

import tiny
from conftest import length_reward
from trl_opsd import DatasetColumn, View
from trl_opsd.privileged import rollouts_of
from trl_opsd.trainer.prompt_checks import check_prompts


PROMPT = [{"role": "user", "content": "What is it?"}]
SURROGATE = "broken \ud800 text"
COLUMN = "`privileged_context`"


def with_context(context, number=5, prompt=PROMPT, column="privileged_context"):
    """Eight rows, of which one has this context and the others none."""
    rows = [{"prompt": prompt, column: None} for _ in range(8)]
    rows[number] = {"prompt": prompt, column: context}
    return rows


def streamed(rows):
    """For `make_trainer`: Python objects as they are, which Arrow would refuse or convert, in this order."""
    return {"dataset": IterableDataset.from_generator(lambda: iter(rows)), "shuffle_dataset": False}


def refused_at_construction(make_trainer, *named, **options):
    with pytest.raises(ValueError) as caught:
        make_trainer(**options)
    for name in named:
        assert name in str(caught.value), str(caught.value)


def refused_in_training(trainer, *named):
    """The error of `train()`: the weights are those of before, no step is counted."""
    before = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
    with pytest.raises(ValueError) as caught:
        trainer.train()
    for name in named:
        assert name in str(caught.value), str(caught.value)
    assert trainer.state.global_step == 0
    for name, param in trainer.model.named_parameters():
        assert torch.equal(param, before[name]), name


# The column


@pytest.mark.parametrize("name", ["privileged_context", "hint"])
def test_missing_column(make_trainer, rows, name):
    dataset = Dataset.from_list([{"prompt": row["prompt"], "answer": "x"} for row in rows])
    ways_out = ("Add the column", "`privileged_column`", "`privileged=`", "`distillation_weight=0.0`")
    named = ("`train_dataset`", f"`{name}`", "['prompt', 'answer']", *ways_out)
    refused_at_construction(make_trainer, *named, dataset=dataset, privileged_column=name)


def test_missing_column_of_the_evaluation_data(make_trainer, rows):
    bare = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    good = Dataset.from_list(rows)
    refused_at_construction(make_trainer, "`eval_dataset`", COLUMN, eval_dataset=bare)
    parts = {"good": good, "bare": bare}
    refused_at_construction(make_trainer, "`eval_dataset['bare']`", COLUMN, eval_dataset=parts)


def test_missing_column_of_a_stream(make_trainer, rows):
    known = Dataset.from_list([{"prompt": row["prompt"]} for row in rows]).to_iterable_dataset()
    refused_at_construction(make_trainer, "`train_dataset`", COLUMN, dataset=known)
    unknown = streamed([{"prompt": row["prompt"]} for row in rows])
    refused_in_training(make_trainer(**unknown), COLUMN, "['prompt']", "`privileged_column`")


def test_a_missing_column_is_no_error_where_nothing_reads_it(make_trainer, rows):
    bare = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    make_trainer(dataset=bare, privileged=lambda groups: [[] for _ in rollouts_of(groups)])
    make_trainer(dataset=bare, distillation_weight=0.0, reward_funcs=length_reward)


# The prompt

HI = {"role": "user", "content": "hi"}
BAD_PROMPTS = {
    "none": (None, ["must be text or a list of chat messages", "None of type NoneType"]),
    "number": (5, ["must be text or a list of chat messages", "5 of type int"]),
    "empty": ("", ["not empty", "'' of type str"]),
    "no messages": ([], ["not empty", "[] of type list"]),
    "one message": (HI, ["must be text or a list of chat messages", "of type dict", "into a list"]),
    "strings": (["a", "b"], ["message 0", "`role` and `content`", "'a'"]),
    "other keys": ([{"from": "human", "value": "hi"}], ["message 0", "`role` and `content`", "Rename"]),
    "no role": ([HI, {"role": None, "content": "x"}], ["message 1", "`role` and `content`"]),
    "no role key": ([{"content": "x"}], ["message 0", "`role` and `content`"]),
    "content is a number": ([{"role": "user", "content": 5}], ["message 0", "5 of type int"]),
    "content is strings": ([{"role": "user", "content": ["x"]}], ["message 0", "of type list"]),
}


def with_prompt(prompt, number=5, context=None):
    """Eight rows, of which one has this prompt and the others none that Arrow could not put beside it."""
    other = prompt if number == 0 else "Q" if prompt is None or isinstance(prompt, str) else [HI]
    rows = [{"prompt": other, "privileged_context": context} for _ in range(8)]
    rows[number] = {"prompt": prompt, "privileged_context": context}
    return rows


# What Arrow holds beside messages: keys that a row lacks are None there
BESIDE_MESSAGES = ("no messages", "other keys", "no role", "no role key")


@pytest.mark.parametrize("place", ["after_user", "prepend"])
@pytest.mark.parametrize(("prompt", "named"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_bad_prompt(make_trainer, prompt, named, place):
    """Also of rows that have no context, which no source looks at."""
    number = 5 if prompt in (None, "") or prompt in [BAD_PROMPTS[name][0] for name in BESIDE_MESSAGES] else 0
    rows = with_prompt(prompt, number)
    rows[7]["privileged_context"] = "x"
    where = (f"Row {number} of `train_dataset`: column `prompt`", *named)
    refused_at_construction(make_trainer, *where, dataset=Dataset.from_list(rows), privileged_place=place)


@pytest.mark.parametrize(("prompt", "named"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_bad_prompt_of_a_stream(make_trainer, prompt, named):
    trainer = make_trainer(**streamed([{**row, "id": f"row {i}"} for i, row in enumerate(with_prompt(prompt, 1, "x"))]))
    refused_in_training(trainer, "The column `prompt` of the row {'prompt': ", *named)


def test_a_prompt_of_a_stream_that_can_not_be_encoded(make_trainer):
    trainer = make_trainer(**streamed(with_prompt(SURROGATE, 0, "x")))
    refused_in_training(trainer, "The column `prompt` of the row", "lone surrogate at character 7")


def test_a_prompt_is_missing(make_trainer, rows):
    bare = Dataset.from_list([{"question": "Q", "privileged_context": "x"}] * 8)
    named = ("has no column `prompt`, which the student reads; it has ['question', 'privileged_context']",)
    refused_at_construction(make_trainer, "`train_dataset`", *named, dataset=bare)
    refused_at_construction(make_trainer, "`eval_dataset['b']`", *named, eval_dataset={"b": bare})
    refused_at_construction(make_trainer, "`train_dataset`", *named, dataset=bare.to_iterable_dataset())
    refused_in_training(
        make_trainer(**streamed([dict(row) for row in bare])), "`prompt` of the row {'question'", "None"
    )


def test_bad_prompt_of_the_evaluation_data(make_trainer):
    bad = Dataset.from_list(with_prompt(None, 3))
    refused_at_construction(make_trainer, "Row 3 of `eval_dataset`: column `prompt`", eval_dataset=bad)
    refused_at_construction(make_trainer, "Row 3 of `eval_dataset['b']`", eval_dataset={"b": bad})


def test_rows_in_a_format(make_trainer, rows):
    """Arrays are no messages, to the tokenizer neither."""
    dataset = Dataset.from_list(rows).with_format("numpy")
    named = ("Row 0 of `train_dataset`: column `prompt` (in the format 'numpy'", "`with_format(None)`", "ndarray")
    refused_at_construction(make_trainer, *named, dataset=dataset)


def test_rows_that_a_function_makes(make_trainer, rows):
    """Only the first is looked at before training, the others as they come."""
    named = {"Q": [HI], "none": None}

    def prompts(batch):
        return {**batch, "prompt": [named[question] for question in batch["question"]]}

    questions = [{"question": "none" if i == 1 else "Q", "privileged_context": "x"} for i in range(8)]
    dataset = Dataset.from_list(questions).with_transform(prompts)
    trainer = make_trainer(dataset=dataset, shuffle_dataset=False, privileged=lambda groups: [])
    refused_in_training(trainer, "The column `prompt` of the row", "None of type NoneType")


def test_a_bad_prompt_is_found_before_the_model_is_loaded(make_trainer):
    refused_at_construction(
        make_trainer, "Row 5", "`prompt`", model="/no/such/model", dataset=Dataset.from_list(with_prompt(None))
    )


def test_prompts_that_are_right(make_trainer):
    """Tool calls without content, and image blocks whose image another column holds."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    talk = [HI, {"role": "assistant", "content": None, "tool_calls": [call]}, HI]
    blocks = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]
    for prompt in (talk, blocks, "Q"):
        assert check_prompts(Dataset.from_list([{"prompt": prompt}]), None, optional=False)
    assert check_prompts(Dataset.from_list([{"start": 3}]), None, optional=True), "an environment writes them"


# The context

USER = {"role": "user", "content": "x"}
BAD_CONTEXTS = {
    "number": (5, ["must be a string", "5 of type int"]),
    "float": (0.5, ["must be a string", "0.5 of type float"]),
    "flag": (True, ["must be a string", "True of type bool"]),
    "empty": ("", ["empty string", "Use None"]),
    "blank": (" \n\t", ["empty string", "Use None"]),
    "no messages": ([], ["must be a string", "[] of type list"]),
    "strings": (["a", "b"], ["must be a string", "of type list"]),
    "one message": (USER, ["must be a string", "of type dict"]),
    "no content": ([USER, {"role": "user", "content": None}], ["message 1", "role and content"]),
    "no content key": ([{"role": "user"}], ["message 0", "role and content"]),
    "blank content": ([{"role": "user", "content": "  "}], ["message 0", "role and content"]),
    "no blocks": ([{"role": "user", "content": []}], ["message 0", "role and content"]),
    "blank block": ([{"role": "user", "content": [{"type": "text", "text": " "}]}], ["message 0", "role and content"]),
    "no role": ([USER, {"role": None, "content": "x"}], ["message 1", "role and content"]),
    "no role key": ([{"content": "x"}], ["message 0", "role and content"]),
    "content is a number": ([{"role": "user", "content": 5}], ["message 0", "content"]),
    "content is strings": ([{"role": "user", "content": ["x"]}], ["message 0", "content"]),
}


@pytest.mark.parametrize(("context", "named"), BAD_CONTEXTS.values(), ids=BAD_CONTEXTS)
def test_bad_context(make_trainer, context, named):
    dataset = Dataset.from_list(with_context(context))
    refused_at_construction(make_trainer, "Row 5 of `train_dataset`", COLUMN, *named, dataset=dataset)


@pytest.mark.parametrize("kind", ["number", "empty", "no messages", "no content", "no role", "content is a number"])
def test_bad_context_of_a_stream(make_trainer, kind):
    context, named = BAD_CONTEXTS[kind]
    trainer = make_trainer(**streamed(with_context(context, number=1)))
    refused_in_training(trainer, COLUMN, "the row with prompt", "What is it?", *named)


def test_bad_context_in_a_column_of_another_name(make_trainer):
    dataset = Dataset.from_list(with_context("", column="hint"))
    refused_at_construction(make_trainer, "Row 5", "`hint`", dataset=dataset, privileged_column="hint")


def test_bad_context_of_the_evaluation_data(make_trainer):
    bad = Dataset.from_list(with_context("", number=3))
    refused_at_construction(make_trainer, "Row 3 of `eval_dataset`", COLUMN, eval_dataset=bad)
    refused_at_construction(make_trainer, "Row 3 of `eval_dataset['b']`", COLUMN, eval_dataset={"b": bad})


def test_a_bad_context_is_found_before_the_model_is_loaded(make_trainer):
    dataset = Dataset.from_list(with_context(""))
    refused_at_construction(make_trainer, "Row 5", model="/no/such/model", dataset=dataset)


@pytest.mark.parametrize("context", [SURROGATE, [USER, {"role": "user", "content": SURROGATE}]], ids=["text", "chat"])
def test_lone_surrogate(make_trainer, context):
    """Arrow itself refuses it in a map-style data set, so it can only come from a stream or a source."""
    place = ["message 1"] if isinstance(context, list) else []
    trainer = make_trainer(**streamed(with_context(context, number=0)))
    refused_in_training(trainer, COLUMN, "What is it?", "lone surrogate at character 7", "Clean the text", *place)


def test_messages_with_a_text_prompt(make_trainer):
    dataset = Dataset.from_list(with_context([USER], prompt="What is it?", number=0))
    with pytest.raises(ValueError, match=r"list of chat messages, but the prompt is plain text") as caught:
        make_trainer(dataset=dataset).train()
    assert "privileged_context" in str(caught.value), "it names the column"
    assert "Row 0" in str(caught.value) or "What is it?" in str(caught.value), "it names the row"


def test_messages_with_a_text_prompt_train_nothing(make_trainer):
    trainer = make_trainer(**streamed(with_context([USER], prompt="What is it?", number=0)))
    refused_in_training(trainer, "plain text")


@pytest.mark.parametrize("place", ["before_user", "after_user"])
def test_no_user_message_to_put_it_in(make_trainer, place):
    rows = with_context("x", prompt=[{"role": "system", "content": "Be brief."}], number=0)
    with pytest.raises(ValueError, match=rf"Row 0 of `train_dataset`.*the place '{place}'.*'system'"):
        make_trainer(dataset=Dataset.from_list(rows), privileged_place=place)


# Length


LONG = "word " * 20_000


@pytest.mark.parametrize(
    "context", [LONG, "字" * 100_000, [{"role": "user", "content": LONG}]], ids=["text", "cjk", "chat"]
)
def test_too_long(make_trainer, context):
    dataset = Dataset.from_list(with_context(context))
    named = ("Row 5 of `train_dataset`", COLUMN, "`max_completion_length=8`", "512", "`teacher_max_length`")
    refused_at_construction(make_trainer, *named, "`teacher_overlong='drop_view'`", dataset=dataset)


def test_too_long_in_the_evaluation_data(make_trainer):
    bad = Dataset.from_list(with_context(LONG))
    refused_at_construction(make_trainer, "Row 5 of `eval_dataset`", eval_dataset=bad)
    refused_at_construction(make_trainer, "Row 5 of `eval_dataset['b']`", eval_dataset={"b": bad})


def test_too_long_in_a_stream(make_trainer):
    trainer = make_trainer(**streamed(with_context(LONG, number=1)))
    refused_in_training(trainer, "What is it?", "512", "`teacher_max_length`", "`teacher_overlong='drop_view'`")


def test_too_long_by_what_the_chat_template_adds(make_trainer):
    """Tools and default system texts can be most of a prompt."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "rules " * 70 + tokenizer.chat_template
    dataset = Dataset.from_list(with_context("x" * 60))
    refused_at_construction(make_trainer, "Row 5 of `train_dataset`", dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize("fits", [True, False])
def test_exactly_as_long_as_allowed(make_trainer, tokenizer, fits):
    dataset = Dataset.from_list(with_context("x" * 300))
    prompt = [{"role": "user", "content": "What is it?\n\n" + "x" * 300}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    limit = len(ids) + 8 - (not fits)
    if fits:
        make_trainer(dataset=dataset, teacher_max_length=limit)
    else:
        named = ("Row 5", f"has {len(ids)} tokens", f"the {limit}", "`teacher_max_length`")
        refused_at_construction(make_trainer, *named, dataset=dataset, teacher_max_length=limit)


def test_too_long_is_dropped_and_counted(make_trainer):
    rows = with_context(LONG, number=1)
    rows[0]["privileged_context"] = "short"
    dataset = Dataset.from_list(rows[:4])
    trainer = make_trainer(dataset=dataset, teacher_overlong="drop_view", max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["self_distillation/dropped_views"] == 1
    assert log["self_distillation/view_share"] == 0.25
    assert log["self_distillation/teacher_prompt_length/max"] < 512
    assert log["self_distillation/divergence"] > 0


def test_all_too_long_trains_nothing_but_runs(make_trainer):
    rows = with_context(LONG, number=0)[:1] * 4
    trainer = make_trainer(dataset=Dataset.from_list(rows), teacher_overlong="drop_view", max_steps=1)
    before = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/dropped_views"] == 4
    assert trainer.state.log_history[0]["loss"] == 0.0
    assert all(torch.equal(param, before[name]) for name, param in trainer.model.named_parameters())


def test_teacher_max_length_above_the_models_context(make_trainer):
    named = ("`teacher_max_length=513`", "512", "Lower it")
    refused_at_construction(make_trainer, *named, teacher_max_length=513)
    make_trainer(teacher_max_length=512)


# Options


def test_template_without_its_placeholder(make_trainer):
    refused_at_construction(make_trainer, "`privileged_template`", "placeholder", privileged_template="Hint: {hint}")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_topk_above_the_vocabulary(make_trainer, tokenizer, lora):
    peft = {"peft_config": LoraConfig(target_modules=["q_proj"])} if lora else {}
    size = len(tokenizer)
    options = {"distillation_mode": "topk_logits", **peft}
    named = (f"`distillation_topk={size + 1}`", f"{size} tokens", "'full_logits'")
    refused_at_construction(make_trainer, *named, distillation_topk=size + 1, **options)
    make_trainer(distillation_topk=size, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_on_the_head(make_trainer, tokenizer, tied):
    model = tiny.model(tokenizer, tie_word_embeddings=tied)
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    refused_at_construction(make_trainer, "`lm_head`", "`target_modules`", model=model, peft_config=peft_config)


def test_both_weights_zero(make_trainer):
    named = ("`policy_weight`", "`distillation_weight`", "`reward_funcs`")
    refused_at_construction(make_trainer, *named, policy_weight=0.0, distillation_weight=0.0)
    refused_at_construction(make_trainer, *named, distillation_weight=0.0)


@pytest.mark.parametrize("options", [{}, {"policy_weight": 0.5}, {"distillation_weight": 0.0}])
def test_one_generation_with_the_policy_term(make_trainer, options):
    named = ("`num_generations=1`", "at least 2", "`policy_weight=0.0`")
    refused_at_construction(make_trainer, *named, num_generations=1, reward_funcs=length_reward, **options)


def test_policy_weight_without_a_reward(make_trainer):
    named = ("`policy_weight=0.5`", "`reward_funcs`", "`policy_weight=0.0`")
    refused_at_construction(make_trainer, *named, policy_weight=0.5, num_generations=2)


@pytest.mark.parametrize("name", ["beta", "entropy_coef"])
def test_options_of_a_policy_term_that_is_off(make_trainer, name):
    refused_at_construction(make_trainer, f"`{name}=0.1`", "`policy_weight`", **{name: 0.1})


class Bare:
    def reset(self, **kwargs):
        return None


class Rewarding(Bare):
    def get_reward(self):
        return 1.0


def test_weights_with_environments(make_trainer):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = qwen3_chat_template
    options = {"processing_class": tokenizer}
    named = ("`policy_weight=0.5`", "`reward_funcs`")
    options |= {"environment_factory": Bare}
    refused_at_construction(make_trainer, *named, policy_weight=0.5, num_generations=2, **options)
    options |= {"environment_factory": Rewarding}
    refused_at_construction(make_trainer, "`num_generations=1`", "at least 2", **options)
    refused_at_construction(make_trainer, "`num_generations=1`", "at least 2", distillation_weight=0.0, **options)


# Teachers


@pytest.fixture
def saved(tmp_path):
    """Write a model with its tokenizer to a folder."""

    def save(tokenizer, **config):
        folder = tmp_path / "teacher"
        tiny.model(tokenizer, seed=3, **config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(folder)}

    return save


def test_a_teacher_with_the_same_vocabulary(make_trainer, saved, tokenizer):
    options = saved(tokenizer, hidden_size=16, vocab_size=len(tokenizer) + 5)
    trainer = make_trainer(max_steps=1, **options)
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/view_share"] == 1.0


def test_a_teacher_with_more_tokens(make_trainer, saved):
    other = tiny.tokenizer()
    other.add_tokens(["<more>"])
    options = saved(other)
    named = ("`teacher_model_name_or_path=", options["teacher_model_name_or_path"], "another vocabulary")
    refused_at_construction(make_trainer, *named, **options)


def test_a_teacher_with_as_many_other_tokens(make_trainer, saved):
    own, other = tiny.tokenizer(), tiny.tokenizer()
    own.add_tokens(["<one>"])
    other.add_tokens(["<two>"])
    named = ("`teacher_model_name_or_path=", "another vocabulary", "same family")
    refused_at_construction(make_trainer, *named, model=tiny.model(own), processing_class=own, **saved(other))


def test_a_teacher_whose_head_is_too_small(make_trainer, saved, tokenizer):
    options = saved(tokenizer, vocab_size=len(tokenizer) - 1)
    refused_at_construction(make_trainer, "`teacher_model_name_or_path=", "vocabulary", **options)


def test_a_teacher_with_a_shorter_context(make_trainer, saved, tokenizer):
    """The teacher is the one who reads the privileged context, so its own limit counts."""
    options = saved(tokenizer, max_position_embeddings=128)
    dataset = Dataset.from_list(with_context("x" * 200))
    refused_at_construction(make_trainer, "Row 5", "128", dataset=dataset, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher_model_kind": "other"}, ["`teacher_model_kind`", "'other'"]),
        ({"teacher_model_kind": "checkpoint"}, ["`teacher_model_name_or_path`"]),
        ({"teacher_model_kind": "snapshot"}, ["`teacher_sync_steps`"]),
    ],
    ids=["unknown", "checkpoint", "snapshot"],
)
def test_a_teacher_that_is_not_fully_described(make_trainer, options, named):
    refused_at_construction(make_trainer, *named, **options)


@pytest.mark.parametrize(("kind", "lora"), [("base", False), ("ema", False), ("ema", True), ("snapshot", True)])
def test_a_copy_of_flattened_weights(make_trainer, monkeypatch, kind, lora):
    monkeypatch.setattr("trl_opsd.engines.Backend.shards", None)  # as for FSDP1
    options = {"peft_config": LoraConfig(target_modules=["q_proj"])} if lora else {}
    options |= {"teacher_sync_steps": 2} if kind == "snapshot" else {}
    named = (f"`teacher_model_kind='{kind}'`", "FSDP1", "`fsdp_version: 2`", "'live'")
    refused_at_construction(make_trainer, *named, teacher_model_kind=kind, **options)


@pytest.mark.parametrize(("kind", "lora"), [("live", False), ("live", True), ("base", True)])
def test_teachers_of_flattened_weights_without_a_copy(make_trainer, monkeypatch, kind, lora):
    monkeypatch.setattr("trl_opsd.engines.Backend.shards", None)
    options = {"peft_config": LoraConfig(target_modules=["q_proj"])} if lora else {}
    assert make_trainer(teacher_model_kind=kind, **options).teacher.name == kind


# Sources

GOOD = View(prompt=PROMPT)
WHERE = "'content': 'What is"
BAD_VIEWS = {
    "none": (lambda n: None, ["one list of views for each of the 4 rollouts", "NoneType"]),
    "tuple": (lambda n: ([],) * n, ["one list of views for each of the 4 rollouts", "tuple"]),
    "too few": (lambda n: [[]] * (n - 1), ["for each of the 4 rollouts", "3 lists"]),
    "too many": (lambda n: [[]] * (n + 1), ["for each of the 4 rollouts", "5 lists"]),
    "views without lists": (lambda n: [GOOD] * n, ["list of `View`", WHERE]),
    "none for a row": (lambda n: [None] * n, ["list of `View`", WHERE]),
    "strings": (lambda n: [["a hint"]] * n, ["list of `View`", "a hint", WHERE]),
    "same names": (lambda n: [[GOOD, GOOD]] * n, ["different names", WHERE]),
    "zero weight": (lambda n: [[View(prompt=PROMPT, weight=0.0)]] * n, ["'privileged'", "weight 0.0", WHERE]),
    "negative": (lambda n: [[View(prompt=PROMPT, weight=-1.0)]] * n, ["weight -1.0", WHERE]),
    "nan": (lambda n: [[View(prompt=PROMPT, weight=float("nan"))]] * n, ["weight nan", WHERE]),
    "infinite": (lambda n: [[View(prompt=PROMPT, weight=float("inf"))]] * n, ["weight inf", WHERE]),
    "text": (lambda n: [[View(prompt="What is it?")]] * n, ["'privileged'", "both be text or both be chat", WHERE]),
    "no prompt": (lambda n: [[View(prompt=[3])]] * n, ["'privileged'", WHERE]),
    "no messages": (lambda n: [[View(prompt=[])]] * n, ["'privileged'", WHERE]),
    "surrogate": (
        lambda n: [[View(prompt=[{"role": "user", "content": SURROGATE}], context=SURROGATE)]] * n,
        ["'privileged'", "surrogate", WHERE],
    ),
    "too long": (
        lambda n: [[View(prompt=[{"role": "user", "content": LONG}])]] * n,
        ["'privileged'", "`teacher_max_length`", WHERE],
    ),
}


@pytest.mark.parametrize(("views", "named"), BAD_VIEWS.values(), ids=BAD_VIEWS)
def test_bad_views_of_a_source(make_trainer, views, named):
    refused_in_training(make_trainer(privileged=lambda groups: views(len(rollouts_of(groups)))), *named)


def test_chat_views_of_a_text_prompt(make_trainer):
    dataset = Dataset.from_list([{"prompt": "What is it?"}] * 4)
    trainer = make_trainer(dataset=dataset, privileged=lambda groups: [[GOOD] for _ in rollouts_of(groups)])
    refused_in_training(trainer, "both be text or both be chat", "'What is it?'")


def test_bad_views_later_in_the_run_lose_nothing(make_trainer):
    """The error stops the step that it belongs to; what the steps before it learnt stays."""
    trainer = make_trainer(max_steps=3)
    column, calls, seen = DatasetColumn(), [], {}

    def source(groups):
        calls.append(len(groups))
        if len(calls) == 2:
            seen.update({name: param.detach().clone() for name, param in trainer.model.named_parameters()})
            return []
        return column(groups)

    trainer.collector.asker.source = source
    with pytest.raises(
        ValueError, match=re.escape("for each of the 4 rollouts of the 4 groups, in their order; got 0 lists")
    ):
        trainer.train()
    assert trainer.state.global_step == 1
    assert all(torch.equal(param, seen[name]) for name, param in trainer.model.named_parameters())


def constant(completions, value, **kwargs):
    return [value] * len(completions)


@pytest.mark.parametrize("turned", [False, True])
def test_reward_functions_of_one_name_are_numbered(make_trainer, turned):
    """Partials and closures: each is a reward of its own for sources, conditions and logs."""
    rewards = [functools.partial(constant, value=0.25), functools.partial(constant, value=0.75), length_reward]
    seen = []
    if turned:
        rewards[:2] = rewards[1::-1]

    def look(groups):
        seen.extend(rollout.rewards for rollout in rollouts_of(groups))
        return [[View("It is 2.")] for _ in rollouts_of(groups)]

    trainer = make_trainer(reward_funcs=rewards, privileged=look, max_steps=1)
    trainer.train()
    assert all(list(one) == ["constant_1", "constant_2", "length_reward"] for one in seen)
    pair = [0.75, 0.25] if turned else [0.25, 0.75]
    assert all([one["constant_1"], one["constant_2"]] == pair for one in seen) and seen
    log = trainer.state.log_history[0]
    assert [log["rewards/constant_1/mean"], log["rewards/constant_2/mean"]] == pair


def test_a_condition_on_a_name_that_several_had_is_refused(make_trainer):
    source = {"when": {"condition": {"reward_from": {"value": 0.5, "function": "constant"}}, "source": "column"}}
    rewards = [functools.partial(constant, value=0.25), functools.partial(constant, value=0.75)]
    trainer = make_trainer(reward_funcs=rewards, privileged_source=source)
    with pytest.raises(ValueError, match=r"no reward function 'constant', only \['constant_1', 'constant_2'\]"):
        trainer.train()
