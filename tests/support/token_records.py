# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Small records of tokens by hand, and a large one, for the token report."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_opsd.token_report.load import Group
from trl_opsd.token_report.record import Line, path_of, rounded, write


STOP = "<|im_end|>"


class Vocabulary:
    """Ids of token texts, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.ids.setdefault(text, len(self.ids) + 10)

    @property
    def strings(self) -> dict[str, str]:
        return {str(number): text for text, number in self.ids.items()}


def view(
    vocabulary: Vocabulary,
    q: Sequence[float | None],
    divergence: Sequence[float | None],
    loss: Sequence[float | None] | None = None,
    share: Sequence[float] | None = None,
    top: Sequence[Sequence[tuple[str, float, float]] | None] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Part of a view in a rollout; `top` has the teacher's likeliest tokens as (text, log p, log q)."""
    text = "Q. Context. A."
    made = {
        "prompt": {"ids": [7, 8, 9], "text": text, "context": [[3, 11]]},
        "start": 0,
        "share": list(share or [0 if value is None else 1 for value in q]),
        "q": list(q),
        "entropy": [None if value is None else 1.5 for value in q],
        "divergence": list(divergence),
        "loss": list(divergence if loss is None else loss),
    }
    if top is not None:
        made["top"] = lists(vocabulary, top)
    return made | others


def lists(vocabulary: Vocabulary, top: Sequence[Sequence[tuple[str, float, float]] | None]) -> dict[str, list]:
    """Lists of likeliest tokens in columns."""
    columns = [None if row is None else list(zip(*row, strict=True)) for row in top]
    ids = [None if one is None else [vocabulary(text) for text in one[0]] for one in columns]
    p, q = ([None if one is None else list(one[k]) for one in columns] for k in (1, 2))
    return {"ids": ids, "p": p, "q": q}


def rollout(
    vocabulary: Vocabulary, texts: Sequence[str], p: Sequence[float | None], views: dict[str, Any], **others: Any
) -> Line:
    """Line of a record."""
    return {
        "index": 0,
        "group": 0,
        "rewards": {},
        "success": None,
        "leak": None,
        "student_prompt": {"ids": [7, 9], "text": "Q. A."},
        "ids": [vocabulary(text) for text in texts],
        "texts": list(texts),
        "written": [1] * len(texts),
        "p": list(p),
        "entropy": [None if value is None else 1.25 for value in p],
        "views": views,
    } | others


def head(vocabulary: Vocabulary, step: int = 1) -> Line:
    stop = vocabulary(STOP)
    return {"step": step, "temperature": 1.0, "stops": [stop], "strings": vocabulary.strings}


def json_task(vocabulary: Vocabulary, index: int = 0, **others: Any) -> Line:
    """A rollout of four tokens: the teacher wants an object at the first, and the end at the last."""
    first = [('{"', -20.5, -0.01), ("The", -0.5, -12.5)]
    none = [("sun", -0.2, -0.2), ("moon", -2.5, -2.25)]
    last = [(STOP, -1.5, -0.125), (" and", -2.5, -4.5)]
    taught = view(
        vocabulary,
        q=[-12.5, -1.5, None, -0.125],
        divergence=[20.0, 0.25, None, 0.75],
        loss=[5.0, 0.25, None, 0.75],
        top=[first, none, None, last],
    )
    student = lists(vocabulary, [first[::-1], none, None, last])
    top = {"ids": student["ids"], "p": student["p"], "q": {"privileged": student["q"]}}
    texts = ["The", " moon", " result", STOP]
    written = {"written": [1, 1, 0, 1], "index": index, "top": top}
    return rollout(vocabulary, texts, [-0.5, -2.0, None, -1.5], {"privileged": taught}, **written, **others)


def large(rows: int, length: int, seed: int = 0) -> tuple[Line, list[Line]]:
    """Head and rollouts of random numbers that have the digits of real ones."""
    draw, vocabulary = random.Random(seed), Vocabulary()
    words = [
        f" {a}{b}" for a in ("wa", "so", "the", "in", "re", "con") for b in ("ter", "lar", "n", "tion", "ing", "s")
    ]
    words += [f" word{i}" for i in range(4000)]
    for word in words:
        vocabulary(word)

    def log() -> float | int | None:
        return rounded(-draw.expovariate(0.25))

    def column() -> list[float | int | None]:
        return [log() for _ in range(length)]

    def top() -> dict[str, Any]:
        ids = [draw.sample(range(10, 10 + len(words)), 5) for _ in range(length)]
        p, q = ([[log() for _ in range(5)] for _ in range(length)] for _ in range(2))
        return {"ids": ids, "p": p, "q": q}

    lines = []
    for index in range(rows):
        texts = [draw.choice(words) for _ in range(length)]
        own = top()
        positive = [[abs(value or 0) for value in column()] for _ in range(3)]
        taught = view(vocabulary, column(), positive[0], positive[1], entropy=positive[2], top=None, share=[1] * length)
        taught["top"] = top()
        student = {"ids": own["ids"], "p": own["p"], "q": {"privileged": own["q"]}}
        lines.append(rollout(vocabulary, texts, column(), {"privileged": taught}, index=index, top=student))
    return head(vocabulary), lines


def write_run(folder: Path, steps: dict[int, tuple[Line, list[Line]]], **options: Any) -> Path:
    """Folder of a run: records by step, five metrics a step, one warning, and options in `run.json`."""
    for step, (first, lines) in steps.items():
        write(path_of(folder, step), first, lines)
    metrics = [
        {"step": step, "reward": 0.1 * step, "self_distillation/divergence": math.exp(-step / 4), "epoch": 0.5,
         "completions/mean_length": 30.0 + step, "self_distillation/student_entropy": 1.0,
         "self_distillation/view_share": 1.0}
        for step in range(1, max(steps) + 2)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "warnings.jsonl").write_text(json.dumps({"step": 2, "warning": "The divergence is <b>0</b>."}) + "\n")
    settings = {name: {"value": value, "origin": "recipe"} for name, value in options.items()}
    (folder / "run.json").write_text(json.dumps({"options": settings}))
    return folder


def group_of(*lines: Line, vocabulary: Vocabulary, step: int = 1) -> Group:
    """Group of a report."""
    return Group(f"step {step}", head(vocabulary, step), list(lines))


def json_group(step: int = 1) -> Group:
    """Group of two rollouts of [`json_task`]."""
    vocabulary = Vocabulary()
    lines = [json_task(vocabulary, index=index) for index in (0, 1)]
    return group_of(*lines, vocabulary=vocabulary, step=step)


HOSTILE = [
    "<img src=x onerror=\"alert('x')\">",
    "</script><script>alert('y')</script>",
    "<!--<script>",
    "\u202ereversed\u202c",
    "\x00\x1b[2J",
    "מילים",
    " ומשפט",
    "",
    "👩\u200d🚀",
    STOP,
    "\n",
    "\t",
    "]]>&amp;&lt;b&gt;",
]


def hostile() -> Group:
    """A rollout whose texts, prompts, names and strings try to get out."""
    vocabulary = Vocabulary()
    count = len(HOSTILE)
    top = [[(text, -1.0, -0.5), ("</script>", -2.0, -3.0)] for text in HOSTILE]
    name = "<b>view</b>"
    prompt = {"ids": [1], "text": "".join(HOSTILE), "context": [[0, 20]]}
    taught = view(vocabulary, [-0.5] * count, [1.0] * count, top=top, prompt=prompt)
    student = lists(vocabulary, top)
    both = {"ids": student["ids"], "p": student["p"], "q": {name: student["q"]}}
    others = {"top": both, "leak": "quote: <i>x</i>", "rewards": {"<u>r</u>": 1.0}, "success": False}
    line = rollout(vocabulary, HOSTILE, [-1.0] * count, {name: taught}, **others)
    return group_of(line, vocabulary=vocabulary)
