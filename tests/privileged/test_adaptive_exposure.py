# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The controller of adaptive exposure, and the source in real runs."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import exposure_worker
from launch import launch
from runs import assert_same_run, interrupted
from trl_opsd.privileged import AdaptiveExposure, FirstOf, When
from trl_opsd.privileged.base import as_source
from trl_opsd.privileged.exposure_controller import EMA, ExposureController
from trl_opsd.rollouts.step_summary import StepSummary


OPTIONS = {
    "hold": 3, "look_ahead": 2, "discount": 0.5, "learning_rate": 0.05, "entropy_target": -0.5, "entropy_weight": 0.01,
    "seed": 0,
}  # fmt: skip


def controller(**changes):
    return ExposureController(**{**OPTIONS, **changes})


def summary(loss, step=1, **logged):
    return StepSummary(step, {}, {}, loss, math.nan, 0.0, 8.0, 8.0, logged, step / 20)


# The controller


@pytest.mark.parametrize("seed", range(3))
def test_the_score_function(seed):
    """Gradients of log Beta(share; a, b) by hand: digammas, the slope of softplus and the chain through the network."""
    one = controller(seed=seed, entropy_weight=0.0)
    one.inputs = [0.3, 0.6, 1.2, -0.4, 2.0]
    draw = torch.Generator().manual_seed(seed)
    one.weights = [torch.randn(weight.shape, generator=draw, dtype=torch.float64) * 0.3 for weight in one.weights]
    w1, b1, w2, b2 = one.weights
    s = torch.tensor(one.inputs, dtype=torch.float64)
    h = (s @ w1 + b1).tanh()
    u = h @ w2 + b2
    a, b = (1 + u.exp().log1p()).tolist()

    def digamma(x):
        return torch.special.digamma(torch.tensor(x, dtype=torch.float64))

    score = torch.stack([
        math.log(one.share) - digamma(a) + digamma(a + b), math.log(1 - one.share) - digamma(b) + digamma(a + b),
    ])  # fmt: skip
    on_u = 1.7 * score * u.sigmoid()
    on_h = (w2 @ on_u) * (1 - h**2)
    expected = torch.outer(s, on_h), on_h, torch.outer(h, on_u), on_u
    for got, wanted in zip(one.gradients(1.7), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_the_entropy_has_a_ceiling():
    """Without an advantage only an entropy above the target has a gradient, and following it lowers the entropy."""
    below = controller(entropy_target=0.5, entropy_weight=1.0)
    assert not any(gradient.any() for gradient in below.gradients(0.0))
    above = controller(entropy_target=-1.0, entropy_weight=1.0, learning_rate=0.1)
    before = float(above.policy(above.weights).entropy())
    for _ in range(400):
        above.learn(1.0)  # always the same reward: no advantage
    assert -1.1 < float(above.policy(above.weights).entropy()) < before - 0.2


@pytest.mark.parametrize("best", [0.2, 0.5, 0.85])
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_reward_finds_its_optimum(best, seed):
    one = controller(seed=seed)
    for _ in range(600):
        one.learn(-((one.share - best) ** 2))
        one.decisions += 1
        one.share = one.draw()
    policy = one.policy(one.weights)
    assert float(policy.mean) == pytest.approx(best, abs=0.1) and float(policy.stddev) < 0.15


def test_without_learning_it_draws_from_one_distribution():
    """Beta(1 + log 2, 1 + log 2), whatever the losses."""
    one, shares = controller(learning_rate=0.0, hold=2, look_ahead=1), []
    for step in range(4000):
        if step % 2 == 0:
            shares.append(one.share)
        one.observe(summary(float(step % 7), step, student_entropy=float(step)))
    shares = torch.tensor(shares, dtype=torch.float64)
    concentration = 1 + math.log(2)
    assert len(shares.unique()) == 2000 and float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.1)


def test_reward_and_state_by_hand():
    """Losses 5 4 4.5 3: falls of 1 and 0 count, the last is beyond the look-ahead. A share of three steps."""
    one = controller(hold=4)
    first = one.share
    for step, loss in enumerate([5.0, 4.0, 4.5, 3.0], 1):
        assert one.share == first
        if step == 4:
            one.losses.append(loss)
            assert one.reward() == pytest.approx(1.0 + 0.5 * 0.0)
            one.losses.pop()
        one.observe(summary(loss, step, **{"gap/mean": -0.2, "student_entropy": 1.5}))
    assert one.share != first and one.decisions == 1 and one.losses == []
    average = 0.5 + EMA * (first - 0.5)
    assert one.inputs == pytest.approx([4 / 20, average, 3.0, -0.2, 1.5])
    assert one.rewards[:2] == [1, pytest.approx(1.0)]
    one.losses = [5.0, 6.0, 4.0]
    assert one.reward() == pytest.approx(0.5 * 2.0)


def test_the_advantage_is_in_standard_deviations(monkeypatch):
    one, seen = controller(), []
    monkeypatch.setattr(one, "gradients", lambda advantage: seen.append(advantage) or [0.0] * 4)
    for reward in (2.0, 2.0, 5.0):
        one.learn(reward)
    assert seen[:2] == [0.0, 0.0] and seen[2] == pytest.approx((5.0 - 3.0) / math.sqrt(2.0))


def test_values_that_are_not_finite_are_left_out():
    one = controller(hold=2, look_ahead=1)
    for _ in range(2):
        one.observe(summary(1.0, student_entropy=math.inf))
    assert one.inputs[3:] == [0.0, 0.0] and 0 < one.share < 1


def test_a_restored_controller_goes_on():
    whole, first = controller(), controller()
    for step in range(20):
        whole.observe(summary(math.sin(step), step))
        if step < 8:
            first.observe(summary(math.sin(step), step))
    resumed = controller()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(8, 20):
        resumed.observe(summary(math.sin(step), step))
    assert resumed.state_dict() == whole.state_dict() and whole.decisions == 6
    assert first.decisions == 2 and len(first.losses) == 2, "a state is a copy"


# The source


ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}?"}],
        "solution": "\n\n".join(f"Step {j}." for j in range(10)),
        "answer": str(i),
    }
    for i in range(16)
]
TRAINED = {"privileged_source": {"adaptive_exposure": {"answer": "answer", "hold": 2, "look_ahead": 1}}}


def run(make_trainer, folder, **options):
    data = Dataset.from_list(ROWS)
    return make_trainer(dataset=data, output_dir=str(folder), **{**TRAINED, "max_steps": 7, **options})


def test_the_teacher_reads_the_share_of_its_step(make_trainer, tmp_path):
    """Two steps see one share, then there is another; it is what the log says."""
    seen = []
    trainer = run(make_trainer, tmp_path)
    collect = trainer.collector.collect

    def collected(*arguments):
        found = collect(*arguments)
        seen.append((trainer.privileged.controller.share, [view.context for (view,) in found.views]))
        return found

    trainer.collector.collect = collected
    trainer.train()
    shares = [share for share, _ in seen]
    assert shares[0] == shares[1] != shares[2] == shares[3] != shares[4] == shares[5] != shares[6]
    assert len(set(shares)) == 4
    for share, contexts in seen:
        count = math.floor(10 * share)
        for context in contexts:
            steps, answer = context.count("Step"), "Answer: " in context
            assert steps == count and answer
    logged = [log["self_distillation/exposure_share"] for log in trainer.state.log_history[:-1]]
    assert logged == pytest.approx(shares)


def test_its_losses_are_those_of_the_log(make_trainer, tmp_path):
    trainer = run(make_trainer, tmp_path, max_steps=3)
    trainer.train()
    assert trainer.privileged.controller.losses == [
        pytest.approx(trainer.state.log_history[2]["self_distillation/loss"], rel=1e-5)
    ]


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    whole = run(make_trainer, tmp_path / "whole", **options)
    whole.train()
    for step in (3, 4):
        folder = tmp_path / f"cut{step}"
        interrupted(lambda folder=folder, **how: run(make_trainer, folder, **how), step, **options)
        resumed = run(make_trainer, folder, **options)
        resumed.train(resume_from_checkpoint=True)
        assert_same_run(whole, resumed)
        assert resumed.privileged.state_dict() == whole.privileged.state_dict()


def test_it_may_stand_in_other_sources(make_trainer, tmp_path):
    """Each hands the steps on: composed ones, and an object of the user's own."""

    class Own:
        observes_steps = True

        def __init__(self):
            self.seen = []

        def __call__(self, groups):
            return [[] for group in groups for _ in group]

        def observe_step(self, summary):
            self.seen.append(summary.step)

    own, adaptive = Own(), AdaptiveExposure(hold=2, look_ahead=1)
    source = FirstOf(own, When(lambda rollout, group: True, adaptive))
    assert source.observes_steps and not as_source(lambda groups: []).observes_steps
    make_trainer(dataset=Dataset.from_list(ROWS), max_steps=3, privileged=source).train()
    assert own.seen == [1, 2, 3] and adaptive.controller.decisions == 1


def test_a_method_with_a_schedule_beside_it(make_trainer, tmp_path):
    trainer = run(make_trainer, tmp_path, method="taid", max_steps=4)
    trainer.train()
    assert trainer.privileged.controller.decisions == 2
    assert trainer.method.schedule_state != trainer.method.method.state


def test_nothing_is_gathered_for_other_sources(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert not trainer.method.follows and trainer.method.state() == {} and trainer.method.losses == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hold": 3, "look_ahead": 3}, "`look_ahead` is 3 and `hold` 3"),
        ({"discount": 1.5}, "`discount`"),
        ({"learning_rate": -0.1}, "`learning_rate`"),
        ({"separator": "("}, "unterminated"),
    ],
)
def test_bad_options(options, told):
    with pytest.raises((ValueError, re.error), match=told):
        AdaptiveExposure(**options)


def test_two_processes_draw_alike(tmp_path):
    """Each has half of the rollouts, and both the same controller, that of one process up to rounding."""
    states = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(Path(exposure_worker.__file__), str(folder), processes=processes, seconds=120)
        states[processes] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    (alone,), (first, second) = states[1], states[2]
    assert first == second and first["decisions"] == 2
    for name in ("share", "average"):
        assert first[name] == pytest.approx(alone[name], rel=1e-4)
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-3) and first["losses"]
