# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What `preflight` measures, on real batches, and that it leaves no trace."""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from datasets import Dataset
from peft import LoraConfig

import tiny
from agents import Shop, agent_tokenizer, multiply, with_scripted_sampler
from conftest import length_reward
from launch import launch
from trl_opsd import View, preflight
from trl_opsd.diagnostics import ViewReport
from trl_opsd.diagnostics.preflight_report import with_p_values
from trl_opsd.privileged import When, rollouts_of
from trl_opsd.privileged.conditions import failed, succeeded
from trl_opsd.trainer.text_generator import TextGenerator


GREEDY = {"generation_kwargs": {"do_sample": False}}
HINT = "The answer is yes."


def giving(*views):
    return lambda groups: [list(views) for _ in rollouts_of(groups)]


def text(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]


class Scores:
    """A score that keeps what it was given: first of the student, then of the teacher of each view."""

    def __init__(self, *values):
        self.values, self.calls = values, []

    def __call__(self, prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
        rows = [
            dict(zip(("prompt", *columns), row, strict=True)) for row in zip(prompts, *columns.values(), strict=True)
        ]
        self.calls.append(([text(completion) for completion in completions], rows))
        value = self.values[(len(self.calls) - 1) % len(self.values)]
        return value if isinstance(value, list) else [value] * len(rows)


# What is measured


def test_figures_of_a_real_batch(make_trainer, tokenizer, rows):
    """Two batches of four rollouts; each figure from the rollouts themselves, the teacher's answers from a plain
    `generate`."""
    score = Scores([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.5, 1.0])
    trainer = make_trainer(**GREEDY)
    report = preflight(trainer, rows=8, score_func=score)
    assert (report.prompts, report.rollouts, report.length_limit) == (8, 8, 512)
    assert report.student_score == 0.5

    places = random.Random(trainer.args.seed).sample(range(16), 8)
    given = [rows[place] for place in places]
    assert [row["prompt"] for row in score.calls[0][1] + score.calls[2][1]] == [row["prompt"] for row in given]
    has = [row["privileged_context"] is not None for row in given]
    assert 0 < sum(has) < 8
    (view,) = report.views
    assert (view.source, view.view, view.scored) == ("own", "privileged", sum(has))
    assert view.share == sum(has) / 8 and (view.dropped, view.shortened) == (0, 0)
    scores = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.5), (1.0, 1.0)] * 2
    pairs = [pair for pair, there in zip(scores, has, strict=True) if there]
    gaps = [teacher - student for student, teacher in pairs]
    assert view.student_score == pytest.approx(np.mean([student for student, _ in pairs]))
    assert view.gap == pytest.approx(np.mean(gaps))
    assert view.error == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(len(gaps)))

    reads = []
    for call in (1, 3):
        for answer, row in zip(*score.calls[call], strict=True):
            question = row["prompt"][0]["content"]
            own = f"{question}\n\n{row['privileged_context']}" if row["privileged_context"] else question
            prompt = f"<|im_start|>user\n{own}<|im_end|>\n<|im_start|>assistant\n"
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            reads += [ids.shape[1]] if row["privileged_context"] else []
            written = trainer.model.generate(ids, attention_mask=ids**0, max_new_tokens=8, do_sample=False)
            assert answer == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert view.mean_length == pytest.approx(np.mean(reads)) and view.max_length == max(reads)
    assert report.step_seconds == report.sampling_seconds + report.loss_seconds > 0


def test_divergences_are_those_of_the_training_log(make_trainer, rows):
    """With as many rows as one batch takes, in the order of the sampler."""
    options = {"dataset": Dataset.from_list(rows[1:3] * 2), "shuffle_dataset": False, **GREEDY, "max_steps": 1}
    trainer = make_trainer(**options)
    (view,) = preflight(trainer, rows=4).views
    trainer.train()
    log = trainer.state.log_history[0]
    assert view.divergence == pytest.approx(log["self_distillation/divergence"], rel=1e-4)
    assert view.log_ratio == pytest.approx(log["self_distillation/gap/mean"], rel=1e-4)


def test_sources_are_compared_on_the_same_rollouts(make_trainer, rows):
    seen = []

    def source(groups):
        seen.append([rollout.completion_ids for rollout in rollouts_of(groups)])
        return [[View(HINT, name="a"), View("No.", name="b")] for _ in rollouts_of(groups)]

    report = preflight(make_trainer(privileged=source), rows=4, sources={"other": source, "none": giving()})
    assert seen[0] == seen[1] and len(seen) == 2
    names = [(view.source, view.view) for view in report.views]
    assert names == [("none", "privileged"), ("other", "a"), ("other", "b"), ("own", "a"), ("own", "b")]
    none, other_a, other_b, own_a, own_b = report.views
    assert (own_a.divergence, own_b.divergence) == (other_a.divergence, other_b.divergence)
    assert own_a.divergence != own_b.divergence
    assert none.verdict == "no views" and math.isnan(none.divergence)


def test_rewards_score_student_and_teacher(make_trainer):
    """Groups of two, and rewards with weights."""

    def constant(completions, **kwargs):
        return [2.0 if i % 2 else None for i in range(len(completions))]

    rewards = {"reward_funcs": [length_reward, constant], "reward_weights": [0.0, 3.0]}
    report = preflight(make_trainer(privileged=giving(View(HINT)), **rewards), rows=8)
    assert (report.prompts, report.rollouts) == (8, 16)
    (view,) = report.views
    assert report.student_score == view.student_score == view.teacher_score == 3.0  # half of them have 6, half 0
    assert (view.scored, view.prompts, view.error) == (16, 8, 0.0) and view.verdict == "no gap"


def test_a_hint_within_the_completion_continues_the_students_own_tokens(make_trainer):
    """Both sides go on from the first token: only what follows depends on the hint."""
    scored = []

    def reward(completions, completion_ids, **kwargs):
        scored.append(completion_ids)
        return [0.0] * len(completions)

    view = View(HINT, place="before_token", position=1)
    preflight(make_trainer(privileged=giving(view), reward_funcs=reward), rows=2)
    sampled, _, student, teacher = scored
    assert len(sampled) == 4
    for first, own, other in zip(sampled, student, teacher, strict=True):
        assert (
            other[:1] == own[:1] == first[:1] and 1 < len(other) <= 8 and len({*map(tuple, (first, own, other))}) == 3
        )


def test_another_temperature_is_that_of_both(make_trainer, tokenizer, rows):
    """Greedy answers of the student to the bare prompt, of the teacher to the same with the hint."""
    score = Scores(0.0)
    trainer = make_trainer(privileged=giving(View(HINT)), temperature=3.0)
    report = preflight(trainer, rows=4, score_func=score, temperature=0.0)
    assert "answers at temperature 0, all else of 3" in str(report)
    assert len(score.calls) == 2
    for (answers, given), hint in zip(score.calls, ("", f"\n\n{HINT}"), strict=True):
        for answer, row in zip(answers, given, strict=True):
            prompt = f"<|im_start|>user\n{row['prompt'][0]['content']}{hint}<|im_end|>\n<|im_start|>assistant\n"
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            written = trainer.model.generate(ids, attention_mask=ids**0, max_new_tokens=8, do_sample=False)
            assert answer == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    cold, hot = Scores(0.0), Scores(0.0)
    preflight(trainer, rows=4, score_func=cold, temperature=1e-6)
    preflight(trainer, rows=4, score_func=hot, temperature=9.0)
    assert [call[0] for call in cold.calls] == [call[0] for call in score.calls]
    assert hot.calls[1][0] != cold.calls[1][0]


def test_what_does_not_fit_is_counted(make_trainer):
    def source(groups):
        return [[View("Yes. " * (60 if rollout.index % 2 else 1))] for rollout in rollouts_of(groups)]

    trainer = make_trainer(privileged=source, teacher_max_length=200)
    report = preflight(trainer, rows=4)
    assert (report.views[0].share, report.views[0].dropped) == (0.5, 2)
    assert "over 200" in str(report) and "training stops at a view that is too long" in str(report)
    with pytest.raises(ValueError, match="more than the 200"):
        trainer.train()
    (view,) = preflight(make_trainer(privileged=source, teacher_max_length=200, teacher_overlong="shorten"), 4).views
    assert (view.share, view.dropped, view.shortened) == (1.0, 0, 2)


def test_a_stream(make_trainer, rows):
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = make_trainer(dataset=stream)
    score = Scores(0.0)
    report = preflight(trainer, rows=5, score_func=score)
    assert report.prompts == 8 and [row["prompt"] for row in score.calls[0][1]] == [row["prompt"] for row in rows[:4]]
    report = preflight(trainer, rows=40)
    assert report.prompts == 16 and "fewer than were asked for" in str(report)


def test_time_is_that_of_an_optimizer_step(make_trainer, monkeypatch):
    """A clock that ticks once a look: one generation is four micro-batches, two updates of it, twice."""
    ticks = iter(range(100))
    module = sys.modules["trl_opsd.diagnostics.preflight"]  # whose name in the package is the function's
    monkeypatch.setattr(module, "_now", lambda: next(ticks))
    options = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
    report = preflight(make_trainer(**options), rows=16)
    assert (report.sampling_seconds, report.loss_seconds) == (1 / 4, 2 / 4)


# Tools and environments


def with_scripted_writer(trainer, monkeypatch):
    """Stand-in for the sampler alone: the teacher writes what the student's stand-in writes."""
    monkeypatch.setattr(TextGenerator, "answers", lambda self, ids, *_: script(ids, None, None, 1)[0])
    script = trainer._generate_single_turn


@pytest.fixture
def tool_tokenizer():
    return agent_tokenizer()


def test_the_teacher_calls_tools_and_starts_in_a_fresh_environment(make_trainer, tool_tokenizer, monkeypatch):
    options = {"environment_factory": Shop, "processing_class": tool_tokenizer, "max_completion_length": 400}
    model = tiny.model(tool_tokenizer, max_position_embeddings=4096)
    trainer = make_trainer(model, privileged=giving(View(HINT)), num_generations=2, **options)
    with_scripted_sampler(trainer, "buy")
    with_scripted_writer(trainer, monkeypatch)
    report = preflight(trainer, rows=2)
    assert report.student_score == report.views[0].teacher_score == 3.0  # 6.0 without the reset
    assert "environments are reset" in str(report)


def test_a_hint_within_a_trajectory_with_tools_is_not_scored(make_trainer, tool_tokenizer):
    options = {"tools": [multiply], "processing_class": tool_tokenizer, "max_completion_length": 400}
    model = tiny.model(tool_tokenizer, max_position_embeddings=4096)
    view = View(HINT, place="before_turn", position=1)
    trainer = make_trainer(model, privileged=giving(view), reward_funcs=length_reward, **options)
    report = preflight(with_scripted_sampler(trainer, "multiply"), rows=2)
    assert report.views[0].verdict == "no score" and report.views[0].divergence > 0
    assert not math.isnan(report.student_score) and "can't be played again" in str(report)


# No trace


CASES = {
    "pure": {},
    "mixed, with tables": {
        "reward_funcs": length_reward, "log_completions": True, "num_completions_to_print": 0,
        "log_privileged_context": True, "gradient_accumulation_steps": 2,
    },
    "ema, dropout": {"teacher_model_kind": "ema", "peft_config": {"lora_dropout": 0.5}},
    "sampled token": {"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "reward_funcs": length_reward},
    "a method's schedule": {"method": "taid"},
    "a method's gate": {"method": "antisd", "reward_funcs": length_reward, "privileged_source": "column"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_training_after_it_is_training_without(make_trainer, tmp_path, case):
    def run(name, looks):
        options = dict(CASES[case])
        if "peft_config" in options:
            options["peft_config"] = LoraConfig(r=4, target_modules=["q_proj"], **options["peft_config"])
        trainer = make_trainer(output_dir=str(tmp_path / name), **options)
        before = dict(vars(trainer)), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        if looks:
            preflight(
                trainer,
                rows=8,
                sources={"hint": giving(View(HINT))},
                score_func=lambda prompts, **_: [0.0] * len(prompts),
            )
        assert {n: id(v) for n, v in vars(trainer).items()} == {n: id(v) for n, v in before[0].items()}
        assert random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]
        assert torch.equal(torch.get_rng_state(), before[3])
        assert not any(trainer._metrics["train"].values()) and not trainer._logs["prompt"]
        assert trainer.state.num_input_tokens_seen == 0 and all(p.grad is None for p in trainer.model.parameters())
        assert not (tmp_path / name / "_privileged").exists()
        trainer.train()
        logs = [{n: v for n, v in log.items() if "time" not in n and "per_second" not in n and "runtime" not in n}
                for log in trainer.state.log_history]  # fmt: skip
        weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        return logs, weights, list(trainer._logs["completion"]), trainer.method.schedule_state, trainer.method.state()

    one, two = run("without", False), run("after", True)
    assert one[0] == two[0] and one[2:] == two[2:]
    assert ("method" in CASES[case]) == bool(one[3]), "a state that the measurement could have moved"
    for name, weight in one[1].items():
        assert torch.equal(weight, two[1][name]), name


def test_the_state_of_a_source_is_put_back(make_trainer):
    class Counting:
        def __init__(self):
            self.seen, self.runs = [], 0

        def setup(self, run):
            self.runs += 1

        def __call__(self, groups):
            self.seen += [rollout.index for rollout in rollouts_of(groups)]
            return [[View(HINT)] for _ in rollouts_of(groups)]

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = list(state["seen"])

    own, other = Counting(), Counting()
    preflight(make_trainer(privileged=own), rows=4, sources={"other": other})
    assert own.seen == [] and (own.runs, other.runs) == (1, 1) and other.seen == [0, 1, 2, 3]


def test_an_error_leaves_no_trace_either(make_trainer):
    trainer = make_trainer()
    trainer.model.eval()
    before, state = {name: id(value) for name, value in vars(trainer).items()}, torch.get_rng_state()

    def fails(**_):
        raise RuntimeError("no verifier")

    with pytest.raises(RuntimeError, match="no verifier"):
        preflight(trainer, rows=4, score_func=fails)
    assert {name: id(value) for name, value in vars(trainer).items()} == before
    assert torch.equal(torch.get_rng_state(), state) and not trainer.model.training


# The writer


@pytest.mark.parametrize("count", [0, 1, 6])
def test_the_writer_writes_what_the_model_generates(make_trainer, tokenizer, rows, count):
    """Six prompts take two rounds of four."""
    trainer = make_trainer()
    prompts = [row["prompt"] for row in rows[:count]]
    texts = trainer.collector.run.write(prompts, weights="teacher", max_new_tokens=6)
    assert len(texts) == count
    for prompt, text in zip(prompts, texts, strict=True):
        whole = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(whole)["input_ids"]])
        written = trainer.model.generate(ids, attention_mask=ids**0, max_new_tokens=6, do_sample=False)
        assert text == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_answers_end_with_the_token_that_ends_them(make_trainer, tokenizer):
    trainer = make_trainer()
    first = trainer.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False)[0, 3:].tolist()
    trainer.eos_token_ids = [first[2]]
    (answer,) = trainer.text_generator.answers([[5, 6, 7]], "live", temperature=0.0)
    assert answer == first[: first.index(first[2]) + 1]


# What it says


def test_verdicts_of_real_runs(make_trainer):
    options = {"privileged": giving(View(HINT))}

    def verdict(*values):
        report = preflight(make_trainer(**options), rows=8, score_func=Scores(*values) if values else None)
        (view,) = report.views
        assert view.sentence in str(report)
        return view.verdict

    assert verdict() == "no score"
    assert verdict(0.0, 1.0) == "worth it"
    assert verdict(1.0, 0.0) == "worse"
    assert verdict(0.0, 0.0) == verdict([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]) == "no gap"
    assert verdict(0.0, 0.1) == "weak"
    assert verdict(-1.0, 0.1) == "worth it"  # on a scale of its own, no score is low
    options = {"privileged": giving(View()), "teacher_model_kind": "live"}
    assert verdict(0.0, 1.0) == "same"
    options = {"privileged": giving()}
    assert verdict(0.0, 1.0) == "no views"


def test_batches_without_the_view_make_no_further_row(make_trainer):
    """One batch of four rollouts has it, the other does not; the rollouts of one prompt are one sample."""

    def source(groups):
        source.calls += 1
        return [[View(HINT, name="hint")] if source.calls == 1 else [] for _ in rollouts_of(groups)]

    source.calls = 0
    trainer = make_trainer(privileged=source, reward_funcs=length_reward)
    (view,) = preflight(trainer, rows=4, score_func=Scores(0.0, 1.0)).views
    assert (view.view, view.share, view.scored, view.prompts, view.verdict) == ("hint", 0.5, 4, 2, "unsure")


def test_scores_that_are_not_finite(make_trainer):
    trainer = make_trainer(privileged=giving(View(HINT)))
    report = preflight(trainer, rows=8, score_func=Scores([0.0, -math.inf, 0.0, 0.0], 1.0))
    assert report.views[0].scored == 6 and report.student_score == 0.0
    assert "Note: scores that are not finite are left out." in str(report)


def test_nothing_distilled_is_no_promise(make_trainer):
    trainer = make_trainer(privileged=giving(View(HINT)))
    trainer.args.num_loss_tokens_to_skip = 8  # the config refuses it: no completion is longer
    report = preflight(trainer, rows=8, score_func=Scores(0.0, 1.0))
    assert report.worthy == [] and report.views[0].verdict == "no divergence"
    assert "no token of these rollouts is distilled" in str(report)


def test_no_score_no_prediction(make_trainer):
    report = preflight(make_trainer(), rows=4)
    told = str(report)
    assert "look yourself" in told
    assert "Without a score no prediction is possible" in told and "2605.30070" not in told
    assert "nan" not in told and math.isnan(report.student_score) and report.worthy == []


def view_of(name, gaps, teacher=0.9, **changes):
    gaps = dict(enumerate(gaps)) if isinstance(gaps, list) else gaps
    student = teacher - sum(gaps.values()) / len(gaps)
    figures = {"share": 1.0, "dropped": 0, "shortened": 0, "mean_length": 9.0, "max_length": 9, "divergence": 0.5}
    figures |= {"log_ratio": -0.5, "scored": len(gaps), "bounded": True, **changes}
    return ViewReport(name, "v", student_score=student, teacher_score=teacher, gaps=gaps, **figures)


@pytest.mark.parametrize(
    ("gaps", "changes", "verdict"),
    [
        ([1.0] * 32, {}, "worth it"),
        ([1.0] * 6, {}, "worth it"),
        ([1.0] * 5, {}, "unsure"),
        ([1.0] * 5 + [0.0] * 3, {}, "no gap"),
        ([1.0] * 6 + [0.0] * 9, {}, "worth it"),
        ([1.0] * 11 + [-1.0] * 2, {}, "worth it"),  # p = 0.011
        ([1.0] * 10 + [-1.0] * 3, {}, "no gap"),  # p = 0.046
        ([-0.1] * 6, {}, "worse"),
        ([-1.0] * 11 + [1.0] * 2, {}, "worse"),
        ([-1.0] * 10 + [1.0] * 3, {}, "no gap"),
        ([0.1] * 8, {"teacher": 0.19}, "weak"),
        ([0.1] * 8, {"teacher": 0.2}, "worth it"),
        ([0.1] * 8, {"teacher": 0.1, "bounded": False}, "worth it"),
        ([1.0] * 8, {"divergence": math.nan}, "no divergence"),
        ([1.0] * 8, {"divergence": math.inf}, "no divergence"),
        ([1.0] * 8, {"divergence": 9e-4}, "same"),
        ([1.0] * 8, {"divergence": -9e-4}, "same"),
        ([1.0] * 8, {"divergence": 1e-3}, "worth it"),
    ],
)
def test_thresholds(gaps, changes, verdict):
    (view,) = with_p_values([view_of("a", gaps, **changes)])
    assert view.verdict == verdict


def test_verdicts_hold_together():
    """Of several views each needs a smaller p-value than alone, on either side; those without scores take no part."""
    better, other, none = view_of("a", [1.0] * 6), view_of("b", [1.0, -1.0] * 4), view_of("c", [1.0] * 8, scored=0)
    assert [view.verdict for view in with_p_values([better, none])] == ["worth it", "no score"]
    assert [view.verdict for view in with_p_values([better, other])] == ["unsure", "no gap"]
    (view, _) = with_p_values([better, other])
    assert (view.p_better, view.tests) == (2 / 64, 2) and "which takes 7" in view.sentence
    views = with_p_values([view_of("a", [1.0] * 8), *[view_of("b", [-1.0] * 8)] * 5])
    assert [view.verdict for view in views] == ["worth it"] + ["worse"] * 5
    assert {view.verdict for view in with_p_values([view_of("a", [1.0] * 8)] * 7)} == {"unsure"}
    assert {view.verdict for view in with_p_values([view_of("a", [1.0] * 9)] * 7)} == {"worth it"}


def test_the_largest_gap_is_named_where_it_can_be_told(make_trainer):
    """On the prompts of both views, as one prompt is easier than another for all of them."""
    report = preflight(make_trainer(), rows=4)
    gaps = [0.2 + 0.05 * (i % 9) for i in range(16)]
    clear = view_of("a", gaps)
    smaller, alike = view_of("b", [gap - 0.01 for gap in gaps]), view_of("b", [gap - 0.01 for gap in reversed(gaps)])
    elsewhere = view_of("b", {100 + i: gap - 0.1 for i, gap in enumerate(gaps)})
    told = {"The largest gap here is that of a/v.": smaller, "can't be told from chance": alike}
    for text, other in [*told.items(), ("can't be told from chance", elsewhere)]:
        vars(report)["views"][:] = with_p_values([other, clear])
        assert text in str(report) and report.worthy[0].source == "a"
    vars(report)["views"][:] = with_p_values([smaller, clear, alike])
    assert "can't be told from chance" in str(report), "it must be above each of the others"


# Sources that look at rewards


def test_the_student_is_not_scored_on_the_rollouts_that_were_chosen(make_trainer):
    """All rollouts fail and so have a view; all that is written after them is right, on both sides."""

    def reward(completions, **kwargs):
        reward.calls += 1
        return [float(reward.calls % 3 != 1)] * len(completions)  # sampling, then student and teacher anew

    reward.calls = 0
    trainer = make_trainer(privileged=When(failed(), giving(View(HINT))), reward_funcs=reward)
    report = preflight(trainer, rows=8)
    (view,) = report.views
    assert reward.calls == 12 and (view.share, view.prompts) == (1.0, 8)
    assert report.student_score == view.student_score == view.teacher_score == 1.0 and view.verdict == "no gap"


@pytest.mark.parametrize("condition", [failed(), succeeded()])
def test_a_coin_as_reward_is_no_gap(make_trainer, condition):
    coins = random.Random(0)

    def coin(completions, **kwargs):
        return [float(coins.random() < 0.5) for _ in completions]

    trainer = make_trainer(privileged=When(condition, giving(View(HINT))), reward_funcs=coin, num_generations=4)
    report = preflight(trainer, rows=16)
    assert 0.2 < report.views[0].share < 0.8 and report.views[0].prompts > 8
    assert abs(report.views[0].gap) < 3 * report.views[0].error and report.views[0].verdict == "no gap"


# Bad input


def test_bad_input(make_trainer, monkeypatch, rows):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="`rows` must be at least 1"):
        preflight(trainer, rows=0)
    with pytest.raises(ValueError, match="`temperature` must not be negative"):
        preflight(trainer, temperature=-1.0)
    with pytest.raises(ValueError, match="must not be named 'own'"):
        preflight(trainer, sources={"own": giving()})
    with pytest.raises(ValueError, match="returned 1 values for 4 completions"):
        preflight(trainer, rows=4, score_func=lambda **_: [1.0])
    with pytest.raises(ValueError, match="has 3 rows, and one generation batch takes 4"):
        preflight(make_trainer(dataset=Dataset.from_list(rows[:3])))
    with pytest.raises(ValueError, match="has no teacher"):
        preflight(make_trainer(distillation_weight=0.0, reward_funcs=length_reward))
    kind = property(lambda self: DistributedType.FSDP)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", kind)
    with pytest.raises(ValueError, match="under DDP"):
        preflight(trainer)


@pytest.mark.parametrize(("reader", "weights"), [("teacher", "teacher"), ("live", "live")])
def test_the_reader_of_a_view_answers(make_trainer, monkeypatch, reader, weights):
    """The student's weights where it is the live reader, those of the teacher elsewhere."""
    asked = []
    monkeypatch.setattr(TextGenerator, "answers", lambda self, ids, weights, *_: asked.append(weights) or ids)
    preflight(make_trainer(privileged=giving(View(HINT, reader=reader))), rows=4, score_func=Scores(0.0))
    assert asked == ["live", weights]


# Two processes


def ranks(folder, processes, **options):
    """What each rank was told, and its weights after a training."""
    folder.mkdir()
    options = {"per_device_train_batch_size": 8 // processes, "reward": True, "num_generations": 2, "max_steps": 1,
               **GREEDY, **options}  # fmt: skip
    worker = Path(__file__).parents[1] / "distributed" / "preflight_worker.py"
    launch(worker, str(folder), json.dumps(options), processes=processes, seconds=120)
    reports = [(folder / f"report-{rank}.json").read_text() for rank in range(processes)]
    return reports, [torch.load(folder / f"weights-{rank}.pt") for rank in range(processes)]


@pytest.mark.engines
@pytest.mark.parametrize("rows_with_view", [[1, 2, 4], []], ids=["on one rank alone", "on none"])
def test_two_processes_report_what_one_reports(tmp_path, rows_with_view):
    (one,), _ = ranks(tmp_path / "one", 1, rows_with_view=rows_with_view)
    (two, other), weights = ranks(tmp_path / "two", 2, rows_with_view=rows_with_view)
    assert two == other, "every rank has the whole report"
    one, two = json.loads(one), json.loads(two)
    assert one["rollouts"] == two["rollouts"] == 16 and one["student_score"] == two["student_score"]
    (view_one,), (view_two,) = one["views"], two["views"]
    for name, value in view_one.items():
        expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True)
        assert view_two[name] == expected, name
    assert view_one["share"] == (0.375 if rows_with_view else 0.0)
    _, without = ranks(tmp_path / "without", 2, rows_with_view=rows_with_view, looks=False)
    for mine, plain in zip(weights, without, strict=True):
        assert all(torch.equal(mine[name], plain[name]) for name in plain), "the training after it is another"
