# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Messages without content, which a data set holds as None: a context placed there stands alone."""

import pytest
from datasets import Dataset

from batches import batch_of, teacher_reads
from messages import text_block
from trl_opsd import View
from trl_opsd.privileged.sources.image import with_images
from trl_opsd.privileged.transcripts import call_text
from trl_opsd.prompts.teacher_prompt import teacher_prompt
from views import giving


SYSTEM, USER = {"role": "system", "content": None}, {"role": "user", "content": None}


@pytest.mark.parametrize(
    ("place", "number"), [("system", 0), ("before_user", 1), ("after_user", 1)], ids=["system", "before", "after"]
)
def test_a_context_beside_no_content_is_all_of_it(place, number):
    prompt = [SYSTEM, USER]
    wanted = [dict(message) for message in prompt]
    wanted[number]["content"] = "a hint"
    assert teacher_prompt(prompt, "a hint", "{privileged_context}", place) == wanted
    bare = [{"role": message["role"]} for message in prompt]
    assert teacher_prompt(bare, "a hint", "{privileged_context}", place)[number]["content"] == "a hint"


def test_messages_before_a_system_message_without_content():
    context = [{"role": "system", "content": "a rule"}, {"role": "user", "content": "hi"}]
    assert teacher_prompt([SYSTEM, USER], context, "{privileged_context}", "system")[0]["content"] == "a rule"


@pytest.mark.parametrize("place", ["before_user", "after_user"])
def test_the_teacher_reads_no_none(make_trainer, tokenizer, place):
    rows = Dataset.from_list([{"prompt": [USER]}] * 8)
    trainer = make_trainer(dataset=rows, privileged=giving(View("a hint", place=place)))
    texts = {tokenizer.decode(ids) for ids in teacher_reads(batch_of(trainer))}
    assert texts == {"<|im_start|>user\na hint<|im_end|>\n<|im_start|>assistant\n"}


def test_images_go_where_there_is_no_content():
    image = "picture.png"
    assert with_images([USER], [image])[0]["content"] == [{"type": "image", "image": image}]
    blocks = [{"role": "user", "content": [text_block("Q")]}]
    assert with_images(blocks, [image])[0]["content"] == [{"type": "image", "image": image}, text_block("Q")]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ({"function": {"name": "add", "arguments": {"a": 1}}}, 'add({"a": 1})'),
        ({"function": {"name": "add", "arguments": None}}, "add({})"),
        ({"function": {"name": None, "arguments": "x"}}, "(x)"),
        ({}, "({})"),
    ],
)
def test_a_call_without_a_name_or_arguments(call, text):
    assert call_text(call) == text
