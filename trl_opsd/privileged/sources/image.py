# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contexts for vision-language models: a text about the student's images, or other images."""

from dataclasses import dataclass
from typing import Any

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource
from trl_opsd.privileged.checks import check_context, column_of
from trl_opsd.prompts.teacher_prompt import teacher_prompt
from trl_opsd.rollouts.message_images import decoded, images_of
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.view import PROMPT_PLACES, View, Views


def without_images(prompt: Messages) -> Messages:
    """Chat messages without their images."""
    return [
        {**message, "content": [block for block in message["content"] if block.get("type") != "image"]}
        if isinstance(message.get("content"), list)
        else message
        for message in prompt
    ]


def with_images(prompt: Messages, images: list[Any], keep: bool = False) -> Messages:
    """
    Chat messages with these images where their own are, or before the text of the first user message.

    Args:
        prompt (`list[dict]`): Chat messages.
        images (`list`): Images.
        keep (`bool`): Whether their own stay, before these.

    Raises:
        ValueError: If there is no message for them to stand in.
    """
    holders = [i for i, message in enumerate(prompt) if images_of([message])]
    holders += [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not holders:
        raise ValueError("The prompt has no user message for the images to stand in.")
    content = prompt[holders[0]].get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    own = [i for i, block in enumerate(blocks) if block.get("type") == "image"]
    at = 0 if not own else own[-1] + 1 if keep else own[0]
    if not keep:
        prompt = without_images(prompt)
    before, after = ([b for b in part if keep or b.get("type") != "image"] for part in (blocks[:at], blocks[at:]))
    added = [{"type": "image", "image": decoded(image)} for image in images]
    message = {**prompt[holders[0]], "content": [*before, *added, *after]}
    return [*prompt[: holders[0]], message, *prompt[holders[0] + 1 :]]


@dataclass
class ImageView(TextSource):
    """
    Student's prompt with other images, with a text about them, or both.

    Rows whose columns are all `None` (or an empty list of images) have no view.

    Args:
        text_column (`str`, *optional*): Column with a text, such as a transcription of the image. It goes to `place`,
            one of those in the prompt.
        image_column (`str`, *optional*): Column with an image, or a list of them, such as a crop or a larger scan.
        keep_images (`bool`): Whether the teacher sees the student's images too. Else it sees those of `image_column`
            alone, or none.
    """

    text_column: str | None = None
    image_column: str | None = None
    keep_images: bool = False

    NAME = "image_view"
    COLUMN_FIELDS = ("text_column", "image_column")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.columns:
            raise ValueError("ImageView needs a `text_column`, an `image_column`, or both.")
        if self.keep_images and self.image_column is None:
            raise ValueError(
                "ImageView with `keep_images` and without an `image_column` is the source 'column': use that one."
            )
        if self.place not in PROMPT_PLACES:
            raise ValueError(
                f"ImageView has place {self.place!r}: its text stands in the prompt, at one of {list(PROMPT_PLACES)}."
            )

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        values = {option: column_of(rollout, column, option) for option, column in self.column_options()}
        text, images = values.get("text_column"), values.get("image_column")
        images = images if isinstance(images, list) else [] if images is None else [images]
        if text is None and not images:
            return []
        if isinstance(rollout.prompt, str):
            raise ValueError(f"ImageView needs chat messages as prompt, and {rollout.where} has text.")
        prompt = with_images(rollout.prompt, images, self.keep_images)
        if text is not None:
            check_context(text, f"The column `{self.text_column}` of {rollout.where}")
            prompt = teacher_prompt(prompt, text, self.template, self.place)
        return [self.view(text, prompt=prompt)]
