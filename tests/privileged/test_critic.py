# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The critic: words about each rollout, free ones or aligned with its steps."""

import math
from pathlib import Path

import pytest
import yaml

from agents import AGENT, SCRIPTS, agent_model, agent_tokenizer, follow_scripts, multiply
from batches import batch_of, teacher_reads
from endpoint_server import asked, says, sends, serving, slow
from scripted import right, sums, writing
from trl_opsd.privileged import AllOf, Critic, DatasetColumn, FirstOf, When, build_source, conditions
from trl_opsd.privileged.sources.critic import ANSWERS, EXAMPLE, aligned


OPTIONS = {
    "reward_funcs": right, "num_generations": 2, "policy_weight": 0.0, "shuffle_dataset": False,
    "max_completion_length": 200,
}  # fmt: skip
TEXTS = ["I add.\n1 + 1 = 3", "It is 2"], ["It is 5", "It is 5"]


class Says:
    """An author that answers by what the attempt is, and keeps what it reads."""

    def __init__(self, answers):
        self.answers, self.prompts, self.rollouts = answers, [], []

    def __call__(self, prompts, rollouts):
        self.prompts += prompts
        self.rollouts += rollouts
        if isinstance(self.answers, str):
            return [self.answers] * len(prompts)
        return [self.answers[rollout.text] for rollout in rollouts]


def criticised(make_trainer, author="No.", texts=TEXTS, dataset=None, **options):
    """A batch of rollouts with these texts, and views from a critic."""
    own = {name: options.pop(name) for name in list(options) if name in Critic.__dataclass_fields__}
    source = Critic(author=Says(author) if isinstance(author, str) else author, **own)
    given = {**OPTIONS, "rollout_func": writing(*texts), **options}
    trainer = make_trainer(dataset=dataset or sums(), privileged=source, **given)
    return trainer, batch_of(trainer), source


def contexts(trainer):
    return [[view.context for view in views] for views in trainer.collected.views]


def counts(source):
    return [source.counts[f"critic_{name}"] for name in ("asked", "malformed", "unaligned")]


def test_a_critique_of_each_rollout(make_trainer, tokenizer):
    author = Says({"I add.\n1 + 1 = 3": " One and one\nare two. ", "It is 2": "Right.", "It is 5": "Right, too."})
    trainer, batch, source = criticised(make_trainer, author)
    assert contexts(trainer) == [["One and one\nare two."], ["Right."], ["Right, too."], ["Right, too."]]
    prompts = dict(zip(batch["distillation"].index.tolist(), teacher_reads(batch), strict=True))
    feedback = "Feedback on an earlier attempt at this:\n\nOne and one\nare two.\n\nAnswer with it in mind."
    assert tokenizer.decode(prompts[0]) == f"<|im_start|>user\n1 + 1?\n\n{feedback}<|im_end|>\n<|im_start|>assistant\n"
    assert counts(source) == [4, 0, 0]


def test_what_the_critic_reads(make_trainer):
    author = Says("No.")
    dataset = sums(solution=["One and one are two.", None])
    criticised(make_trainer, author, dataset=dataset, reference="solution")
    first, _, third, _ = author.prompts
    assert [message["role"] for message in first] == ["user", "assistant", "user"]
    assert first[0]["content"].startswith("You read a problem and an attempt at it. Say in a few sentences")
    assert first[0]["content"].endswith(EXAMPLE) and first[1]["content"] == ANSWERS["critique"]
    reference = "Reference solution:\nOne and one are two.\n\n"
    assert first[2]["content"] == f"Problem:\n1 + 1?\n\n{reference}Attempt:\nI add.\n1 + 1 = 3"
    assert third[2]["content"] == "Problem:\n2 + 3?\n\nAttempt:\nIt is 5"


def test_prompts_that_are_text(make_trainer):
    author = Says("No.")
    dataset = sums().map(lambda row: {"prompt": row["prompt"][0]["content"]})
    trainer, _, _ = criticised(make_trainer, author, dataset=dataset, instruction="Judge.", examples=[])
    assert author.prompts[0] == "Judge.\n\nProblem:\n1 + 1?\n\nAttempt:\nI add.\n1 + 1 = 3\n\n"
    assert contexts(trainer) == [["No."]] * 4


def test_without_a_reward(make_trainer):
    trainer, _, _ = criticised(make_trainer, reward_funcs=None)
    assert contexts(trainer) == [["No."]] * 4 and math.isnan(trainer.collected.rollouts[0].total)


@pytest.mark.parametrize("text", ["", " \n", "<think>What is it? 1 + 1 = 3", "<think>So.</think> "])
def test_nothing_said_gives_no_view(make_trainer, text):
    author = Says(dict.fromkeys(("I add.\n1 + 1 = 3", "It is 5"), text) | {"It is 2": "<think>Hm.</think>\nRight."})
    trainer, _, source = criticised(make_trainer, author)
    assert contexts(trainer) == [[], ["Right."], [], []]
    assert counts(source) == [4, 3, 0]


def test_an_empty_rollout_is_criticised_too(make_trainer):
    author = Says({"": "There is no answer.", "It is 5": "Yes."})
    trainer, _, _ = criticised(make_trainer, author, (["", ""], ["It is 5", "It is 5"]))
    assert contexts(trainer) == [["There is no answer."]] * 2 + [["Yes."]] * 2
    assert author.prompts[0][-1]["content"].endswith("Attempt:\n")


def test_only_wanted_rollouts_are_criticised(make_trainer):
    author = Says("No.")
    source = FirstOf(When(conditions.failed(), Critic(author=author)), DatasetColumn("answer"))
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*TEXTS))
    batch_of(trainer)
    assert contexts(trainer) == [["No."], ["2"], ["5"], ["5"]]
    assert [rollout.text for rollout in author.rollouts] == ["I add.\n1 + 1 = 3"]


# Steps


def answer(kept, corrected):
    return f"Kept: {kept}\nCorrected: {corrected}"


ALIGNED = [
    ("I add.", "1 + 1 = 2", "I add.\n1 + 1 = 2"),
    ("I  add.\n", "1 + 1 = 2,\nas it is.", "I add.\n1 + 1 = 2,\nas it is."),
    ("none", "One and one are 2.", "One and one are 2."),
    ("None.", "It is 2.", "It is 2."),
    ("I add.\n1 + 1 =", "2", "I add.\n1 + 1 =\n2"),
    ("I add.\n1 + 1 = 3", "none", "I add.\n1 + 1 = 3"),
    ("I add. 1+1=3", "None", "I add.\n1 + 1 = 3"),
]
UNALIGNED = [
    ("I count.", "1 + 1 = 2"),
    ("i add.", "1 + 1 = 2"),
    ("I added.", "1 + 1 = 2"),
    ("add.", "1 + 1 = 2"),
    ("1 + 1 =", "2"),
    ("I add. 1 + 1 = 3. Yes.", "2"),
    ("I add.", "1 + 1 = 3"),
    ("I add.", "1 + 1"),
    ("none", "I add."),
    ("I add.", "none"),
]
MALFORMED = [
    "", "1 + 1 = 2", "Kept: I add.", "Corrected: 1 + 1 = 2", answer("", "1 + 1 = 2"), answer("I add.", ""),
    answer("none", "none"), f"Sure!\n{answer('I add.', '2')}", f"{answer('I add.', '2')}\nCorrected: 3",
]  # fmt: skip


@pytest.mark.parametrize(("kept", "corrected", "expected"), ALIGNED)
def test_steps(make_trainer, tokenizer, kept, corrected, expected):
    texts = [TEXTS[0][0]] * 2, [TEXTS[0][0]] * 2
    trainer, batch, source = criticised(make_trainer, Says(answer(kept, corrected)), texts, schema="steps")
    assert contexts(trainer) == [[expected]] * 4 and counts(source) == [4, 0, 0]
    told = f"The beginning of an answer to this, which is right so far:\n\n{expected}<|im_end|>"
    assert told in tokenizer.decode(teacher_reads(batch)[0])


@pytest.mark.parametrize(("kept", "corrected"), UNALIGNED)
def test_steps_that_are_not_those_of_the_rollout(make_trainer, kept, corrected):
    texts = [TEXTS[0][0]] * 2, [TEXTS[0][0]] * 2
    trainer, batch, source = criticised(make_trainer, Says(answer(kept, corrected)), texts, schema="steps")
    assert contexts(trainer) == [[]] * 4 and counts(source) == [4, 0, 4]
    assert not batch["distillation"].views["privileged"].weight.any()


@pytest.mark.parametrize("text", MALFORMED)
def test_answers_of_another_form(make_trainer, text):
    trainer, _, source = criticised(make_trainer, Says(text), schema="steps")
    assert contexts(trainer) == [[]] * 4 and counts(source) == [4, 4, 0]


def test_the_example_of_the_steps_is_aligned():
    attempt = EXAMPLE.split("Attempt:\n")[1]
    kept, corrected = ANSWERS["steps"].removeprefix("Kept: ").split("\nCorrected: ")
    assert aligned(attempt, kept, corrected) == f"{kept}\n{corrected}"


THINKING = "<think>I add.\n1 + 1 = 3</think>It is 3"
OPENED = "I add.\n1 + 1 = 3</think>It is 3"  # by the prompt


@pytest.mark.parametrize(
    "own", ["", "<think>Kept: I guess.\nHm.</think>\n", "Hm, so so.</think>\n", "[THINK]Hm.[/THINK]"]
)
@pytest.mark.parametrize(
    ("text", "kept", "corrected", "expected"),
    [
        (THINKING, "<think>I add.", "1 + 1 = 2", "<think>I add.\n1 + 1 = 2"),
        (THINKING, "<think>I add.\n1 + 1 = 3</think>", "It is 2", "<think>I add.\n1 + 1 = 3</think>\nIt is 2"),
        (THINKING, THINKING, "none", THINKING),
        (THINKING, "none", "<think>I count.", "<think>I count."),
        (OPENED, "I add.", "1 + 1 = 2", "I add.\n1 + 1 = 2"),
        (OPENED, "I add.\n1 + 1 = 3</think>", "It is 2", "I add.\n1 + 1 = 3</think>\nIt is 2"),
    ],
)
def test_steps_of_a_thinking_rollout(make_trainer, own, text, kept, corrected, expected):
    """The critic's own thoughts are left out, those that it copies stay."""
    trainer, _, source = criticised(
        make_trainer, Says(own + answer(kept, corrected)), ([text] * 2,) * 2, schema="steps"
    )
    assert contexts(trainer) == [[expected]] * 4 and counts(source) == [4, 0, 0]


@pytest.mark.parametrize("corrected", ["1+1=3", "**1 + 1** = 3.", "$1 + 1 = 3$"])
def test_a_step_in_another_spelling_corrects_nothing(make_trainer, corrected):
    texts = [TEXTS[0][0]] * 2, [TEXTS[0][0]] * 2
    trainer, _, source = criticised(make_trainer, Says(answer("I add.", corrected)), texts, schema="steps")
    assert contexts(trainer) == [[]] * 4 and counts(source) == [4, 0, 4]


def test_steps_with_tool_results(make_trainer):
    """What a tool said stands between the steps, and is repeated with them."""

    def author(prompts, rollouts):
        attempts = [prompt[-1]["content"].split("Attempt:\n")[1] for prompt in prompts]
        author.kept = [attempt.removesuffix("\nDone.") for attempt in attempts[:3]]
        return [*(answer(kept, "I am done.") for kept in author.kept), answer("none", "I call the tool.")]

    agent = {"processing_class": agent_tokenizer(), "tools": [multiply], **AGENT}
    trainer = make_trainer(agent_model(), privileged=Critic(author=author, schema="steps"), **agent)
    follow_scripts(trainer, SCRIPTS)
    batch_of(trainer)
    assert [kept.count("Result: ") for kept in author.kept] == [3, 2, 1] and "must be an integer" in author.kept[0]
    assert contexts(trainer) == [*([f"{kept}\nI am done."] for kept in author.kept), ["I call the tool."]]


# The model and an endpoint as critics


@pytest.mark.parametrize("weights", ["live", "teacher"])
def test_the_model_is_the_critic(make_trainer, tokenizer, weights, monkeypatch):
    """Two of the four rollouts are alike: it reads three prompts."""
    source = Critic(author=weights, max_new_tokens=6, examples=[])
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*TEXTS))
    read, wrote, generate = [], [], trainer.model.generate

    def recorded(**kwargs):
        output = generate(**kwargs)
        read.extend(tokenizer.batch_decode(kwargs["input_ids"], skip_special_tokens=True))
        new = output[:, kwargs["input_ids"].shape[1] :]
        wrote.extend(tokenizer.decode(row, skip_special_tokens=True).strip() for row in new)
        return output

    monkeypatch.setattr(trainer.model, "generate", recorded)
    batch_of(trainer)
    assert len(read) == 3 and "Attempt:\nI add.\n1 + 1 = 3" in read[0] and "Attempt:\nIt is 5" in read[2]
    assert contexts(trainer) == [[text] if text else [] for text in [*wrote, wrote[2]]]
    assert any(wrote) and source.uses_model


@pytest.fixture
def endpoint(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as endpoint:
        yield endpoint


def at(endpoint, **options):
    return {"endpoint": {"url": endpoint.url, "model": "m", **options}}


def test_an_endpoint_is_the_critic(make_trainer, endpoint, tmp_path):
    """By YAML, in a training: equal rollouts are asked about once, the second step comes from the cache."""
    endpoint.answer = lambda body: says(f"<think>?</think>About {asked(body)[-1]}")
    author = at(endpoint, cache_dir=str(tmp_path / "cache"))
    spec = yaml.safe_load(yaml.safe_dump({"critic": {"author": author, "max_new_tokens": 99, "temperature": 0.25}}))
    trainer = make_trainer(dataset=sums(), privileged=build_source(spec), **OPTIONS, rollout_func=writing(*TEXTS))
    trainer.train()
    assert len(endpoint.requests) == 3
    body = endpoint.requests[0]["body"]
    assert (body["max_tokens"], body["temperature"]) == (99, 0.25) and len(body["messages"]) == 3
    assert contexts(trainer) == [["About 3"], ["About 2"], ["About 5"], ["About 5"]]
    first, second = (
        {name.removeprefix("self_distillation/"): value for name, value in log.items()}
        for log in trainer.state.log_history[:2]
    )
    assert [first[f"endpoint_{name}"] for name in ("requests", "retries", "cached", "failed")] == [3, 0, 0, 0]
    assert [second[f"endpoint_{name}"] for name in ("requests", "retries", "cached", "failed")] == [0, 0, 3, 0]
    assert first["critic_asked"] == second["critic_asked"] == 4 and first["critic_unaligned"] == 0


def test_a_failed_request_gives_no_view(make_trainer, endpoint):
    endpoint.answer = lambda body: sends(500, "") if asked(body).endswith("3") else says("Fine.")
    trainer, _, source = criticised(make_trainer, at(endpoint, retries=1, max_failures=1))
    assert contexts(trainer) == [[], ["Fine."], ["Fine."], ["Fine."]]
    assert counts(source) == [4, 0, 0]
    assert (source.counts["endpoint_failed"], source.counts["endpoint_retries"]) == (1, 1)


def test_too_many_failures_end_the_run_or_are_skipped(make_trainer, endpoint):
    endpoint.answer = lambda body: sends(500, "on fire")
    with pytest.raises(RuntimeError, match=r"3 of 3 requests .* failed for good; .*on fire"):
        criticised(make_trainer, at(endpoint, retries=0))
    trainer, _, _ = criticised(make_trainer, at(endpoint, retries=0), privileged_on_error="skip")
    assert contexts(trainer) == [[]] * 4 and trainer.collected.skipped == 4
    metrics = trainer._metrics["train"]
    assert metrics["self_distillation/source_errors"] == [4] and metrics["self_distillation/critic_asked"] == [0]


def test_a_slow_endpoint_and_the_time_out_of_the_source(make_trainer, endpoint):
    endpoint.answer = lambda body: slow(5, says("late"))
    options = {"privileged_timeout": 0.3, "privileged_on_error": "skip"}
    trainer, _, _ = criticised(make_trainer, at(endpoint, timeout=1, retries=0), **options)
    assert contexts(trainer) == [[]] * 4 and trainer.collected.skipped == 4


def test_others_are_written_by_an_endpoint_too(make_trainer, endpoint):
    endpoint.answer = lambda body: says("Quote: 1 + 1 = 3\nExplanation: No.")
    source = build_source({"reflection": {"author": at(endpoint)}})
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*TEXTS))
    batch_of(trainer)
    assert contexts(trainer)[0] == ["Correct solution:\nIt is 2\n\nReflection: No."]
    endpoint.answer = lambda body: sends(500, "")
    spec = {"skills": {"author": at(endpoint, retries=0, max_failures=2)}}
    trainer = make_trainer(dataset=sums(), privileged=build_source(spec), **OPTIONS, rollout_func=writing(*TEXTS))
    batch_of(trainer)
    source = trainer.privileged
    assert source.counts["endpoint_failed"] == 2 and source.counts["skills_malformed"] == 0
    assert source.counts["skills_written"] == 0


# Counts


def test_parts_sum_their_counts(make_trainer):
    """Two critics in all kinds of composites: what is counted is of one batch, and zero where nobody was asked."""
    says = [Critic(author=Says(text), name=name) for text, name in (("", "a"), ("Yes.", "b"))]
    first = When(lambda one, _: one.step == 0 and one.index % 2 == 0, says[0])
    source = AllOf(first, When(conditions.failed(), FirstOf(says[1])))
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*TEXTS))
    trainer.train()
    first, second = trainer.state.log_history[:2]
    told = [[log[f"self_distillation/critic_{name}"] for name in ("asked", "malformed")] for log in (first, second)]
    assert told == [[2 + 1, 2], [1, 0]]


def test_counts_are_logged_in_an_evaluation(make_trainer):
    source = Critic(author=Says("No."))
    options = {"eval_dataset": sums(), "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    trainer = make_trainer(dataset=sums(), privileged=source, **OPTIONS, rollout_func=writing(*TEXTS), **options)
    assert trainer.evaluate()["eval_self_distillation/critic_asked"] == 4


@pytest.mark.parametrize("told", [["asked"], {"asked": "four"}])
def test_counts_that_are_none(make_trainer, told):
    def source(groups):
        return [[] for group in groups for _ in group]

    source.counts = told
    with pytest.raises(ValueError, match=r"`counts` of source must map names to numbers, got"):
        make_trainer(dataset=sums(), privileged=source, **OPTIONS).train()


# Bad input


BAD = [
    ({"schema": "lines"}, r"`schema` must be one of \['critique', 'steps'\], got 'lines'"),
    ({"author": {"server": {}}}, r"`author` must map one of \['model', 'endpoint'\]"),
    ({"author": {"model": "x"}}, r"`author` must map one of \['model', 'endpoint'\] to its options"),
    ({"author": {"endpoint": {"url": "x"}}}, "`author.endpoint`: .*'model'"),
    ({"author": {"endpoint": {"url": "x", "model": "m"}}}, "`author.endpoint`: `url` must be like"),
    ({"author": {"model": {"name": "x", "bacth_size": 3}}}, "`author.model`: .*'bacth_size'"),
    ({"author": {"model": {"name": "x", "batch_size": 0}}}, "`author.model`: `batch_size` must be a whole number"),
    ({"template": "no placeholder"}, "`template` must contain the placeholder"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        build_source({"critic": options})


def test_a_key_that_is_not_set_ends_the_run_before_it_begins(make_trainer, monkeypatch):
    monkeypatch.delenv("CRITIC_KEY", raising=False)
    author = {"endpoint": {"url": "http://localhost:1/v1", "model": "m", "api_key_env": "CRITIC_KEY"}}
    with pytest.raises(ValueError, match="environment variable CRITIC_KEY is not set"):
        make_trainer(dataset=sums(), privileged=Critic(author=author), **OPTIONS)


def test_a_missing_column_is_named_before_training(make_trainer):
    with pytest.raises(ValueError, match=r"no column `solution`, which the option `reference`.*'answer'"):
        criticised(make_trainer, reference="solution")


def test_a_reference_that_is_no_text(make_trainer):
    with pytest.raises(ValueError, match=r"column `solution` of the row with .*1 \+ 1.* must be text or None, got 2"):
        criticised(make_trainer, dataset=sums(solution=[2, 5]), reference="solution")


def test_a_reference_that_nobody_can_read_is_named(make_trainer):
    class Broken(Critic):
        def __call__(self, groups):
            for group in groups:
                for rollout in group:
                    rollout.row["solution"] = "a\ud800"
            return super().__call__(groups)

    source = Broken(reference="solution", author=Says("No."))
    dataset = sums(solution=["2", "5"])
    with pytest.raises(ValueError, match=r"The author's request about the row with prompt .*1 \+ 1.* a lone surrogate"):
        batch_of(make_trainer(dataset=dataset, privileged=source, rollout_func=writing(*TEXTS), **OPTIONS))


def test_the_recipes_sources_are_built():
    folder = Path(__file__).parents[2] / "recipes"
    small, large = (
        build_source(yaml.safe_load((folder / f"{name}.yaml").read_text())["privileged_source"])
        for name in ("smollm2_critic", "qwen3_1.7b_critic_endpoint")
    )
    (critic,) = small.parts
    assert (critic.author, critic.schema) == ("teacher", "critique")
    assert [message["role"] for message in critic.examples] == ["user", "assistant"] * 3
    assert (large.author.model, large.schema) == ("Qwen/QwQ-32B", "steps")
