# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Report of [`alignment`] in plain words.

A mean cosine counts where the sign-flip test over prompts tells it from zero. Of all losses and views of a report
together, the probability that any is called aligned without being so is at most [`ALPHA`], and so is the opposite.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trl_opsd.diagnostics.significance import ALPHA, holm, pairs_needed, sign_flip_p


@dataclass(frozen=True)
class NodeCosine:
    """
    One loss at one node.

    Args:
        prompt (`int`): Number of the prompt.
        right (`bool`): Whether the rollout's score reaches `success_reward_threshold`.
        place (`float`): Where in the rollout the token stands, from 0 to 1.
        cosine (`float`, *optional*): Of the ideal direction and that of the loss; `None` where the loss has none.
    """

    prompt: int
    right: bool
    place: float
    cosine: float | None


# Columns of the table, and their nodes
PARTS: dict[str, Callable[[NodeCosine], bool]] = {
    "right": lambda node: node.right,
    "wrong": lambda node: not node.right,
    "first third": lambda node: node.place < 1 / 3,
    "middle": lambda node: 1 / 3 <= node.place < 2 / 3,
    "last third": lambda node: node.place >= 2 / 3,
}


@dataclass(frozen=True)
class Alignment:
    """
    One loss on one view of one source.

    Args:
        source, view, loss (`str`): Their names.
        nodes (`list[NodeCosine]`): At each node that the view teaches and whose candidates have unequal scores.
        p_up, p_down (`float`): Probability of so large a mean above and below zero by chance, adjusted for the tests
            of the report, from [`with_p_values`].
        tests (`int`): Number of these.
    """

    source: str
    view: str
    loss: str
    nodes: list[NodeCosine]
    p_up: float = 1.0
    p_down: float = 1.0
    tests: int = 1

    def of_prompts(self, part: Callable[[NodeCosine], bool] = lambda node: True) -> list[float]:
        """Mean cosine of each prompt over its nodes of a part: the samples, as nodes of one prompt are not apart."""
        prompts: dict[int, list[float]] = {}
        for node in self.nodes:
            if node.cosine is not None and part(node):
                prompts.setdefault(node.prompt, []).append(node.cosine)
        return [statistics.mean(values) for values in prompts.values()]

    @property
    def mean(self) -> float:
        """Mean cosine over prompts, `nan` without any."""
        return _mean(self.of_prompts())

    @property
    def error(self) -> float:
        """Standard error of the mean, `nan` from fewer than two prompts."""
        values = self.of_prompts()
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan

    @property
    def undirected(self) -> int:
        """Nodes at which the loss has no direction, as the teacher says what the student says."""
        return sum(node.cosine is None for node in self.nodes)

    @property
    def parts(self) -> dict[str, float]:
        """Mean cosine of right and wrong rollouts, and by place."""
        return {name: _mean(self.of_prompts(part)) for name, part in PARTS.items()}

    @property
    def verdict(self) -> str:
        """`"no direction"`, `"up"`, `"down"`, `"unsure"` or `"unclear"`."""
        if self.undirected == len(self.nodes):
            return "no direction"
        if min(self.p_up, self.p_down) <= ALPHA:
            return "up" if self.p_up < self.p_down else "down"
        return "unsure" if len(self.of_prompts()) < pairs_needed(self.tests) else "unclear"

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        p = f"p = {min(self.p_up, self.p_down):.2g}"
        return {
            "no direction": "teacher and student say the same, so the loss has no direction.",
            "up": f"the loss moves the student towards better scores ({p}).",
            "down": f"the loss moves the student away from better scores ({p}): this context teaches something else.",
            "unsure": f"{len(self.of_prompts())} prompts with a direction are too few to tell, which takes "
            f"{pairs_needed(self.tests)}: raise the number of rows.",
            "unclear": f"the direction can't be told from chance ({p}): more rows, nodes or samples may.",
        }[self.verdict]


def with_p_values(alignments: list[Alignment]) -> list[Alignment]:
    """Alignments with the p-values of their means: Holm's correction over all, for each side apart."""
    p_values = [sign_flip_p(one.of_prompts()) for one in alignments]
    up, down = (holm([pair[side] for pair in p_values]) for side in (0, 1))
    return [replace(one, p_up=up[i], p_down=down[i], tests=len(alignments)) for i, one in enumerate(alignments)]


@dataclass(frozen=True)
class AlignmentReport:
    """
    Measurements of [`alignment`].

    Args:
        prompts, rollouts (`int`): Dataset rows, and completions that the student sampled of them.
        tokens, sure (`int`): Their tokens, and those at which the student has no choice, one token having 95 %.
        nodes, equal (`int`): Nodes that were drawn, and those of them whose candidates had equal scores.
        samples, texts (`int`): Continuations of each candidate, and of all together.
        reliabilities (`list[float]`): At each node with unequal scores, the cosine of two ideal directions, each from
            half of the continuations; 0 where one half has none.
        alignments (`list[Alignment]`): By source, view and loss.
        notes (`list[str]`): What was measured otherwise than in training.
    """

    prompts: int
    rollouts: int
    tokens: int
    sure: int
    nodes: int
    equal: int
    samples: int
    texts: int
    reliabilities: list[float]
    alignments: list[Alignment]
    notes: list[str] = field(default_factory=list)

    @property
    def reliability(self) -> float:
        """Mean of the reliabilities: no loss can be seen to agree much better with so rough an ideal."""
        return _mean(self.reliabilities)

    def __str__(self) -> str:
        lines = [
            f"Alignment: {self.rollouts} rollouts of {self.prompts} rows, no weight has changed. {self.texts} texts "
            f"were written, {self.samples} from each candidate of {self.nodes} nodes.",
            f"The student has a choice at {self.tokens - self.sure} of {self.tokens} tokens. At {self.equal} nodes all "
            "candidates had the same score, which says nothing.",
            f"Reliability of the ideal direction: {_number(self.reliability)}, the cosine of two halves of the texts.",
        ]
        if self.alignments:
            lines += ["", *self._table(), ""]
            lines += [f"{one.source}/{one.view}, {one.loss}: {one.sentence}" for one in self.alignments]
        else:
            lines.append("No view teaches a token at which scores differ: raise rows, nodes or samples.")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """The figures and verdicts as values of JSON; what is not finite is `None`."""
        derived = ("mean", "error", "undirected", "parts", "verdict", "sentence")
        alignments = [asdict(one) | {name: getattr(one, name) for name in derived} for one in self.alignments]
        return _finite(asdict(self) | {"reliability": self.reliability, "alignments": alignments})

    def _table(self) -> list[str]:
        table = [["source/view", "loss", "nodes", "no direction", "cosine", "+-", *PARTS]]
        for one in self.alignments:
            numbers = [_number(value) for value in (one.mean, one.error, *one.parts.values())]
            counts = [str(len(one.nodes)), str(one.undirected)]
            table.append([f"{one.source}/{one.view}", one.loss, *counts, *numbers])
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _mean(values: list[float]) -> float:
    return statistics.mean(values) if values else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
