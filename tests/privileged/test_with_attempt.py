# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`with_attempt`: another source's context around the rollout itself; `bare` and `none`; the condition `role`."""

from dataclasses import replace

import pytest

from batches import batch_of, teacher_reads
from scripted import right, sums, writing
from trl_opsd.privileged import Run, WithAttempt, build_condition, build_source


TEXTS = (["it is 7", "so 2"], ["no", "say 5"])


def views_of(make_trainer, source, texts=TEXTS, **options):
    trainer = make_trainer(
        dataset=sums(hint=["Add one.", "Add two."]), privileged_source=source, reward_funcs=right,
        rollout_func=writing(*texts), shuffle_dataset=False, **options,
    )  # fmt: skip
    batch = batch_of(trainer)
    reads = dict(zip(batch["distillation"].index.tolist(), teacher_reads(batch), strict=True))
    return trainer, [trainer.processing_class.decode(reads[i]) for i in sorted(reads)]


def test_a_template_with_the_question_is_the_whole_prompt(make_trainer):
    template = "Q: {question} A: {attempt} H: {privileged_context}!"
    trainer, reads = views_of(make_trainer, {"with_attempt": {"source": {"column": "hint"}, "template": template}})
    expected = ["Q: 1 + 1? A: it is 7 H: Add one.!", "Q: 1 + 1? A: so 2 H: Add one.!", "Q: 2 + 3? A: no H: Add two.!"]
    for text, wanted in zip(reads, expected, strict=False):
        assert text == f"<|im_start|>user\n{wanted}<|im_end|>\n<|im_start|>assistant\n"
    assert {views[0].context for views in trainer.collected.views} == {"Add one.", "Add two."}, "what may leak"


def test_a_template_without_it_stands_at_the_views_place(make_trainer):
    source = {"column": {"column": "hint", "place": "system", "template": "({privileged_context})"}}
    source = {"with_attempt": {"source": source, "template": "You said {attempt}. {privileged_context}"}}
    _, reads = views_of(make_trainer, source)
    assert reads[0].startswith("<|im_start|>system\nYou said it is 7. (Add one.)<|im_end|>\n<|im_start|>user\n1 + 1?")


def test_a_view_without_a_context(make_trainer):
    """The attempt alone: the source `bare` has nothing to add."""
    _, reads = views_of(
        make_trainer, {"with_attempt": {"source": "bare", "template": "{question} You said: {attempt}"}}
    )
    assert reads[3] == "<|im_start|>user\n2 + 3? You said: say 5<|im_end|>\n<|im_start|>assistant\n"


def test_what_an_attempt_says_is_never_a_command(make_trainer, tokenizer):
    """Control tokens that it spells, and placeholders, are left out."""
    trainer, _ = views_of(make_trainer, "none")
    rollout = trainer.collected.rollouts[0]
    spelled = "a <|im_end|>b {privileged_context} {question}"
    ids = [i for text in spelled for i in tokenizer(text)["input_ids"]]
    rollout = replace(rollout, completion_ids=ids, turns=[replace(rollout.turns[0], end=len(ids))])
    source = WithAttempt({"fixed": {"context": "C"}}, template="{question}|{attempt}|{privileged_context}")
    source.setup(Run(tokenizer, trainer.train_dataset, None))
    ((view,),) = source([[rollout]])
    assert view.prompt[-1]["content"] == "1 + 1?|a b  |C" and "<|im_end|>" in tokenizer.decode(ids)


MISTAKES = [
    ({"all_of": [{"column": "hint"}, {"fixed": {"context": "x", "name": "two"}}]}, "takes one view of a rollout"),
    ({"fixed": {"context": "x", "place": "prepend"}}, "whose context is a text in the prompt"),
    ({"fixed": {"context": [{"role": "user", "content": "x"}]}}, "whose context is a text in the prompt"),
]


@pytest.mark.parametrize(("source", "text"), MISTAKES, ids=["two", "place", "messages"])
def test_views_that_it_cannot_hold(make_trainer, source, text):
    with pytest.raises(ValueError, match=text):
        views_of(make_trainer, {"with_attempt": {"source": source}})


def test_a_template_without_the_context(make_trainer):
    with pytest.raises(ValueError, match=r"`template` must show {privileged_context} once"):
        views_of(make_trainer, {"with_attempt": {"source": {"column": "hint"}, "template": "{attempt}"}})


def test_hooks_of_the_source_are_its_own():
    source = build_source({"with_attempt": {"source": {"column": "hint"}}})
    assert source.columns == ["hint"] and not source.uses_model
    assert build_source({"with_attempt": "critic"}).uses_model
    with pytest.raises(ValueError, match="num_generations"):
        build_source({"with_attempt": "sibling"}).check_run(True, 1)


def test_bare_and_none(make_trainer):
    trainer, reads = views_of(make_trainer, "bare", teacher_model_kind="live")
    assert reads[0] == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/divergence"] == pytest.approx(0.0, abs=1e-6)
    trainer, _ = views_of(make_trainer, "none")
    assert trainer.collected.views == [[]] * 4


def test_the_condition_role(make_trainer):
    trainer, _ = views_of(make_trainer, "none")
    rollout = trainer.collected.rollouts[0]
    first, distil = build_condition({"role": "first"}), build_condition({"role": "distil"})
    assert first(rollout, []) and not distil(rollout, [])
    assert distil(replace(rollout, role="distil"), [])
    with pytest.raises(ValueError, match="`name` must be one of"):
        build_condition({"role": "third"})
