# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Shortening of contexts at the ends of their sentences."""

import re
from dataclasses import replace

from trl_opsd.prompts.control_tokens import mapped_strings, strings
from trl_opsd.rollouts.view import View


CUT = " [...]"  # end of a shortened context
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|[。！？][\"')\]”’」』）]*\s*|\n+")


def shorter_contexts(context: str) -> list[str]:
    """First sentences of a context, the first one alone, then with more and more others, each ended with `CUT`."""
    return [context[: match.end()].rstrip() + CUT for match in _SENTENCE_END.finditer(context)]


def can_be_shortened(view: View) -> bool:
    """Whether the context is a text, and in a whole prompt stands once, so that it can be told from the problem."""
    if not isinstance(view.context, str):
        return False
    return view.prompt is None or sum(text.count(view.context) for text in strings(view.prompt)) == 1


def with_context(view: View, context: str) -> View:
    """A view that [`can_be_shortened`] with another context in place of its own."""
    if view.prompt is None:
        return replace(view, context=context)
    prompt = mapped_strings(view.prompt, lambda text: text.replace(view.context, context))
    return replace(view, context=context, prompt=prompt)
