# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Critiques of rollouts as contexts: a critic reads the rollout, and a reference where there is one."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from trl_opsd.options import OneOf, check_fields
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.authors.written_source import WrittenSource, tagged, task_text, transcript
from trl_opsd.privileged.checks import text_of
from trl_opsd.privileged.locate import find_quote
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.text import normalised
from trl_opsd.rollouts.view import Views


TAGS = ("Kept", "Corrected")
NOTHING = "none"

INSTRUCTIONS = {
    "critique": (
        "You read a problem and an attempt at it. Say in a few sentences which steps of the attempt are right, which "
        "one goes wrong first, and how to do that one right. Do not write a whole solution."
    ),
    "steps": (
        "You read a problem and an attempt at it. Find the first wrong step of the attempt. Reply in two parts. The "
        "first part is `Kept: ` and all that comes before that step, from the first word of the attempt on, copied "
        "exactly. The second part begins on a new line and is `Corrected: ` and that one step done right. If the very "
        f"first step is wrong, write `Kept: {NOTHING}`. If no step is wrong, keep the whole attempt and write "
        f"`Corrected: {NOTHING}`."
    ),
}
EXAMPLE = (
    "Problem:\nTom has 3 boxes of 4 pens. He gives away 5 pens. How many are left?\n\n"
    "Reference solution:\n3 * 4 = 12. 12 - 5 = 7. He has 7 pens left.\n\n"
    "Attempt:\nThere are 3 boxes with 4 pens in each.\nSo Tom has 3 + 4 = 7 pens at first.\n7 - 5 = 2 pens are left."
)
ANSWERS = {
    "critique": (
        "It is right that there are 3 boxes with 4 pens in each. The first mistake is to add them: 3 boxes of 4 pens "
        "hold 3 * 4 pens. Subtracting the 5 pens that he gives away is the right last step."
    ),
    "steps": "Kept: There are 3 boxes with 4 pens in each.\nCorrected: So Tom has 3 * 4 = 12 pens at first.",
}
TEMPLATES = {
    "critique": "Feedback on an earlier attempt at this:\n\n{privileged_context}\n\nAnswer with it in mind.",
    "steps": "The beginning of an answer to this, which is right so far:\n\n{privileged_context}",
}


@dataclass
class Critic(WrittenSource):
    """
    Critique of each rollout by an author. Weights that do not train (`author="teacher"` with the `base` teacher,
    another model, an endpoint) make a frozen critic.

    With `schema="steps"` the critique is aligned with the rollout's steps (Feedback Alignment, 2606.11173): the critic
    copies the steps before the first wrong one and rewrites that one alone, so that teacher and student part exactly
    where the rollout fails. The answer must be of the form `Kept: ...`, new line, `Corrected: ...`, either of which may
    be `none`. What is kept must be the beginning of the rollout, word for word but for white space, and the corrected
    step must not be what the rollout goes on with anyway; if nothing is corrected, all of it must be kept. Else there
    is no view (counted in `critic_unaligned`). Thoughts of the rollout are steps like any other.

    An answer of another form, or none at all, gives no view either (`critic_malformed`).

    Args:
        reference (`str`, *optional*): Column with a correct solution for the critic to read. Where it is `None` the
            critic reads the task and the rollout alone.
        schema (`str`): `"critique"` for free text, `"steps"` as above.
        instruction, examples, template: As elsewhere; by default those of the schema.

    Raises:
        ValueError: If there is no such schema; when asked, if a reference is no text.
    """

    reference: str | None = None
    schema: Annotated[str, OneOf(tuple(INSTRUCTIONS))] = "critique"
    _: KW_ONLY
    instruction: str | None = None
    examples: Messages | None = None
    template: str | None = None

    NAME = "critic"
    COLUMN_FIELDS = ("reference",)

    def __post_init__(self) -> None:
        check_fields(self)  # before the schema says more
        self.instruction = INSTRUCTIONS[self.schema] if self.instruction is None else self.instruction
        self.template = TEMPLATES[self.schema] if self.template is None else self.template
        if self.examples is None:
            answer = {"role": "assistant", "content": ANSWERS[self.schema]}
            self.examples = [{"role": "user", "content": EXAMPLE}, answer]
        super().__post_init__()
        self.counts |= dict.fromkeys(("critic_asked", "critic_malformed", "critic_unaligned"), 0)

    def __call__(self, groups: list[Group]) -> Views:
        self.counts = dict.fromkeys(self.counts, 0)
        wanted = [rollout for rollout in rollouts_of(groups) if rollout.wanted]
        with self.raise_on_all_ranks():
            attempts, requests = self._requests(wanted)
        self.counts["critic_asked"] = len(wanted)
        answers = self.ask(requests, wanted, copied=self.schema == "steps")
        contexts = [self._context(*pair) for pair in zip(answers, attempts, strict=True)]
        views = {
            rollout.index: [] if context is None else [self.view(context)]
            for rollout, context in zip(wanted, contexts, strict=True)
        }
        return [views.get(rollout.index, []) for rollout in rollouts_of(groups)]

    def _requests(self, rollouts: list[Rollout]) -> tuple[list[str], list[str]]:
        """Transcripts of the rollouts, and the critic's request about each."""
        tokenizer = self.require_run().tokenizer
        attempts = [transcript(tokenizer, rollout) for rollout in rollouts]
        return attempts, [self._request(*pair) for pair in zip(rollouts, attempts, strict=True)]

    def _request(self, rollout: Rollout, attempt: str) -> str:
        parts = [f"Problem:\n{task_text(rollout)}"]
        solution = None if self.reference is None else text_of(rollout, self.reference, "reference")
        parts += [] if solution is None else [f"Reference solution:\n{solution}"]
        return "\n\n".join([*parts, f"Attempt:\n{attempt}"])

    def _context(self, answer: str | None, attempt: str) -> str | None:
        if answer is None:
            return None
        if self.schema == "critique":
            self.counts["critic_malformed"] += not answer.strip()
            return answer.strip() or None
        parts = tagged(answer, TAGS)
        steps = None if parts is None else [None if _is_nothing(parts[tag]) else parts[tag] for tag in TAGS]
        if steps is None or steps == [None, None]:
            self.counts["critic_malformed"] += 1
            return None
        context = aligned(attempt, *steps)
        self.counts["critic_unaligned"] += context is None
        return context


def aligned(attempt: str, kept: str | None, corrected: str | None) -> str | None:
    """
    Beginning of an attempt with its first wrong step corrected.

    Args:
        attempt (`str`): Text of the student.
        kept (`str`, *optional*): Correct part of it, from its beginning on.
        corrected (`str`, *optional*): Step after that. `None` if all of it is right.

    Returns:
        `str` or `None`: `None` if the attempt does not begin with `kept`, goes on with `corrected`, or goes on at all
        where nothing is corrected.
    """
    end = _beginning(attempt, kept)
    if end is None:
        return None
    rest = attempt[end:]
    if rest.strip() if corrected is None else _goes_on(rest, corrected):
        return None
    return "\n".join(part for part in (attempt[:end].strip(), corrected) if part)


def _beginning(text: str, words: str | None) -> int | None:
    """End of `words` in a text that begins with them, `None` if it begins otherwise."""
    if words is None:
        return 0
    found = find_quote(text, words, 1.0)
    return found[1] if found is not None and not text[: found[0]].strip() else None


def _goes_on(rest: str, step: str) -> bool:
    """Whether a text goes on with a step, in whatever spelling."""
    return _beginning(rest, step) is not None or f"{normalised(rest)} ".startswith(f"{normalised(step)} ")


def _is_nothing(part: str) -> bool:
    return normalised(part) == NOTHING
