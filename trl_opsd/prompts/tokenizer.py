# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tokenization of teacher prompts: whole prompts, single messages, bare text, and the beginning of an answer."""

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from trl_opsd.batches.pixels import ImageCache, ImageInputs, ImageTensors
from trl_opsd.prompts.control_tokens import (
    control_tokens,
    control_tokens_of,
    encode_literally,
    special_tokens,
    strings,
)
from trl_opsd.rollouts.message_images import images_of
from trl_opsd.rollouts.rollout import Messages


Tools = list[Any] | None

_USER = {"role": "user", "content": "Hello."}
_ANSWER = {"role": "assistant", "content": "Hello."}


@dataclass(frozen=True)
class PromptRequest:
    """
    A whole prompt to be tokenized.

    Args:
        prompt (`str` or `list[dict]`): Text, or chat messages.
        tools (`list`, *optional*): Tools of the row.
        kwargs (`dict[str, Any]`): Chat template arguments.
        context (`str` or `list[dict]`, *optional*): Part of it in which control tokens are plain text.
    """

    prompt: str | Messages
    tools: Tools
    kwargs: dict[str, Any]
    context: str | Messages | None = None


class PromptError(ValueError):
    """
    Error of one prompt among several.

    Args:
        number (`int`): Which one.
        text (`str`): What is wrong with it.
    """

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.number = number


class PromptTokenizer:
    """
    Tokenizer of prompts, messages and bare text, in which privileged contexts never act as control tokens.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Processing class of the trainer.
        tokenizer (`PreTrainedTokenizerBase`): The same, or that of the processor.
        chat_template (`str`, *optional*): Chat template of the trainer, where it has its own.
        images ([`~trl_opsd.batches.pixels.ImageInputs`], *optional*): Encoder of images, for a processor.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None,
        images: ImageInputs | None = None,
    ):
        self.processing_class, self.tokenizer, self.chat_template = processing_class, tokenizer, chat_template
        self.images = images
        self._beginnings: dict[str, str] = {}
        if images is not None:
            images.probe(lambda prompt: self._tensors(prompt, None, {}))
        self._known: set[str] = set()

    def prompt(self, prompt: str | Messages, tools: Tools, kwargs: dict[str, Any]) -> list[int]:
        """Token ids of a whole prompt, as [`encode`] gives them."""
        return self.encode(prompt, tools, kwargs)[0]

    def encode(
        self,
        prompt: str | Messages,
        tools: Tools,
        kwargs: dict[str, Any],
        context: str | Messages | None = None,
        cache: ImageCache | None = None,
    ) -> tuple[list[int], ImageTensors]:
        """Token ids and images of one prompt: see [`PromptRequest`] and [`encode_all`]."""
        (encoded,) = self.encode_all([PromptRequest(prompt, tools, kwargs, context)], cache)
        return encoded

    def encode_all(
        self, requests: list[PromptRequest], cache: ImageCache | None = None
    ) -> list[tuple[list[int], ImageTensors]]:
        """
        Token ids of whole prompts, as TRL encodes the student's, and the pixel tensors of their images.

        Args:
            requests (`list[PromptRequest]`): The prompts.
            cache ([`~trl_opsd.batches.pixels.ImageCache`], *optional*): Cache of the batch, for prompts with images.

        Raises:
            PromptError: If a prompt has images and nothing here can read them, or not beside control tokens, or if the
                chat template refuses it.
        """
        cache = ImageCache() if cache is None else cache
        images = [images_of(one.prompt) if _has_blocks(one.prompt) else [] for one in requests]
        literal = control_tokens_of(self.tokenizer, [one.context for one in requests])
        encoded = []
        for one, pictures, tokens in zip(requests, images, literal, strict=True):
            try:
                if pictures:
                    encoded.append(self._with_images(one, pictures, tokens, cache))
                else:
                    encoded.append((self._without_images(one, tokens), ImageTensors([], {}, dict)))
            except ValueError as error:
                raise PromptError(len(encoded), str(error)) from error
        return encoded

    def _without_images(self, request: PromptRequest, tokens: list[str]) -> list[int]:
        prompt, tools, kwargs = request.prompt, request.tools, request.kwargs
        if tokens:
            is_text = isinstance(prompt, str)
            start = self.bos if is_text else []
            return encode_literally(
                self.tokenizer,
                prompt,
                request.context,
                lambda p: p if is_text else self._render(p, tools, kwargs),
                start,
            )
        if isinstance(prompt, str):
            return list(self.processing_class(text=[prompt])["input_ids"][0])
        try:
            return list(self._template(prompt, tools, kwargs, tokenize=True, return_dict=True)["input_ids"][0])
        except TemplateError as error:
            raise ValueError(f"The chat template refuses its messages ({error}). Choose another place.") from error

    def _with_images(
        self, request: PromptRequest, images: list[Any], tokens: list[str], cache: ImageCache
    ) -> tuple[list[int], ImageTensors]:
        if self.images is None:
            raise ValueError(
                f"it has {len(images)} images, and `processing_class` is a tokenizer. Pass the model's processor, or "
                "leave the images out."
            )
        if tokens:
            raise ValueError(
                f"its context has the control tokens {tokens} as text beside images, and a processor can't tell them "
                "from its own. Remove them from the context."
            )
        whole = request.prompt, request.tools, request.kwargs
        return self.images.encode(self._render(*whole), images, lambda: self._tensors(*whole), cache)

    def _tensors(self, prompt: Messages, tools: Tools, kwargs: dict[str, Any]) -> dict[str, Any]:
        return self._template(prompt, tools, kwargs, tokenize=True, return_dict=True, return_tensors="pt")

    def knows(self, contexts: list[str | Messages | None]) -> bool:
        """Whether every character of these contexts has passed [`check_characters`] before."""
        return all(self._known.issuperset("".join(texts)) for texts in [strings(context) for context in contexts])

    def check_characters(self, context: str | Messages | None) -> None:
        """
        Check that the tokenizer has tokens for every character of a context.

        Args:
            context (`str` or `list[dict]`, *optional*): Privileged context.

        Raises:
            ValueError: If it has no token for one, and leaves it out. SmolLM2's does so with a few control
                characters.
        """
        for character in sorted(set("".join(strings(context))) - self._known):
            # Between letters and between spaces: a tokenizer of whole words knows no letter by itself
            around = [[self._read(f"{side}{text}{side}") for text in ("", character)] for side in ("a", " a ")]
            if all(without == within for without, within in around):
                raise ValueError(
                    f"the tokenizer has no token for the character {character!r} of the privileged context, so the "
                    "teacher would not read it. Take it out of the text."
                )
            self._known.add(character)

    def _read(self, text: str) -> str:
        return self.tokenizer.decode(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def bos(self) -> list[int]:
        """Token ids that bare text begins with."""
        return list(self.tokenizer("")["input_ids"])

    def text(self, text: str, context: str) -> list[int]:
        """Token ids of bare text between other tokens. Control tokens in `context`, a part of it, are plain text."""
        if control_tokens(self.tokenizer, context):
            return encode_literally(self.tokenizer, text, context, lambda text: text, [])
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def beginning(self, tools: Tools, kwargs: dict[str, Any]) -> list[int]:
        """Token ids of the generation prompt, which `add_generation_prompt` adds."""
        return list(self.tokenizer(self.beginning_text(tools, kwargs), add_special_tokens=False)["input_ids"])

    def beginning_text(self, tools: Tools, kwargs: dict[str, Any]) -> str:
        """Text of the generation prompt, such as `"<|im_start|>assistant\\n<think>\\n"`."""
        key = json.dumps([bool(tools), kwargs], sort_keys=True, default=str)
        if key not in self._beginnings:
            begun = self._render([_USER], tools, kwargs)
            # Without a generation prompt, some templates print an end instead
            bare = self._render([_USER], tools, kwargs, begin=False)
            same = next((i for i, (one, other) in enumerate(zip(begun, bare, strict=False)) if one != other), len(bare))
            self._beginnings[key] = begun[self._whole_token(begun, same) :]
        return self._beginnings[key]

    def _whole_token(self, text: str, cut: int) -> int:
        """Position of a cut that goes through no control token: `cut`, or the start of the token around it."""
        for token in special_tokens(self.tokenizer):
            start = text.rfind(token, max(cut - len(token) + 1, 0), cut + len(token) - 1)
            if 0 <= start < cut:
                return start
        return cut

    def message(self, text: str, role: str | None, first: bool, kwargs: dict[str, Any], context: str) -> list[int]:
        """
        Token ids of a single message, cut out of a conversation as the template renders it.

        Args:
            text (`str`): Content of the message.
            role (`str`, *optional*): Role of the message. `None` means `"system"` for the first message, where the
                template has one, and `"user"` otherwise.
            first (`bool`): Whether it is the first message, and begins with what a conversation begins with.
            kwargs (`dict[str, Any]`): Chat template arguments.
            context (`str`): Part of the text in which control tokens are plain text.

        Raises:
            ValueError: If the template prints no such message.
        """
        roles = [role] if role else ["system", "user"] if first else ["user"]
        before: list[Messages] = [[]] if first else [[_USER, _ANSWER], [_USER]]
        for one in roles:
            for messages in before:
                if self._cut_out(text, one, messages, kwargs) is None:
                    continue

                def render(content: str, role: str = one, messages: Messages = messages) -> str:
                    return self._cut_out(content, role, messages, kwargs)

                if control_tokens(self.tokenizer, context):
                    return encode_literally(self.tokenizer, text, context, render, [])
                return list(self.tokenizer(render(text), add_special_tokens=False)["input_ids"])
        where = "at the start" if first else "between the turns"
        raise ValueError(
            f"The chat template prints no message of role {' or '.join(map(repr, roles))} of its own {where}. Choose "
            "another `role` or `place`."
        )

    def _cut_out(self, content: str, role: str, before: Messages, kwargs: dict[str, Any]) -> str | None:
        try:
            head = self._ended(before, kwargs) if before else ""
            whole = self._ended([*before, {"role": role, "content": content}], kwargs)
        except TemplateError:  # a role that it does not know, or not here
            return None
        if not whole.startswith(head) or content.strip() not in whole[len(head) :]:
            return None
        return whole[len(head) :]

    def _ended(self, messages: Messages, kwargs: dict[str, Any]) -> str:
        """Rendered messages without the generation prompt."""
        return self._render(messages, None, kwargs).removesuffix(self.beginning_text(None, kwargs))

    def _render(self, prompt: Messages, tools: Tools, kwargs: dict[str, Any], begin: bool = True) -> str:
        return self._template(prompt, tools, kwargs, begin, tokenize=False)

    def _template(self, prompt: Messages, tools: Tools, kwargs: dict[str, Any], begin: bool = True, **how: Any) -> Any:
        if self.images is not None:
            prompt = prepare_multimodal_messages(prompt)
        return self.processing_class.apply_chat_template(
            [prompt] if how["tokenize"] else prompt,
            tools=tools or None,  # Llama's template renders something for []
            chat_template=self.chat_template,
            add_generation_prompt=begin,
            **how,
            **kwargs,
        )


def _has_blocks(prompt: str | Messages) -> bool:
    """Whether a message of a prompt is made of content blocks, among which images can be."""
    return not isinstance(prompt, str) and any(isinstance(message.get("content"), list) for message in prompt)
