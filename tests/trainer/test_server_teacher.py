# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Training with a teacher on a server, beside the same teacher in this process."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

import tiny
from batches import batch_of, completions, teacher_reads
from conftest import length_reward
from endpoint_server import sends
from runs import BUFFERED, LORA, SAMPLED, history, interrupted
from scoring_server import scoring
from trl_opsd import View, preflight
from trl_opsd.privileged import rollouts_of
from trl_opsd.teacher import server_client
from trl_opsd.teacher.server_client import ServerError


TOP = {"distillation_mode": "topk_logits", "distillation_topk": 6, "distillation_topk_source": "teacher"}


@pytest.fixture
def teacher(tokenizer, tmp_path):
    """The server of another model than the student, which is saved for a local teacher too."""
    model = tiny.model(tokenizer, seed=7)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with scoring(model, tokenizer) as server:
        server.folder = str(tmp_path / "teacher")
        yield server


def remote(server, **options):
    return {"teacher_model_kind": "server", "teacher_model_server_url": server.url, **options}


class LiveViews:
    """Views that the student's own weights read, beside the teacher's."""

    def __call__(self, groups):
        live = View(context="It is odd.", name="live", reader="live")
        return [[View(context="It is even."), live] for _ in rollouts_of(groups)]


def local(server, **options):
    return {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": server.folder, **options}


LOSSES = [
    {**TOP},
    {**TOP, "distillation_add_tail": True},
    {**TOP, "distillation_alpha": 1.0, "distillation_stop_gradient": True},
    {**TOP, "distillation_alpha": 0.3, "distillation_add_tail": True, "distillation_token_clip": 2.0},
    {**TOP, "distillation_alpha": 1.0, "temperature": 0.7, "distillation_teacher_temperature": 1.0},
    {**TOP, "distillation_divergence": "skew_kl", "distillation_alpha": 0.2, "distillation_entry_clip": 0.5},
    SAMPLED,
]


def both(make_trainer, server, **options):
    """Logs and weights of a run with the server, and of the one with the same teacher in this process."""
    ended = []
    for side in (remote, local):  # one after the other, as each sets the seed
        trainer = make_trainer(**side(server), **options)
        trainer.train()
        ended.append(trainer)
    return ended


def assert_alike(trainers, **tolerance):
    tolerance = tolerance or {"rel": 2e-4, "abs": 2e-5}
    for log, expected in zip(*map(history, trainers), strict=True):
        names = {name for name in log if "teacher_server" not in name}
        assert names == {name for name in expected if "teacher_entropy" not in name}
        assert {n: log[n] for n in names} == pytest.approx({n: expected[n] for n in names}, **tolerance)
    for one, other in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=5e-4)  # AdamW enlarges small gradients


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_is_the_one_with_the_same_teacher_in_this_process(make_trainer, teacher, loss):
    assert_alike(both(make_trainer, teacher, **loss, max_steps=3))


RUNS = {
    "several views": {
        **TOP, "privileged_source": {"all_of": ["column", {"fixed": {"context": "Be brief.", "name": "rule"}}]},
    },
    "a reward, an adapter": {**TOP, "reward_funcs": length_reward, "peft_config": LORA, "distillation_alpha": 1.0},
    "credit of tokens and a reward": {**SAMPLED, "reward_funcs": length_reward, "peft_config": LORA},
    "two passes over a batch of four": {
        **TOP, "reward_funcs": length_reward, "gradient_accumulation_steps": 2, "steps_per_generation": 4,
        "num_iterations": 2, "max_steps": 4,
    },
    "a method that weighs all tokens at once": {**TOP, "method": "dasd", "distillation_alpha": 0.5},
    "a method of advantages": {"method": "reopold"},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_other_runs(make_trainer, teacher, name):
    assert_alike(both(make_trainer, teacher, **{"max_steps": 2, **RUNS[name]}))


def test_a_server_of_the_student_with_its_own_prompts_teaches_nothing(make_trainer, tokenizer):
    with scoring(tiny.model(tokenizer), tokenizer) as server:
        trainer = make_trainer(**remote(server), **TOP, distillation_add_tail=True, privileged_source="bare")
        loss = trainer._compute_loss(trainer.model, batch_of(trainer))
    assert abs(loss.item()) < 1e-6


# Requests


def test_a_whole_generation_batch_is_asked_for_before_its_first_loss(make_trainer, teacher):
    trainer = make_trainer(**remote(teacher), **TOP, gradient_accumulation_steps=4)
    asked, begin = len(teacher.scored), trainer.objective.request
    seen = []

    def request(*args, **kwargs):
        seen.append(sum(len(rows) for rows in trainer.teacher._sent.values()))
        return begin(*args, **kwargs)

    trainer.objective.request = request
    trainer.train()
    # Two steps of four micro-batches, each of four rows; what is answered is let go
    assert seen == [16, 12, 8, 4] * 2
    assert len(teacher.scored) - asked == 32


def test_what_is_sent(make_trainer, teacher):
    """The teacher's prompt and the completion, to the last token that is taught, and no padding."""
    trainer = make_trainer(**remote(teacher), **TOP)
    asked = len(teacher.scored)
    batch = batch_of(trainer)
    trainer._compute_loss(trainer.model, batch)
    expected = [head + tail for head, tail in zip(teacher_reads(batch), completions(batch), strict=True)]
    assert sorted(body["prompt"] for body in teacher.scored[asked:]) == sorted(expected)
    assert {body["prompt_logprobs"] for body in teacher.scored} == {6}


def test_later_passes_ask_no_more(make_trainer, teacher):
    options = {"reward_funcs": length_reward, "num_iterations": 2, "max_steps": 4}
    trainer = make_trainer(**remote(teacher), **TOP, **options)
    asked = len(teacher.scored)
    trainer.train()
    assert len(teacher.scored) - asked == 2 * 4  # two generation batches of four rows
    assert not trainer.teacher._sent, "nothing is kept beyond the last pass"


def test_waits_and_retries_are_logged(make_trainer, teacher, monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.01)
    trainer = make_trainer(**remote(teacher), **TOP, max_steps=2)
    teacher.replies = [sends(503, "busy"), None, sends(503, "busy")]
    trainer.train()
    logs = [log for log in history(trainer) if "loss" in log]
    assert [log["self_distillation/teacher_server/retries"] for log in logs] == [2.0, 0.0]
    assert all(log["self_distillation/teacher_server/wait_seconds"] > 0 for log in logs)


def test_a_server_that_dies_in_a_run(make_trainer, teacher, monkeypatch):
    """The error names the server and the step before, and the run goes on from its checkpoint as if nothing was."""
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.01)
    options = {**TOP, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}

    class Dies(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            teacher.always = sends(503, "the engine is dead") if state.global_step == 2 else None

    trainer = make_trainer(**remote(teacher), **options, callbacks=[Dies()])
    with pytest.raises(ServerError, match=r"503: the engine is dead \(after 5 retries\)") as caught:
        trainer.train()
    assert "From the teacher's server on process 0." in caught.value.__notes__
    teacher.always = None
    resumed = make_trainer(**remote(teacher), **options)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(**remote(teacher), **{**options, "save_strategy": "no"})
    whole.train()
    logs = [[without_waits(log) for log in history(one)] for one in (whole, resumed)]
    assert logs[0] == logs[1]


def without_waits(log):
    return {name: value for name, value in log.items() if "wait_seconds" not in name}


def test_a_run_that_is_interrupted_within_a_generation_batch(make_trainer, teacher):
    options = {**TOP, **BUFFERED, **remote(teacher), "max_steps": 6}
    interrupted(make_trainer, 3, **options)
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(**options, output_dir=resumed.args.output_dir + "-whole")
    whole.train()
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_another_teacher_on_resume(make_trainer, teacher, tokenizer):
    options = {**TOP, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    interrupted(make_trainer, 1, **remote(teacher), **options)
    with scoring(tiny.model(tokenizer, seed=8), tokenizer) as other:
        trainer = make_trainer(**remote(other), **options)
        with pytest.raises(ValueError, match=r"trained against another teacher.*`teacher_model_server_url`"):
            trainer.train(resume_from_checkpoint=True)


# What the teacher writes


def test_its_answers_in_an_evaluation(make_trainer, teacher, rows):
    options = {
        "eval_teacher_prompts": 4, "per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2,
        "eval_dataset": Dataset.from_list(rows[1:6]), "reward_funcs": length_reward,
        "generation_kwargs": {"do_sample": False}, "success_reward_threshold": 2.0,
    }  # fmt: skip
    ended = both(make_trainer, teacher, **TOP, **options)
    ours, theirs = (next(log for log in history(trainer) if "eval_loss" in log) for trainer in ended)
    names = [name for name in theirs if name.startswith("eval_teacher/")]
    assert names and {n: ours[n] for n in names} == {n: theirs[n] for n in names}
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-4)


def test_the_preflight(make_trainer, teacher):
    trainer = make_trainer(**remote(teacher), **TOP, reward_funcs=length_reward)
    report = preflight(trainer, rows=2)
    expected = preflight(make_trainer(**local(teacher), **TOP, reward_funcs=length_reward), rows=2)
    (ours,), (theirs,) = report.views, expected.views
    assert ours.divergence == pytest.approx(theirs.divergence, rel=1e-4)
    assert 0 <= ours.teacher_score <= 2


# What is refused


def test_images(make_trainer, teacher, rows):
    dataset = Dataset.from_list([{**row, "image": "a.png"} for row in rows])
    with pytest.raises(ValueError, match=r"`train_dataset` has a column of images.*token ids alone"):
        make_trainer(**remote(teacher), **TOP, dataset=dataset)


def test_the_servers_context_length(make_trainer, teacher):
    teacher.length = 60
    with pytest.raises(ValueError, match=r"`teacher_max_length=100` is above the 59 tokens"):
        make_trainer(**remote(teacher), **TOP, teacher_max_length=100)
    with pytest.raises(ValueError, match=r"Row 1 of `train_dataset`.*more than the 59"):
        make_trainer(**remote(teacher), **TOP)


def test_views_that_the_student_reads(make_trainer, teacher):
    trainer = make_trainer(**remote(teacher), **TOP, privileged=LiveViews())
    with pytest.raises(ValueError, match=r"own weights read the view 'live'.*sampled_token'` alone"):
        trainer.train()
    assert_alike(both(make_trainer, teacher, **SAMPLED, privileged=LiveViews()))
