# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Agents with tools: scripted answers in place of the sampler, as a random model calls no tools."""

import json

from trl.chat_template_utils import add_response_schema, qwen3_chat_template

import tiny


def multiply(a: int, b: int) -> str:
    """
    Multiply two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    if not isinstance(a, int) or not isinstance(b, int):
        raise TypeError("It must be an integer.")
    return str(a * b)


def call(name="multiply", **arguments):
    """A turn that calls a tool."""
    text = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call><|im_end|>"


DONE = "Done.<|im_end|>"
SCRIPTS = [  # the first turns differ, so that a rollout is told by them
    [call("times", a=0, b=1), call(a=1, b="x"), call(a=2, b=2), DONE],
    [call(a=1, b=2), call(a="y", b=2), DONE],
    [call(a=3, b=4), DONE],
    ["Twelve.<|im_end|>"],
]
AGENT = {"max_completion_length": 600, "max_tool_calling_iterations": 4}


def agent_tokenizer():
    """The tiny tokenizer with a chat template that knows tools."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


def agent_model():
    """The tiny model with room for a trajectory."""
    return tiny.model(agent_tokenizer(), max_position_embeddings=4096)


def follow_scripts(trainer, scripts):
    """Stand-in for the sampler alone, as a random model calls no tools: the i-th rollout follows the i-th script."""
    tokenizer = trainer.processing_class

    def single_turn(prompt_ids, *_, **__):
        said = [tokenizer.decode(ids) for ids in prompt_ids]
        told = [text.count("<tool_response>") for text in said]
        if not any(told):
            first = trainer.accelerator.process_index * len(said)
            texts = [scripts[(first + i) % len(scripts)][0] for i in range(len(said))]
        else:
            which = [next(one for one in scripts if one[0] in text) for text in said]
            texts = [script[turn] for script, turn in zip(which, told, strict=True)]
        return tokenizer(texts)["input_ids"], None

    trainer._generate_single_turn = single_turn


RULES = [
    {"match": "Tool .* not found", "hint": "Only one tool exists."},
    {"match": "must be an integer", "hint": "Give integers."},
]
FAILING = [
    [call(a=10, b="x"), DONE],
    [call(a=11, b="x"), call("times", a=1, b=1), DONE],
    [call(a=1234567, b="x"), call("times", a=1, b=1), DONE],
    [call(a=13, b=1), DONE],
]
KOLIBRI = {
    "when": {
        "condition": {"group_reward_below": 0.2},
        "source": {"when": {"condition": "most_errors", "source": {"turn_hint": {"rules": RULES, "policy": False}}}},
    }
}


def small_reward(completions, **kwargs):
    """Differs within a group, and stays below 0.2."""
    return [len(str(one)) % 89 / 500 for one in completions]


CALL = '<tool_call>\n{"name": "NAME", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>'


def with_scripted_sampler(trainer, name):
    """Stand-in for the sampler alone: a random model calls no tools. First a call, then an answer."""
    tokenizer = trainer._tokenizer

    def single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        called = [tokenizer.decode(ids).count("<tool_response>") > 0 for ids in prompt_ids]
        texts = ["It is 12.<|im_end|>" if done else CALL.replace("NAME", name) for done in called]
        return tokenizer(texts)["input_ids"], None

    trainer._generate_single_turn = single_turn
    return trainer


class Shop:
    """An environment with state, a tool and a reward of its own."""

    def reset(self, **row) -> str:
        self.bought = 0
        return " The shop is open."

    def buy(self, a: int, b: int) -> str:
        """
        Buy things.

        Args:
            a: How many.
            b: At which price.

        Returns:
            A receipt.
        """
        self.bought += a
        return f"Bought {a} for {a * b}."

    def get_reward(self) -> float:
        return float(self.bought)


def agent_tokenizer_with_schema():
    """The same, with the schema by which TRL reads tool calls from text."""
    return add_response_schema(agent_tokenizer())
