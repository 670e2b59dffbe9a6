# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Reflection: wrong rollouts are taught from the quoted error on, by its explanation."""

from pathlib import Path

import pytest
import yaml

from batches import batch_of, completions, taught_by_rollout, teacher_reads
from dense import check_scores
from scripted import right, saying, sums, tool_answers, writing
from trl_opsd.privileged import AllOf, Reflection, build_source
from trl_opsd.privileged.authors.written_source import tagged
from trl_opsd.privileged.sources import reflection, skills


TAGS = {"reflection": reflection.TAGS, "skills": skills.TAGS}
OPTIONS = {
    "reward_funcs": right, "num_generations": 2, "policy_weight": 0.0, "shuffle_dataset": False,
    "max_completion_length": 200,
}  # fmt: skip
ONE_WRONG = ["I add. 1 + 1 = 3", "It is 2"], ["It is 5", "2 + 3 = 5"]
BOTH = ["It is 2", "It is 3"], ["2 + 3 = 5", "Hm, 2 + 3 = 6"]


def reflected(make_trainer, answers, text="Quote: x\nExplanation: y", dataset=None, **options):
    """A batch of rollouts with these texts, and views from a reflector that says `text`."""
    own = {name: options.pop(name) for name in list(options) if name in Reflection.__dataclass_fields__}
    source = Reflection(author=text if callable(text) else saying(text), **own)
    given = {**OPTIONS, "rollout_func": writing(*answers), **options}
    trainer = make_trainer(dataset=dataset or sums(), privileged=source, **given)
    batch = batch_of(trainer)
    return trainer, batch, source


def test_the_suffix_from_the_quote_on_is_taught(make_trainer, tokenizer):
    text = "Quote: 1 + 1 = 3\nExplanation: One and one\nmake two."
    trainer, batch, source = reflected(make_trainer, ONE_WRONG, text)
    assert taught_by_rollout(trainer, batch) == ["1 + 1 = 3<|im_end|>", "", "", ""]
    (prompt,) = [tokenizer.decode(ids) for ids in teacher_reads(batch)]
    context = "Correct solution:\nIt is 2\n\nReflection: One and one\nmake two."
    assert prompt == f"<|im_start|>user\n1 + 1?\n\n{context}<|im_end|>\n<|im_start|>assistant\n"
    assert source.counts == {"reflection_asked": 1, "reflection_malformed": 0, "reflection_unmatched": 0}
    assert trainer._metrics["train"]["self_distillation/view_share"] == [0.25]


def test_words_before_the_quote_itself(make_trainer, tokenizer):
    """Between the student's own tokens; a right answer is taught by the solution in the prompt, as always."""
    text = "Quote: 1 + 1 = 3\nExplanation: It is two."
    options = {"place": "before_token", "with_solution": False, "template": "({privileged_context}) "}
    trainer, batch, _ = reflected(make_trainer, ONE_WRONG, text, **options)
    assert taught_by_rollout(trainer, batch)[0] == "1 + 1 = 3<|im_end|>"
    own = trainer.collected.rollouts[0].text.index("1 + 1 = 3")
    (view,) = trainer.collected.views[0]
    assert (view.place, view.position, view.span) == ("before_token", own, None)
    (read,) = [tokenizer.decode(ids) for ids in teacher_reads(batch)]
    assert read.endswith(trainer.collected.rollouts[0].text[:own] + "(Reflection: It is two.) ")
    trainer, _, _ = reflected(make_trainer, ONE_WRONG, text, **{**options, "place": "before_turn"})
    (view,) = trainer.collected.views[0]
    assert (view.place, view.position) == ("before_turn", 0)


def test_scores_of_the_suffix(make_trainer):
    answers = ["It is 3", "Oh, it is 3."], ["is 3", "So it is 3 "]
    options = {"failed_groups": True, "distillation_mode": "sampled_token", "distillation_alpha": 1.0}
    trainer, batch, _ = reflected(make_trainer, answers, "Quote: is 3\nExplanation: No.", **options)
    assert taught_by_rollout(trainer, batch) == [f"is 3{end}<|im_end|>" for end in ("", ".", "", " ")]
    check_scores(trainer, batch)


def test_what_the_reflector_reads(make_trainer, tokenizer):
    author = saying("Quote: x\nExplanation: y")
    reflected(make_trainer, ONE_WRONG, author)
    ((*shots, request),) = author.prompts
    assert [message["role"] for message in shots] == ["user", "assistant"]
    assert shots[0]["content"].startswith("You read a problem and a wrong solution.")
    asked = "Problem:\n1 + 1?\n\nCorrect solution:\nIt is 2\n\nWrong solution:\nI add. 1 + 1 = 3"
    assert request == {"role": "user", "content": asked}
    assert [tokenizer.decode(one.completion_ids) for one in author.rollouts] == ["I add. 1 + 1 = 3<|im_end|>"]


def test_whose_thoughts_are_read(make_trainer):
    """The wrong rollout is judged with its thoughts, the right one is shown without, the reflector's own are cut."""
    wrong = "<think>1 + 1 = 3</think>It is 3"
    answers = [wrong, "<think>One", "<think>Two fingers.</think>It is 2"], ["It is 5"] * 3
    text = "<think>Quote: no.</think>Quote: <think>1 + 1 =\nExplanation: It <think>hm</think>is two."
    author = saying(text)
    rewards = lambda completions, **_: [float(c[0]["content"] not in (wrong, "<think>One")) for c in completions]  # noqa: E731
    trainer, batch, source = reflected(make_trainer, answers, author, num_generations=3, reward_funcs=rewards,
                                       per_device_train_batch_size=6)  # fmt: skip
    asked = author.prompts[0][-1]["content"]
    assert asked.endswith(f"Correct solution:\nIt is 2\n\nWrong solution:\n{wrong}")
    assert trainer.collected.views[0][0].context == "Correct solution:\nIt is 2\n\nReflection: It is two."
    assert taught_by_rollout(trainer, batch)[0] == f"{wrong}<|im_end|>"
    assert source.counts == {"reflection_asked": 2, "reflection_malformed": 0, "reflection_unmatched": 1}


def test_a_solution_that_is_all_thought_is_none(make_trainer):
    author = saying("Quote: 3\nExplanation: No.")
    right_thought = lambda completions, **_: [float(c[0]["content"] != "3") for c in completions]  # noqa: E731
    answers = ["3", "<think>Two"], ["It is 5"] * 2
    trainer, _, _ = reflected(make_trainer, answers, author, reward_funcs=right_thought)
    assert author.prompts[0][-1]["content"] == "Problem:\n1 + 1?\n\nWrong solution:\n3"
    assert [view.context for view in trainer.collected.views[0]] == ["Reflection: No."]


def test_prompts_that_are_text(make_trainer):
    author = saying("Quote: 1 + 1 = 3\nExplanation: It is 2.")
    dataset = sums().map(lambda row: {"prompt": row["prompt"][0]["content"]})
    trainer, batch, _ = reflected(make_trainer, ONE_WRONG, author, dataset, instruction="Do.", examples=[])
    (asked,) = author.prompts
    assert asked == ("Do.\n\nProblem:\n1 + 1?\n\nCorrect solution:\nIt is 2\n\nWrong solution:\nI add. 1 + 1 = 3\n\n")
    assert taught_by_rollout(trainer, batch)[0] == "1 + 1 = 3<|im_end|>"


QUOTES = [
    ("1+1=3", 0.8, "1 + 1 = 3<|im_end|>"),
    ('"1 + 1 = 3"', 1.0, "1 + 1 = 3<|im_end|>"),
    ("I  add", 1.0, "I add. 1 + 1 = 3<|im_end|>"),
    ("I added.", 0.7, "I add. 1 + 1 = 3<|im_end|>"),
    ("I added.", 0.8, None),
    ("i add.", 1.0, None),
    ("It is 2", 0.8, None),
    ('""', 0.0, None),
]


@pytest.mark.parametrize(("quote", "threshold", "expected"), QUOTES)
def test_quotes(make_trainer, quote, threshold, expected):
    text = f"Quote: {quote}\nExplanation: No."
    trainer, batch, source = reflected(make_trainer, ONE_WRONG, text, threshold=threshold)
    assert taught_by_rollout(trainer, batch)[0] == (expected or "")
    assert source.counts["reflection_unmatched"] == (expected is None)
    assert source.counts["reflection_malformed"] == 0


MALFORMED = [
    "",
    "I add.",
    "Quote: I add.",
    "Quote: I add.\nExplanation:",
    "Quote:\nExplanation: No.",
    "Explanation: No.\nQuote: I add.",
    "Sure! Quote: I add.\nExplanation: No.",
    "Sure!\nQuote: I add.\nExplanation: No.",
    "Quote: I add. Explanation: No.",
    "Quote: I add.\nExplanation: No.\nExplanation: Yes.",
    "quote: I add.\nexplanation: No.",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_answers_give_no_view(make_trainer, text):
    _, batch, source = reflected(make_trainer, ONE_WRONG, text)
    assert not batch["distillation"].views["privileged"].weight.any()
    assert source.counts == {"reflection_asked": 1, "reflection_malformed": 1, "reflection_unmatched": 0}


# Which rollouts


WRONG = "Quote: It is 3\nExplanation: No."
NONE = ["It is 3", "It is 3"], ["I say 6", "It is 3"]
ALL = ["It is 2", "or 2"], ["It is 5", "or 5"]
FLAGS = [
    (BOTH, {}, ["", "It is 3<|im_end|>", "", ""], 2),
    (BOTH, {"reference": "solution"}, ["It is 2<|im_end|>", "It is 3<|im_end|>", "2 + 3 = 5<|im_end|>", ""], 2),
    (BOTH, {"reference": "solution", "teach_correct": False}, ["", "It is 3<|im_end|>", "", ""], 2),
    (NONE, {}, [""] * 4, 0),
    (NONE, {"failed_groups": True}, ["It is 3<|im_end|>", "It is 3<|im_end|>", "", "It is 3<|im_end|>"], 4),
    (ALL, {}, [""] * 4, 0),
    (ALL, {"solved_groups": True}, [f"{text}<|im_end|>" for text in ("It is 2", "or 2", "It is 5", "or 5")], 0),
    (ALL, {"solved_groups": True, "teach_correct": False}, [""] * 4, 0),
    ((["", "It is 2"], ["It is 5", "It is 5"]), {}, [""] * 4, 1),
]


@pytest.mark.parametrize(("answers", "flags", "expected", "asked"), FLAGS)
def test_which_rollouts_are_taught(make_trainer, answers, flags, expected, asked):
    dataset = sums(solution=["One and one are 2.", "Two and three are 5."])
    trainer, batch, source = reflected(make_trainer, answers, WRONG, dataset, **flags)
    assert taught_by_rollout(trainer, batch) == expected
    assert source.counts["reflection_asked"] == asked


CONTEXTS = [
    (BOTH, {}, "Correct solution:\nIt is 2\n\nReflection: No."),
    (BOTH, {"with_solution": False}, "Reflection: No."),
    (BOTH, {"reference": "solution"}, "Correct solution:\nTwo.\n\nReflection: No."),
    (NONE, {"failed_groups": True}, "Reflection: No."),
    (NONE, {"failed_groups": True, "reference": "solution"}, "Correct solution:\nTwo.\n\nReflection: No."),
    (ALL, {"solved_groups": True}, "Correct solution:\nIt is 2"),
]


@pytest.mark.parametrize(("answers", "options", "expected"), CONTEXTS)
def test_contexts(make_trainer, answers, options, expected):
    dataset = sums(solution=["Two.", "Five."])
    trainer, _, source = reflected(make_trainer, answers, WRONG, dataset, **options)
    (view,) = trainer.collected.views[1]
    assert view.context == expected
    requests = [prompt[-1]["content"] for prompt in source.author.prompts]
    told = answers is not NONE or "reference" in options
    assert [("Correct solution:" in text) for text in requests] == [told] * len(requests)


def test_a_row_without_a_reference(make_trainer):
    options = {"reference": "solution", "failed_groups": True}
    trainer, _, _ = reflected(make_trainer, BOTH, WRONG, sums(solution=[None, "Five."]), **options)
    contexts = [[view.context for view in views] for views in trainer.collected.views]
    assert contexts == [[], ["Reflection: No."], ["Correct solution:\nFive."], []]


def test_rollouts_without_a_reward(make_trainer):
    def silent(completions, **kwargs):
        return [None if i == 1 else value for i, value in enumerate(right(completions, **kwargs))]

    author = saying(WRONG)
    trainer, _, source = reflected(make_trainer, BOTH, author, reward_funcs=silent)
    assert source.counts["reflection_asked"] == 1 and author.rollouts[0].group == 1
    assert [len(views) for views in trainer.collected.views] == [0] * 4


def test_only_wanted_rollouts_are_reflected_on(make_trainer):
    source = build_source({"when": {"condition": {"probability": 0.0}, "source": {"reflection": {}}}})
    make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*BOTH), max_steps=1).train()
    assert source.parts[0].counts["reflection_asked"] == 0


def test_the_students_own_turns_only(make_trainer, tokenizer):
    """A quote of a tool's result is none; one of the last turn begins there."""
    for quote, expected in (("no such key", ""), ("sorry!", "sorry!<|im_end|>"), ("all it", "all it<|im_end|>")):
        text = f"Quote: {quote}\nExplanation: No."
        options = {"failed_groups": True, "rollout_func": tool_answers}
        _, batch, _ = reflected(make_trainer, (), text, **options)
        own = batch["distillation"].mask.bool()
        texts = {
            tokenizer.decode([i for i, kept in zip(ids, row, strict=False) if kept])
            for ids, row in zip(completions(batch), own, strict=True)
        }
        assert texts == {expected + "sorry!<|im_end|>" * (quote == "all it")}


# Authors


@pytest.mark.parametrize("weights", ["live", "teacher"])
def test_the_model_reflects(make_trainer, tokenizer, weights, monkeypatch):
    """A random model writes nothing of the form: it was asked, and no view came of it."""
    source = Reflection(author=weights, max_new_tokens=5, examples=[])
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*BOTH))
    read, generate = [], trainer.model.generate

    def recorded(**kwargs):
        read.extend(tokenizer.batch_decode(kwargs["input_ids"], skip_special_tokens=True))
        output = generate(**kwargs)
        assert output.shape[1] <= kwargs["input_ids"].shape[1] + 5
        return output

    monkeypatch.setattr(trainer.model, "generate", recorded)
    batch = batch_of(trainer)
    assert len(read) == 2 and "Wrong solution:\nIt is 3" in read[0] and "Wrong solution:\nHm, 2 + 3 = 6" in read[1]
    assert source.counts == {"reflection_asked": 2, "reflection_malformed": 2, "reflection_unmatched": 0}
    assert not batch["distillation"].views["privileged"].weight.any()
    assert source.uses_model


def author_of_a_recipe(prompts, rollouts):
    return [WRONG] * len(prompts)


def test_an_author_by_name(make_trainer):
    source = build_source({"reflection": {"author": "test_reflection.author_of_a_recipe"}})
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*BOTH))
    batch = batch_of(trainer)
    assert taught_by_rollout(trainer, batch) == ["", "It is 3<|im_end|>", "", ""]
    assert not source.uses_model


ANSWERS = [(["a"], "one text for each of the 2"), ([None, "a"], "got \\[None, 'a'\\]"), ("ab", "got 'ab'")]


@pytest.mark.parametrize(("answer", "text"), ANSWERS)
def test_an_author_that_returns_something_else(make_trainer, answer, text):
    with pytest.raises(ValueError, match=text):
        reflected(make_trainer, BOTH, lambda prompts, rollouts: answer)


BAD = [
    ({"author": "base"}, "`author` must be 'live', 'teacher', the dotted path"),
    ({"author": "no_such_module.author"}, "no_such_module.author can't be imported"),
    ({"author": "scripted.SUMS"}, "`author`: .*, and no function"),
    ({"threshold": 1.5}, "`threshold` must be a finite number between 0 and 1"),
    ({"treshold": 0.5}, "no option 'treshold' \\(did you mean `threshold`"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        build_source({"reflection": options})


def test_without_a_reward(make_trainer):
    with pytest.raises(ValueError, match="`reflection` looks at rewards, and this run has none"):
        reflected(make_trainer, BOTH, reward_funcs=None)


def test_a_missing_column_is_named_before_training(make_trainer):
    with pytest.raises(ValueError, match=r"no column `solution`, which the option `reference`.*'answer'"):
        reflected(make_trainer, BOTH, reference="solution")


def test_a_reference_that_is_no_text(make_trainer):
    with pytest.raises(
        ValueError, match=r"The column `solution` of the row with prompt .*1 \+ 1.* must be text or None, got 2"
    ):
        reflected(make_trainer, BOTH, dataset=sums(solution=[2, 5]), reference="solution")


def test_a_source_that_was_not_set_up(make_trainer):
    source = Reflection(author=saying(WRONG))
    with pytest.raises(ValueError, match=r"Reflection was not set up: .*`setup\(run\)`"):
        make_trainer(dataset=sums(), privileged=lambda groups: source(groups), **OPTIONS).train()
    make_trainer(dataset=sums(), privileged=AllOf(source), **OPTIONS, max_steps=1).train()


@pytest.mark.parametrize("name", ["reflection", "skills"])
def test_the_recipes_sources_are_built(name):
    recipe = Path(__file__).parents[2] / "recipes" / f"smollm2_{name}.yaml"
    source = build_source(yaml.safe_load(recipe.read_text())["privileged_source"])
    assert [message["role"] for message in source.examples] == ["user", "assistant"] * 3
    assert all(tagged(message["content"], TAGS[name]) for message in source.examples[1::2])
    assert tagged(type(source)().examples[1]["content"], TAGS[name])
