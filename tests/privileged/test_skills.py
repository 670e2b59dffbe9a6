# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Skills: what is written about finished rollouts, kept, found again and read by the teacher."""

import json
import random
import time

import pytest
from datasets import Dataset

from batches import batch_of, teacher_reads
from runs import Leaves
from scripted import SUMS, right, sums, writing
from trl_opsd.privileged import Skills, build_source
from trl_opsd.privileged.sources.skill_store import Skill, SkillStore
from trl_opsd.rollouts.text import words
from written_worker import SUMMARY


OPTIONS = {
    "reward_funcs": right, "num_generations": 2, "policy_weight": 0.0, "shuffle_dataset": False,
    "max_completion_length": 40,
}  # fmt: skip
MIXED = ["It is 3", "It is 2"], ["It is 5", "2 + 3 = 5"]
SHOWN = "What worked: {}\nMistakes: None.\nWorkflow: Count."


class Author:
    """Writes what the best attempt says, in the form that is asked for; keeps what it reads."""

    def __init__(self, say=lambda rollout: SUMMARY.format(rollout.text)):
        self.prompts, self.say = [], say

    def __call__(self, prompts, rollouts):
        self.prompts += prompts
        return [self.say(rollout) for rollout in rollouts]


def skilled(make_trainer, answers=MIXED, dataset=None, **options):
    """A trainer on rollouts with these texts, and its source."""
    own = {name: options.pop(name) for name in list(options) if name in Skills.__dataclass_fields__}
    source = Skills(**{"author": Author(), **own})
    given = {**OPTIONS, "rollout_func": writing(*answers), **options}
    return make_trainer(dataset=dataset or sums(), privileged=source, **given), source


def contexts(collected):
    return [[view.context for view in views] for views in collected.views]


def test_skills_of_a_real_batch(make_trainer, tokenizer):
    trainer, source = skilled(make_trainer)
    batch = batch_of(trainer)
    one, other = SHOWN.format("It is 2"), SHOWN.format("2 + 3 = 5")
    assert contexts(trainer.collected) == [[one], [one], [other], [other]]
    prompts = {
        index: tokenizer.decode(ids)
        for index, ids in zip(batch["distillation"].index.tolist(), teacher_reads(batch), strict=True)
    }
    assert prompts[0] == f"<|im_start|>user\n1 + 1?\n\n{one}<|im_end|>\n<|im_start|>assistant\n"
    kept = Skill("", "1 + 1?", "It is 2", "None.", "Count.", 1.0, 0)
    assert list(source.store.skills.values()) == [
        kept,
        Skill("", "2 + 3?", "2 + 3 = 5", "None.", "Count.", 1.0, 0),
    ]
    expected = {"written": 2, "malformed": 0, "evicted": 0, "stored": 2, "missing": 0}
    assert source.counts == {f"skills_{name}": count for name, count in expected.items()}


def test_what_the_author_reads(make_trainer):
    trainer, source = skilled(make_trainer)
    batch_of(trainer)
    (*shots, mixed), (*_, alike) = source.author.prompts
    assert [message["role"] for message in shots] == ["user", "assistant"]
    assert shots[0]["content"].startswith("You read a task and attempts at it.")
    best, worst = "Best attempt, reward 1:\nIt is 2", "Worst attempt, reward 0:\nIt is 3"
    assert mixed["content"] == f"Task:\n1 + 1?\n\n{best}\n\n{worst}"
    assert alike["content"] == "Task:\n2 + 3?\n\nAttempt, reward 1:\n2 + 3 = 5"


def test_without_a_reward(make_trainer):
    trainer, source = skilled(make_trainer, reward_funcs=None, max_steps=1)
    batch_of(trainer)
    assert source.author.prompts[0][-1]["content"] == "Task:\n1 + 1?\n\nAttempt:\nIt is 2"
    assert [skill.reward for skill in source.store.skills.values()] == [None, None]
    assert json.loads(json.dumps(source.state_dict(), allow_nan=False)) == source.state_dict()


def test_only_finished_trajectories(make_trainer):
    """The first task's only success is cut off, the second task has no finished rollout at all."""

    def cut(prompts, trainer):
        output = writing(["It is 3", "It is 2"], ["It is 5", "2 + 3 = 5"])(prompts, trainer)
        return {
            **output,
            "completion_ids": [output["completion_ids"][0], *(i[:-1] for i in output["completion_ids"][1:])],
        }

    trainer, source = skilled(make_trainer, rollout_func=cut)
    batch_of(trainer)
    assert [prompt[-1]["content"] for prompt in source.author.prompts] == [
        "Task:\n1 + 1?\n\nAttempt, reward 0:\nIt is 3"
    ]


@pytest.mark.parametrize("text", ["", "Success: a\nMistakes: b", "Success: a\nMistakes: b\nWorkflow:", "{}"])
def test_a_malformed_summary_is_not_kept(make_trainer, text):
    author = Author(lambda rollout: text if rollout.row["answer"] == "2" else SUMMARY.format("x"))
    trainer, source = skilled(make_trainer, author=author)
    batch_of(trainer)
    assert [skill.task for skill in source.store.skills.values()] == ["2 + 3?"]
    assert (source.counts["skills_written"], source.counts["skills_malformed"]) == (1, 1)


def test_the_model_writes(make_trainer, tokenizer, monkeypatch):
    """A random model writes nothing of the form: it was asked, nothing is kept and no view is given."""
    trainer, source = skilled(make_trainer, author="live", max_new_tokens=4, examples=[])
    read, generate = [], trainer.model.generate
    monkeypatch.setattr(
        trainer.model, "generate", lambda **k: (read.extend(tokenizer.batch_decode(k["input_ids"])), generate(**k))[1]
    )
    batch = batch_of(trainer)
    assert len(read) == 2 and "Worst attempt, reward 0:\nIt is 3<|im_end|>" in read[0]
    expected = {"written": 0, "malformed": 2, "evicted": 0, "stored": 0, "missing": 4}
    assert source.counts == {f"skills_{name}": count for name, count in expected.items()}
    assert not batch["distillation"].views["privileged"].weight.any()


# Keys


def task_kind(rollout):
    return None if rollout.row["answer"] == "2" else len(rollout.prompt)


@pytest.mark.parametrize("key", ["kind", "test_skills.task_kind", task_kind])
def test_keys(make_trainer, key):
    """A column or a function; rollouts whose key is None have no skills."""
    trainer, source = skilled(make_trainer, dataset=sums(kind=[None, 1]), key=key)
    batch_of(trainer)
    assert [(skill.key, skill.task) for skill in source.store.skills.values()] == [("1", "2 + 3?")]
    assert contexts(trainer.collected) == [[], [], [SHOWN.format("2 + 3 = 5")], [SHOWN.format("2 + 3 = 5")]]
    assert source.counts["skills_missing"] == 2


def test_the_best_skills_of_a_key(make_trainer):
    """The other task's success comes before the own failure; both are shown where two are asked for."""
    answers = ["It is 3", "It is 4"], ["It is 5", "2 + 3 = 5"]
    own, other = SHOWN.format("It is 4"), SHOWN.format("2 + 3 = 5")
    for k, expected in ((1, other), (2, f"{other}\n\n{own}")):
        trainer, _ = skilled(make_trainer, answers, sums(kind=["sum", "sum"]), key="kind", k=k)
        batch_of(trainer)
        assert contexts(trainer.collected) == [[expected]] * 4


def test_a_missing_column_is_named_before_training(make_trainer):
    with pytest.raises(ValueError, match=r"no column `kind`, which the option `key`.*'answer'"):
        skilled(make_trainer, key="kind")


BAD = [
    ({"k": 0}, "`k` must be a whole number of at least 1, got 0"),
    ({"refresh_steps": 0}, "`refresh_steps` must be a whole number of at least 1"),
    ({"size": 0}, "`size` must be a whole number of at least 1"),
    ({"key": "nowhere.to_be"}, "nowhere.to_be can't be imported"),
    ({"author": "gpt"}, "`author` must be"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        build_source({"skills": options})


# The store


def skill(task, reward=1.0, step=0, key="", text="x"):
    return Skill(key, task, text, "None.", "Count.", reward, step)


def test_a_task_keeps_one_skill():
    store = SkillStore(9)
    for reward, step, kept in ((0.5, 0, 0), (0.5, 1, 1), (0.0, 2, 1), (1.0, 3, 3), (None, 4, 3)):
        assert store.add(skill("a", reward, step)) == 0
        assert [one.step for one in store.skills.values()] == [kept]
    store.add(skill("a", 1.0, 3, text="the later of two equals"))
    assert [one.success for one in store.skills.values()] == ["the later of two equals"]


def test_the_lowest_reward_leaves_then_the_oldest():
    store = SkillStore(3)
    assert sum(store.add(skill(task, reward, i)) for i, (task, reward) in enumerate([("a", 1.0), ("b", 0.0)])) == 0
    assert sum(store.add(skill(task, 1.0, 5)) for task in "cd") == 1
    assert [one.task for one in store.skills.values()] == ["a", "c", "d"]
    assert store.add(skill("e", 1.0, 6)) == 1
    assert [one.task for one in store.skills.values()] == ["c", "d", "e"]
    assert store.add(skill("f", 0.5, 7)) == 1, "a worse one does not stay"
    assert [one.task for one in store.skills.values()] == ["c", "d", "e"]
    assert store.add(skill("g", None, 8)) == 1


def test_skills_that_are_alike():
    store = SkillStore(9)
    tasks = ["Add two numbers", "Add two long numbers", "Sort a list", "add TWO numbers!"]
    for step, task in enumerate(tasks):
        store.add(skill(task, step=step))
    assert [one.step for one in store.alike("Add two numbers.", 9)] == [3, 1], "one task in two spellings"
    store.add(skill("numbers, add two", step=4))
    assert [one.step for one in store.alike("Add two numbers.", 9)] == [4, 3, 1]
    assert [one.step for one in store.alike("Sort it", 1)] == [2]
    assert store.alike("?", 3) == store.alike("Cook rice", 3) == []


def test_a_full_store_is_searched_in_no_time(make_trainer, monkeypatch):
    """A thousand long tasks; once for the rollouts of a prompt."""
    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(5000)]
    store = SkillStore(1024)
    for i in range(1024):
        store.add(skill(" ".join(draw.choices(vocabulary, k=400)), step=i))
    task = " ".join(draw.choices(vocabulary, k=400))
    begin = time.process_time()
    found = [store.alike(task, 2) for _ in range(5)]
    assert time.process_time() - begin < 0.5
    parts = {key: set(words(one.task)) for key, one in store.skills.items()}
    asked = set(words(task))
    shares = {key: len(asked & own) / len(asked | own) for key, own in parts.items()}
    assert [store.skills[key] for key in sorted(shares, key=shares.get)[-2:][::-1]] == found[0] == found[-1]
    asked_for = []
    monkeypatch.setattr(SkillStore, "alike", lambda self, task, k: asked_for.append(task) or [])
    skilled(make_trainer, max_steps=1)[0].train()
    assert sorted(asked_for) == sorted(SUMS)


def test_the_size_holds_in_a_run(make_trainer):
    rows = Dataset.from_list([{"prompt": f"{i}?", "answer": str(i)} for i in range(8)])
    trainer, source = skilled(make_trainer, [["a", "b"], ["c", "d"]], rows, size=3, max_steps=4)
    sizes = []
    collect = trainer.collector.collect
    trainer.collector.collect = lambda *a: (collect(*a), sizes.append(dict(source.counts)))[0]
    trainer.train()
    assert [counts["skills_stored"] for counts in sizes] == [2, 3, 3, 3]
    assert [counts["skills_evicted"] for counts in sizes] == [0, 1, 2, 2]
    assert [one.task for one in source.store.skills.values()] == ["5?", "6?", "7?"]


# Runs


def growing(prompts, trainer):
    """Answers that name the step."""
    texts = [f"{text} at {trainer.state.global_step}." for text in ("It is 3", "It is 4")]
    return writing(*[texts] * len(prompts))(prompts, trainer)


def test_refreshed_every_few_steps(make_trainer):
    trainer, source = skilled(make_trainer, rollout_func=growing, refresh_steps=2, max_steps=5)
    trainer.train()
    assert len(source.author.prompts) == 3 * 2
    assert [one.step for one in source.store.skills.values()] == [4, 4]
    assert contexts(trainer.collected)[0] == [SHOWN.format("It is 4 at 4.")]


@pytest.mark.parametrize(("refresh", "steps"), [(3, [0, 4, 8]), (5, [0, 8])])
def test_refreshed_with_generation_batches_of_several_steps(make_trainer, refresh, steps):
    """Batches are sampled at the steps 0, 4 and 8 only."""
    rows = Dataset.from_list([{"prompt": f"{i}?", "answer": "2"} for i in range(16)])
    asked = set()
    author = Author(lambda rollout: (asked.add(rollout.step), SUMMARY.format("x"))[1])
    options = {"steps_per_generation": 4, "refresh_steps": refresh, "max_steps": 9, "rollout_func": growing}
    trainer, _ = skilled(make_trainer, (), rows, author=author, **options)
    trainer.train()
    assert sorted(asked) == steps


def test_evaluations_read_and_leave_the_store_alone(make_trainer):
    evaluation = {"eval_dataset": sums(), "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    trainer, source = skilled(make_trainer, max_steps=1, **evaluation)
    trainer.evaluate()
    assert (source.store.skills, source.refreshed, contexts(trainer.collected)) == ({}, None, [[]] * 4)
    trainer.train()
    before = source.state_dict()
    asked = len(source.author.prompts)
    trainer.evaluate()
    assert contexts(trainer.collected)[0] == [SHOWN.format("It is 2")]
    assert source.state_dict() == before and len(source.author.prompts) == asked
    assert source.counts["skills_written"] == 0 and source.counts["skills_stored"] == 2


def recorded(make_trainer, **options):
    """A trainer that keeps each batch's contexts by step."""
    trainer, source = skilled(
        make_trainer, rollout_func=growing, max_steps=6, save_strategy="steps", save_steps=1, size=3, k=2, **options
    )
    seen = {}
    collect = trainer.collector.collect

    def kept(capture, size, step):
        collected = collect(capture, size, step)
        seen[step] = contexts(collected)
        return collected

    trainer.collector.collect = kept
    return trainer, source, seen


@pytest.mark.parametrize("refresh", [1, 3])
def test_a_resumed_run_has_the_same_store_and_views(make_trainer, tmp_path, refresh):
    whole, expected, views = recorded(make_trainer, refresh_steps=refresh, output_dir=str(tmp_path / "whole"))
    whole.train()
    folder = {"output_dir": str(tmp_path / "killed")}
    killed, _, first = recorded(make_trainer, refresh_steps=refresh, callbacks=[Leaves(4)], **folder)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed, source, rest = recorded(make_trainer, refresh_steps=refresh, **folder)
    resumed.train(resume_from_checkpoint=True)
    assert source.state_dict() == expected.state_dict() and len(source.store.skills) == 2
    assert first.keys() | rest.keys() == views.keys() == set(range(6)) and 3 not in rest
    assert {**first, **rest} == views
    assert all(rest[step] != rest[4] for step in rest if step > 4) == (refresh == 1)


def test_a_store_is_loaded_up_to_its_size():
    source = Skills(author=Author(), size=2)
    source.load_state_dict({"refreshed": 7, "skills": [vars(skill(str(i), step=i)) for i in range(4)]})
    assert source.refreshed == 7 and [one.step for one in source.store.skills.values()] == [2, 3]
