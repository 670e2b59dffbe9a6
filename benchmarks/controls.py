# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Controls of the comparison: a method's own source, of which the contexts alone are others."""

from dataclasses import replace
from typing import Any

from trl_opsd.privileged import build_source
from trl_opsd.privileged.asking import call, rollouts_of
from trl_opsd.privileged.baselines import taught_span
from trl_opsd.privileged.compose import Composite, mask_unwanted
from trl_opsd.privileged.sources.controls import without_context
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.view import View, Views


class OtherContexts(Composite):
    """
    Views of a source with other contexts. Which rollouts have views, how many, and their names, weights, templates,
    places and readers stay those of the source: the control differs from its method in nothing else.

    Args:
        source (`str` or `dict`): Description of the method's source.
        contexts (`str` or `dict`, *optional*): Description of the source of the other contexts. Views of a rollout with
            one context get one, views with different contexts different ones as far as it gives several. `None` means
            no context: the words of the template alone.

    Raises:
        ValueError: When asked, for a view with a whole prompt of its own, whose context can't be told from it.
    """

    def __init__(self, source: str | dict[str, Any], contexts: str | dict[str, Any] | None = None):
        described = [source] if contexts is None else [source, contexts]
        super().__init__(*(build_source(one) for one in described))

    def __call__(self, groups: list[Group]) -> Views:
        answers = []
        for part in self.parts:
            with self.raise_on_all_ranks(part):
                answers.append(mask_unwanted(groups, call(part, groups)))
        rollouts = rollouts_of(groups)
        others = answers[1] if len(answers) > 1 else [[] for _ in rollouts]
        return [self._views(*row) for row in zip(rollouts, answers[0], others, strict=True)]

    def _views(self, rollout: Rollout, views: list[View], others: list[View]) -> list[View]:
        if any(view.prompt is not None for view in views):
            raise ValueError("A view with a whole prompt has no control: its context can't be told from the prompt.")
        if len(self.parts) == 1:
            return [replace(without_context(view), span=taught_span(view, rollout)) for view in views]
        own = [view.context for view in views]
        # Equal contexts have one number, that of the first
        other = [others[own.index(context) % len(others)].context for context in own]
        return [
            replace(view, context=_as_messages(context) if isinstance(view.context, list) else context)
            for view, context in zip(views, other, strict=True)
        ]


def _as_messages(context: str | Messages) -> Messages:
    """Messages in the place of messages: a text is the system's, as a rule before examples is."""
    return [{"role": "system", "content": context}] if isinstance(context, str) else context


def control_of(source: str | dict[str, Any], contexts: str | dict[str, Any] | None) -> dict[str, Any]:
    """
    Description of the control of a source.

    Args:
        source (`str` or `dict`): Description of the method's source. Its conditions and the rollout's own attempt
            stay around the control, and its baselines are made of the other contexts.
        contexts (`str` or `dict`, *optional*): As in [`OtherContexts`].
    """
    name, own = next(iter(source.items())) if isinstance(source, dict) else (source, {})
    if name == "with_attempt":
        own = own if isinstance(own, dict) else {"source": own}
    if name in ("when", "with_baselines", "with_attempt"):
        return {name: {**own, "source": control_of(own["source"], contexts)}}
    return {f"{__name__}.{OtherContexts.__name__}": {"source": source, "contexts": contexts}}
