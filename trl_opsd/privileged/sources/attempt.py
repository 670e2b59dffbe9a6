# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contexts of another source with the rollout itself around them: a prompt to do it again."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from trl_opsd.options import check_fields
from trl_opsd.privileged.asking import call, rollouts_of
from trl_opsd.privileged.authors.written_source import task_text, transcript
from trl_opsd.privileged.compose import Composite
from trl_opsd.prompts.control_tokens import control_tokens
from trl_opsd.prompts.teacher_prompt import teacher_prompt
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.view import PLACEHOLDER, PROMPT_PLACES, View, Views


QUESTION, ATTEMPT = "{question}", "{attempt}"
AGAIN = (
    "{question}\n\nAn earlier attempt at this was:\n\n{attempt}\n\nAbout it, or about the task:\n\n"
    "{privileged_context}\n\nNow answer again, and do not speak of the attempt."
)


@dataclass
class WithAttempt(Composite):
    """
    Context of another source together with the rollout that it is about. Under `turns` the rollout is the first turn,
    and the second one is written with both in view.

    Args:
        source (`str` or `dict`): The other source, of one view or none for each rollout.
        template (`str`): Text with `{attempt}`. With `{question}` it takes the place of the prompt's messages but for
            the system's, else it stands at the place of the source's view. `{privileged_context}` is the source's
            context, in its own template, and nothing where the view has none, as that of the source `bare`.

    Raises:
        ValueError: If the template does not show the attempt; when asked, for several views, or a place or a context
            that the template can't hold.
    """

    source: str | dict[str, Any]
    _: KW_ONLY
    template: str = AGAIN

    NAME = "with_attempt"

    def __post_init__(self) -> None:
        from trl_opsd.privileged.named import build_source  # which finds this file among the sources

        check_fields(self)
        if ATTEMPT not in self.template:
            raise ValueError(f"`template` must show the {ATTEMPT}.")
        super().__init__(build_source(self.source, "with_attempt.source"))

    def __call__(self, groups: list[Group]) -> Views:
        with self.raise_on_all_ranks(self.parts[0]):
            found = call(self.parts[0], groups)
        return [self._views(*pair) if pair[0].wanted else [] for pair in zip(rollouts_of(groups), found, strict=True)]

    def _views(self, rollout: Rollout, views: list[View]) -> list[View]:
        if not views:
            return []
        (view, *others) = views
        if others or view.prompt is not None or view.place not in PROMPT_PLACES or isinstance(view.context, list):
            raise ValueError(
                "with_attempt takes one view of a rollout, whose context is a text in the prompt; for "
                f"{rollout.where} its source gave {[one.name for one in views]}, of another kind."
            )
        if not rollout.completion_ids:
            raise ValueError("with_attempt shows the first turn, and `attempt: false` samples none: leave that out.")
        filled = self.template.replace(QUESTION, task_text(rollout)).replace(ATTEMPT, self._shown(rollout))
        if view.context is None:
            return [replace(view, prompt=self._whole(rollout, filled.replace(PLACEHOLDER, ""), view.place))]
        template = filled.replace(PLACEHOLDER, view.template.strip())
        if template.count(PLACEHOLDER) != 1:
            raise ValueError(f"with_attempt: `template` must show {PLACEHOLDER} once.")
        if QUESTION not in self.template:
            return [replace(view, template=template)]
        return [replace(view, prompt=self._whole(rollout, template.replace(PLACEHOLDER, view.context), view.place))]

    def _shown(self, rollout: Rollout) -> str:
        """Text of the rollout, in which no control token and no placeholder acts as one."""
        tokenizer = self.require_run().tokenizer
        text = transcript(tokenizer, rollout)
        for mark in [*control_tokens(tokenizer, text), PLACEHOLDER, QUESTION]:
            text = text.replace(mark, "")
        return text

    def _whole(self, rollout: Rollout, text: str, place: str) -> str | Messages:
        if QUESTION not in self.template:
            return teacher_prompt(rollout.prompt, text, PLACEHOLDER, place)
        if isinstance(rollout.prompt, str):
            return text
        system = [message for message in rollout.prompt[:1] if message["role"] == "system"]
        return [*system, {"role": "user", "content": text}]
