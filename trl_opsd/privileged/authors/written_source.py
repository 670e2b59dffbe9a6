# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Base of the sources whose contexts an author (a model or a function) writes: its requests and its answers."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_opsd.options import Count, NonNegative
from trl_opsd.privileged.authors.endpoint import EndpointAuthor
from trl_opsd.privileged.authors.model_author import ModelAuthor
from trl_opsd.privileged.base import Run, TextSource
from trl_opsd.privileged.checks import check_encodable, source_name
from trl_opsd.privileged.imports import imported
from trl_opsd.privileged.locate import decoded
from trl_opsd.privileged.transcripts import without_first_thinking, without_thinking
from trl_opsd.prompts.teacher_prompt import excerpt
from trl_opsd.rollouts.rollout import Messages, Rollout, message_text


Function = Callable[[list[str | Messages], list[Rollout]], list[str]]
Author = str | Function | ModelAuthor | EndpointAuthor

WEIGHTS = ("live", "teacher")
OTHER_MODELS = {"model": ModelAuthor, "endpoint": EndpointAuthor}


@dataclass(kw_only=True)
class WrittenSource(TextSource):
    """
    Base of the sources whose contexts an author writes during the run. Thought blocks are cut out of its texts.

    Args:
        author (`str`, `Callable`, `dict`, [`ModelAuthor`] or [`EndpointAuthor`]): The author. `"live"` or `"teacher"`:
            the model, with the student's weights as they are or with the teacher's. Another model, in a recipe as
            `{"model": options}` of [`ModelAuthor`] or `{"endpoint": options}` of [`EndpointAuthor`]. Or a function, in
            a recipe by its dotted path, from prompts and the rollouts that they are about to one text each:
            `author(prompts, rollouts)`. A prompt is of the rollout's kind, chat messages or text. Models are asked once
            for equal prompts of a batch, a function for each.
        instruction (`str`): What to write, at the beginning of each prompt.
        examples (`list[dict]`): Worked examples, as user and assistant messages of text in turn, between the
            instruction and what the prompt is about.
        max_new_tokens (`int`): Most tokens that a model writes.
        temperature (`float`): Of a model's sampling; `0.0` takes the likeliest token.

    Raises:
        ValueError: If there is no such author, a number is out of range, or instruction or examples are no text; when
            asked, if what is read can't be encoded.
    """

    author: Author | dict[str, dict[str, Any]] = "live"
    instruction: str = ""
    examples: Messages = field(default_factory=list)
    max_new_tokens: Count = 256
    temperature: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_examples(self.examples)
        self.author = _author(self.author)
        self.counts = dict(self.author.counts) if isinstance(self.author, EndpointAuthor) else {}

    @property
    def uses_model(self) -> bool:
        return isinstance(self.author, str)

    def setup(self, run: Run) -> None:
        super().setup(run)
        if isinstance(self.author, (ModelAuthor, EndpointAuthor)):
            self.author.setup()

    def ask(
        self, requests: list[str], rollouts: list[Rollout], once: bool = True, copied: bool = False
    ) -> list[str | None]:
        """
        Answers of the author to requests, `None` where an endpoint gave none. A collective where the model writes.

        Args:
            requests (`list[str]`): Texts to write about.
            rollouts (`list[Rollout]`): Rollout that each is about.
            once (`bool`): Whether equal prompts are given one text.
            copied (`bool`): Whether the answers copy words of the rollouts, with thoughts of these. Thought blocks then
                stay, for [`tagged`] to leave out the author's own.
        """
        run = self.require_run()
        with self.raise_on_all_ranks():
            prompts = [self._prompt(*pair) for pair in zip(requests, rollouts, strict=True)]
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        if isinstance(self.author, str):
            texts = _written(partial(run.write, weights=self.author, literal=True, **options), prompts, once)
        elif isinstance(self.author, (ModelAuthor, EndpointAuthor)):
            texts = _written(partial(self.author.write, **options), prompts, once)
            self.counts |= self.author.counts if isinstance(self.author, EndpointAuthor) else {}
        else:
            texts = self.author(prompts, rollouts) if prompts else []
            if not isinstance(texts, list) or [type(text) for text in texts] != [str] * len(prompts):
                raise ValueError(
                    f"The author {source_name(self.author)} must return a list of one text for each of the "
                    f"{len(prompts)} prompts, got {repr(texts)[:120]}."
                )
        return [text if text is None or copied else without_thinking(text) for text in texts]

    def _prompt(self, request: str, rollout: Rollout) -> str | Messages:
        check_encodable(request, f"The author's request about {rollout.where}")
        first, *others = [*self.examples, {"role": "user", "content": request}]
        messages = [{**first, "content": f"{self.instruction}\n\n{first['content']}".strip()}, *others]
        if isinstance(rollout.prompt, str):
            return "\n\n".join(message["content"] for message in messages) + "\n\n"
        return messages


def _check_examples(examples: Any) -> None:
    for number, one in enumerate(examples):
        texts = [one.get(key) for key in ("role", "content")] if isinstance(one, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"`examples` must be chat messages whose role and content are texts, got {excerpt(one)} as number "
                f"{number}."
            )


def _author(author: Any) -> Author:
    if isinstance(author, dict):
        return _other_model(author)
    if isinstance(author, str) and author not in WEIGHTS:
        if "." not in author:
            raise ValueError(
                f"`author` must be 'live', 'teacher', the dotted path of a function, or a mapping of one of "
                f"{list(OTHER_MODELS)} to its options, got {author!r}."
            )
        author = imported(author, "author", takes=2)
    if not isinstance(author, (str, ModelAuthor, EndpointAuthor)) and not callable(author):
        raise ValueError(f"`author` must be a function of prompts and rollouts, got {author!r}.")
    return author


def _other_model(spec: dict[str, Any]) -> ModelAuthor | EndpointAuthor:
    name, options = next(iter(spec.items())) if len(spec) == 1 else (None, None)
    if name not in OTHER_MODELS or not isinstance(options, dict):
        raise ValueError(
            f"`author` must map one of {list(OTHER_MODELS)} to its options, got {list(spec)}."  # a value may be a key
        )
    try:
        return OTHER_MODELS[name](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`author.{name}`: {error}") from None


def _written(
    write: Callable[[list[str | Messages]], list[str | None]], prompts: list[str | Messages], once: bool
) -> list[str | None]:
    """Text for each prompt, one for equal prompts if `once`."""
    if not once:
        return write(prompts)
    keys = [json.dumps(prompt) for prompt in prompts]
    different = dict(zip(keys, prompts, strict=True))
    texts = dict(zip(different, write(list(different.values())), strict=True))
    return [texts[key] for key in keys]


def task_text(rollout: Rollout) -> str:
    """Task as text: the prompt without a system message."""
    if isinstance(rollout.prompt, str):
        return rollout.prompt.strip()
    return "\n\n".join(message_text(one) for one in rollout.prompt if one["role"] != "system").strip()


def transcript(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    """Text of the student's tokens, with reasoning and tool calls, and the tools' results."""
    parts = []
    for turn in rollout.turns:
        parts.append(decoded(tokenizer, rollout.completion_ids[turn.start : turn.end]).strip())
        parts += [f"Result: {message_text(result)}" for result in turn.results]
    return "\n".join(parts)


def tagged(text: str, tags: tuple[str, ...]) -> dict[str, str] | None:
    """
    Parts of an answer such as `"Quote: 2 + 2 = 5\\nExplanation: It is 4."`, by tag. A thought block before the first
    part is the author's own and left out; one within a part stays, as it may be copied.

    Args:
        text (`str`): Text of the answer.
        tags (`tuple[str]`): Words that the parts begin with, each once, in this order, at the beginning of a line.

    Returns:
        `dict[str, str]` or `None`: `None` if a tag is missing, out of order or there twice, if anything stands before
        the first one, or if a part is empty.
    """
    # What is copied may close a block that the rollout's prompt has opened, so the whole text comes first
    found = (_tagged(one, tags) for one in (text, without_first_thinking(text)))
    return next((parts for parts in found if parts is not None), None)


def _tagged(text: str, tags: tuple[str, ...]) -> dict[str, str] | None:
    pieces = re.split(rf"^({'|'.join(map(re.escape, tags))}):", text, flags=re.MULTILINE)
    parts = {tag: part.strip() for tag, part in zip(pieces[1::2], pieces[2::2], strict=True)}
    if pieces[0].strip() or tuple(pieces[1::2]) != tags or not all(parts.values()):
        return None
    return parts
