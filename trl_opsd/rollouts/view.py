# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""[`View`]: privileged context of one rollout, with its role in the teacher's prompt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from trl_opsd.rollouts.rollout import Group, Messages, Rollout


PLACEHOLDER = "{privileged_context}"

# In the teacher's prompt, then between the student's own tokens
PROMPT_PLACES = ("system", "before_user", "after_user", "user_turn")
TOKEN_PLACES = ("prepend", "prefill", "before_turn", "before_token")
PLACES = PROMPT_PLACES + TOKEN_PLACES
PLACES_WITHOUT_POSITION = PROMPT_PLACES + TOKEN_PLACES[:2]
READERS = ("teacher", "live")


@dataclass(frozen=True)
class View:
    """
    One privileged context for one rollout, and where the teacher finds it.

    Args:
        context (`str` or `list[dict]`, *optional*):
            What the teacher reads and the student does not: text for `place`, or chat messages (few-shot turns), which
            stand before the prompt's own. `None` for the student's own prompt, token by token.
        place (`str`, *optional*, defaults to `"after_user"`):
            Where a text goes. In the prompt: `"system"` (merged into the prompt's system message, or a new one),
            `"before_user"` or `"after_user"` (the text of the last user message), `"user_turn"` (a user message of its
            own after the prompt's). Between the student's own tokens, none of which is tokenized anew: `"prepend"` (a
            message of its own before them all), `"prefill"` (the assistant has begun with it), `"before_turn"` (a
            message of its own before turn `position` of the completion), `"before_token"` (bare text before token
            `position` of the completion).
        position (`int`, *optional*):
            The turn or the token, counted from 0, that `"before_turn"` and `"before_token"` need.
        span (`tuple[int, int]`, *optional*):
            Tokens of the completion that the view may teach, `completion_ids[span[0]:span[1]]`. `None` means all, that
            turn for `"before_turn"`, and all from that token on for `"before_token"`.
        template (`str`, *optional*, defaults to `"{privileged_context}"`):
            Text around a text. Only the placeholder is replaced.
        role (`str`, *optional*):
            Role of a message of its own (`"prepend"`: system by default, `"before_turn"`: user by default).
        name (`str`, *optional*, defaults to `"privileged"`):
            Views of one name are one teacher: they share a forward pass and a metric. A rollout has at most one view of
            a name.
        weight (`float`, *optional*, defaults to `1.0`):
            Weight among the views of its rollout; a token's loss is the weighted mean over those that teach it.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Chat template arguments of this view, on top of `teacher_chat_template_kwargs`.
        prompt (`str` or `list[dict]`, *optional*):
            The whole prompt that the teacher reads, of the same kind as the student's (text or chat messages), where no
            place will do. `context` is then only what of it is privileged: its text never acts as control tokens.
        reader (`str`, *optional*, defaults to `"teacher"`):
            Whose weights read it: the `"teacher"`'s (`teacher_model_kind`), or `"live"`, the student's as they are. All
            views of one name have one reader.
        policy (`bool`, *optional*, defaults to `True`):
            Whether the rollout's GRPO advantage still counts. With `False` the rollout learns from its views alone; the
            advantages of its group stay as they are.
        bundle (`str`, *optional*):
            Views of a rollout that are compared with each other, such as one and its baselines, have one bundle: where
            one is too long, all are left out, or those with its context are shortened alike. `None` for a view that
            stands alone.
    """

    context: str | Messages | None = None
    place: str = "after_user"
    position: int | None = None
    span: tuple[int, int] | None = None
    template: str = PLACEHOLDER
    role: str | None = None
    name: str = "privileged"
    weight: float = 1.0
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: str | Messages | None = None
    reader: str = "teacher"
    policy: bool = True
    bundle: str | None = None

    @property
    def text(self) -> str:
        """The text for `place`: the context within its template."""
        return self.template.replace(PLACEHOLDER, self.context) if isinstance(self.context, str) else ""

    @property
    def shown(self) -> str | Messages | None:
        """Content that the teacher reads beside the student's prompt: its text, its messages or a whole prompt."""
        if isinstance(self.context, str):
            return self.text
        return self.prompt if self.context is None else self.context

    @property
    def inserted(self) -> bool:
        """Whether it stands within the completion."""
        return self.prompt is None and self.place in ("before_turn", "before_token")

    def start(self, rollout: Rollout) -> int:
        """Tokens of the completion that come before the context."""
        if not self.inserted:
            return 0
        return rollout.turns[self.position].start if self.place == "before_turn" else self.position

    def taught(self, rollout: Rollout) -> tuple[int, int]:
        """Tokens of the completion that the view may teach."""
        if self.span is not None:
            return self.span
        if self.inserted and self.place == "before_turn":
            turn = rollout.turns[self.position]
            return turn.start, turn.end
        return self.start(rollout), len(rollout.completion_ids)


@dataclass(frozen=True)
class PlacedView:
    """
    A view of one rollout, with its place among the tokens of the completion.

    Args:
        view ([`View`]): The view.
        rollout ([`Rollout`]): Its rollout.
        start (`int`): Tokens of the completion that come before the context.
        span (`tuple[int, int]`): Tokens of the completion that the view may teach.
        before (`list[int]`): The student's own ids up to the first token that the teacher scores.
    """

    view: View
    rollout: Rollout
    start: int
    span: tuple[int, int]
    before: list[int]


Views = list[list[View]]
PrivilegedSource = Callable[[list[Group]], Views | Awaitable[Views]]


def placed_views(name: str, rollouts: list[Rollout], views: Views) -> list[PlacedView | None]:
    """The view called `name` of each rollout, `None` where it has none."""
    placed: list[PlacedView | None] = []
    for rollout, row in zip(rollouts, views, strict=True):
        view = next((view for view in row if view.name == name), None)
        if view is None:
            placed.append(None)
            continue
        start = view.start(rollout)
        before = rollout.prompt_ids + rollout.completion_ids[:start]
        placed.append(PlacedView(view, rollout, start, view.taught(rollout), before))
    return placed


def shown_context(views: list[View]) -> str | None:
    """The contexts of a rollout's views as one text, for the completions table."""
    texts = [view.prompt if view.context is None else view.context for view in views]
    if len(views) > 1:
        lines = [f"[{view.name}] {'' if text is None else text}" for view, text in zip(views, texts, strict=True)]
        return "\n".join(lines)
    return str(texts[0]) if texts and texts[0] is not None else None
