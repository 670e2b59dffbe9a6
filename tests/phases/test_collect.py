# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rows for fine-tuning: exact ids and masks, filters, and the loss that TRL's SFTTrainer makes of them."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, load_dataset
from trl import SFTConfig, SFTTrainer

import tiny
from agents import agent_model, agent_tokenizer_with_schema, multiply, with_scripted_sampler
from conftest import length_reward
from runs import assert_same_run, move
from scripted import right, sums, writing
from trl_opsd import View
from trl_opsd.phases.collect import collect
from trl_opsd.phases.keep import Keep
from trl_opsd.phases.samples import LAYOUTS, Sample
from trl_opsd.privileged import rollouts_of


TEXTS = ["2", "so 2", "3", "2"], ["5", "7", "7", "x"]
END = "<|im_end|>"


@pytest.fixture
def scripted(make_trainer):
    """Four answers each to "1 + 1?" and "2 + 3?", with rewards. The first two and the last of the first are right."""

    def make(**options):
        given = {"reward_funcs": right, "num_generations": 4, "per_device_train_batch_size": 8}
        return make_trainer(
            dataset=sums(privileged_context=["1 + 1 = 2", "2 + 3 = 5"]),
            rollout_func=writing(*TEXTS),
            max_completion_length=20,
            **{**given, **options},
        )

    return make


def saying(trainer, monkeypatch, *texts):
    """Let the reader of a view write these texts in turn, and keep what it reads."""
    read, tokenizer = [], trainer.processing_class

    def answers(ids, weights, temperature=None, pixels=()):
        first = len(read)
        read.extend(ids)
        return [tokenizer(texts[(first + i) % len(texts)])["input_ids"] for i in range(len(ids))]

    monkeypatch.setattr(trainer.text_generator, "answers", answers)
    return read


def trained(row):
    """Token ids that a row trains."""
    return [token for token, kept in zip(row["input_ids"], row["completion_mask"], strict=True) if kept]


def student_prompt(tokenizer, task):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": task}], tokenize=False, add_generation_prompt=True
    )


def prefilled(text):
    """A source whose view begins the answer with the student's own text and a phrase."""
    return lambda groups: [[View(f"{one.text} {text} ", place="prefill")] for one in rollouts_of(groups)]


def test_answers_are_the_rollouts_token_by_token(scripted, tokenizer):
    rows = collect(scripted()).rows["answer"]
    texts = Counter((task, text) for task, own in zip(("1 + 1?", "2 + 3?"), TEXTS, strict=True) for text in own)
    assert Counter(tokenizer.decode(row["input_ids"]) for row in rows) == Counter(
        {student_prompt(tokenizer, task) + text + END: count for (task, text), count in texts.items()}
    )
    for row in rows:
        assert tokenizer.decode(row["input_ids"]) == row["prompt"] + row["completion"]
        assert tokenizer.decode(trained(row)) == row["completion"] and row["completion"].endswith(END)
        task = row["prompt"].split("user\n")[1].split("<")[0]
        wanted = {"1 + 1?": "2", "2 + 3?": "5"}[task]
        assert row["reward"] == row["reward/right"] == float(row["completion"].removesuffix(END).endswith(wanted))


@pytest.mark.parametrize("place", ["system", "prefill"])
def test_layouts_of_an_answer_with_the_context_in_view(scripted, tokenizer, monkeypatch, place):
    source = {"column": {"column": "privileged_context", "place": place}}
    trainer = scripted(privileged_source=source)
    read = saying(trainer, monkeypatch, f"it is 2{END}", f"it is 5{END}")
    layouts = ["distil", "revision", *(["generation"] if place == "prefill" else [])]
    rows = collect(trainer, layouts=layouts).rows
    assert [len(rows[layout]) for layout in layouts] == [8] * len(layouts)
    for i, ids in enumerate(read):
        written = tokenizer((f"it is 2{END}", f"it is 5{END}")[i % 2])["input_ids"]
        assert ("1 + 1 = 2" in tokenizer.decode(ids)) != ("2 + 3 = 5" in tokenizer.decode(ids)), "the context is read"
        task = "1 + 1?" if "1 + 1?" in tokenizer.decode(ids) else "2 + 3?"
        bare = tokenizer(student_prompt(tokenizer, task))["input_ids"]
        revision, distil = rows["revision"][i], rows["distil"][i]
        assert revision["input_ids"] == ids + written and trained(revision) == written
        assert distil["input_ids"] == bare + written and trained(distil) == written
        if place == "prefill":
            whole = rows["generation"][i]
            assert whole["input_ids"] == ids + written and trained(whole) == (ids + written)[len(bare) :]
        # The reward is that of what was written, and the attempt's own stands beside it
        assert revision["reward"] == float((task == "1 + 1?") == (i % 2 == 0)) and revision["view"] == "privileged"
        assert revision["attempt_reward"] == trainer_reward(task, i)


def trainer_reward(task, i):
    wanted, texts = ("2", TEXTS[0]) if task == "1 + 1?" else ("5", TEXTS[1])
    return float(texts[i % 4].endswith(wanted))


def test_a_context_in_the_prompt_is_no_part_of_a_generation(scripted, monkeypatch):
    trainer = scripted()
    saying(trainer, monkeypatch, f"it is 2{END}")
    with pytest.raises(ValueError, match=r"the view .privileged. changes the prompt itself.*.prefill."):
        collect(trainer, layouts=["generation"])


def test_conditions(scripted):
    kept = collect(scripted(), keep=["unique", "succeeded"])
    assert Counter(row["completion"] for row in kept.rows["answer"]) == {f"2{END}": 1, f"so 2{END}": 1, f"5{END}": 1}
    assert kept.left_out["answer"] == {"succeeded": 4, "unique": 1} and kept.sampled["answer"] == 8
    assert "3 of 8 samples are kept (4 not succeeded, 1 not unique)" in str(kept)
    low = collect(scripted(), keep=[{"reward_from": {"value": 0.5}}, "above_group_mean"])
    assert len(low.rows["answer"]) == 4, "conditions of a group see the whole group"


def test_no_leak_and_not_truncated(scripted, monkeypatch):
    """A text that repeats eight words of the context, and one without an end."""
    context = "one two three four five six seven eight nine"
    source = {"fixed": {"context": context, "place": "system"}}
    texts = f"one two three four five six seven eight{END}", "2", f"2{END}", f"so 2{END}"
    for keep, wanted in ((["no_leak"], 6), (["not_truncated"], 6), (["no_leak", "not_truncated"], 4)):
        trainer = scripted(privileged_source=source)
        saying(trainer, monkeypatch, *texts)
        kept = collect(trainer, layouts=["revision"], keep=keep)
        assert len(kept.rows["revision"]) == wanted
    assert kept.left_out["revision"] == {"no_leak": 2, "not_truncated": 2}


def test_only_rollouts_with_a_view_are_answered(scripted, monkeypatch):
    trainer = scripted(privileged_source={"when": {"condition": "failed", "source": "column"}})
    saying(trainer, monkeypatch, f"it is 2{END}")
    found = collect(trainer, layouts=["answer", "revision"])
    assert (len(found.rows["answer"]), len(found.rows["revision"]), found.without_view) == (8, 4, 4)
    assert all(row["attempt_reward"] == 0.0 for row in found.rows["revision"])


def test_one_view_of_several(scripted, monkeypatch):
    source = {"all_of": [{"column": {"name": "mine"}}, {"fixed": {"context": "Think.", "name": "other"}}]}
    with pytest.raises(ValueError, match=r"the views \['mine', 'other'\]: name one of them with `collect_view`"):
        collect(scripted(privileged_source=source), layouts=["distil"])
    trainer = scripted(privileged_source=source)
    read = saying(trainer, monkeypatch, f"it is 2{END}")
    collect(trainer, layouts=["distil"], view="other")
    assert all("Think." in trainer.processing_class.decode(ids) for ids in read)
    with pytest.raises(ValueError, match=r"No rollout of 2 prompts has the view 'third' \(`collect_view`\)"):
        collect(scripted(privileged_source=source), layouts=["distil"], view="third")


# Which rows are drawn


def test_every_row_once_and_several_epochs(make_trainer):
    """A last batch is filled up and its filling left out; sixteen rows in batches of six."""
    trainer = make_trainer(per_device_train_batch_size=6)
    numbers = Counter(row["prompt"] for row in collect(trainer).rows["answer"])
    assert len(numbers) == 16 and set(numbers.values()) == {1}
    more = collect(trainer, 20).rows["answer"]
    assert sorted(Counter(row["prompt"] for row in more).values()) == [1] * 12 + [2] * 4
    assert sorted(row["prompt_number"] for row in more) == list(range(20))
    assert json.dumps(more) == json.dumps(collect(trainer, 20).rows["answer"]), (
        "the same again: the trainer was left as it was"
    )


def test_a_run_is_the_same_after_it(make_trainer):
    """Weights, random numbers and metrics of a training are those without a collection before it."""
    plain = make_trainer()
    plain.train()
    collected = make_trainer()
    collect(collected, 8, layouts=["answer", "distil"])
    collected.train()
    assert_same_run(plain, collected)


def test_who_reads_the_context(make_trainer):
    """The reader of a view answers: the frozen teacher, or the student as it is by now."""
    rows = {}
    for reader in ("teacher", "live"):
        trainer = make_trainer(privileged_source={"column": {"reader": reader}}, temperature=0.01)
        move(trainer.model, 1.0)
        rows[reader] = collect(trainer, 4, layouts=["distil"], keep=["unique"]).rows["distil"]
    assert rows["teacher"] != rows["live"]


def test_results_of_tools_are_not_trained(make_trainer, monkeypatch):
    """In rollouts, and in answers under a view, whose reader calls tools too."""
    tokenizer = agent_tokenizer_with_schema()
    rows = [{"prompt": [{"role": "user", "content": "3 times 4?"}], "privileged_context": "Twelve."}] * 4
    trainer = make_trainer(
        agent_model(), Dataset.from_list(rows), processing_class=tokenizer, tools=[multiply], max_completion_length=400
    )
    with_scripted_sampler(trainer, "multiply")
    call = tokenizer('<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>')
    done = tokenizer("It is 12.<|im_end|>")["input_ids"]

    def answers(ids, *_):
        return [done if "<tool_response>" in tokenizer.decode(one) else call["input_ids"] for one in ids]

    monkeypatch.setattr(trainer.text_generator, "answers", answers)
    found = collect(trainer, 4, layouts=["answer", "distil"]).rows
    for row in (*found["answer"], *found["distil"]):
        assert tokenizer.decode(trained(row)) == tokenizer.decode(call["input_ids"]) + "It is 12.<|im_end|>"
        assert "<tool_response>\n12" in tokenizer.decode(row["input_ids"])


# Files, and what SFTTrainer makes of them


@pytest.fixture
def folder(scripted, monkeypatch, tmp_path):
    trainer = scripted(privileged=prefilled("or rather"))
    saying(trainer, monkeypatch, f"it is 2{END}", f"5{END}")
    collect(trainer, layouts=["revision", "generation"]).write(tmp_path / "data")
    return tmp_path / "data"


def test_the_loss_is_cross_entropy_of_exactly_the_masked_tokens(folder, tokenizer, tmp_path):
    """By `load_dataset` as `trl sft` does, without an option that says what is masked; float64 reference."""
    data = load_dataset(str(folder))["train"]
    assert Counter(data["layout"]) == {"generation": 8, "revision": 8}
    config = SFTConfig(str(tmp_path / "sft"), bf16=False, report_to="none", gradient_checkpointing=False)
    config.shuffle_dataset = False
    model = tiny.model(tokenizer)
    reference = tiny.model(tokenizer).double()
    sft = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
    assert len(sft.train_dataset) == len(data)
    for given, row in zip(sft.train_dataset, data, strict=True):
        ids = torch.tensor([row["input_ids"]])
        logps = reference(input_ids=ids).logits[0].log_softmax(-1)
        terms = [-logps[i - 1, ids[0, i]] for i, kept in enumerate(row["completion_mask"]) if kept]
        wanted = torch.stack(terms).mean()
        loss = sft.compute_loss(sft.model, sft.data_collator([given]))
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
        model.zero_grad(), reference.zero_grad()
        loss.backward(), wanted.backward()
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-5)


def test_one_layout_alone(folder):
    data = load_dataset(str(folder / "_collected" / "revision"))["train"]
    assert set(data["layout"]) == {"revision"}


def test_rows_are_not_overwritten_and_not_pushed(folder, scripted, monkeypatch):
    (files,) = folder.iterdir()
    assert files.name.startswith("_"), "transformers pushes a folder without what begins so"
    with pytest.raises(ValueError, match="`output_dir` has rows already"):
        collect(scripted()).write(folder)
    assert all(json.loads(line) for line in (files / "revision" / "train.jsonl").read_text().splitlines())


# Mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "`collect_rows` must be at least 1"),
        ({"layouts": ["answers"]}, "`collect_layout` is 'answers' (did you mean `answer`?)"),
        ({"layouts": []}, "`collect_layout` is empty"),
        ({"keep": ["suceeded"]}, "`collect_keep`: there is no 'suceeded' (did you mean `succeeded`?)"),
        ({"keep": ["succeeded"]}, "`collect_keep`: succeeded"),
        ({"keep": ["consensus"]}, "`num_generations=1` gives none"),
        ({"keep": [{"reward_from": {"vale": 1}}]}, "collect_keep"),
        ({"keep": [{"probability": {"p": 0.0}}]}, "Nothing is kept of 16 samples for the layout 'answer'"),
    ],
)
def test_mistakes(make_trainer, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        collect(make_trainer(), **options)


def test_a_run_that_does_not_distil(make_trainer):
    with pytest.raises(ValueError, match="`distillation_weight: 0`"):
        collect(make_trainer(distillation_weight=0.0, reward_funcs=length_reward))


def test_contexts_within_a_rollout(make_trainer):
    source = lambda groups: [[View("Hm.", place="before_token", position=1)] for _ in rollouts_of(groups)]  # noqa: E731
    with pytest.raises(ValueError, match="stands within the rollouts"):
        collect(make_trainer(privileged=source), layouts=["revision"])


def test_a_filter_counts_the_first_condition_that_fails():
    rollout = SimpleNamespace(group=0, completion_ids=[1], prompt_ids=[2], truncated=True)
    sample = Sample(rollout, [2], SimpleNamespace(shown="quote: x"), 0)
    keep = Keep(["not_truncated", "no_leak"], "answer", False, 1)
    assert keep([sample]) == [] and keep.left_out == {"not_truncated": 1}
    assert set(LAYOUTS) == {"answer", "distil", "revision", "generation"}
