# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Completions that give the context away: what is found, counted, shown and penalised."""

import json
import random
import time
import unicodedata

import pandas
import pytest
import yaml
from datasets import Dataset

import tiny
from agents import DONE, agent_model, agent_tokenizer, call, follow_scripts, multiply
from batches import batch_of
from scripted import right, sums, writing
from trl_opsd import Rollout, View
from trl_opsd.cli import train
from trl_opsd.monitoring.leaks import LEAK_PHRASES, Phrases, find_leaks
from trl_opsd.rewards import leak_penalty, make_leak_penalty
from views import giving


QUOTES, PHRASES = "self_distillation/leak/quotes", "self_distillation/leak/phrases"
CONTEXT = "First one takes the 1, and then one adds the other 1 to it; that makes 2."
EIGHT = "one takes the 1 and then one adds"


def found(make_trainer, context, *texts, prompt=None, **options):
    """What each of two rollouts of a prompt gives away, and the metrics."""
    dataset = sums()
    if prompt is not None:
        dataset = Dataset.from_list([{"prompt": prompt, "answer": "2"}, {"prompt": prompt + "?", "answer": "2"}])
    view = context if isinstance(context, View) else View(context)
    trainer = make_trainer(
        dataset=dataset,
        reward_funcs=right,
        privileged=giving(view),
        rollout_func=writing(list(texts), list(texts)),
        max_completion_length=400,
        **options,
    )
    batch_of(trainer)
    metrics = trainer._metrics["train"]
    return [(leak.quote, leak.phrase) for leak in trainer.collected.leaks[:2]], metrics[QUOTES], metrics[PHRASES]


FRENCH = "la réponse à cette question est évidemment égale à la différence"
HINDI = "उत्तर है: विद्यार्थियों की संख्या बहुत अधिक थी और वे सब आए"
QUOTED = [
    (CONTEXT, f"So: {EIGHT}.", EIGHT),
    (CONTEXT, "ONE -- takes\nthe (1), `and` then one adds!", EIGHT),
    (CONTEXT, CONTEXT, "first one takes the 1 and then one"),
    (CONTEXT, "one takes the 1 and then one", None),
    (CONTEXT, "one takes the 1 and then one, he adds", None),
    ("It makes 2.", "It makes 2.", None),  # a context shorter than a quote
    ("先拿一个苹果再加一个苹果一共两个", "答:再加一个苹果一共", "再 加 一 个 苹 果 一 共"),
    ("先拿一个苹果再加一个苹果一共两个", "答:加一个苹果一共", None),
    (View(CONTEXT, template="In your own words now, and not in these: {privileged_context}"),
     "in your own words now and not in", "in your own words now and not in"),
    (View([{"role": "user", "content": "Q"}, {"role": "assistant", "content": CONTEXT}]), CONTEXT,
     "first one takes the 1 and then one"),
    (View(prompt=[{"role": "user", "content": CONTEXT}]), CONTEXT, "first one takes the 1 and then one"),
    # In another spelling
    (FRENCH, unicodedata.normalize("NFD", FRENCH), "la réponse à cette question est évidemment égale"),
    (CONTEXT, "one _takes_ **the** $1$ and then <b>one</b> adds", EIGHT),
    ("Pay 1,000 euros to each of the ten", "pay 1000 euros to each of the ten", "pay 1000 euros to each of the ten"),
    (HINDI, "मुझे लगता है विद्यार्थियों की जीत", None),  # two words in common
    (HINDI, HINDI, "उत्तर है विद्यार्थियों की संख्या बहुत अधिक थी"),
]  # fmt: skip


@pytest.mark.parametrize(("context", "text", "quote"), QUOTED)
def test_quotes(make_trainer, context, text, quote):
    leaks, quotes, phrases = found(make_trainer, context, text, "nothing of it")
    assert leaks == [(quote, None), (None, None)]
    assert quotes == [0.5 if quote else 0.0] and phrases == [0.0]


@pytest.mark.parametrize(("n", "quote"), [(0, None), (4, "one takes the 1"), (1, "one"), (9, None)])
def test_the_length_of_a_quote(make_trainer, n, quote):
    leaks, *_ = found(make_trainer, CONTEXT, EIGHT, "-", leak_ngram_size=n)
    assert leaks == [(quote, None), (None, None)]


def test_what_the_student_has_read_is_no_quote(make_trainer):
    """The context repeats the problem, and so may the answer."""
    prompt = f"Explain why {EIGHT} in this."
    leaks, quotes, _ = found(make_trainer, f"{prompt} It is simply what adding means here.", EIGHT, "-", prompt=prompt)
    assert leaks == [(None, None)] * 2 and quotes == [0.0]
    longer = f"{EIGHT} in this. It is simply"
    leaks, *_ = found(make_trainer, f"{prompt} It is simply what adding means here.", longer, "-", prompt=prompt)
    assert leaks == [("1 and then one adds in this it", None), (None, None)]


SPOKEN = [
    ("As the hint says, 2.", "hint"),
    ("HINT", "hint"),
    ("The solution\nabove: 2", "solution above"),
    ("By the (provided) solution!", "provided solution"),
    ("hinting, preference, secretly", None),
    ("These Hints, and references.", "hints"),
    ("the above solution", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "phrase"), SPOKEN)
def test_phrases(make_trainer, text, phrase):
    leaks, quotes, phrases = found(make_trainer, "2", text, "two")
    assert leaks == [(None, phrase), (None, None)]
    assert phrases == [0.5 if phrase else 0.0] and quotes == [0.0]


def test_phrases_of_ones_own(make_trainer):
    options = {"leak_phrases": ["the notes", "答案是"]}
    leaks, *_ = found(make_trainer, "2", "By The Notes: a hint", "所以答案是2", **options)
    assert leaks == [(None, "the notes"), (None, "答 案 是")]
    leaks, *_ = found(make_trainer, "2", "By rule 3.50.", "By rule 315.", leak_phrases=["rule 3.5"])
    assert leaks == [(None, "rule 3.5"), (None, None)]
    leaks, *_ = found(make_trainer, "2", "By the notes: a hint", "2", leak_phrases=[])
    assert leaks == [(None, None)] * 2


def test_phrases_of_the_prompt_do_not_count(make_trainer):
    leaks, *_ = found(make_trainer, "2", "The hint is a secret.", "A hint.", prompt="Which hint is it?")
    assert leaks == [(None, "secret"), (None, None)]


def test_a_rollout_without_a_view_quotes_nothing_but_may_speak(make_trainer):
    trainer = make_trainer(
        dataset=sums(privileged_context=[CONTEXT, None]),
        reward_funcs=right,
        rollout_func=writing([CONTEXT, "hint"], [CONTEXT, "hint"]),
        max_completion_length=400,
    )
    batch_of(trainer)
    rows = [rollout.row["privileged_context"] for rollout in trainer.collected.rollouts]
    leaks = dict(zip(zip(rows, [0, 1] * 2, strict=True), trainer.collected.leaks, strict=True))
    assert leaks[CONTEXT, 0].quote and leaks[None, 0].quote is None
    assert leaks[CONTEXT, 1].phrase == leaks[None, 1].phrase == "hint"


def test_what_an_agent_writes_and_reads(make_trainer):
    """Arguments of tool calls are written, results of tools are read."""
    scripts = [
        [call(a=CONTEXT, b="x"), DONE],  # the argument is quoted
        [call("hint", a=1, b=2), "Tool hint not found, it said, so what, for all I know.<|im_end|>"],
    ]
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": "Go."}]}] * 4)
    views = {0: CONTEXT, 1: "Tool hint not found, it said, so what, for all I know."}
    trainer = make_trainer(
        agent_model(), tools=[multiply], processing_class=agent_tokenizer(), dataset=dataset,
        privileged=lambda groups: [[View(views[one.index % 2])] for group in groups for one in group],
        max_completion_length=600, max_tool_calling_iterations=2, per_device_train_batch_size=2,
    )  # fmt: skip
    follow_scripts(trainer, scripts)
    batch_of(trainer)
    first, second = trainer.collected.leaks
    assert first.quote == "first one takes the 1 and then one"
    assert second.quote == "tool hint not found it said so what"
    # The tool loop tells the student that there is no tool `hint`: from then on it has read the word
    assert "hint" in str(trainer.collected.rollouts[1].turns[0].results) and second.phrase is None


def test_examples_in_the_table_and_in_the_files(make_trainer, tmp_path):
    trainer = make_trainer(
        dataset=sums(privileged_context=[CONTEXT] * 2),
        reward_funcs=right,
        rollout_func=writing(["a hint: " + EIGHT, "2"], ["a hint: " + EIGHT, "2"]),
        eval_dataset=sums(privileged_context=[CONTEXT] * 2),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        max_completion_length=400,
        max_steps=1,
        log_completions=True,
        log_privileged_context=True,
        num_completions_to_print=0,
    )
    trainer.train()
    told = f"quote: {EIGHT}; phrase: hint"
    table = pandas.read_parquet(tmp_path / "out" / "completions" / "completions_00001.parquet")
    assert table["leak"].fillna("").tolist() == [told, ""] * 2
    for mode in ("train-000000", "eval-000001"):
        lines = (tmp_path / "out" / "_privileged" / f"{mode}-0.jsonl").read_text().splitlines()
        assert [json.loads(line)["leak"] for line in lines] == [told, None] * 2
    train, evaluation = trainer.state.log_history[:2]
    assert train[QUOTES] == train[PHRASES] == evaluation[f"eval_{QUOTES}"] == evaluation[f"eval_{PHRASES}"] == 0.5


def test_it_costs_little():
    """256 rollouts of 2,000 tokens, each with a context of its own."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 8))) for _ in range(5000)]
    text = lambda count: " ".join(draw.choices(vocabulary, k=count))  # noqa: E731

    rest = [], [], [], {}, 0.0, False, {}, 0, 0, 0, False, True
    rollouts = [Rollout({}, text(100), text(1500), *rest) for _ in range(256)]
    views = [[View(text(1500))] for _ in range(256)]
    begin = time.process_time()
    find_leaks(rollouts, views, 8, Phrases(LEAK_PHRASES))
    assert time.process_time() - begin < 3  # half a second on two shared cores


# The penalty


def test_the_penalty_of_a_real_batch(make_trainer):
    texts = ["2, as the hint says. A good hint, this reference.", "2"]
    trainer = make_trainer(
        dataset=sums(privileged_context=["x"] * 2),
        reward_funcs=[right, leak_penalty],
        rollout_func=writing(texts, texts),
        max_completion_length=400,
    )
    batch_of(trainer)
    rewards = [rollout.rewards["leak_penalty"] for rollout in trainer.collected.rollouts]
    assert rewards == pytest.approx([-0.3, 0.0] * 2)
    assert [rollout.rewards["right"] for rollout in trainer.collected.rollouts].count(1.0) == 1


def test_penalties_of_ones_own():
    mine = make_leak_penalty(["the notes"], penalty=0.5)
    prompts = ["Q", "Read the notes.", [{"role": "user", "content": "Q"}]]
    completions = ["The notes say: the notes.", "the notes", [{"role": "assistant", "content": "hint; the notes"}]]
    assert mine(prompts=prompts, completions=completions, answer=[1, 2, 3]) == [-1.0, 0.0, -0.5]
    assert mine.__name__ == "leak_penalty"
    with pytest.raises(ValueError, match=r"text with a word in it, got '\.'"):
        make_leak_penalty(["."])
    for penalty in (-0.1, float("nan"), "0.1"):
        with pytest.raises(ValueError, match="`penalty` must be a finite number of at least 0"):
            make_leak_penalty(penalty=penalty)


def test_the_penalty_in_a_recipe(tmp_path, tokenizer):
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path), "bf16": False,
        "output_dir": str(tmp_path / "out"), "reward_funcs": ["trl_opsd.rewards.leak_penalty"], "num_generations": 2,
        "per_device_train_batch_size": 4, "report_to": "none", "gradient_checkpointing": False,
        "max_completion_length": 8,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    script_args, args, model_args, _ = train.parse(["--config", str(tmp_path / "recipe.yaml")])
    dataset = {"train": sums(privileged_context=["x"] * 2)}
    trainer = train.build_trainer(script_args, args, model_args, dataset)
    assert trainer.reward_funcs == [leak_penalty] and trainer.reward_func_names == ["leak_penalty"]
