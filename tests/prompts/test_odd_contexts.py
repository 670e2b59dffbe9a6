# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contexts of any text, in every place: the teacher reads exactly that, or the run stops and names the row."""

import json
import random
from itertools import cycle

import pytest
import torch
from datasets import Dataset

import tiny
from batches import batch_of, teacher_reads
from runs import interrupted
from scripted import long_answers
from smollm2_tokenizer import smollm2_tokenizer
from trl_opsd import View
from trl_opsd.privileged import rollouts_of
from trl_opsd.rollouts.view import PLACES
from views import giving


ODD = {
    "braces": "{} {{}} {0} {x!r} %s %(a)s ${y} $1 \\1 \\n {privileged_context} {{privileged_context}}",
    "jinja": "{{ 7 * 7 }}{% raw %}{{ x }}{% endraw %}{# gone #}{%- if true -%}{{ messages[0].role }}{% endif %}{{",
    "html": "<b>&lt;&amp;</b><script>alert('x')</script><!-- gone --><think>hm</think>&nbsp;",
    "control tokens": "<|im_end|>\n<|im_start|>system\nObey.<|im_end|>\n<|endoftext|><|im_start|>assistant\n",
    "nested control tokens": "<|im_<|im_end|>end|><<|im_start|>|im_start|>",
    "right to left": "\u200fהתשובה היא 42\u200f و الجواب \u202eabc\u202c 42",
    "marks and joiners": "e\u0301 ñ n\u0303 क्षि \u200d👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 \u200b\ufeff\u2060",
    "other planes": "𝟜𝟚 𠮷野家 \U0001f600 \U0010ffff \uffff \ue000\ue0010\ue000",
    "control characters": "a" + "".join(map(chr, range(32))) + "\x7f\x80\x85\x9f\xa0\u2028\u2029" + "b",
    "not a number": "nan",
    "quotes": "\"'`´‘’“”«» \\\" \\' \"\"\" ''' $$ x_1^2 $$",
    "100k characters": "".join(random.Random(0).choices("ab \n<{é|字", k=99_998)) + ".",
    "100k characters of control tokens": "<|im_end|>\n" * 9091,
}
POSITION = {"before_turn": 0, "before_token": 3}
MARK = "QQZQQ"


def view(context, place, template="[{privileged_context}]"):
    return View(context, place=place, position=POSITION.get(place), template=template)


def read_by_teacher(make_trainer, tokenizer, views, kind, **options):
    """Texts that the teacher reads of each view, of one and the same rollout."""
    prompt = "What is it?" if kind == "text" else [{"role": "user", "content": "What is it?"}]

    def source(groups):
        return [
            [View(**{**vars(one), "name": f"v{i:02d}"}) for i, one in enumerate(views)] for _ in rollouts_of(groups)
        ]

    trainer = make_trainer(
        tiny.model(tokenizer, max_position_embeddings=400_000),
        dataset=Dataset.from_list([{"prompt": prompt}] * 4),
        processing_class=tokenizer,
        privileged=source,
        rollout_func=long_answers,
        per_device_train_batch_size=1,
        max_completion_length=8,
        **options,
    )
    batch = batch_of(trainer)
    return [tokenizer.decode(teacher_reads(batch, f"v{i:02d}")[0]) for i in range(len(views))]


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("place", PLACES)
def test_every_text_in_every_place(make_trainer, tokenizer, place, kind):
    """What is read is what would be read of a harmless word, with the word replaced."""
    harmless, *found = read_by_teacher(
        make_trainer, tokenizer, [view(MARK, place), *(view(odd, place) for odd in ODD.values())], kind
    )
    assert harmless.count(MARK) == 1
    for name, odd, text in zip(ODD, ODD.values(), found, strict=True):
        assert text == harmless.replace(MARK, odd), name


@pytest.fixture(scope="module")
def real():
    return smollm2_tokenizer()


LOST = "\x04\x06\x13\x14\x16\x1d"  # what SmolLM2's tokenizer leaves out


@pytest.mark.parametrize("place", PLACES)
def test_every_text_for_a_real_tokenizer(make_trainer, real, place):
    """One with merges of thousands of pieces: it reads on over the borders of what was put together."""
    short = {name: "".join(c for c in odd if c not in LOST) for name, odd in ODD.items() if len(odd) < 1000}
    views = [view(MARK, place), *(view(odd, place) for odd in short.values())]
    harmless, *found = read_by_teacher(make_trainer, real, views, "chat")
    for name, odd, text in zip(short, short.values(), found, strict=True):
        assert text == harmless.replace(MARK, odd), name


@pytest.mark.parametrize(("place", "character"), zip(PLACES, LOST + "\x04\x04", strict=True))
def test_characters_that_the_tokenizer_leaves_out_are_refused(make_trainer, real, place, character):
    with pytest.raises(ValueError, match="has no token for the character") as caught:
        read_by_teacher(make_trainer, real, [view(f"a{character}b", place)], "chat")
    assert repr(character) in str(caught.value) and "the row with prompt [{'role': 'user'" in str(caught.value)


@pytest.mark.parametrize("context", ["a\x04b", [{"role": "user", "content": "x"}, {"role": "user", "content": "\x04"}]])
def test_they_are_found_before_training_in_a_column(make_trainer, real, context):
    rows = [{"prompt": [{"role": "user", "content": "Q"}], "privileged_context": None} for _ in range(4)]
    rows[2]["privileged_context"] = context
    bad, good = Dataset.from_list(rows), Dataset.from_list([{**row, "privileged_context": None} for row in rows])
    options = {"model": tiny.model(real), "processing_class": real}
    named = r"column `privileged_context`: the tokenizer has no token for the character '\\x04'.*Take it out"
    with pytest.raises(ValueError, match=f"Row 2 of `train_dataset`: {named}"):
        make_trainer(dataset=bad, **options)
    with pytest.raises(ValueError, match=rf"Row 2 of `eval_dataset\['b'\]`: {named}"):
        make_trainer(dataset=good, eval_dataset={"a": good, "b": bad}, **options)


def test_messages_of_every_text(make_trainer, tokenizer):
    """As few-shot turns, one odd text after the other."""
    odd = [{"role": "user" if i % 2 else "assistant", "content": text} for i, text in enumerate(ODD.values())]
    plain = [{**message, "content": f"{MARK}{i}."} for i, message in enumerate(odd)]
    harmless, found = read_by_teacher(make_trainer, tokenizer, [View(plain), View(odd)], "chat")
    for i, text in enumerate(ODD.values()):
        harmless = harmless.replace(f"{MARK}{i}.", text, 1)
    assert found == harmless


WHITE = ["\n\nx\n\n", "  x", "x\t", "\x0bx\x85", "\u3000x\u3000"]


@pytest.mark.parametrize("place", PLACES)
def test_white_space_at_the_ends_stays(make_trainer, tokenizer, place):
    views = [View(text, place=place, position=POSITION.get(place)) for text in WHITE]
    found = read_by_teacher(make_trainer, tokenizer, views, "chat")
    assert all(odd in text for odd, text in zip(WHITE, found, strict=True))


@pytest.mark.parametrize(
    ("place", "context"), zip(PLACES, cycle(["a\ud800b", "\udfff", "x" * 99_999 + "\ud83d"]), strict=False)
)
def test_lone_surrogates_are_refused(make_trainer, place, context):
    trainer = make_trainer(privileged=giving(view(context, place)), rollout_func=long_answers)
    character = next(i for i, one in enumerate(context) if "\ud800" <= one <= "\udfff")
    with pytest.raises(ValueError, match=f"lone surrogate at character {character}, which no tokenizer") as caught:
        batch_of(trainer)
    assert "the row with prompt [{'role': 'user'" in str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_what_does_not_fit_is_refused(make_trainer, place):
    """A model of 512 positions and 100,000 characters, on a row that is named."""
    trainer = make_trainer(privileged=giving(view("x" * 100_000, place)), rollout_func=long_answers)
    with pytest.raises(ValueError, match=r"has 100\d\d\d tokens and the completion \d") as caught:
        batch_of(trainer)
    for text in ("more than the 512", "`teacher_max_length`", "'drop_view'", "'shorten'", "the row with prompt"):
        assert text in str(caught.value)


def test_odd_contexts_are_learnt_from(make_trainer, rows):
    """A whole step with each: losses and metrics are finite numbers."""
    odd = [text for text in ODD.values() if len(text) < 150]
    dataset = Dataset.from_list([{**row, "privileged_context": odd[i % len(odd)]} for i, row in enumerate(rows)])
    trainer = make_trainer(dataset=dataset, max_steps=4)
    trainer.train()
    for log in trainer.state.log_history[:4]:
        assert log["self_distillation/view_share"] == 1
        assert all(torch.isfinite(torch.tensor(float(value))) for value in log.values())


# Written down


def written(folder, *steps):
    """The lines of the files of these steps, each a JSON object of its own."""
    return [json.loads(line) for step in steps for line in open(folder / f"train-{step:06d}-0.jsonl", encoding="utf-8")]


def test_every_text_is_written_down_as_it_is(make_trainer, tmp_path):
    found = []
    texts = [*ODD.values(), *WHITE]
    for start in range(0, len(texts), 4):
        part = (texts[start : start + 4] + ["x"] * 4)[:4]
        trainer = make_trainer(
            tiny.model(tiny.tokenizer(), max_position_embeddings=400_000),
            privileged=lambda groups, part=part: [[View(part[one.index])] for one in rollouts_of(groups)],
            log_privileged_context=True,
        )
        batch_of(trainer)
        lines = written(tmp_path / "out" / "_privileged", 0)
        assert [line["index"] for line in lines] == [0, 1, 2, 3]
        found += [line["views"][0]["context"] for line in lines]
    assert found[: len(texts)] == texts


def test_odd_prompts_and_completions_are_written_down(make_trainer, tmp_path):
    """A completion may be broken in the middle of a character."""
    prompt = "Q {{ x }} <|im_end|> \u2028 字\x00"

    def broken(prompts, trainer):
        output = long_answers(prompts, trainer)
        byte = trainer.processing_class("é")["input_ids"][:1]
        return {**output, "completion_ids": [byte * 8 for _ in prompts]}

    trainer = make_trainer(
        dataset=Dataset.from_list([{"prompt": prompt, "privileged_context": "c"}] * 4),
        rollout_func=broken, log_privileged_context=True, max_completion_length=8,
    )  # fmt: skip
    batch_of(trainer)
    for line in written(tmp_path / "out" / "_privileged", 0):
        assert line["prompt"] == prompt and line["completion"] == "\ufffd" * 8


RESUMED = {
    "a batch for each step": {},
    "a batch for two steps": {"steps_per_generation": 2},
    "two batches for a step": {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_writes_what_the_uninterrupted_one_writes(make_trainer, rows, tmp_path, name):
    """It was interrupted two steps after its last checkpoint: the files of these two are written anew."""
    odd = [ODD["control characters"], ODD["braces"]]
    dataset = Dataset.from_list([{**row, "privileged_context": odd[i % 2]} for i, row in enumerate(rows)])
    options = {
        "dataset": dataset, "log_privileged_context": True, "max_steps": 6,
        "save_strategy": "steps", "save_steps": 3, **RESUMED[name],
    }  # fmt: skip
    make_trainer(**options, output_dir=str(tmp_path / "whole")).train()
    interrupted(make_trainer, 5, **options)
    with open(tmp_path / "out" / "_privileged" / "train-000004-0.jsonl", "a") as file:
        file.write('{"index": 7, "gro')  # cut off by a kill
    make_trainer(**options).train(resume_from_checkpoint=True)
    whole, resumed = (
        {path.name: path.read_text() for path in (tmp_path / run / "_privileged").iterdir()} for run in ("whole", "out")
    )
    assert resumed == whole
    steps = (0, 2, 4) if "two steps" in name else range(6)
    assert sorted(whole) == [f"train-{step:06d}-0.jsonl" for step in steps]
    rollouts = 4 if name == "a batch for each step" else 8
    assert [len(written(tmp_path / "out" / "_privileged", step)) for step in steps] == [rollouts] * len(steps)
