# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Two small tasks that self-distillation can learn on a laptop, JSON answers and sums, with the scorers that TRL takes as
rewards.
"""

import json
import random
import re
from collections.abc import Callable, Iterable
from typing import Any


Messages = list[dict[str, str]]
Row = dict[str, Any]

# Topics keep the grammar of the three questions: singular, with their article where they need one.
QUESTIONS = ("What is {}?", "Explain {} to me.", "Why is {} important?")
TRAIN_TOPICS = """
gravity; photosynthesis; electricity; magnetism; friction; evaporation; the water cycle; a rainbow; an earthquake; a
hurricane; a glacier; a desert; a rainforest; a coral reef; the ocean; the atmosphere; the ozone layer; climate
change; recycling; solar power; wind power; nuclear energy; oxygen; carbon dioxide; hydrogen; iron; gold; salt; sugar;
a cell; a gene; evolution; a virus; a vaccine; a bacterium; the immune system; the heart; the brain; the liver; the
skin; sleep; exercise; a vitamin; protein; digestion; breathing; memory; language; writing; paper; the printing press;
a library; a dictionary; a map; a compass; a clock; a calendar; the wheel; the steam engine; a bicycle; a car; a
train; an airplane; a ship; a submarine; a rocket; a satellite; a telescope; a microscope; a camera; a radio; a
television; a telephone; the internet; a computer; a password; a robot; software; a database; an algorithm;
encryption; mathematics; algebra; geometry; statistics; probability; zero; a triangle; a graph; logic; philosophy;
psychology; history; archaeology; democracy; a constitution; a law; a court; voting; a tax; money; a bank; inflation;
insurance; trade; a budget; a market; farming; soil; a seed; a tree; a flower; a bee; a butterfly; a dog; a cat; a
horse; a cow; a whale; a shark; an owl; an eagle; a snake; bread; rice; milk; cheese; coffee; tea; chocolate; honey;
cooking; music; a piano; a guitar; dance; painting; sculpture; poetry; a novel; a theater; a museum; a school; a
hospital; a bridge; a dam; a city; a village; football; chess; swimming; friendship; honesty; patience
"""
TEST_TOPICS = """
a volcano; the sun; a dinosaur; rain; a battery; a river; kindness; the stomach; glass; a newspaper; a lighthouse; a
spider
"""

JSON_RULE = "Reply in JSON."
JSON_EXAMPLES = (
    ("What is the moon?", "The moon is a rocky body that circles the Earth."),
    ("Explain snow to me.", "Snow is frozen water that falls from clouds as ice crystals."),
    ("Why is a pencil useful?", "A pencil writes marks that can be rubbed out again."),
    ("What is a hammer?", "A hammer is a tool for driving nails."),
)

TEST_PROBLEMS, TRAIN_PROBLEMS, MORE_TEST_PROBLEMS = 64, 1024, 192
NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
OPERAND = re.compile(r"(?:[-+*/×−]|\b(?:plus|minus|times|and))\s*$", re.IGNORECASE)


def topics(text: str) -> list[str]:
    return [" ".join(topic.split()) for topic in text.split(";")]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def json_context() -> Messages:
    """Privileged context before the question: the rule and four earlier turns that follow it."""
    context = [{"role": "system", "content": JSON_RULE}]
    for question, answer in JSON_EXAMPLES:
        context += [*user(question), {"role": "assistant", "content": json.dumps({"answer": answer})}]
    return context


def json_task(seed: int = 0) -> dict[str, list[Row]]:
    """Bare questions. One context holds for all rows; a topic of the test split is in no training question."""
    splits = {}
    for split, text in (("train", TRAIN_TOPICS), ("test", TEST_TOPICS)):
        questions = [question.format(topic) for topic in topics(text) for question in QUESTIONS]
        splits[split] = [{"prompt": user(question), "privileged_context": json_context()} for question in questions]
    random.Random(seed).shuffle(splits["train"])
    return splits


def solution(a: int, b: int) -> str:
    """A sum in three steps, with an empty line between them."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    steps = [f"The tens: {a // 10 * 10} + {b // 10 * 10} = {tens}.", f"The ones: {a % 10} + {b % 10} = {ones}."]
    return "\n\n".join([*steps, f"Together: {tens} + {ones} = {a + b}."])


def addition_task(seed: int = 0) -> dict[str, list[Row]]:
    """Two-digit sums, each with its own context. a + b and b + a count as one problem, so the splits are disjoint."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    first = rng.sample(pairs, TEST_PROBLEMS + TRAIN_PROBLEMS)
    problems = [tuple(rng.sample(pair, 2)) for pair in first]
    # Drawn last: the other rows are those of earlier results
    more = rng.sample(sorted(set(pairs).difference(first)), MORE_TEST_PROBLEMS)
    problems += [tuple(rng.sample(pair, 2)) for pair in more]
    rows = []
    for a, b in problems:
        question = f"What is {a} + {b}? Answer in one short sentence."
        context = {"privileged_context": f"{a} + {b} = {a + b}", "solution": solution(a, b), "answer": a + b}
        rows.append({"prompt": user(question)} | context)
    end = TEST_PROBLEMS + TRAIN_PROBLEMS
    return {"train": rows[TEST_PROBLEMS:end], "test": rows[:TEST_PROBLEMS] + rows[end:]}


def text_of(completion: str | Messages) -> str:
    """TRL hands plain text for text prompts and messages for conversational ones."""
    return completion if isinstance(completion, str) else (completion[-1]["content"] or "")


def is_valid_json(text: str) -> bool:
    """The whole text, but for white space around it, is a JSON object whose "answer" says something."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    answer = value.get("answer") if isinstance(value, dict) else None
    return isinstance(answer, str) and bool(answer.strip())


def stated_result(text: str) -> float | None:
    """
    The number that a text gives as its result: the last one, unless it is an operand ("The sum of 12 and 30.").

    A right answer in another order ("42 is the sum of 12 and 30.") is missed; a wrong one is not taken for right.
    """
    text = text.replace("**", "")  # bold type is no multiplication
    numbers = list(NUMBER.finditer(text))
    if not numbers or OPERAND.search(text[: numbers[-1].start()]):
        return None
    return float(numbers[-1].group().replace(",", ""))


def valid_json(completions: Iterable[str | Messages], **kwargs: Any) -> list[float]:
    return [float(is_valid_json(text_of(completion))) for completion in completions]


def correct_sum(completions: Iterable[str | Messages], answer: Iterable[int], **kwargs: Any) -> list[float]:
    return [float(stated_result(text_of(text)) == total) for text, total in zip(completions, answer, strict=True)]


def judged_sum(
    completions: Iterable[str | Messages], answer: Iterable[int], log_extra: Callable[[str, list], None], **kwargs: Any
) -> list[float]:
    """[`correct_sum`], which says in words what is wrong without giving the sum away."""
    said = [stated_result(text_of(text)) for text in completions]
    words = []
    for number, total in zip(said, answer, strict=True):
        if number is None:
            words.append("The answer gives no number as its result.")
        else:
            side = "right" if number == total else "too small" if number < total else "too large"
            words.append(f"The answer says {number:g}, which is {side}.")
    log_extra("feedback", words)
    return [float(number == total) for number, total in zip(said, answer, strict=True)]
