# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Self-checks of a record: signs that its numbers are not what they should be."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trl_opsd.token_report.record import Line
from trl_opsd.token_report.tokens import is_estimate


ROUNDING = 1e-3
NO_TEACHING = 0.02  # nats: what bf16 makes of equal distributions
COLUMNS = ("share", "q", "entropy", "divergence", "loss")


@dataclass(frozen=True)
class Check:
    """
    Result of a check.

    Args:
        name (`str`): The rule.
        passed (`bool`, *optional*): Whether the record follows it; `None` where it does not apply.
        detail (`str`): Where it does not, or why it does not apply.
    """

    name: str
    passed: bool | None
    detail: str


def check_record(rollouts: Sequence[Line], same_weights: bool) -> list[Check]:
    """
    Run the checks.

    Args:
        rollouts (`list[dict]`): Lines of a record.
        same_weights (`bool`): Whether the teacher has the student's weights, so that equal prompts teach nothing.
    """
    return [_not_negative(rollouts), _same_prompt(rollouts, same_weights), _not_constant(rollouts), _aligned(rollouts)]


def _views(rollouts: Sequence[Line]) -> Iterator[tuple[str, Line, dict[str, Any]]]:
    for line in rollouts:
        for name, view in line["views"].items():
            yield f"rollout {line['index'] + 1}, view {name}", line, view


def _not_negative(rollouts: Sequence[Line]) -> Check:
    rule = "No divergence is negative."
    if any(map(is_estimate, rollouts)):
        return Check(rule, None, "They are estimates from the sampled tokens, which may be negative.")
    count = 0
    for where, _, view in _views(rollouts):
        known = [value for value in view["divergence"] if value is not None]
        count += len(known)
        if known and min(known) < -ROUNDING:
            return Check(rule, False, f"{where}, token {view['divergence'].index(min(known)) + 1}: {min(known)} nats.")
    return Check(rule, True if count else None, f"{count:,} tokens." if count else "Nothing is distilled.")


def _same_prompt(rollouts: Sequence[Line], same_weights: bool) -> Check:
    rule = "A teacher that reads the student's own prompt teaches nothing."
    if not same_weights:
        return Check(rule, None, "The teacher's weights are not the student's.")
    count = 0
    for where, line, view in _views(rollouts):
        if view["prompt"]["ids"] != line["student_prompt"]["ids"]:
            continue
        count += 1
        largest = max((abs(value) for value in view["divergence"] if value is not None), default=0.0)
        if largest > NO_TEACHING:
            return Check(rule, False, f"{where}: up to {largest} nats.")
    return Check(rule, True if count else None, f"{count:,} views." if count else "All teachers' prompts are longer.")


def _not_constant(rollouts: Sequence[Line]) -> Check:
    rule = "The teacher does not find every token equally likely."
    known = [value for _, _, view in _views(rollouts) for value in view["q"] if value is not None]
    if len(known) < 2:
        return Check(rule, None, "There are no two tokens to compare.")
    if max(known) - min(known) > 1e-6:
        return Check(rule, True, f"{len(known):,} tokens.")
    return Check(rule, False, f"All have 1 in {math.exp(-known[0]):,.0f}: the teacher's weights were not loaded.")


def _aligned(rollouts: Sequence[Line]) -> Check:
    rule = "Both sides read the same tokens of the completion."
    count = 0
    for where, line, view in _views(rollouts):
        length = len(line["ids"])
        if any(len(view[name]) != length for name in COLUMNS) or any(
            len(line[name]) != length for name in ("p", "texts")
        ):
            return Check(rule, False, f"{where}: columns of other lengths than the {length} tokens.")
        begun = line["ids"][: view["start"]]
        read = view["prompt"]["ids"]
        if begun and not any(read[i : i + len(begun)] == begun for i in range(len(read))):
            return Check(rule, False, f"{where}: the first {len(begun)} tokens are not in the teacher's prompt.")
        count += 1
    return Check(rule, True if count else None, f"{count:,} views." if count else "No rollout has a view.")
