# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Encoding of views: the token ids that the teacher reads before the student's own completion.

Legend: B rows of the local generation batch, P longest teacher prompt of a view, C longest completion.
"""

from dataclasses import dataclass, replace
from typing import Any

from accelerate.logging import get_logger

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.batches.pixels import ImageCache, ImageTensors, Pixels
from trl_opsd.prompts.length_limit import EncodedReading, LengthLimit, Reading
from trl_opsd.prompts.teacher_prompt import named_error, whole_prompt
from trl_opsd.prompts.tokenizer import PromptError, PromptRequest, PromptTokenizer, Tools
from trl_opsd.rollouts.message_images import images_of, same_images
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.view import PROMPT_PLACES, PlacedView, View, placed_views


logger = get_logger(__name__)


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
        own_prompts (`bool`): Whether the student may have read other tokens than the chat template renders of its
            prompt, as under a `rollout_func`.
    """

    tokenizer: PromptTokenizer
    student_kwargs: dict[str, Any]
    teacher_kwargs: dict[str, Any]
    beginning: str
    max_length: int | None
    overlong: str
    own_prompts: bool = False
    _warned: bool = False

    def encode(
        self, readers: list[tuple[str, str]], rollouts: list[Rollout], views: list[list[View]], tools: list[Tools]
    ) -> dict[str, EncodedView]:
        """
        Encode all views, name by name and within a name stage by stage for all rows, then see to their lengths row by
        row.

        Args:
            readers (`list[tuple[str, str]]`): Names of views, each with its reader.
            rollouts (`list[Rollout]`): The local generation batch.
            views (`list[list[View]]`): Views of each rollout.
            tools (`list`): Tools of each row.

        Returns:
            `dict[str, EncodedView]`: By name.

        Raises:
            ValueError: If a view can't be placed, or is too long and `overlong` is `"error"`.
        """
        if self.tokenizer.images is not None:
            self.tokenizer.images.check_rows([len(images_of(rollout.prompt)) for rollout in rollouts])
        cache = ImageCache()
        found: list[dict[str, EncodedReading]] = [{} for _ in rollouts]
        for name, _ in readers:
            placed = [one for one in enumerate(placed_views(name, rollouts, views)) if one[1] is not None]
            readings = [Reading(one.view, one.rollout.prompt, one.before, tools[row]) for row, one in placed]
            encoded = self.encode_readings(readings, cache)
            for (row, one), reading, (ids, seen) in zip(placed, readings, encoded, strict=True):
                found[row][name] = EncodedReading(one, reading, ids, seen)
        limit = LengthLimit(self.max_length, self.overlong, lambda reading: self.encode_readings([reading], cache)[0])
        fitting = [limit.fitting(row) for row in found]
        return {name: self._of_name(name, reader, rollouts, found, fitting) for name, reader in readers}

    def second_prompts(
        self, rollouts: list[Rollout], views: list[View | None], room: int
    ) -> list[EncodedReading | None]:
        """
        Encode views as prompts under which a text is sampled anew, where [`encode`] has the completion follow.

        Args:
            rollouts (`list[Rollout]`): Rollouts that the views are of.
            views (`list[View | None]`): View of each, or none.
            room (`int`): Most tokens of the text.

        Returns:
            `list[EncodedReading | None]`: `None` without a view, or for one that `teacher_overlong` drops.

        Raises:
            ValueError: If a view can't be read before a text, or is too long.
        """
        rows = [row for row, view in enumerate(views) if view is not None]
        for row in rows:
            if views[row].inserted:
                why = (
                    f"the place {views[row].place!r} is within a completion, and under `turns` another one follows it."
                )
                raise named_error(views[row], rollouts[row].prompt, ValueError(why))
        cache = ImageCache()
        readings = [Reading(views[row], rollouts[row].prompt, rollouts[row].prompt_ids, None) for row in rows]
        limit = LengthLimit(self.max_length, self.overlong, lambda reading: self.encode_readings([reading], cache)[0])
        found: list[EncodedReading | None] = [None] * len(views)
        for row, reading, (ids, seen) in zip(rows, readings, self.encode_readings(readings, cache), strict=True):
            rollout = replace(rollouts[row], completion_ids=[0] * room)
            placed = PlacedView(reading.view, rollout, 0, (0, room), reading.before)
            fitting = limit.fitting({reading.view.name: EncodedReading(placed, reading, ids, seen)})
            found[row] = fitting.get(reading.view.name)
        return found

    def _of_name(
        self,
        name: str,
        reader: str,
        rollouts: list[Rollout],
        found: list[dict[str, EncodedReading]],
        fitting: list[dict[str, EncodedReading]],
    ) -> EncodedView:
        """The views of one name, those that were encoded and those that fit."""
        view = EncodedView(live=reader == "live")
        for rollout, before, after in zip(rollouts, found, fitting, strict=True):
            one = after.get(name)
            view.dropped += name in before and one is None
            view.shortened += one is not None and one.view is not before[name].view
            if one is None:
                view.add_none(rollout.prompt_ids)
            else:
                view.add(one.ids, float(one.view.weight), one.placed.start, one.placed.span, self._pixels(one))
        return view

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
        kwargs = [{**self.teacher_kwargs, **(one.view.chat_template_kwargs or {})} for one in readings]
        known: dict[str, list[int] | None] = {}
        prompts = [
            None if self._reads_student_ids(*pair, known) else whole_prompt(pair[0].view, pair[0].prompt)
            for pair in zip(readings, kwargs, strict=True)
        ]
        whole = [i for i, prompt in enumerate(prompts) if prompt is not None]
        for one in (readings[i] for i in whole if readings[i].view.prompt is None):
            if not self._is_rendered(one, known):
                raise named_error(one.view, one.prompt, _not_rendered(one.view))
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

    def _reads_student_ids(self, reading: Reading, kwargs: dict[str, Any], known: dict[str, list[int] | None]) -> bool:
        """Whether the teacher reads the very tokens that the student has read: without a context, unless it has
        template arguments of its own with which the prompt can be rendered anew."""
        view = reading.view
        if view.context is not None or view.prompt is not None:
            return False
        if isinstance(reading.prompt, str) or kwargs == self.student_kwargs:
            return True
        return view.chat_template_kwargs is None and not self._is_rendered(reading, known)

    def _is_rendered(self, reading: Reading, known: dict[str, list[int] | None]) -> bool:
        """Whether the student has read what the chat template renders of its prompt, which `known` keeps by prompt."""
        if not self.own_prompts:
            return True
        key = repr((reading.prompt, reading.tools))
        if key not in known:
            try:
                known[key] = self.tokenizer.prompt(reading.prompt, reading.tools, self.student_kwargs)
            except ValueError:  # the template can't print it, so `rollout_func` has not used it
                known[key] = None
        return known[key] == reading.before

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

    def _pixels(self, one: EncodedReading) -> Pixels | None:
        """Pixel tensors that the teacher reads, `None` for those of the student."""
        if self.tokenizer.images is None:
            return None
        seen, rollout = one.seen, one.placed.rollout
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
        if view.context is None:
            return before
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

    def length(self, view: View, prompt: str | Messages, tools: Tools) -> int:
        """Tokens that the teacher reads before a completion of `prompt`. For places in or before the prompt."""
        # The student's own ids are read beside a context outside the prompt, and compared where they may differ from it
        needed = view.place not in PROMPT_PLACES or self.own_prompts
        before = self.tokenizer.prompt(prompt, tools, self.student_kwargs) if needed else []
        ((ids, _),) = self.encode_readings([Reading(view, prompt, before, tools)])
        return len(ids)


def _not_rendered(view: View) -> ValueError:
    if view.context is None:
        needs = "chat template arguments other than the student's need"
    elif isinstance(view.context, str):
        needs = f"the place {view.place!r} needs"
    else:
        needs = "chat messages as a context need"
    return ValueError(
        f"{needs} the prompt as the chat template renders it, and `rollout_func` gave the student other tokens. Put "
        "the context as a text at the place 'prepend' or 'prefill' (`privileged_place`), which keep the student's own "
        "tokens, give the view a whole `prompt`, or return from `rollout_func` what the template renders."
    )
