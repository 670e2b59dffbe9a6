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
from trl_opsd.prompts.teacher_prompt import named_error, whole_prompt
from trl_opsd.prompts.tokenizer import PromptError, PromptRequest, PromptTokenizer, Tools
from trl_opsd.rollouts.message_images import images_of, same_images
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.view import PROMPT_PLACES, PlacedView, View, placed_views


logger = get_logger(__name__)

CUT = " [...]"  # end of a shortened context
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|[。！？][\"')\]”’」』）]*\s*|\n+")


@dataclass(frozen=True)
class Reading:
    """
    A view with what the teacher reads it beside.

    Args:
        view ([`View`]): The view.
        prompt (`str` or `list[dict]`): Prompt of the student.
        before (`list[int]`): Student's own ids up to the first scored token: its prompt and the beginning of the
            completion.
        tools (`list`, *optional*): Tools of the row.
    """

    view: View
    prompt: str | Messages
    before: list[int]
    tools: Tools


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
        Encode the views called `name`, stage by stage for all rows.

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
        cache = ImageCache() if cache is None else cache
        placed = placed_views(name, rollouts, views)
        readings = [
            None if one is None else Reading(one.view, one.rollout.prompt, one.before, own)
            for one, own in zip(placed, tools, strict=True)
        ]
        found = iter(self.encode_readings([reading for reading in readings if reading is not None], cache))
        rows, dropped, shortened = [], 0, 0
        for one, rollout, reading in zip(placed, rollouts, readings, strict=True):
            ids, seen = (None, None) if reading is None else next(found)
            if ids is not None and (over := self._over(ids, one)):
                ids = self._overlong(one, ids, over, reading, cache)
                dropped, shortened = dropped + (ids is None), shortened + (ids is not None)
            if ids is None:
                rows.append((rollout.prompt_ids, 0.0, 0, (0, 0), None))
            else:
                rows.append((ids, float(one.view.weight), one.start, one.span, self._pixels(seen, rollout)))
        columns = (list(column) for column in zip(*rows, strict=True))
        return EncodedView(*columns, live=live, dropped=dropped, shortened=shortened)

    def encode_readings(
        self, readings: list[Reading], cache: ImageCache | None = None
    ) -> list[tuple[list[int], ImageTensors | None]]:
        """
        Token ids that the teacher reads before the tokens it scores, and the images within them, of each reading.

        Args:
            readings (`list[Reading]`): Views with what they are read beside.
            cache ([`~trl_opsd.batches.pixels.ImageCache`], *optional*): Images of the batch.

        Returns:
            `list[tuple[list[int], ImageTensors | None]]`: `None` for the student's own images.

        Raises:
            ValueError: If a view can't be placed; it names the view and the row.
        """
        self._check_characters(readings)
        prompts = [whole_prompt(one.view, one.prompt) for one in readings]
        kwargs = [{**self.teacher_kwargs, **(one.view.chat_template_kwargs or {})} for one in readings]
        whole = [i for i, prompt in enumerate(prompts) if prompt is not None]
        requests = [PromptRequest(prompts[i], readings[i].tools, kwargs[i], readings[i].view.context) for i in whole]
        try:
            found = self.tokenizer.encode_all(requests, cache)
            encoded = dict(zip(whole, found, strict=True))
            return [
                self._begun(one, *encoded[i], prompts[i], kwargs[i]) if i in encoded else self._between_tokens(one)
                for i, one in enumerate(readings)
            ]
        except PromptError as error:
            number = whole[error.number]
            raise named_error(readings[number].view, readings[number].prompt, error) from None

    def _check_characters(self, readings: list[Reading]) -> None:
        if self.tokenizer.knows([one.view.context for one in readings]):
            return
        for one in readings:
            try:
                self.tokenizer.check_characters(one.view.context)
            except ValueError as error:
                raise named_error(one.view, one.prompt, error) from None

    def _begun(
        self,
        reading: Reading,
        ids: list[int],
        seen: ImageTensors,
        prompt: str | Messages,
        kwargs: dict[str, Any],
    ) -> tuple[list[int], ImageTensors]:
        return ids if isinstance(prompt, str) else self._begun_alike(ids, kwargs, reading.tools), seen

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

    def _between_tokens(self, reading: Reading) -> tuple[list[int], None]:
        try:
            return self._inserted(reading), None
        except ValueError as error:
            raise named_error(reading.view, reading.prompt, error) from None

    def _inserted(self, reading: Reading) -> list[int]:
        view, before, is_chat = reading.view, reading.before, not isinstance(reading.prompt, str)
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
            begun = self.tokenizer.beginning(reading.tools, self.student_kwargs)
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
        # Only a context outside the prompt stands beside the student's own ids
        before = [] if view.place in PROMPT_PLACES else self.tokenizer.prompt(prompt, tools, self.student_kwargs)
        ((ids, _),) = self.encode_readings([Reading(view, prompt, before, tools)])
        return len(ids)

    def _over(self, ids: list[int], placed: PlacedView) -> int:
        """Number of tokens above the limit, or 0."""
        length = len(ids) + len(placed.rollout.completion_ids) - placed.start
        return max(length - self.max_length, 0) if self.max_length else 0

    def _overlong(
        self, placed: PlacedView, ids: list[int], over: int, reading: Reading, cache: ImageCache
    ) -> list[int] | None:
        """Token ids of a view that is too long, as `overlong` says; `None` for a view that is dropped."""
        view, rollout = placed.view, placed.rollout
        if self.overlong == "drop_view":
            return None
        if self.overlong == "shorten" and isinstance(view.context, str) and view.prompt is None:
            return self._shortened(placed, reading, cache)
        way = "Shorten the privileged context, raise `teacher_max_length` if the model can take it, or set "
        way += "`teacher_overlong='drop_view'`"
        if self.overlong == "shorten":
            way = f"Only a text can be shortened, not messages or a whole prompt. {way}"
        else:
            way += " or `'shorten'`"
        raise ValueError(
            f"The teacher's prompt of view {view.name!r} has {len(ids)} tokens and the completion "
            f"{len(rollout.completion_ids) - placed.start}, {over} more than the {self.max_length} that "
            f"`teacher_max_length` or the model's context allows, for {rollout.where}. {way}."
        )

    def _shortened(self, placed: PlacedView, reading: Reading, cache: ImageCache) -> list[int] | None:
        """Token ids with as many of the context's first sentences as fit; `None` where not even one does."""
        context = placed.view.context
        ends = [match.end() for match in _SENTENCE_END.finditer(context)]
        best: list[int] | None = None
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            shorter = replace(placed.view, context=context[: ends[middle]].rstrip() + CUT)
            ((ids, _),) = self.encode_readings([replace(reading, view=shorter)], cache)
            if self._over(ids, placed):
                high = middle
            else:
                best, low = ids, middle + 1
        return best
