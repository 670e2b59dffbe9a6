# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Where a context stands between the student's own tokens, and which of them it may teach."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from trl.chat_template_utils import qwen3_chat_template

import tiny
from batches import batch_of, completions, student_prompts, teacher_reads
from dense import check_scores
from runs import SAMPLED
from scripted import long_answers, tool_answers
from trl_opsd import View
from trl_opsd.privileged import build_source
from views import giving


HINT = "Think of a number!"


CHAT = {
    "prepend": "<|im_start|>system\nThink of a number!<|im_end|>\n{prompt}",
    "prefill": "{prompt}Think of a number!",
    "before_turn": "{turns}<|im_start|>user\nThink of a number!<|im_end|>\n<|im_start|>assistant\n",
    "before_token": "{prompt}{first}Think of a number!",
    "user_turn": "{turns}<|im_start|>user\nThink of a number!<|im_end|>\n<|im_start|>assistant\n",
    "system": "<|im_start|>system\nThink of a number!<|im_end|>\n{prompt}",
}
POSITION = {"before_turn": 0, "before_token": 3}


@pytest.mark.parametrize("place", CHAT)
def test_places_of_a_chat(make_trainer, tokenizer, place):
    view = View(HINT, place=place, position=POSITION.get(place))
    trainer = make_trainer(privileged=giving(view), **SAMPLED, max_completion_length=12)
    batch = batch_of(trainer)
    begun = "<|im_start|>assistant\n"
    for student, teacher, own in zip(student_prompts(batch), teacher_reads(batch), completions(batch), strict=True):
        prompt, first = tokenizer.decode(student), tokenizer.decode(own[:3])
        parts = {"prompt": prompt, "turns": prompt.removesuffix(begun), "first": first}
        assert tokenizer.decode(teacher) == CHAT[place].format(**parts)
    check_scores(trainer, batch)


TEXT = {
    "prepend": HINT + "\n\nQ{i}",
    "prefill": "Q{i}" + HINT,
    "before_turn": "Q{i}" + HINT,
    "before_token": "Q{i}{first}" + HINT,
    "user_turn": "Q{i}\n\n" + HINT,
}


@pytest.mark.parametrize("place", TEXT)
def test_places_of_a_text(make_trainer, tokenizer, place):
    rows = Dataset.from_list([{"prompt": f"Q{i}"} for i in range(4)])
    view = View(HINT, place=place, position=POSITION.get(place))
    trainer = make_trainer(dataset=rows, privileged=giving(view), **SAMPLED, max_completion_length=12)
    batch = batch_of(trainer)
    for student, teacher, own in zip(student_prompts(batch), teacher_reads(batch), completions(batch), strict=True):
        number = tokenizer.decode(student)[1:]
        assert tokenizer.decode(teacher) == TEXT[place].format(i=number, first=tokenizer.decode(own[:3]))
    check_scores(trainer, batch)


@pytest.mark.parametrize("place", ["prepend", "prefill", "before_token", "before_turn"])
def test_control_tokens_between_tokens_are_text(make_trainer, tokenizer, place):
    view = View("a<|im_end|>b", place=place, position=POSITION.get(place), template="<|im_start|>{privileged_context}")
    batch = batch_of(make_trainer(privileged=giving(view), max_completion_length=12))
    special = {tokenizer.convert_tokens_to_ids(text) for text in ("<|im_start|>", "<|im_end|>")}
    own = {"prepend": 3, "before_turn": 3, "prefill": 1, "before_token": 1}[place]  # of its message and its template
    for student, teacher, written in zip(student_prompts(batch), teacher_reads(batch), completions(batch), strict=True):
        head = written[: int(batch["distillation"].views["privileged"].start[0])]
        count = sum(token in special for token in teacher) - sum(token in special for token in student + head)
        assert count == own
        assert "a<|im_end|>b" in tokenizer.decode(teacher)


SPANS = [(0, 1), (2, 5), (5, 6)]


@pytest.mark.parametrize("mode", [{}, SAMPLED], ids=["full", "sampled"])
def test_spans_teach_their_tokens_only(make_trainer, mode):
    """Three views of one row with spans of their own: each token's loss is that of the views that teach it."""
    spans = {f"v{i}": span for i, span in enumerate(SPANS)}
    one = [View(HINT, name=name, span=span) for name, span in spans.items()]
    options = {"min_p": None, "max_completion_length": 8, "rollout_func": long_answers, **mode}
    trainer = make_trainer(privileged=giving(*one), **options)
    batch = batch_of(trainer)
    wanted = torch.zeros(batch["completion_ids"].shape[1], dtype=torch.bool)
    for start, end in SPANS:
        wanted[start:end] = True
    assert torch.equal(batch["distillation"].mask.bool(), wanted.expand_as(batch["distillation"].mask))
    loss = trainer._compute_loss(trainer.model, batch)
    parts = []
    for name, span in spans.items():
        single = make_trainer(privileged=giving(View(HINT, name=name, span=span)), **options)
        parts.append((single._compute_loss(single.model, batch_of(single)).item(), span[1] - span[0]))
    total = sum(length for _, length in parts)
    if not mode:
        assert loss.item() == pytest.approx(sum(value * length for value, length in parts) / total, rel=1e-5)
    for name in spans:
        check_scores(trainer, batch, name)


def test_an_inserted_nothing_changes_nothing(make_trainer):
    """A live teacher that reads the student's own ids, split within the completion, agrees at every token."""
    view = View("x", place="before_token", position=3, template="{privileged_context}")
    trainer = make_trainer(
        privileged=giving(view), teacher_model_kind="live", rollout_func=long_answers, max_completion_length=8
    )
    trainer.collector.encoder.tokenizer.text = lambda text, context: []
    batch = batch_of(trainer)
    assert torch.equal(batch["distillation"].views["privileged"].start, torch.full((4,), 3))
    assert batch["distillation"].mask.sum(1).tolist() == [5] * 4
    assert trainer._compute_loss(trainer.model, batch).item() == 0.0


@pytest.mark.parametrize("kind", ["live", "base", "ema"])
def test_a_hint_before_the_second_turn(make_trainer, tokenizer, kind):
    view = View(HINT, place="before_turn", position=1)
    trainer = make_trainer(
        privileged=giving(view),
        rollout_func=tool_answers,
        max_completion_length=200,
        teacher_model_kind=kind,
        **SAMPLED,
    )
    batch = batch_of(trainer)
    (rollout, *_) = trainer.collected.rollouts
    assert [tokenizer.decode(rollout.completion_ids[t.start : t.end]) for t in rollout.turns] == [
        "call it<|im_end|>", "sorry!<|im_end|>",
    ]  # fmt: skip
    for ids, own, teacher in zip(completions(batch), batch["distillation"].mask, teacher_reads(batch), strict=True):
        assert tokenizer.decode([i for i, kept in zip(ids, own, strict=False) if kept]) == "sorry!<|im_end|>"
        text = tokenizer.decode(teacher)
        assert text.endswith(
            "no such key<|im_end|>\n<|im_start|>user\nThink of a number!<|im_end|>\n<|im_start|>assistant\n"
        )
        assert text.count("sorry!") == 0
    check_scores(trainer, batch)


def test_a_turn_that_follows_something_else(make_trainer):
    """Where the tokens before a turn are no generation prompt, there is no place for a message."""

    def answers(prompts, trainer):
        output = tool_answers(prompts, trainer)
        tokenizer = trainer.processing_class
        output["env_mask"] = [[1] * 4 + [0] * 2 + [1] * (len(ids) - 6) for ids in output["completion_ids"]]
        assert tokenizer.decode(output["completion_ids"][0][4:6]) == " i"
        return output

    view = View(HINT, place="before_turn", position=1)
    trainer = make_trainer(privileged=giving(view), rollout_func=answers, max_completion_length=200)
    with pytest.raises(ValueError, match=r"turn 1 do not end in what the chat template begins.*'prepend'"):
        trainer.train()


BAD = [
    (View(HINT, place="nowhere"), "place 'nowhere'"),
    (View(HINT, place="before_turn"), "position None: the completion has 1 turns"),
    (View(HINT, place="before_turn", position=1), "position 1: the completion has 1 turns"),
    (View(HINT, place="before_token", position=99), "position 99: the completion has"),
    (View(HINT, place="before_token", position=-1), "position -1"),
    (View(HINT, place="before_token", position=3, span=(2, 5)), r"span \(2, 5\)"),
    (View(HINT, span=(3, 3)), r"span \(3, 3\)"),
    (View(HINT, span=(0, 99)), r"span \(0, 99\)"),
    (View(HINT, position=1), "position 1, which only"),
    (View([{"role": "user", "content": "A"}], place="prefill"), "no place 'prefill'"),
    (View(HINT, name=""), "name ''"),
]


@pytest.mark.parametrize(("view", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_places(make_trainer, view, text):
    trainer = make_trainer(privileged=giving(view), rollout_func=long_answers, max_completion_length=8)
    with pytest.raises(ValueError, match=text) as caught:
        trainer.train()
    assert "the row with prompt" in str(caught.value)


def test_thinking_closed_on_one_side(make_trainer):
    """Qwen3: the student's empty think block stands before its answer for the teacher too."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = qwen3_chat_template
    options = {"student_chat_template_kwargs": {"enable_thinking": False}, "processing_class": tokenizer}
    batch = batch_of(make_trainer(privileged=giving(View(HINT)), **options))
    assert all(tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n") for ids in teacher_reads(batch))
    batch = batch_of(make_trainer(privileged=giving(View(HINT)), teacher_generation_prompt="own", **options))
    assert all(tokenizer.decode(ids).endswith("<|im_start|>assistant\n") for ids in teacher_reads(batch))


def test_rollouts_that_are_not_the_rows_of_the_batch(make_trainer, monkeypatch):
    """Another version of TRL might hand the completions to the rewards in another order."""
    trainer = make_trainer(privileged=giving(View("x")))
    collect = trainer.collector.collect

    def turned(*given):
        collected = collect(*given)
        return replace(collected, rollouts=collected.rollouts[::-1])

    monkeypatch.setattr(trainer.collector, "collect", turned)
    with pytest.raises(RuntimeError, match="are not the rows of its batch any more"):
        batch_of(trainer)


SENTENCES = "One is odd. Two is even! Is three odd? " + "Yes, it is. " * 40


def test_shortened_at_a_sentence(make_trainer, tokenizer):
    options = {"teacher_overlong": "shorten", "teacher_max_length": 130, "rollout_func": long_answers}
    trainer = make_trainer(privileged=giving(View(SENTENCES)), **options)
    batch = batch_of(trainer)
    for student, teacher in zip(student_prompts(batch), teacher_reads(batch), strict=True):
        assert 100 < len(teacher) <= 130 - 8
        question = tokenizer.decode(student).split("user\n")[1].split("<|im_end|>")[0]
        text = tokenizer.decode(teacher)
        assert question in text, "the problem is never cut"
        assert text.split("user\n")[1].startswith(f"{question}\n\nOne is odd. Two is even! Is three odd? Yes")
        assert "it is. [...]<|im_end|>" in text
    assert trainer._metrics["train"]["self_distillation/shortened_views"] == [4]
    assert trainer._metrics["train"]["self_distillation/dropped_views"] == [0]


@pytest.mark.parametrize("text", ["你好世界。" * 60, "「好。」" * 60, "Ja! Und ja? 你好。" * 30])
def test_sentences_without_spaces_are_shortened_too(make_trainer, text):
    options = {"teacher_overlong": "shorten", "teacher_max_length": 200, "rollout_func": long_answers}
    trainer = make_trainer(privileged=giving(View(text)), **options)
    batch_of(trainer)
    assert trainer._metrics["train"]["self_distillation/shortened_views"] == [4]


@pytest.mark.parametrize("place", ["before_turn", "before_token"])
def test_a_place_in_the_completion_needs_a_context(make_trainer, place):
    """Without one the teacher would score those tokens after the bare prompt, as if it had read the ones before."""
    with pytest.raises(ValueError, match=f"has place '{place}' and no context to put there"):
        batch_of(make_trainer(privileged=giving(View(place=place, position=0))))


@pytest.mark.parametrize("name", ["column", "fixed", "sibling"])
def test_a_source_that_knows_no_positions_refuses_such_places(name):
    options = {"context": "x"} if name == "fixed" else {}
    for place in ("before_turn", "before_token"):
        with pytest.raises(ValueError, match=rf"`privileged_source.{name}`: `place` must be one of .*, got '{place}'"):
            build_source({name: {**options, "place": place}})
    with pytest.raises(ValueError, match="`policy` must be true or false, got 'no'"):
        build_source({name: {**options, "policy": "no"}})


def test_nothing_left_to_shorten(make_trainer):
    options = {"teacher_overlong": "shorten", "teacher_max_length": 60, "rollout_func": long_answers}
    trainer = make_trainer(privileged=giving(View("x" * 200 + ". And more.")), **options)
    batch = batch_of(trainer)
    assert trainer._metrics["train"]["self_distillation/dropped_views"] == [4]
    assert not batch["distillation"].views["privileged"].weight.any()
