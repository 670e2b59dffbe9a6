# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
From views to token ids that end in the student's own completion.

Legend: B rows of the local generation batch, P longest teacher prompt of a view.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.utils import pad

from trl_opsd.privileged.prompts import check_prompt
from trl_opsd.rollouts import Rollout, View


@dataclass
class EncodedView:
    """
    One view name over the local generation batch.

    Args:
        prompt_ids (`list[list[int]]` of length B): Teacher prompt of each row; the student's own where a row lacks the
            view, so that its forward runs on sound input.
        weights (`list[float]` of length B): Weight of the view in each row, 0 where the row lacks it.
        dropped (`int`): Views that were too long and dropped.
    """

    prompt_ids: list[list[int]]
    weights: list[float]
    dropped: int

    def tensors(
        self, name: str, pad_token_id: int, multiple: int | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Batch keys of this view: ids and mask, left-padded, of shape `(B, P)`, and weights of shape `(B,)`."""
        ids = [torch.tensor(row) for row in self.prompt_ids]
        mask = [torch.ones_like(row) for row in ids]
        how = {"padding_side": "left", "pad_to_multiple_of": multiple}
        return {
            f"teacher_prompt_ids/{name}": pad(ids, padding_value=pad_token_id, **how).to(device),
            f"teacher_prompt_mask/{name}": pad(mask, padding_value=0, **how).to(device),
            f"teacher_weight/{name}": torch.tensor(self.weights, dtype=torch.float32, device=device),
        }


def check_views(views: list[list[View]], rollouts: list[Rollout]) -> None:
    """
    Refuse what a privileged source must not return.

    Raises:
        ValueError: If there is not one list of views for each rollout, or a view is malformed.
    """
    if not isinstance(views, list) or len(views) != len(rollouts):
        got = f"{len(views)} lists" if isinstance(views, list) else type(views).__name__
        raise ValueError(
            f"The privileged source must return one list of views per rollout, {len(rollouts)}; got {got}."
        )
    for rollout, row_views in zip(rollouts, views, strict=True):
        if not isinstance(row_views, list) or not all(isinstance(view, View) for view in row_views):
            raise ValueError(
                f"The privileged source must return lists of `View`, got {row_views!r} for {_where(rollout)}."
            )
        names = [view.name for view in row_views]
        if len(set(names)) != len(names):
            raise ValueError(f"The views of a rollout need different names, got {names} for {_where(rollout)}.")
        for view in row_views:
            if isinstance(view.prompt, str) != isinstance(rollout.prompt, str):
                raise ValueError(
                    f"The view {view.name!r} and the prompt must both be text or both be chat messages, for "
                    f"{_where(rollout)}."
                )
            check_prompt(view.prompt, f"The prompt of view {view.name!r}, for {_where(rollout)},")
            if not 0 < view.weight < math.inf:
                raise ValueError(
                    f"The view {view.name!r} has weight {view.weight}, for {_where(rollout)}: weights are above 0 and "
                    "finite; leave out a view that should not count."
                )


def encode_view(
    name: str,
    rollouts: list[Rollout],
    views: list[list[View]],
    tokenize: Callable[[list[Any], list[Any]], list[list[int]]],
    max_length: int | None,
    overlong: str,
) -> EncodedView:
    """
    Encode the views called `name`, one row after the other.

    Args:
        name (`str`): Name of the view.
        rollouts (`list[Rollout]`): The local generation batch.
        views (`list[list[View]]`): Views of each rollout.
        tokenize (`Callable`): From the prompts of the whole local batch, in order, and their contexts to token ids.
        max_length (`int` or `None`): Most tokens of teacher prompt and completion.
        overlong (`str`): `"error"` or `"drop_view"`.

    Raises:
        ValueError: If a view is too long and `overlong` is `"error"`.
    """
    chosen = [next((view for view in row if view.name == name), None) for row in views]
    prompts = [rollout.prompt if view is None else view.prompt for rollout, view in zip(rollouts, chosen, strict=True)]
    prompt_ids = tokenize(prompts, [None if view is None else view.context for view in chosen])
    weights = [0.0 if view is None else float(view.weight) for view in chosen]
    too_long = [
        row
        for row, view in enumerate(chosen)
        if view is not None and max_length and len(prompt_ids[row]) + len(rollouts[row].completion_ids) > max_length
    ]
    if too_long and overlong == "error":
        row = too_long[0]
        raise ValueError(
            f"The teacher's prompt of view {name!r} has {len(prompt_ids[row])} tokens and the completion "
            f"{len(rollouts[row].completion_ids)}, more than the {max_length} that `teacher_max_length` or the model's "
            f"context allows, for {_where(rollouts[row])}. Shorten the privileged context, raise `teacher_max_length` "
            "if the model can take it, or set `teacher_overlong='drop_view'`."
        )
    if too_long:
        bare = tokenize([rollout.prompt for rollout in rollouts], [None] * len(rollouts))
        for row in too_long:
            prompt_ids[row], weights[row] = bare[row], 0.0
    return EncodedView(prompt_ids, weights, len(too_long))


def alignment_error(rollouts: list[Rollout], completion_ids: torch.Tensor) -> str | None:
    """What is wrong if the captured rollouts are not the rows of TRL's batch, `(B, C)`, that the teacher scores."""
    for rollout, ids in zip(rollouts, completion_ids.tolist(), strict=True):
        if ids[: len(rollout.completion_ids)] != rollout.completion_ids:
            return (
                "The completions that TRL handed to the rewards are not the rows of its batch any more. This version "
                "of trl is not supported: see the bounds in trl_opsd's pyproject.toml."
            )
    return None


def _where(rollout: Rollout) -> str:
    return f"the row with prompt {repr(rollout.prompt)[:120]}"
