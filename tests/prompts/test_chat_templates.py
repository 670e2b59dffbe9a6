# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Every place of a context under the chat templates of the models that people train."""

import math

import pytest
from accelerate import PartialState

import chat_templates
from trl_opsd import Rollout, Turn, View
from trl_opsd.prompts.tokenizer import PromptTokenizer
from trl_opsd.prompts.view_encoder import Reading, ViewEncoder
from trl_opsd.rollouts.view import PROMPT_PLACES


USER = {"role": "user", "content": "What is 3 + 4?"}
SYSTEM = {"role": "system", "content": "Be brief."}
HINT = "It is seven {{ of }} <b>all</b>."
FIRST, SECOND = "Let me see.", "It is eight."
# Templates that refuse a system message, and a user message after another
NO_SYSTEM = {"Gemma 2"}
ALTERNATING = {"Gemma 2", "Gemma 3", "Cohere"}


def encoder(name, **options):
    PartialState()  # the warning goes through accelerate
    tokenizer = chat_templates.tokenizer(name)
    made = PromptTokenizer(tokenizer, tokenizer, None)
    options = {"student_kwargs": {}, "teacher_kwargs": {}, "beginning": "student", "max_length": None, **options}
    return ViewEncoder(made, **options, overlong="error")


def rollout_of(made, prompt):
    """An answer of two turns, with what the template prints between them."""
    tokenizer = made.tokenizer.tokenizer
    prompt_ids = made.tokenizer.prompt(prompt, None, {})
    begun = made.tokenizer.beginning(None, {})
    first = tokenizer(FIRST, add_special_tokens=False)["input_ids"]
    second = tokenizer(SECOND, add_special_tokens=False)["input_ids"]
    between = made.tokenizer.message("That is wrong.", "user", False, {}, "") + begun
    ids = first + between + second
    messages = [{"role": "assistant", "content": FIRST}, {"role": "assistant", "content": SECOND}]
    turns = [Turn(0, len(first), messages[0]), Turn(len(first) + len(between), len(ids), messages[1])]
    return Rollout(
        {}, prompt, messages, prompt_ids, ids, turns, {}, math.nan, False, {}, 0, 0, 0, truncated=False, training=True
    )


def ids_of(made, view, rollout):
    """All that the teacher reads before the tokens that it scores."""
    before = rollout.prompt_ids + rollout.completion_ids[: view.start(rollout)]
    ((ids, _),) = made.encode_readings([Reading(view, rollout.prompt, before, None)])
    return ids


def without(ids, part):
    """`ids` without the one run of tokens `part`."""
    places = [i for i in range(len(ids) - len(part) + 1) if ids[i : i + len(part)] == part]
    assert len(places) == 1
    return ids[: places[0]] + ids[places[0] + len(part) :]


every_template = pytest.mark.parametrize("name", chat_templates.TEMPLATES)


PROMPTS = [[USER], [SYSTEM, USER]]
# Each template with each place, and each of both with each prompt
IN_THE_PROMPT = [
    pytest.param(name, place, PROMPTS[(i + j) % 2], id=f"{name}-{place}-{len(PROMPTS[(i + j) % 2])}")
    for i, name in enumerate(chat_templates.TEMPLATES)
    for j, place in enumerate(PROMPT_PLACES)
]


@pytest.mark.parametrize(("name", "place", "prompt"), IN_THE_PROMPT)
def test_places_in_the_prompt(name, place, prompt):
    made = encoder(name)
    if name in NO_SYSTEM and (place == "system" or len(prompt) > 1):
        with pytest.raises(ValueError, match="chat template"):
            ids_of(made, View(HINT, place=place), rollout_of(made, prompt))
        return
    rollout = rollout_of(made, prompt)
    if name in ALTERNATING and place == "user_turn":
        with pytest.raises(ValueError, match=r"chat template refuses.*alternat"):
            ids_of(made, View(HINT, place=place), rollout)
        return
    ids = ids_of(made, View(HINT, place=place), rollout)
    decode = made.tokenizer.tokenizer.decode
    text, student = decode(ids), decode(rollout.prompt_ids)
    assert text.count(HINT) == 1 and HINT not in student
    assert text.count(USER["content"]) == student.count(USER["content"]) == 1
    begun = made.tokenizer.beginning(None, {})
    assert ids[len(ids) - len(begun) :] == rollout.prompt_ids[len(rollout.prompt_ids) - len(begun) :] == begun
    order = text.index(HINT) < text.index(USER["content"])
    assert order == (place in ("system", "before_user"))


@every_template
@pytest.mark.parametrize(
    ("place", "position"),
    [("prepend", None), ("prefill", None), ("before_turn", 0), ("before_turn", 1), ("before_token", 5)],
)
def test_places_between_tokens(name, place, position):
    """All of the student's ids are there, in their order, and nothing else but the context's own."""
    made = encoder(name)
    rollout = rollout_of(made, [USER])
    view = View(HINT, place=place, position=position)
    ids = ids_of(made, view, rollout)
    start = view.start(rollout)
    student = rollout.prompt_ids + rollout.completion_ids[:start]
    added = len(ids) - len(student)
    head = 0
    while head < len(student) and ids[head] == student[head]:
        head += 1
    # The first token that differs is the context's, or a token that both begin with (a message after a message)
    places = [at for at in range(head + 1) if ids[:at] + ids[at + added :] == student]
    assert places, "the student's ids are whole"
    decode = made.tokenizer.tokenizer.decode
    assert HINT in decode(ids[places[0] : places[0] + added]) or HINT in decode(ids)
    assert decode(ids).count(HINT) == 1
    if place == "before_turn":
        begun = made.tokenizer.beginning(None, {})
        assert ids[len(ids) - len(begun) :] == begun
        turn = rollout.turns[position]
        assert view.taught(rollout) == (turn.start, turn.end) and start == turn.start
    else:
        assert view.taught(rollout) == (start, len(rollout.completion_ids)) and start == (position or 0)


@every_template
def test_no_tools_are_no_tools(name):
    """Llama's template prints something for an empty list."""
    made = encoder(name)
    assert made.tokenizer.prompt([USER], [], {}) == made.tokenizer.prompt([USER], None, {})


THINKERS = {
    "Qwen3": ({"enable_thinking": False}, {"enable_thinking": True}),
    "Qwen3.5, thinking": ({"enable_thinking": False}, {"enable_thinking": True}),
}


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("swapped", [False, True], ids=["teacher thinks", "student thinks"])
def test_think_blocks_of_one_side(name, swapped):
    student, teacher = THINKERS[name][:: -1 if swapped else 1]
    for beginning in ("student", "own"):
        made = encoder(name, student_kwargs=student, teacher_kwargs=teacher, beginning=beginning)
        own, others = (made.tokenizer.beginning(None, kwargs) for kwargs in (teacher, student))
        assert own != others, "the template begins the two sides' answers differently"
        rollout = rollout_of(made, [USER])
        ids = ids_of(made, View(HINT), rollout)
        wanted = others if beginning == "student" else own
        assert ids[len(ids) - len(wanted) :] == wanted
        assert (made.tokenizer.tokenizer.decode(ids).count("<think>")) == made.tokenizer.tokenizer.decode(wanted).count(
            "<think>"
        )


def test_a_prompt_that_ends_otherwise_is_left_alone(monkeypatch):
    """Where a template does not end a prompt in the generation prompt, there is nothing to exchange."""
    student, teacher = THINKERS["Qwen3"]
    made = encoder("Qwen3", student_kwargs=student, teacher_kwargs=teacher, beginning="student")
    rollout = rollout_of(made, [USER])
    monkeypatch.setattr(made.tokenizer, "encode_all", lambda *_: [([1, 2, 3], None)])
    assert ids_of(made, View(HINT), rollout) == [1, 2, 3]
