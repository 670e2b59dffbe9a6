# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Views that are compared with each other stand or fall together where one is too long, and so does what a method
requires."""

import pytest
import torch
from datasets import Dataset

from batches import batch_of, teacher_reads
from messages import user
from scripted import long_answers
from trl_opsd import View
from trl_opsd.prompts.shortening import CUT
from views import giving


LONG, LIMIT = "x" * 120, 100
BUNDLES = {"purified": ["alone", "bare", "privileged"], "beta_opsd": ["bare", "privileged"]}
TRAINED = {"rollout_func": long_answers, "shuffle_dataset": False, "max_completion_length": 8}


def rows(*contexts):
    return Dataset.from_list(
        [{"prompt": [user(f"What is it {i}?")], "privileged_context": one} for i, one in enumerate(contexts)]
    )


def weights(batch):
    """Weights of each view by the rollout."""
    order = batch["distillation"].index.argsort()
    return {name: view.weight[order].tolist() for name, view in batch["distillation"].views.items()}


def gradient(trainer, batch):
    trainer.compute_loss(trainer.model, batch).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("method", BUNDLES)
def test_none_stays_without_the_others(make_trainer, method):
    """The gradient is that of the rows that fit, as if the others had no context."""
    trainers = [
        make_trainer(dataset=rows(one, "short", one, "brief"), method=method, **options, **TRAINED)
        for one, options in (
            (LONG, {"teacher_overlong": "drop_view", "teacher_max_length": LIMIT}),
            (None, {}),
        )
    ]
    cut, without = [gradient(trainer, batch_of(trainer)) for trainer in trainers]
    assert without.norm() > 0 and torch.equal(cut, without)
    metrics = trainers[0]._metrics["train"]
    assert metrics["self_distillation/view_share"] == [0.5]
    assert metrics["self_distillation/dropped_views"] == [2 * len(BUNDLES[method])]
    assert metrics["self_distillation/incomplete_rollouts"] == [2]


@pytest.mark.parametrize("method", BUNDLES)
def test_nothing_is_distilled_from_what_is_left(make_trainer, method):
    trainer = make_trainer(
        dataset=rows(*[LONG] * 4), method=method, teacher_overlong="drop_view", teacher_max_length=LIMIT, **TRAINED
    )
    batch = batch_of(trainer)
    assert not any(sum(of_view) for of_view in weights(batch).values())
    assert not gradient(trainer, batch).any()


SENTENCES = "One is odd. Two is even. " + "Three is odd too. " * 10


@pytest.mark.parametrize("method", BUNDLES)
def test_all_are_shortened_alike(make_trainer, tokenizer, method):
    """Those with the context read the same sentences of it, though the shorter ones had room for more."""
    trainer = make_trainer(
        dataset=rows(*[SENTENCES] * 4), method=method, teacher_overlong="shorten", teacher_max_length=180, **TRAINED
    )
    batch = batch_of(trainer)
    read = {name: tokenizer.decode(teacher_reads(batch, name)[0]) for name in BUNDLES[method]}
    assert len(teacher_reads(batch)[0]) <= 180 - 8
    kept = read["privileged"].split("?\n\n")[1].split("<|im_end|>")[0]
    assert kept.startswith("One is odd. Two is even.") and kept.endswith(f"too.{CUT}")
    if method == "purified":
        assert read["alone"] == f"<|im_start|>user\n{kept}<|im_end|>\n<|im_start|>assistant\n"
    assert "One is odd" not in read["bare"]
    shortened = trainer._metrics["train"]["self_distillation/shortened_views"]
    assert shortened == [4 * (len(BUNDLES[method]) - 1)], "the bare prompt has nothing to shorten"


def test_what_is_required_is_asked_after_encoding(make_trainer):
    """UniSD's other views alone would teach nothing but their own contexts."""
    data = rows(LONG, "short", "brief", "small", LONG, LONG)
    trainer = make_trainer(
        dataset=data, method="unisd", teacher_overlong="drop_view", teacher_max_length=LIMIT,
        privileged_source={"all_of": ["column", {"fixed": {"context": "a rule", "name": "context"}}]}, **TRAINED,
    )  # fmt: skip
    batch = batch_of(trainer)
    assert trainer._metrics["train"]["self_distillation/incomplete_rollouts"] == [1]
    assert trainer._metrics["train"]["self_distillation/dropped_views"] == [1]
    for of_view in weights(batch).values():
        assert 0 not in of_view or of_view[0] == 0
    assert trainer._metrics["train"]["self_distillation/view_share"] == [0.75]


@pytest.mark.parametrize("method", BUNDLES)
def test_rollouts_without_all_parts_are_left_out(make_trainer, method):
    """A source of one's own that forgets the baselines of a rollout: the target there would be made of nothing."""

    def source(groups):
        parts = [View("hint"), View("hint", name="alone"), View(name="bare")]
        return [parts if one.index else parts[:1] for group in groups for one in group]

    trainer = make_trainer(
        dataset=rows(*[None] * 4), method=method, privileged=source, privileged_source=None, **TRAINED
    )
    batch_of(trainer)
    assert trainer._metrics["train"]["self_distillation/incomplete_rollouts"] == [1]
    assert trainer._metrics["train"]["self_distillation/view_share"] == [0.75]


def test_views_without_a_bundle_stand_alone(make_trainer):
    pair = View(LONG), View("short", name="other")
    options = {"teacher_overlong": "drop_view", "teacher_max_length": LIMIT, **TRAINED}
    batch = batch_of(make_trainer(dataset=rows(*[None] * 4), privileged=giving(*pair), **options))
    assert weights(batch) == {"other": [1.0] * 4, "privileged": [0.0] * 4}
    pair = View(LONG, bundle="both"), View("short", name="other", bundle="both")
    batch = batch_of(make_trainer(dataset=rows(*[None] * 4), privileged=giving(*pair), **options))
    assert not any(sum(of_view) for of_view in weights(batch).values())


def test_contexts_of_one_bundle_that_differ_are_shortened_apart(make_trainer, tokenizer):
    pair = (
        View(SENTENCES, bundle="b"),
        View("Not so. " * 30, name="other", bundle="b"),
        View("Yes. No.", name="c", bundle="b"),
    )
    options = {"teacher_overlong": "shorten", "teacher_max_length": 180, **TRAINED}
    batch = batch_of(make_trainer(dataset=rows(*[None] * 4), privileged=giving(*pair), **options))
    texts = {name: tokenizer.decode(teacher_reads(batch, name)[0]) for name in ("privileged", "other", "c")}
    assert f"odd too.{CUT}" in texts["privileged"] and f"Not so.{CUT}" in texts["other"] and CUT not in texts["c"]


def test_a_whole_prompt_is_shortened_where_its_context_stands_once(make_trainer, tokenizer):
    options = {"teacher_overlong": "shorten", "teacher_max_length": 150, "dataset": rows(*[None] * 4), **TRAINED}
    view = View(SENTENCES, prompt=[user(f"Read this: {SENTENCES}\nAnd now?")])
    (text, *_) = teacher_reads(batch_of(make_trainer(privileged=giving(view), **options)))
    assert f"too.{CUT}\nAnd now?" in tokenizer.decode(text) and "Read this: One is odd." in tokenizer.decode(text)
    for prompt in (f"{SENTENCES} {SENTENCES}", "z" * 150):
        trainer = make_trainer(privileged=giving(View(SENTENCES, prompt=[user(prompt)])), **options)
        with pytest.raises(ValueError, match="in a whole prompt one that stands there once"):
            batch_of(trainer)


def test_a_bundle_is_text(make_trainer):
    with pytest.raises(ValueError, match="has the bundle 3: it must be text, or None"):
        batch_of(make_trainer(privileged=giving(View("x", bundle=3))))
