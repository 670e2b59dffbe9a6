# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contexts that the model itself or a function writes about rollouts: what they read, and how they answer."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_opsd.privileged.base import Run, TextSource, imported, source_name
from trl_opsd.privileged.locate import decoded
from trl_opsd.rollouts import Messages, Rollout, message_text


Author = Callable[[list[str | Messages], list[Rollout]], list[str]]

WEIGHTS = ("live", "teacher")


@dataclass(kw_only=True)
class WrittenSource(TextSource):
    """
    Base of the sources whose contexts are written on the way.

    Args:
        author (`str` or `Callable`): Who writes. `"live"` or `"teacher"`: the model, with the student's weights as they
            are or with the teacher's. Or a function, in a recipe by its dotted path, from prompts and the rollouts that
            they are about to one text each: `author(prompts, rollouts)`. A prompt is of the rollout's kind, chat
            messages or text.
        instruction (`str`): What to write, at the beginning of each prompt.
        examples (`list[dict]`): Worked examples, as user and assistant messages in turn, between the instruction and
            what the prompt is about.
        max_new_tokens (`int`): Most tokens that the model writes.
        temperature (`float`): Of the model's sampling; `0.0` takes the likeliest token.

    Raises:
        ValueError: If there is no such author.
    """

    author: str | Author = "live"
    instruction: str = ""
    examples: Messages = field(default_factory=list)
    max_new_tokens: int = 256
    temperature: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.run: Run | None = None
        if isinstance(self.author, str) and self.author not in WEIGHTS:
            if "." not in self.author:
                raise ValueError(
                    f"`author` must be 'live', 'teacher' or the dotted path of a function, got {self.author!r}."
                )
            self.author = imported(self.author, "author")
        if not isinstance(self.author, str) and not callable(self.author):
            raise ValueError(f"`author` must be a function of prompts and rollouts, got {self.author!r}.")

    @property
    def uses_model(self) -> bool:
        return isinstance(self.author, str)

    def setup(self, run: Run) -> None:
        self.run = run

    def ask(self, requests: list[str], rollouts: list[Rollout]) -> list[str]:
        """
        One text for each request. A collective where the model writes.

        Args:
            requests (`list[str]`): What to write about.
            rollouts (`list[Rollout]`): The rollout that each is about.
        """
        prompts = [self._prompt(request, one) for request, one in zip(requests, rollouts, strict=True)]
        if isinstance(self.author, str):
            options = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
            return self.run.write(prompts, weights=self.author, **options)
        texts = self.author(prompts, rollouts) if prompts else []
        if not isinstance(texts, list) or [type(text) for text in texts] != [str] * len(prompts):
            raise ValueError(
                f"The author {source_name(self.author)} must return a list of one text for each of the {len(prompts)} "
                f"prompts, got {repr(texts)[:120]}."
            )
        return texts

    def _prompt(self, request: str, rollout: Rollout) -> str | Messages:
        first, *others = [*self.examples, {"role": "user", "content": request}]
        messages = [{**first, "content": f"{self.instruction}\n\n{first['content']}".strip()}, *others]
        if isinstance(rollout.prompt, str):
            return "\n\n".join(message["content"] for message in messages) + "\n\n"
        return messages

    def together(self, work: Callable[[], Any]) -> Any:
        """
        The result of what may fail on one process. If it does, every process raises before the next collective, in
        which the others would wait. A collective itself.

        Raises:
            Exception: What `work` raises; or a RuntimeError where another process failed.
        """
        if self.run is None:
            raise ValueError(f"{source_name(self)} was not set up: what stands around it must hand on `setup(run)`.")
        result = failure = None
        try:
            result = work()
        except Exception as error:
            failure = error
        told = self.run.gather([None if failure is None else f"{type(failure).__name__}: {failure}"])
        if failure is not None:
            raise failure
        if any(told):
            raise RuntimeError(f"{source_name(self)} failed on another process: {next(filter(None, told))}")
        return result


def task_text(rollout: Rollout) -> str:
    """The task as text: the prompt without a system message."""
    if isinstance(rollout.prompt, str):
        return rollout.prompt.strip()
    return "\n\n".join(message_text(one) for one in rollout.prompt if one["role"] != "system").strip()


def transcript(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    """All that the student wrote, reasoning and tool calls too, as its tokens read, and the tools' results."""
    parts = []
    for turn in rollout.turns:
        parts.append(decoded(tokenizer, rollout.completion_ids[turn.start : turn.end]).strip())
        parts += [f"Result: {message_text(result)}" for result in turn.results]
    return "\n".join(parts)


def tagged(text: str, tags: tuple[str, ...]) -> dict[str, str] | None:
    """
    The parts of an answer such as `"Quote: 2 + 2 = 5\\nExplanation: It is 4."`, by tag.

    Args:
        text (`str`): The answer.
        tags (`tuple[str]`): What the parts begin with, each once, in this order, at the beginning of a line.

    Returns:
        `dict[str, str]` or `None`: `None` if a tag is missing, out of order or there twice, if anything stands before
        the first one, or if a part is empty.
    """
    pieces = re.split(rf"^({'|'.join(map(re.escape, tags))}):", text, flags=re.MULTILINE)
    parts = {tag: part.strip() for tag, part in zip(pieces[1::2], pieces[2::2], strict=True)}
    if pieces[0].strip() or tuple(pieces[1::2]) != tags or not all(parts.values()):
        return None
    return parts
