# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The lab model: its tasks and slips, the texts that it learns from, and weights that are the same each time."""

import random

import pytest
import torch

from benchmarks.lab import contexts, pretraining
from benchmarks.lab.make import held_out, prompts_by_context
from benchmarks.lab.scores import answers
from benchmarks.lab.tasks import TASKS, correct, feedback_on, part_of, result_of, task_of


WORKED = [  # question, answer, and the answer of a solver that forgets
    ("347+586?", "7+6+0=13,4+8+1=13,3+5+1=9;933.", "7+6+0=13,4+8+0=12,3+5+0=8;823."),
    ("99+91?", "9+1+0=10,9+9+1=19;190.", "9+1+0=10,9+9+0=18;180."),
    ("348*3?", "8*3=24+0=24,4*3=12+2=14,3*3=9+1=10;1044.", "8*3=24+0=24,4*3=12+0=12,3*3=9+0=9;924."),
    ("sort 31431?", "1*2,3*2,4*1;11334.", "1*1,3*1,4*1;134."),
    ("next caeb?", "c>d,a>b,e>a,b>c;dbac.", "c>d,a>b,e>e,b>c;dbec."),
]


@pytest.mark.parametrize(("question", "careful", "careless"), WORKED)
def test_worked_answers(question, careful, careless):
    task = task_of(question)
    assert task.worked(question) == careful and task.worked(question, lambda: False) == careless
    assert correct([careful, [{"role": "assistant", "content": careless}]], [question] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("name", TASKS)
def test_results_are_true(name):
    """Against Python's own arithmetic, for every size."""
    task, rng = TASKS[name], random.Random(0)
    after = str.maketrans("abcde", "bcdea")
    for size in task.sizes:
        for _ in range(100):
            question = task.ask(rng, size)
            assert task_of(question) is task
            text = question.rstrip("?").split(" ")[-1]
            true = {"sort": "".join(sorted(text)), "rewriting": text.translate(after)}
            wanted = true[name] if name in true else str(eval(text))
            assert result_of(task.worked(question)) == wanted


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("7+6+0=13,4+8+1=13,3+5+1=9;933.", "all right"),
        ("7+6+0=13,4+8+0=12,3+5+0=8;823.", "wrong at 2"),
        ("7+6+0=13,4+8+1=13,3+5+1=9;833.", "wrong at 4"),
        ("7+6+0=13,4+8+1=13", "wrong at 3"),
        ("", "wrong at 1"),
    ],
)
def test_feedback_names_the_first_wrong_step(text, note):
    assert feedback_on(text, "347+586?") == note


@pytest.mark.parametrize("name", TASKS)
def test_a_forgetful_solver_is_right_now_and_then(name):
    """Both always forgetful, as the model's likeliest answer is, and as often as the model learns to be."""
    rng, asked = random.Random(0), held_out(TASKS[name], 256)
    for kept in (0.0, contexts.CARELESS):
        texts = [TASKS[name].careless(question, rng, kept) for question in asked]
        assert 0.12 <= sum(correct(texts, asked)) / 256 <= 0.45


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_kept_apart(name):
    test, train = (held_out(TASKS[name], 256, part=part) for part in (0, 1))
    assert len({*test, *train}) == 512 and test == held_out(TASKS[name], 256)
    rng = random.Random(1)
    seen = {contexts.example(rng).user.split("?")[0] + "?" for _ in range(2000)}
    assert {part_of(question) for question in seen} == {2} and not seen & {*test, *train}


@pytest.mark.parametrize("form", contexts.FORMS, ids=lambda form: form.__name__)
def test_what_a_text_teaches(form):
    """With a context of the question the answer is what it says; without one that helps, it is mostly careless."""
    rng = random.Random(0)
    shown = [form(contexts.Drawn(TASKS["sum"], question, rng)) for question in held_out(TASKS["sum"], 300, part=1)]
    asked = [one.user.split("?")[0] + "?" for one in shown]
    right = sum(correct([one.answer for one in shown], asked)) / len(shown)
    careless = form.__name__ in ("bare", "unrelated")
    known = {"ruled": 1.0, "criticised": 1.0, "checked": 0.0}
    if form.__name__ in known:
        assert right == known[form.__name__]
    else:
        assert (right < 0.5) if careless else (0.5 < right < 0.95)
    if form in (contexts.solved, contexts.answered):
        assert all(one.user.rstrip(".").endswith(result_of(one.answer)) for one in shown)
    if form is contexts.told_in_advance:
        for one, question in zip(shown, asked, strict=True):
            note, own = one.user.rpartition(": ")[2], feedback_on(one.answer, question)
            assert own == "all right" or (note != "all right" and int(own[-1]) > int(note[-1]))


def test_texts_are_within_the_vocabulary_and_the_positions():
    tokenizer, rng = pretraining.make_tokenizer(), random.Random(0)
    for _ in range(1000):
        shown = contexts.example(rng)
        ids, read = pretraining.encode(tokenizer, shown)
        assert tokenizer.unk_token_id not in ids and len(ids) < pretraining.LENGTH // 2
        assert tokenizer.decode(ids[read:]) == f"{shown.answer}<eos>"
        chat = [{"role": "user", "content": shown.user}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + shown.begun
        assert tokenizer.decode(ids[:read]) == text


def test_padding_is_not_trained():
    tokenizer = pretraining.make_tokenizer()
    ids, labels = next(pretraining.batches(tokenizer, 0))
    assert ids.shape == labels.shape and len(ids) == pretraining.ROWS
    assert not (labels[ids == tokenizer.pad_token_id] != -100).any()
    assert ((labels == -100) | (labels == ids)).all() and (labels == tokenizer.eos_token_id).sum() == len(ids)


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (pretraining.pretrain(seed, 3)[0].state_dict() for seed in (0, 0, 1))
    assert all(one[name].equal(same[name]) for name in one)
    assert any(not one[name].equal(other[name]) for name in one)


def test_it_learns():
    """Some steps on, texts are likelier by far than at the start."""
    tokenizer = pretraining.make_tokenizer()
    ids, labels = next(pretraining.batches(tokenizer, 5))
    losses = []
    for model in (pretraining.make_model(tokenizer, 0), pretraining.pretrain(0, 60)[0]):
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    assert losses[0] > 3.5 and losses[1] < 2.2


def test_answers_leave_the_random_numbers_alone():
    tokenizer = pretraining.make_tokenizer()
    model = pretraining.make_model(tokenizer, 0).train()
    users = prompts_by_context(TASKS["sum"], held_out(TASKS["sum"], 3))
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = (answers(model, tokenizer, users["none"], sample=True, most=8, seed=seed) for seed in (0, 0, 1))
    assert one == same != other and model.training and torch.rand(2).equal(wanted)
    both = answers(model, tokenizer, users["none"] + users["solution"], most=8)
    assert both[:3] == answers(model, tokenizer, users["none"], most=8), "padding on the left changes no answer"
