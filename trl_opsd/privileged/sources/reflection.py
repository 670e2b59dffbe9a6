# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Reflections on wrong rollouts: the first error is quoted and explained, and the tokens from there on are taught."""

from dataclasses import KW_ONLY, dataclass, field

from trl_opsd.options import Share
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.authors.written_source import WrittenSource, tagged, task_text, transcript
from trl_opsd.privileged.checks import check_scored, text_of
from trl_opsd.privileged.conditions import has_reward
from trl_opsd.privileged.locate import locate
from trl_opsd.privileged.transcripts import shown, without_thinking
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.view import View, Views


TAGS = ("Quote", "Explanation")
INSTRUCTION = (
    "You read a problem and a wrong solution. Find the first error in the wrong solution. Reply with two lines. The "
    "first line is `Quote: ` and the words of the wrong solution that hold its first error, copied exactly. The second "
    "line is `Explanation: ` and what is wrong there and how to do it right."
)
EXAMPLES = [
    {
        "role": "user",
        "content": "Problem:\nTom has 3 boxes of 4 pens. He gives away 5 pens. How many are left?\n\n"
        "Correct solution:\n3 * 4 = 12. 12 - 5 = 7. He has 7 pens left.\n\n"
        "Wrong solution:\nTom has 3 + 4 = 7 pens at first. 7 - 5 = 2. He has 2 pens left.",
    },
    {
        "role": "assistant",
        "content": "Quote: Tom has 3 + 4 = 7 pens at first.\n"
        "Explanation: The 3 boxes hold 4 pens each, so he has 3 * 4 = 12 pens, not 3 + 4. Then 12 - 5 = 7 are left.",
    },
]


@dataclass
class Reflection(WrittenSource):
    """
    Reflection on wrong rollouts. A reflector reads the problem, a correct solution and a wrong rollout, quotes the
    first error and explains it (ROSD, 2605.28014). The teacher reads the solution and the explanation, and teaches the
    tokens from the quote on.

    Or the reflection stands in the rollout itself: with `place="before_token"` before the quote, with `"before_turn"`
    before the turn that holds it, which alone is taught then. The teacher so reads of the mistake just before it is
    made.

    A wrong rollout has no view if the reflector's answer is not of the form `Quote: ...`, new line, `Explanation: ...`
    (counted in `reflection_malformed`), or if its quote is not found (`reflection_unmatched`). A rollout without a
    reward has none either.

    Args:
        reference (`str`, *optional*): Column with a correct solution. `None` means the first successful rollout of the
            group, other than the one that is taught, without its thoughts.
        threshold (`float`): Least similarity of the quote and a part of the rollout, as in [`find_quote`]. `1.0` takes
            exact quotes only, but for white space.
        with_solution (`bool`): Whether the teacher reads the solution before the explanation.
        teach_correct (`bool`): Whether correct rollouts are taught too: in full, by the solution alone.
        failed_groups (`bool`): Whether groups without a success are reflected on. Without `reference` the reflector
            then reads no solution.
        solved_groups (`bool`): Whether groups of successes alone are taught.
    """

    reference: str | None = None
    threshold: Share = 0.8
    with_solution: bool = True
    teach_correct: bool = True
    failed_groups: bool = False
    solved_groups: bool = False
    _: KW_ONLY
    instruction: str = INSTRUCTION
    examples: Messages = field(default_factory=lambda: list(EXAMPLES))

    NAME = "reflection"
    COLUMN_FIELDS = ("reference",)
    finds_positions = True
    needs_reward = True

    @property
    def needs_groups(self) -> bool:
        return self.reference is None and not self.failed_groups

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counts |= dict.fromkeys(("reflection_asked", "reflection_malformed", "reflection_unmatched"), 0)

    def __call__(self, groups: list[Group]) -> Views:
        self.counts = dict.fromkeys(self.counts, 0)
        with self.raise_on_all_ranks():
            wrong, solutions, requests = self._wrong(groups)
        self.counts["reflection_asked"] = len(wrong)
        answers = self.ask(requests, wrong, copied=True)
        views = {
            rollout.index: self._reflected(rollout, solution, answer)
            for rollout, solution, answer in zip(wrong, solutions, answers, strict=True)
        }
        for group in groups:
            views |= {one.index: self._in_full(one, group) for one in group if one.index not in views}
        return [views[rollout.index] for rollout in rollouts_of(groups)]

    def _wrong(self, groups: list[Group]) -> tuple[list[Rollout], list[str | None], list[str]]:
        """Wrong rollouts to reflect on, their solutions, and the reflector's requests."""
        self.require_run()
        for rollout in rollouts_of(groups):
            check_scored(rollout, "The source `reflection`")
        pairs = [
            (rollout, self._solution(rollout, group))
            for group in groups
            for rollout in group
            if rollout.wanted and has_reward(rollout) and not rollout.success and self._taught(group)
        ]
        return [one for one, _ in pairs], [text for _, text in pairs], [self._request(*pair) for pair in pairs]

    def _taught(self, group: Group) -> bool:
        successes = [rollout.success for rollout in group]
        return (any(successes) or self.failed_groups) and (not all(successes) or self.solved_groups)

    def _solution(self, rollout: Rollout, group: Group) -> str | None:
        if self.reference is not None:
            return text_of(rollout, self.reference, "reference")
        others = (other for other in group if other.success and other.index != rollout.index)
        texts = (shown(other, thinking=False, tools=True).strip() for other in others)
        return next((text for text in texts if text), None)

    def _request(self, rollout: Rollout, solution: str | None) -> str:
        parts = [f"Problem:\n{task_text(rollout)}"]
        parts += [] if solution is None else [f"Correct solution:\n{solution}"]
        return "\n\n".join([*parts, f"Wrong solution:\n{transcript(self.run.tokenizer, rollout)}"])

    def _reflected(self, rollout: Rollout, solution: str | None, answer: str | None) -> list[View]:
        if answer is None:
            return []
        parts = tagged(answer, TAGS)
        explanation = "" if parts is None else without_thinking(parts["Explanation"])
        if not explanation:
            self.counts["reflection_malformed"] += 1
            return []
        quote = parts["Quote"]
        if quote[0] + quote[-1] in ('""', "''", "``", "“”"):
            quote = quote[1:-1]
        found = locate(self.run.tokenizer, rollout, quote, self.threshold)
        if found is None:
            self.counts["reflection_unmatched"] += 1
            return []
        text = f"Reflection: {explanation}"
        if solution is not None and self.with_solution:
            text = f"{_solved(solution)}\n\n{text}"
        if self.place == "before_token":
            return [self.view(text, position=found[0])]
        if self.place == "before_turn":
            (turn,) = (i for i, one in enumerate(rollout.turns) if one.start <= found[0] < one.end)
            return [self.view(text, position=turn)]
        return [self.view(text, span=(found[0], len(rollout.completion_ids)))]

    def _in_full(self, rollout: Rollout, group: Group) -> list[View]:
        if not (rollout.wanted and rollout.success and self.teach_correct and self._taught(group)):
            return []
        solution = self._solution(rollout, group)
        place = "after_user" if self.place in ("before_token", "before_turn") else self.place
        return [] if solution is None else [self.view(_solved(solution), place=place)]


def _solved(solution: str) -> str:
    return f"Correct solution:\n{solution}"
