# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Distilled tokens of recorded rollouts, one by one, for the numbers of a report."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trl_opsd.token_report.record import Line


@dataclass(frozen=True)
class TaughtToken:
    """
    Distilled token of a completion; of several views the mean by their shares.

    Args:
        text (`str`): Its text; empty where it is a part of a character.
        position (`int`): Place in the completion, from 0.
        length (`int`): Tokens of the completion.
        gap (`float`): Teacher's less student's log-probability.
        divergence (`float`): Before the clips.
        loss (`float`): After the clips.
        cost (`float`): Divergence, or its size where it is an estimate that may be negative.
        rather (`list[tuple[str, float, float]]`): Views whose teacher finds another token likelier than any: that
            token, the view's gap and its part of the cost.
    """

    text: str
    position: int
    length: int
    gap: float
    divergence: float
    loss: float
    cost: float
    rather: list[tuple[str, float, float]]


def is_estimate(line: Line) -> bool:
    """Whether the divergence of a rollout is an estimate from the sampled token, which may be negative."""
    return "advantage" in line


def top_token(top: Mapping[str, Any], position: int) -> int | None:
    """Token of the teacher's list that it finds likeliest, if there is a list."""
    ids, chances = top["ids"][position], top["q"][position]
    if not ids:
        return None
    known = [(chance, token) for chance, token in zip(chances, ids, strict=True) if chance is not None]
    return max(known)[1] if known else None


def token_text(line: Line, position: int, strings: Mapping[str, str]) -> str:
    """Text of a completion's token: its own where the table has it, which tells parts of a character apart."""
    return line["texts"][position] or strings.get(str(line["ids"][position]), "")


def taught_tokens(rollouts: Iterable[Line], strings: Mapping[str, str]) -> Iterator[TaughtToken]:
    """Distilled tokens of all rollouts, in their order."""
    for line in rollouts:
        for position in range(len(line["ids"])):
            token = _taught(line, position, strings)
            if token is not None:
                yield token


def _taught(line: Line, position: int, strings: Mapping[str, str]) -> TaughtToken | None:
    p = line["p"][position]
    views = [view for view in line["views"].values() if _teaches(view, position)]
    if p is None or not views:
        return None
    whole = sum(view["share"][position] for view in views)
    means = dict.fromkeys(("q", "divergence", "loss"), 0.0)
    cost, rather = 0.0, []
    for view in views:
        share = view["share"][position] / whole
        for name in means:
            means[name] += share * view[name][position]
        of_view = share * view["divergence"][position]
        of_view = abs(of_view) if is_estimate(line) else of_view
        cost += of_view
        best = top_token(view["top"], position) if "top" in view else None
        if best is not None and best != line["ids"][position]:
            rather.append((strings.get(str(best), ""), view["q"][position] - p, of_view))
    return TaughtToken(
        text=token_text(line, position, strings),
        position=position,
        length=len(line["ids"]),
        gap=means["q"] - p,
        divergence=means["divergence"],
        loss=means["loss"],
        cost=cost,
        rather=rather,
    )


def _teaches(view: Mapping[str, Any], position: int) -> bool:
    values = (view[name][position] for name in ("q", "divergence", "loss"))
    return view["share"][position] > 0 and all(value is not None for value in values)
