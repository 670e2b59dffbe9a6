# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources that look at the group, and at what verifiers, tools and environments said, on real generation batches."""

import pytest
from datasets import Dataset

import tiny
from agents import agent_tokenizer_with_schema
from batches import batch_of, teacher_reads
from scripted import right, sums, writing
from trl_opsd.privileged import (
    EnvironmentFeedback,
    FirstOf,
    PseudoReference,
    SiblingSuccess,
    VerifierFeedback,
    WrongDemonstration,
)
from views import contexts_of


GROUP = ["no idea", "a long way to 2", "2", "it is 2"]
SIBLINGS = {
    "first": ({}, ["a long way to 2", "2", "a long way to 2", "a long way to 2"]),
    "shortest": ({"choice": "shortest"}, ["2", "2", "it is 2", "2"]),
    "longest": ({"choice": "longest"}, ["a long way to 2", "it is 2", "a long way to 2", "a long way to 2"]),
    "own too": ({"choice": "shortest", "exclude_own": False}, ["2"] * 4),
    "failures alone": ({"skip_successes": True}, ["a long way to 2", None, None, None]),
    "a higher bar": ({"threshold": 1.5}, [None] * 4),
    "a lower bar": ({"threshold": 0.0}, ["a long way to 2", *["no idea"] * 3]),
}


@pytest.mark.parametrize(("options", "wanted"), SIBLINGS.values(), ids=SIBLINGS)
def test_sibling(make_trainer, options, wanted):
    nobody = ["no", "nor", "never", "not at all"]
    found = contexts_of(make_trainer, SiblingSuccess(**options), GROUP, nobody)
    others = [None] * 4 if options.get("threshold") != 0.0 else ["nor", "no", "no", "no"]
    assert found == wanted + others


def test_the_best_sibling(make_trainer):
    def length(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    found = contexts_of(make_trainer, SiblingSuccess(choice="best"), GROUP, ["a", "bb", "bb", "c"], reward=length)
    assert found == ["a long way to 2", "no idea", *["a long way to 2"] * 2, "bb", "bb", "bb", "bb"]


def test_a_random_sibling(make_trainer):
    """Each success is drawn, and the same again for the same step."""
    texts = ["2"] * 4 + ["so 2"] * 12
    found = contexts_of(make_trainer, SiblingSuccess(choice="random"), texts)
    again = contexts_of(make_trainer, SiblingSuccess(choice="random"), texts)
    other = contexts_of(make_trainer, SiblingSuccess(choice="random", seed=1), texts)
    assert found == again and set(found) == {"2", "so 2"} and found != other


def test_the_only_success_has_no_context_of_its_own(make_trainer):
    assert contexts_of(make_trainer, SiblingSuccess(), ["2", "no"], ["5", "5 5"]) == [None, "2", "5 5", "5"]


@pytest.mark.parametrize(
    "source",
    [
        SiblingSuccess(), SiblingSuccess(threshold=0.5), WrongDemonstration(),
        VerifierFeedback("answer", skip_successes=True),
    ],
)  # fmt: skip
def test_without_rewards_nothing_tells_success_from_failure(make_trainer, source):
    options = {"dataset": sums(), "rollout_func": writing(["2", "2"], ["5", "5"]), "num_generations": 2}
    with pytest.raises(ValueError, match=r"looks at rewards, and this run has none\. Give a reward function"):
        batch_of(make_trainer(privileged=source, **options))


THOUGHTS = ["<think>one and one</think>2", "[THINK]hm[/THINK] 2", "opened before</think>so 2", "<think>2"]


@pytest.mark.parametrize("keep", [False, True])
def test_thoughts_of_a_sibling(make_trainer, keep):
    for i, (text, bare) in enumerate(zip(THOUGHTS, ["2", "2", "so 2", None], strict=True)):
        group = ["no", text]
        found = contexts_of(make_trainer, SiblingSuccess(keep_thinking=keep), group)
        assert found[0] == (text if keep else bare), i
        assert found[1] is None


def test_no_such_choice():
    with pytest.raises(ValueError, match=r"`choice` must be one of .*'shortest'.*got 'second'"):
        SiblingSuccess(choice="second")


# Feedback


def judged(completions, answer, log_extra, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    log_extra("feedback", [None if t == a else f"{t} is wrong" for t, a in zip(texts, answer, strict=True)])
    log_extra("blank", [" \n"] * len(texts))
    log_extra("number", [3] * len(texts))
    return right(completions, answer)


def test_feedback(make_trainer):
    found = contexts_of(make_trainer, VerifierFeedback(), ["2", "3"], ["six", "5 5"], reward=judged)
    assert found == [None, "3 is wrong", "six is wrong", "5 5 is wrong"]
    only = VerifierFeedback(skip_successes=True)
    found = contexts_of(make_trainer, only, ["2", "3"], ["six", "5 5"], reward=judged)
    assert found == [None, "3 is wrong", "six is wrong", None], "5 5 ends in the answer"
    assert contexts_of(make_trainer, VerifierFeedback("blank"), ["2", "3"], reward=judged) == [None, None]


@pytest.mark.parametrize("size", [0, 3, 5])
def test_feedback_on_other_than_the_rollouts(make_trainer, size):
    def judge(completions, log_extra, **kwargs):
        log_extra("feedback", ["why"] * size)
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=rf"wrote {size} values into the column 'feedback' with `log_extra`, for 4"):
        contexts_of(make_trainer, VerifierFeedback(), ["a", "b"], ["c", "d"], reward=judge)


def test_a_success_before_feedback(make_trainer):
    """SDPO: feedback where there is no solution."""
    source = FirstOf(SiblingSuccess(), VerifierFeedback())
    found = contexts_of(make_trainer, source, ["2", "3"], ["six", "seven"], reward=judged)
    assert found == [None, "2", "six is wrong", "seven is wrong"]


def test_feedback_from_the_row(make_trainer):
    dataset = sums(hint=["double it", None])
    found = contexts_of(make_trainer, VerifierFeedback("hint"), ["2", "3"], ["5", "5"], dataset=dataset)
    assert found == ["double it", "double it", None, None]


@pytest.mark.parametrize(("key", "text"), [("verdict", "`log_extra` writes|wrote `verdict`"), ("number", "got 3 for")])
def test_feedback_that_is_not_there(make_trainer, key, text):
    with pytest.raises(ValueError, match=text) as caught:
        contexts_of(make_trainer, VerifierFeedback(key), ["2", "3"], reward=judged)
    assert "the row with prompt" in str(caught.value)


# Tools and environments


def two_turns(prompts, trainer):
    """A failing call and a second try, as TRL's tool loop leaves them."""
    tokenizer = trainer.processing_class
    prompt_ids = trainer._tokenize_prompts(prompts)[0]
    first = tokenizer("x<|im_end|>")["input_ids"]
    result = tokenizer("<|im_start|>tool\n{'error': 'no x'}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    ids = [first + result + tokenizer("2<|im_end|>")["input_ids"] for _ in prompts]
    mask = [[1] * len(first) + [0] * len(result) + [1] * 2 for _ in prompts]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": ids,
        "logprobs": [[0.0] * len(r) for r in ids],
        "env_mask": mask,
    }


class Shelf:
    """Counts what was taken from it."""

    def reset(self, start, **kwargs):
        self.left = start

    def take(self, count: int) -> str:
        """
        Take some.

        Args:
            count: How many.
        """
        if count > self.left:
            raise ValueError(f"only {self.left} are left")
        self.left -= count
        return f"taken {count}"

    def _summary(self):
        return f"{self.left} are left"

    def _nothing(self):
        return None

    def get_reward(self):
        return float(self.left == 0)


def calling(*turns):
    """A model that answers a prompt by these texts, one after the other, and then by "done"."""

    def single_turn(prompt_ids, *args, **kwargs):
        said = []
        for ids in prompt_ids:
            text = agent_tokenizer_with_schema().decode(ids)
            number = text.count("<tool_response>")
            said.append(turns[number] if number < len(turns) else "done")
        return [agent_tokenizer_with_schema()(text + "<|im_end|>")["input_ids"] for text in said], None

    return single_turn


def call(count):
    return f'<tool_call>\n{{"name": "take", "arguments": {{"count": {count}}}}}\n</tool_call>'


def agent(make_trainer, source, *turns):
    tokenizer = agent_tokenizer_with_schema()
    rows = [{"prompt": [{"role": "user", "content": "Empty the shelf."}], "start": 3}] * 4
    trainer = make_trainer(
        tiny.model(tokenizer, max_position_embeddings=4096),
        dataset=Dataset.from_list(rows),
        privileged=source,
        environment_factory=Shelf,
        processing_class=tokenizer,
        num_generations=2,
        max_completion_length=1000,
    )
    trainer._generate_single_turn = calling(*turns)
    batch = batch_of(trainer)
    texts = [tokenizer.decode(ids) for ids in teacher_reads(batch)]
    return trainer, [row[0].context if row else None for row in trainer.collected.views], texts


def test_what_an_environment_said(make_trainer):
    turns = (call(5), call(2))
    _, found, texts = agent(make_trainer, EnvironmentFeedback(), *turns)
    assert found == ["taken 2"] * 4 and all("taken 2" in text for text in texts)
    _, found, _ = agent(make_trainer, EnvironmentFeedback("errors"), *turns)
    assert found == ["{'error': 'only 3 are left'}"] * 4
    _, found, _ = agent(make_trainer, EnvironmentFeedback("state", state="_summary"), *turns)
    assert found == ["1 are left"] * 4
    _, found, _ = agent(make_trainer, EnvironmentFeedback("state", state="left"), *turns)
    assert found == ["1"] * 4
    _, found, _ = agent(make_trainer, EnvironmentFeedback("state", state="_nothing"), *turns)
    assert found == [None] * 4, "nothing is no state, and not the word None"
    _, found, _ = agent(make_trainer, EnvironmentFeedback("errors"), call(3))
    assert found == [None] * 4, "no error"
    _, found, _ = agent(make_trainer, EnvironmentFeedback())
    assert found == [None] * 4, "no call"


def test_the_tool_markup_of_a_sibling(make_trainer):
    trainer, found, _ = agent(make_trainer, SiblingSuccess(exclude_own=False), call(5), call(3))
    assert [rollout.success for rollout in trainer.collected.rollouts] == [True] * 4
    lines = found[0].splitlines()
    assert lines == [
        'Call: take({"count": 5})', "Result: {'error': 'only 3 are left'}", 'Call: take({"count": 3})',
        "Result: taken 3", "done",
    ]  # fmt: skip
    _, found, _ = agent(make_trainer, SiblingSuccess(exclude_own=False, keep_tools=False), call(5), call(3))
    assert found == ["done"] * 4


def test_turns_of_an_agent(make_trainer):
    trainer, _, _ = agent(make_trainer, EnvironmentFeedback(), call(5), call(2))
    decode = trainer.processing_class.decode
    for rollout in trainer.collected.rollouts:
        assert [decode(rollout.completion_ids[t.start : t.end]) for t in rollout.turns] == [
            call(5) + "<|im_end|>", call(2) + "<|im_end|>", "done<|im_end|>",
        ]  # fmt: skip
        assert [len(turn.results) for turn in rollout.turns] == [1, 1, 0]
        assert rollout.environment.left == 1 and not rollout.truncated


def test_bad_environment_options(make_trainer):
    with pytest.raises(ValueError, match="`what` must be one of"):
        EnvironmentFeedback("everything")
    with pytest.raises(ValueError, match="only read with `what='state'`"):
        EnvironmentFeedback("errors", state="_summary")
    with pytest.raises(ValueError, match="Shelf has no `total`"):
        agent(make_trainer, EnvironmentFeedback("state", state="total"), call(1))
    with pytest.raises(ValueError, match="needs an environment"):
        contexts_of(make_trainer, EnvironmentFeedback("state"), ["2", "3"])


# Pseudo-references

VOTES = ["it is 4", "4", "I say 5", "none"]


@pytest.mark.parametrize(
    ("options", "group", "wanted"),
    [
        ({}, VOTES, "4"),
        ({"least_share": 0.6}, VOTES, None),
        ({}, ["4", "5", "4 5 4", "5"], None),
        ({}, ["none", "nor", "neither", "no"], None),
        ({"show": "shortest"}, VOTES, ["4", "it is 4", "4", "4"]),
        ({"show": "longest_other"}, VOTES, ["I say 5", "I say 5", None, "I say 5"]),
        ({"show": "longest_other"}, ["4", "4", "so 4", "none"], None),
        ({"answer": r"(\w+) is"}, VOTES, None),
        ({"answer": r"(\w+) is", "least_share": 0.25}, VOTES, None),  # one vote would vouch for itself
        ({"answer": r"(\w+) is", "least_share": 0.25}, ["it is 4", "5", "It is 5", "6"], "it"),
        # Spellings of an answer are one
        ({}, ["1,000", "1000", "5", "7"], "1,000"),
        ({}, ["it is 1000.0", "5", "so 1000", "5 or 6"], "1000.0"),
        ({}, ["it is -3", "\u22123", "3", "2-3"], None),
        ({"answer": r"\\boxed\{(.*)\}"}, [r"\boxed{\frac12}", r"\boxed{1/2}", r"\boxed{2}", "1"], r"\frac12"),
        ({"answer": r"(\w+)$", "show": "longest_other"}, ["so Paris", "PARIS", "paris", "Rome"], [*["Rome"] * 3, None]),
        # Not the thoughts, but what was answered
        ({}, ["4<think>5", "<think>5</think>4", "<think>5", "<think>5"], "4"),
        ({"answer": "([a-z]*)"}, ["4", "5", "6", "7"], None),
        ({"answer": "function:test_group_sources.first_word"}, ["4 is it", "4 too", "no", "x"], "4"),
        ({"answer": str.strip}, ["a", "a", "a b", "c"], "a"),
    ],
)  # fmt: skip
def test_pseudo_reference(make_trainer, options, group, wanted):
    found = contexts_of(make_trainer, PseudoReference(**options), group, ["1", "2", "3", "4"])
    assert found == (wanted if isinstance(wanted, list) else [wanted] * 4) + [None] * 4


def test_a_share_of_the_votes_is_no_binary_fraction(make_trainer):
    """7 of 25 are 28 %, though 0.28 * 25 is 7.000000000000001."""
    group = ["4"] * 7 + [f"{i}" for i in range(10, 28)]
    found = contexts_of(make_trainer, PseudoReference(least_share=0.28), group)
    assert found == ["4"] * 25


@pytest.mark.parametrize("show", ["answer", "shortest", "longest_other"])
def test_a_single_rollout_has_no_one_to_agree_with(make_trainer, show):
    source = PseudoReference(show=show, least_share=0.1)
    trainer = make_trainer(
        dataset=sums(), eval_dataset=sums(), privileged=source, num_generations=2, per_device_train_batch_size=4,
        num_generations_eval=1, per_device_eval_batch_size=2, rollout_func=writing(["4", "4"], ["5", "5"]),
    )  # fmt: skip
    trainer.evaluate()
    assert trainer.collected.views == [[], []]


def test_an_answer_that_is_no_text(make_trainer):
    with pytest.raises(ValueError, match="The function `answer` must return text or None, got 4"):
        contexts_of(make_trainer, PseudoReference(answer=len), ["look", "here"])


def first_word(text):
    return text.split()[0] if " " in text else None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"show": "all"}, "`show`"),
        ({"least_share": 0}, "`least_share`"),
        ({"answer": "("}, "no regular expression"),
        ({"answer": "function:no_such_module.f"}, "can't be imported"),
    ],
)
def test_bad_pseudo_references(options, text):
    with pytest.raises(ValueError, match=text):
        PseudoReference(**options)
