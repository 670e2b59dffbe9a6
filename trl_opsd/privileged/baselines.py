# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Baseline views beside those of a source: its context without the problem, and the problem without its context."""

from dataclasses import replace

from trl_opsd.options import check_option
from trl_opsd.privileged.asking import call
from trl_opsd.privileged.checks import source_name
from trl_opsd.privileged.compose import Composite
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.view import PROMPT_PLACES, PrivilegedSource, View, Views


class WithBaselines(Composite):
    """
    View of a source with baselines beside it: `"alone"`, the text of its context without the problem (Purified OPSD,
    2607.02234), and `"bare"`, the student's own prompt. The teacher reads both, they teach the same tokens, and all are
    one bundle: none is left out or shortened for its length without the others.

    Args:
        source (`PrivilegedSource`): Source of one view or none for each rollout. Without its view no baseline is added.
        alone, bare (`bool`): Whether each baseline is added.

    Raises:
        ValueError: If none is added; when asked, for several views of a rollout, or a context outside the prompt.
    """

    def __init__(self, source: PrivilegedSource, alone: bool = True, bare: bool = True):
        super().__init__(source)
        for option, value in {"alone": alone, "bare": bare}.items():
            check_option(option, value, bool)
        if not alone and not bare:
            raise ValueError("WithBaselines adds nothing: set `alone` or `bare`, or name the source without it.")
        self.alone, self.bare = alone, bare

    def __call__(self, groups: list[Group]) -> Views:
        rollouts = [rollout for group in groups for rollout in group]
        return [self._views(*pair) for pair in zip(rollouts, call(self.parts[0], groups), strict=True)]

    def _views(self, rollout: Rollout, views: list[View]) -> list[View]:
        if len(views) > 1:
            names = [view.name for view in views]
            raise ValueError(
                f"WithBaselines takes one view of a rollout, and {source_name(self.parts[0])} gave {names} for "
                f"{rollout.where}."
            )
        views = [replace(view, bundle=view.name) for view in views]
        added = [self._alone(view, rollout) for view in views if self.alone]
        bare = [View(name="bare", span=taught_span(view, rollout), bundle=view.bundle) for view in views if self.bare]
        return [*views, *added, *bare]

    def _alone(self, view: View, rollout: Rollout) -> View:
        if not isinstance(view.context, str) or view.prompt is not None or view.place not in PROMPT_PLACES:
            raise ValueError(
                f"WithBaselines shows the context alone, for which it must be a text at one of {list(PROMPT_PLACES)}; "
                f"the view {view.name!r} of {rollout.where} is none."
            )
        prompt: str | Messages = replace(view, template=view.template.strip()).text
        if not isinstance(rollout.prompt, str):
            system = [message for message in rollout.prompt[:1] if message["role"] == "system"]
            prompt = [*system, {"role": "user", "content": prompt}]
        shared = {"span": view.span, "chat_template_kwargs": view.chat_template_kwargs, "bundle": view.bundle}
        return View(view.context, name="alone", prompt=prompt, **shared)


def taught_span(view: View, rollout: Rollout) -> tuple[int, int] | None:
    """Span that a view in the prompt needs to teach the same tokens as `view`."""
    return view.taught(rollout) if view.inserted else view.span
