# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Retrieved demonstrations: rows of the training data that resemble the rollout's problem."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trl_opsd.options import Count
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import Run
from trl_opsd.privileged.imports import imported
from trl_opsd.privileged.rows import OtherRowSource, row_text
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.text import normalised, words
from trl_opsd.rollouts.view import View, Views


Embed = Callable[[list[str]], "np.ndarray"]


@dataclass
class Retrieval(OtherRowSource):
    """
    Demonstrations from the k rows of the training data whose prompts are most like the rollout's (UniSD, 2605.06597).
    Never the row itself, nor one with the same prompt, in whatever spelling. A rollout for which none is similar enough
    has no view.

    Args:
        column (`str`): Column with the demonstrations' answers: text, or the messages of a whole turn.
        k (`int`): Number of demonstrations. They stand from the least to the most similar.
        by (`str` or `Callable`): `"bm25"` compares words (`pip install 'trl-opsd[retrieval]'`). Or a function, in a
            recipe by its dotted path, from a list of texts to an array of shape `(texts, dimensions)`, compared by
            the cosine.
        least_score (`float`, *optional*): Least BM25 score or cosine of a demonstration. Prompts that share no word are
            never alike under BM25.
        as_turns (`bool`): Whether demonstrations are turns of user and assistant before the prompt's own messages (of a
            chat), or one text for `place`.
    """

    column: str = "solution"
    k: Count = 1
    by: str | Embed = "bm25"
    least_score: float | None = None
    as_turns: bool = True

    NAME = "retrieval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.by, str) and self.by != "bm25":
            self.by = imported(self.by, "by", takes=1)
        nothing = float(np.finfo(np.float32).tiny) if self.by == "bm25" else -math.inf
        self._least = nothing if self.least_score is None else max(self.least_score, nothing)

    def setup(self, run: Run) -> None:
        super().setup(run)
        texts = all(isinstance(context, str) for context in self.rows.contexts)
        turns = self.as_turns and not isinstance(run.train_dataset[0]["prompt"], str)
        if not texts and not turns:
            raise ValueError(
                f"The column `{self.column}` holds messages, which can only be shown as turns before chat prompts: set "
                "`as_turns`, or name a column of texts."
            )
        self.scores = _word_scores(self.rows.texts) if self.by == "bm25" else _cosines(self.rows.texts, self.by)

    def __call__(self, groups: list[Group]) -> Views:
        found = {group[0].group: self._best(row_text(group[0])) for group in groups}
        return [self._views(rollout, found[rollout.group]) for rollout in rollouts_of(groups)]

    def _best(self, text: str) -> list[int]:
        """Rows of other prompts, the most similar last, no prompt twice."""
        scores, own = self.scores(text), normalised(text)
        best: dict[str, int] = {}
        for row in np.argsort(-scores, kind="stable"):
            if len(best) == self.k or scores[row] < self._least:
                break
            if self.rows.keys[row] != own:
                best.setdefault(self.rows.keys[row], int(row))
        return list(best.values())[::-1]

    def _views(self, rollout: Rollout, found: list[int]) -> list[View]:
        if not found:
            return []
        shown = [(self.rows.texts[row], self.rows.contexts[row]) for row in found]
        if self.as_turns and not isinstance(rollout.prompt, str):
            return [self.view([message for question, answer in shown for message in _turns(question, answer)])]
        return [self.view("\n\n".join(f"{question}\n{answer}" for question, answer in shown))]


def _turns(question: str, answer: str | list[dict]) -> list[dict]:
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": question}, *answer]


def _word_scores(texts: list[str]) -> Callable[[str], np.ndarray]:
    try:
        import bm25s
    except ImportError:
        raise ValueError("`by='bm25'` needs bm25s: `pip install 'trl-opsd[retrieval]'`.") from None

    # The library's own words would leave out single letters, and cut Indic words at their vowel signs
    index = bm25s.BM25()
    index.index([words(text) for text in texts], show_progress=False)

    def scores(text: str) -> np.ndarray:
        asked = words(text)
        return index.get_scores(asked) if asked else np.zeros(len(texts))

    return scores


def _cosines(texts: list[str], embed: Embed) -> Callable[[str], np.ndarray]:
    def unit(texts: list[str]) -> np.ndarray:
        vectors = np.asarray(embed(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"`by` must give one vector for each of {len(texts)} texts, got shape {vectors.shape}.")
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)

    known = unit(texts)
    return lambda text: known @ unit([text])[0]
