# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Encoding of views: the token ids that the teacher reads before the student's own completion.

Legend: B rows of the local generation batch, P longest teacher prompt of a view, C longest completion.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from accelerate.logging import get_logger

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.batches.pixels import ImageCache, ImageTensors, Pixels
from trl_opsd.prompts.teacher_prompt import teacher_prompt
from trl_opsd.prompts.tokenizer import PromptTokenizer, Tools
from trl_opsd.rollouts.message_images import images_of, same_images
from trl_opsd.rollouts.rollout import Messages, Rollout, named_by_prompt
from trl_opsd.rollouts.view import PROMPT_PLACES, View


logger = get_logger(__name__)

CUT = " [...]"  # end of a shortened context
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|[。！？][\"')\]”’」』）]*\s*|\n+")


@dataclass
class ViewEncoder:
    """
    Encoder of views, with the policy for those that are too long.

    Args:
        tokenizer ([`PromptTokenizer`]): Tokenizer of prompts and texts.
        student_kwargs, teacher_kwargs (`dict[str, Any]`): Chat template arguments of each side.
        beginning (`str`): `teacher_generation_prompt`.
        max_length (`int`, *optional*): Most tokens that the teacher reads.
        overlong (`str`): `teacher_overlong`.
    """

    tokenizer: PromptTokenizer
    student_kwargs: dict[str, Any]
    teacher_kwargs: dict[str, Any]
    beginning: str
    max_length: int | None
    overlong: str
    _warned: bool = False

    def encode(
        self,
        name: str,
        rollouts: list[Rollout],
        views: list[list[View]],
        tools: list[Tools],
        live: bool = False,
        cache: ImageCache | None = None,
    ) -> EncodedView:
        """
        Encode the views called `name`, one row after the other.

        Args:
            name (`str`): Name of the view.
            rollouts (`list[Rollout]`): The local generation batch.
            views (`list[list[View]]`): Views of each rollout.
            tools (`list`): Tools of each row.
            live (`bool`): Whether the student's own weights read it.
            cache ([`~trl_opsd.batches.pixels.ImageCache`], *optional*): Images of the batch, shared by its views.

        Raises:
            ValueError: If a view can't be placed, or is too long and `overlong` is `"error"`.
        """
        if self.tokenizer.images is not None:
            self.tokenizer.images.check_rows([len(images_of(rollout.prompt)) for rollout in rollouts])
        encoded = EncodedView(live=live)
        cache = ImageCache() if cache is None else cache
        for rollout, row_views, row_tools in zip(rollouts, views, tools, strict=True):
            view = next((view for view in row_views if view.name == name), None)
            if view is not None:
                ids, seen = self.encode_view(view, rollout.prompt, _before(view, rollout), row_tools, cache)
                if over := self._over(ids, view, rollout):
                    view, ids = self._overlong(view, ids, over, rollout, row_tools, cache)
                    encoded.dropped += view is None
                    encoded.shortened += view is not None
            if view is None:
                encoded.add(rollout.prompt_ids, 0.0, 0, (0, 0))
            else:
                pixels = self._pixels(seen, rollout)
                encoded.add(ids, view.weight, view.start(rollout), view.taught(rollout), pixels)
        return encoded

    def encode_view(
        self, view: View, prompt: str | Messages, before: list[int], tools: Tools, cache: ImageCache | None = None
    ) -> tuple[list[int], ImageTensors | None]:
        """
        Token ids that the teacher reads before the tokens it scores, and the images within them.

        Args:
            view ([`View`]): View to encode.
            prompt (`str` or `list[dict]`): Prompt of the student.
            before (`list[int]`): Student's own ids up to the first scored token: its prompt and the beginning of the
                completion.
            tools (`list`, *optional*): Tools of the row.
            cache ([`~trl_opsd.batches.pixels.ImageCache`], *optional*): Images of the batch.

        Returns:
            `tuple[list[int], ImageTensors | None]`: `None` for the student's own images.

        Raises:
            ValueError: If the view can't be placed; it names the view and the row.
        """
        try:
            self.tokenizer.check_characters(view.context)
            whole = _whole_prompt(view, prompt)
            if whole is None:
                return self._between_tokens(view, before, not isinstance(prompt, str), tools), None
            kwargs = {**self.teacher_kwargs, **(view.chat_template_kwargs or {})}
            ids, seen = self.tokenizer.encode(whole, tools, kwargs, view.context, cache)
            return ids if isinstance(whole, str) else self._begun_alike(ids, kwargs, tools), seen
        except ValueError as error:
            raise ValueError(f"The view {view.name!r} of {named_by_prompt(prompt)}: {error}") from None

    def _pixels(self, seen: ImageTensors | None, rollout: Rollout) -> Pixels | None:
        """Pixel tensors that the teacher reads, `None` for those of the student."""
        if self.tokenizer.images is None:
            return None
        if images_of(rollout.completion):
            raise ValueError(
                f"A tool returned an image in the completion of {rollout.where}. The distillation term reads images of "
                "prompts only: let the tool return text, or set `distillation_weight=0.0`."
            )
        return None if seen is None or same_images(seen.images, images_of(rollout.prompt)) else seen.pixels

    def _begun_alike(self, ids: list[int], kwargs: dict[str, Any], tools: Tools) -> list[int]:
        """Token ids with the student's own generation prompt, which the completion followed when it was sampled: a
        think block that is open, closed or none."""
        if kwargs == self.student_kwargs or self.beginning == "own":
            return ids
        own, student = (self.tokenizer.beginning(tools, one) for one in (kwargs, self.student_kwargs))
        if own == student or ids[len(ids) - len(own) :] != own:
            return ids
        if not self._warned:
            texts = [self.tokenizer.beginning_text(tools, one) for one in (kwargs, self.student_kwargs)]
            logger.warning(
                f"The chat template begins the teacher's answer with {texts[0]!r} and the student's with {texts[1]!r}. "
                "The teacher scores the student's tokens after the student's own beginning; set "
                "`teacher_generation_prompt='own'` to score them after the teacher's."
            )
            self._warned = True
        return ids[: len(ids) - len(own)] + student

    def _between_tokens(self, view: View, before: list[int], is_chat: bool, tools: Tools) -> list[int]:
        kwargs = {**self.student_kwargs, **(view.chat_template_kwargs or {})}
        if view.place == "prepend":
            start = [] if is_chat else self.tokenizer.bos
            text = self.tokenizer.text(view.text + "\n\n", view.context)
            block = (
                self.tokenizer.message(view.text, view.role, True, kwargs, view.context) if is_chat else start + text
            )
            bos = self.tokenizer.tokenizer.bos_token_id
            return block + before[1 if bos is not None and block[:1] == before[:1] == [bos] else 0 :]
        if view.place == "before_turn" and is_chat:
            begun = self.tokenizer.beginning(tools, self.student_kwargs)
            if before[len(before) - len(begun) :] != begun:
                raise ValueError(
                    f"The tokens before turn {view.position} do not end in what the chat template begins an answer "
                    "with, so no message fits between. Use the place 'prepend' or 'before_token'."
                )
            block = self.tokenizer.message(view.text, view.role, False, kwargs, view.context)
            return before[: len(before) - len(begun)] + block + begun
        return before + self.tokenizer.text(view.text, view.context)

    # Length

    def length(self, view: View, prompt: str | Messages, tools: Tools) -> int:
        """Tokens that the teacher reads before a completion of `prompt`. For places in or before the prompt."""
        student_ids = self.tokenizer.prompt(prompt, tools, self.student_kwargs)
        return len(self.encode_view(view, prompt, student_ids, tools)[0])

    def _over(self, ids: list[int], view: View, rollout: Rollout) -> int:
        """Number of tokens above the limit, or 0."""
        length = len(ids) + len(rollout.completion_ids) - view.start(rollout)
        return max(length - self.max_length, 0) if self.max_length else 0

    def _overlong(
        self, view: View, ids: list[int], over: int, rollout: Rollout, tools: Tools, cache: ImageCache
    ) -> tuple[View | None, list[int]]:
        if self.overlong == "drop_view":
            return None, []
        if self.overlong == "shorten" and isinstance(view.context, str) and view.prompt is None:
            return self._shortened(view, rollout, tools, cache)
        way = "Shorten the privileged context, raise `teacher_max_length` if the model can take it, or set "
        way += "`teacher_overlong='drop_view'`"
        if self.overlong == "shorten":
            way = f"Only a text can be shortened, not messages or a whole prompt. {way}"
        else:
            way += " or `'shorten'`"
        raise ValueError(
            f"The teacher's prompt of view {view.name!r} has {len(ids)} tokens and the completion "
            f"{len(rollout.completion_ids) - view.start(rollout)}, {over} more than the {self.max_length} that "
            f"`teacher_max_length` or the model's context allows, for {rollout.where}. {way}."
        )

    def _shortened(
        self, view: View, rollout: Rollout, tools: Tools, cache: ImageCache
    ) -> tuple[View | None, list[int]]:
        """View with as many of the context's first sentences as fit; no view where not even one does."""
        ends = [match.end() for match in _SENTENCE_END.finditer(view.context)]
        best: tuple[View | None, list[int]] = None, []
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            shorter = replace(view, context=view.context[: ends[middle]].rstrip() + CUT)
            ids, _ = self.encode_view(shorter, rollout.prompt, _before(view, rollout), tools, cache)
            if self._over(ids, shorter, rollout):
                high = middle
            else:
                best, low = (shorter, ids), middle + 1
        return best


def _before(view: View, rollout: Rollout) -> list[int]:
    """Student's own ids up to the first token that the teacher scores."""
    return rollout.prompt_ids + rollout.completion_ids[: view.start(rollout)]


def _whole_prompt(view: View, prompt: str | Messages) -> str | Messages | None:
    """Prompt that the teacher reads, `None` where the context stands between the student's own tokens."""
    if view.prompt is not None or view.context is None:
        return prompt if view.prompt is None else view.prompt
    if view.place in PROMPT_PLACES:
        return teacher_prompt(prompt, view.context, view.template, view.place)
    return None
