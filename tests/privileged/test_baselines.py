# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`with_baselines`: the context without the problem, and the student's own prompt, beside a source's view."""

import json

import pytest

from batches import batch_of
from scripted import right, sums, writing
from trl_opsd import View
from trl_opsd.privileged import AllOf, DatasetColumn, Fixed, WithBaselines, build_source, rollouts_of
from trl_opsd.privileged.named import outline


TEMPLATE = "A solution: {privileged_context}\nGo on."


def views_of(make_trainer, source, **options):
    trainer = make_trainer(privileged=source, reward_funcs=right, **options)
    batch_of(trainer)
    return trainer.collected.views


def test_views(make_trainer):
    source = WithBaselines(DatasetColumn("hint", template=TEMPLATE, chat_template_kwargs={"enable_thinking": False}))
    views = views_of(make_trainer, source, dataset=sums(hint=["two", None]))
    taught = [row for row in views if row]
    assert 0 < len(taught) < len(views), "a rollout without a view has none"
    for full, alone, bare in taught:
        assert (full.name, full.context, full.template) == ("privileged", "two", TEMPLATE)
        assert alone.name == "alone" and alone.prompt == [{"role": "user", "content": "A solution: two\nGo on."}]
        assert alone.chat_template_kwargs == {"enable_thinking": False} and alone.context == "two"
        assert bare == View(name="bare", bundle="privileged")
        assert full.bundle == alone.bundle == "privileged"


def test_system_messages_stay(make_trainer):
    rows = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    dataset = sums(hint=["two", "five"]).map(lambda row: {"prompt": rows})
    views = views_of(make_trainer, WithBaselines(DatasetColumn("hint"), bare=False), dataset=dataset)
    assert [view.name for view in views[0]] == ["privileged", "alone"]
    assert views[0][1].prompt[0] == rows[0] and views[0][1].prompt[1]["content"] in ("two", "five")


def test_plain_text_prompts(make_trainer):
    dataset = sums(hint=["two", "five"]).map(lambda row: {"prompt": row["prompt"][0]["content"]})
    views = views_of(make_trainer, WithBaselines(DatasetColumn("hint", template=TEMPLATE)), dataset=dataset)
    assert {row[1].prompt for row in views} == {"A solution: two\nGo on.", "A solution: five\nGo on."}


def test_a_part_of_the_answer_is_a_part_for_all(make_trainer):
    source = WithBaselines(lambda groups: [[View("x", span=(0, 1))] for _ in rollouts_of(groups)])
    views = views_of(make_trainer, source, dataset=sums())
    assert {view.span for row in views for view in row} == {(0, 1)}


def test_bare_beside_an_inserted_context(make_trainer):
    source = WithBaselines(
        lambda groups: [[View("x", place="before_token", position=1)] for _ in rollouts_of(groups)], alone=False
    )
    views = views_of(make_trainer, source, rollout_func=writing(["two"] * 4, ["five"] * 4), dataset=sums())
    assert {row[1].span[0] for row in views} == {1} and all(row[1].place == "after_user" for row in views)


def test_by_name(make_trainer):
    spec = {"with_baselines": {"source": {"column": {"column": "hint"}}, "alone": False}}
    source = build_source(spec)
    assert (source.alone, source.bare, source.columns) == (False, True, ["hint"])
    assert outline(spec) == "with_baselines(column)"
    trainer = make_trainer(dataset=sums(hint=["two", "five"]), privileged_source=spec, reward_funcs=right)
    trainer.train()
    assert "self_distillation/divergence/bare" in trainer.state.log_history[0]
    assert json.dumps(trainer.args.to_dict())


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"with_baselines": "column"}, r"needs a `source`, and takes `alone` and `bare`; got 'column'"),
        ({"with_baselines": {"source": "column", "only": True}}, "needs a `source`, and takes `alone` and `bare`"),
        ({"with_baselines": {"source": "colum"}}, r"with_baselines\.source\.colum`: there is no 'colum'"),
    ],
)
def test_bad_descriptions(spec, text):
    with pytest.raises(ValueError, match=text):
        build_source(spec)


def test_nothing_to_add():
    with pytest.raises(ValueError, match="adds nothing: set `alone` or `bare`"):
        WithBaselines(DatasetColumn("hint"), alone=False, bare=False)


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            AllOf(Fixed("a", name="one"), Fixed("b", name="two")),
            r"takes one view of a rollout, and AllOf gave \['one', ",
        ),
        (Fixed(MESSAGES), "it must be a text at one of .* the view 'privileged' of .* is none"),
        (Fixed("x", place="prefill"), "it must be a text at one of"),
    ],
)
def test_what_it_can_not_take(make_trainer, part, text):
    trainer = make_trainer(privileged=WithBaselines(part), dataset=sums(), reward_funcs=right)
    with pytest.raises(ValueError, match=text):
        trainer.train()
