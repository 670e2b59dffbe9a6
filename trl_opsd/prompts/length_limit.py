# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Limit on what the teacher reads: views that are too long are refused, left out or shortened, bundle by bundle."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from trl_opsd.batches.pixels import ImageTensors
from trl_opsd.prompts.shortening import can_be_shortened, shorter_contexts, with_context
from trl_opsd.prompts.tokenizer import Tools
from trl_opsd.rollouts.rollout import Messages
from trl_opsd.rollouts.view import PlacedView, View


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


@dataclass(frozen=True)
class EncodedReading:
    """
    View of one rollout with its token ids.

    Args:
        placed ([`PlacedView`]): Its place in the rollout.
        reading ([`Reading`]): What was encoded.
        ids (`list[int]`): What the teacher reads before the tokens that it scores.
        seen ([`~trl_opsd.batches.pixels.ImageTensors`], *optional*): Images within them, `None` for the student's own.
    """

    placed: PlacedView
    reading: Reading
    ids: list[int]
    seen: ImageTensors | None

    @property
    def view(self) -> View:
        """The view as it was encoded, shortened or not."""
        return self.reading.view


@dataclass(frozen=True)
class LengthLimit:
    """
    Limit on the tokens that the teacher reads of a rollout.

    Args:
        max_length (`int`, *optional*): Most tokens of its prompt and the completion.
        overlong (`str`): `teacher_overlong`.
        encode (`Callable`): From a [`Reading`] to token ids and images.
    """

    max_length: int | None
    overlong: str
    encode: Callable[[Reading], tuple[list[int], ImageTensors | None]]

    def _over(self, one: EncodedReading) -> int:
        """Number of tokens above the limit, or 0."""
        length = len(one.ids) + len(one.placed.rollout.completion_ids) - one.placed.start
        return max(length - self.max_length, 0) if self.max_length else 0

    def fitting(self, row: dict[str, EncodedReading]) -> dict[str, EncodedReading]:
        """
        The views of a rollout that fit, of each bundle all or none.

        Args:
            row (`dict[str, EncodedReading]`): Views by name.

        Returns:
            `dict[str, EncodedReading]`: Those that are kept, shortened where need be.

        Raises:
            ValueError: If one is too long and `overlong` is `"error"`, or it can't be shortened; it names the row.
        """
        if not any(map(self._over, row.values())):
            return row
        bundles: dict[tuple[bool, str], dict[str, EncodedReading]] = {}
        for name, one in row.items():
            bundle = one.view.bundle
            bundles.setdefault((bundle is None, bundle or name), {})[name] = one
        return {name: one for bundle in bundles.values() for name, one in self._of_bundle(bundle).items()}

    def _of_bundle(self, bundle: dict[str, EncodedReading]) -> dict[str, EncodedReading]:
        while over := [one for one in bundle.values() if self._over(one)]:
            if self.overlong == "drop_view":
                return {}
            context = over[0].view.context
            alike = {name: one for name, one in bundle.items() if context is not None and one.view.context == context}
            unfit = [one for one in [over[0], *alike.values()] if not can_be_shortened(one.view)]
            if self.overlong != "shorten" or unfit:
                raise self._too_long(over[0])
            shorter = self._shortened(alike)
            if shorter is None:
                return {}
            bundle = bundle | shorter
        return bundle

    def _too_long(self, one: EncodedReading) -> ValueError:
        way = "Shorten the privileged context, raise `teacher_max_length` if the model can take it, or set "
        way += "`teacher_overlong='drop_view'`"
        if self.overlong == "shorten":
            way = "Only a text can be shortened, no messages, and in a whole prompt one that stands there once. " + way
        else:
            way += " or `'shorten'`"
        rollout = one.placed.rollout
        return ValueError(
            f"The teacher's prompt of view {one.view.name!r} has {len(one.ids)} tokens and the completion "
            f"{len(rollout.completion_ids) - one.placed.start}, {self._over(one)} more than the {self.max_length} that "
            f"`teacher_max_length` or the model's context allows, for {rollout.where}. {way}."
        )

    def _shortened(self, alike: dict[str, EncodedReading]) -> dict[str, EncodedReading] | None:
        """Views of one context with as many of its first sentences as fit for all; `None` where not even one does."""
        contexts = shorter_contexts(next(iter(alike.values())).view.context)
        best: dict[str, EncodedReading] | None = None
        low, high = 0, len(contexts)
        while low < high:
            middle = (low + high) // 2
            tried = {name: self._with_context(one, contexts[middle]) for name, one in alike.items()}
            if any(map(self._over, tried.values())):
                high = middle
            else:
                best, low = tried, middle + 1
        return best

    def _with_context(self, one: EncodedReading, context: str) -> EncodedReading:
        reading = replace(one.reading, view=with_context(one.view, context))
        ids, seen = self.encode(reading)
        return replace(one, reading=reading, ids=ids, seen=seen)
