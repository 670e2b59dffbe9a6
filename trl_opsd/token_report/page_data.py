# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Data of the page of a token report, as JSON that is safe within HTML."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from trl_opsd.monitoring.names import PREFIX
from trl_opsd.token_report.checks import check_record
from trl_opsd.token_report.load import STEPS, Group, RunLog
from trl_opsd.token_report.record import Line, rounded
from trl_opsd.token_report.summary import GAP_EDGES, summarize


# Charts of a run: title, unit, and metrics with their labels; `*` stands for any text
CHARTS = (
    ("Score", "", (("reward", "reward"), ("eval_*avg@*", ""), ("eval_*pass@*", ""), ("eval_*reward", ""))),
    ("Divergence", "nats a token", ((f"{PREFIX}divergence", "divergence"), (f"{PREFIX}loss", "after the clips"))),
    ("Length", "tokens a completion", (("completions/mean_length", "mean length"),)),
    ("Entropy", "nats", ((f"{PREFIX}student_entropy", "student"), (f"{PREFIX}teacher_entropy", "teacher"))),
    ("Rollouts with a view", "share", ((f"{PREFIX}view_share", "view share"),)),
)
# Settings that the head of the page names
SETTINGS = {"method": "method", "teacher_model_kind": "teacher", "learning_rate": "learning rate", "max_steps": "steps"}
# Of a view and of a rollout: what the page shows as it stands in the record
OF_VIEW = ("start", "q", "entropy", "divergence", "loss")
OF_ROLLOUT = ("index", "group", "rewards", "success", "ids", "texts", "p", "entropy", "advantage")


def page_data(groups: Sequence[Group], log: RunLog, context: bool = True) -> dict[str, Any]:
    """
    Everything that the page shows.

    Args:
        groups (`list[Group]`): Rollouts, one group a step or a checkpoint.
        log ([`RunLog`]): Numbers and settings of the run.
        context (`bool`): Whether teachers' prompts, contexts and what of them leaked go into the page.
    """
    strings: dict[str, str] = {}
    for group in groups:
        strings |= group.head["strings"]
    return {
        "run": log.name,
        "settings": {label: log.options[name] for name, label in SETTINGS.items() if log.options.get(name) is not None},
        "context": context,
        "edges": GAP_EDGES,
        "strings": strings,
        "charts": charts(log),
        "warnings": log.warnings,
        "groups": [_group(group, context) for group in groups],
    }


def embedded(data: Any) -> str:
    """JSON for an element `script`, which nothing in a string can leave."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def charts(log: RunLog) -> list[dict[str, Any]]:
    """Charts of a run that have a series: points are pairs of step and value."""
    names = sorted({name for line in log.metrics for name in line})
    found = []
    for title, unit, wanted in CHARTS:
        series = []
        for pattern, label in wanted:
            for name in (name for name in names if fnmatchcase(name, pattern)):
                of_name = [(line["step"], line[name]) for line in log.metrics if "step" in line and name in line]
                points = [(step, value) for step, value in of_name if isinstance(value, (int, float))]
                if points:
                    series.append({"label": label or name.removeprefix("eval_").replace("_", " "), "points": points})
        if series:
            found.append({"title": title, "unit": unit, "series": series})
    return found


def _group(group: Group, context: bool) -> dict[str, Any]:
    summary = asdict(summarize(group.rollouts, group.head))
    return {
        "label": group.label,
        "series": group.series,
        "fixed": group.series != STEPS,
        "step": group.head.get("step"),
        "temperature": group.head["temperature"],
        "summary": _short(summary),
        "checks": [asdict(check) for check in check_record(group.rollouts, group.same_weights)],
        "rollouts": [_rollout(line, context) for line in group.rollouts],
    }


def _short(value: Any) -> Any:
    """The same with numbers of three digits."""
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(one) for one in value]
    return rounded(value) if isinstance(value, float) else value


def _rollout(line: Line, context: bool) -> dict[str, Any]:
    shown = {name: line[name] for name in OF_ROLLOUT if name in line}
    shown["leak"] = line["leak"] if context else ("a part of the context" if line["leak"] else None)
    shown["written"] = _constant(line["written"])
    shown["student_prompt"] = [[line["student_prompt"]["text"], 0]]
    if "top" in line:
        shown["top"] = _sorted_lists(line["top"], "p")
    shown["views"] = [_view(name, view, context) for name, view in line["views"].items()]
    return shown


def _view(name: str, view: Mapping[str, Any], context: bool) -> dict[str, Any]:
    shown = {"name": name, **{key: view[key] for key in OF_VIEW}, "share": _constant(view["share"])}
    if context:
        shown["prompt"] = _pieces(view["prompt"]["text"], view["prompt"]["context"])
    if "top" in view:
        shown["top"] = _sorted_lists(view["top"], "q")
    return shown


def _constant(column: list[Any]) -> Any:
    """A column, or its one value where it has no other."""
    return column[0] if column and all(value == column[0] for value in column) else column


def _pieces(text: str, context: Sequence[Sequence[int]]) -> list[list[Any]]:
    """A text cut at the ends of the context: pairs of a piece and whether it is context."""
    found, told = [], 0
    for begin, end in sorted(context):
        if begin > told:
            found.append([text[told:begin], 0])
        found.append([text[max(begin, told) : end], 1])
        told = max(told, end)
    return [piece for piece in [*found, [text[told:], 0]] if piece[0]]


def _sorted_lists(top: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Lists of likeliest tokens, the likeliest of the side that they belong to first."""
    orders = [
        None if row is None else sorted(range(len(row)), key=lambda i, row=row: -(-99 if row[i] is None else row[i]))
        for row in top[key]
    ]

    def sorted_by_order(column: list[Any]) -> list[Any]:
        return [
            None if row is None or order is None else [row[i] for i in order]
            for row, order in zip(column, orders, strict=True)
        ]

    q = top["q"]
    of_teacher = {name: sorted_by_order(one) for name, one in q.items()} if isinstance(q, dict) else sorted_by_order(q)
    return {"ids": sorted_by_order(top["ids"]), "p": sorted_by_order(top["p"]), "q": of_teacher}
