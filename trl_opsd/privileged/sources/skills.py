# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Skills: summaries of finished trajectories, kept and read by the teacher of later ones."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Any

from trl_opsd.options import Count
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.authors.written_source import WrittenSource, tagged, task_text, transcript
from trl_opsd.privileged.checks import column_of
from trl_opsd.privileged.imports import imported
from trl_opsd.privileged.sources.skill_store import Skill, SkillStore
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.view import View, Views


TAGS = ("Success", "Mistakes", "Workflow")
INSTRUCTION = (
    "You read a task and attempts at it. Write down what helps with such tasks, in three lines. The first line is "
    "`Success: ` and what worked. The second line is `Mistakes: ` and what went wrong, or what to watch out for. The "
    "third line is `Workflow: ` and the best steps, in order."
)
EXAMPLES = [
    {
        "role": "user",
        "content": "Task:\nTom has 3 boxes of 4 pens. He gives away 5 pens. How many are left?\n\n"
        "Best attempt, reward 1:\n3 * 4 = 12. 12 - 5 = 7. He has 7 pens left.\n\n"
        "Worst attempt, reward 0:\nTom has 3 + 4 = 7 pens at first. 7 - 5 = 2. He has 2 pens left.",
    },
    {
        "role": "assistant",
        "content": "Success: The boxes were multiplied by what each holds, then what was given away was subtracted.\n"
        "Mistakes: The boxes were added to the pens in a box.\n"
        "Workflow: 1. Multiply the boxes by the pens in each. 2. Subtract what is given away. 3. State the number.",
    },
]


@dataclass
class Skills(WrittenSource):
    """
    Summaries of finished trajectories as contexts (Skill-SD, 2604.10674).

    Every `refresh_steps` steps one skill is written for each group of rollouts, from its best finished one and, if it
    has another reward, its worst: what worked, the mistakes and a workflow. Then each rollout, also of these groups, is
    given the `k` best skills of its key. A task keeps one skill: a newer one replaces an older one unless its
    reward is lower. Evaluations read the store and leave it as it is. All processes hold the same store; it is saved
    with each checkpoint.

    An answer that is not of the form `Success: ...`, `Mistakes: ...`, `Workflow: ...` in three lines is not kept
    (counted in `skills_malformed`).

    Args:
        key (`str` or `Callable`, *optional*): What skills are kept by: a column, or a function of a rollout, in a
            recipe by its dotted path. A rollout whose key is `None` has no skills. Without it they are found by the
            words that the tasks have in common.
        k (`int`): Most skills that a rollout is given, best first: of the highest reward, then the newest; without a
            key, those of the most similar tasks.
        refresh_steps (`int`): Optimizer steps from one writing to the next.
        size (`int`): Most skills that are kept. Beyond it the one of the lowest reward leaves, of several the oldest.

    Raises:
        ValueError: If an option is out of range.
    """

    key: str | Callable[[Rollout], Any] | None = None
    k: Count = 1
    refresh_steps: Count = 1
    size: Count = 1024
    _: KW_ONLY
    instruction: str = INSTRUCTION
    examples: Messages = field(default_factory=lambda: list(EXAMPLES))

    NAME = "skills"
    COLUMN_FIELDS = ("key",)
    uses_model = True  # with any author: the processes gather the skills, and none may be late for that

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.key, str) and "." in self.key:
            self.key = imported(self.key, "key", takes=1)
        self.store = SkillStore(self.size)
        self.refreshed: int | None = None
        names = ("written", "malformed", "evicted", "stored", "missing")
        self.counts |= dict.fromkeys((f"skills_{name}" for name in names), 0)

    def __call__(self, groups: list[Group]) -> Views:
        self.counts = dict.fromkeys(self.counts, 0)
        rollouts = rollouts_of(groups)
        step = rollouts[0].step
        due = self.refreshed is None or step >= self.refreshed + self.refresh_steps
        if rollouts[0].training and due:  # the same on every process
            self._refresh(groups)
            self.refreshed = step
        if self.require_run().process_index == 0:
            self.counts["skills_stored"] = len(self.store.skills)
        alike = cache(lambda task: self.store.alike(task, self.k))  # the rollouts of a prompt have one task
        with self.raise_on_all_ranks():
            return [self._views(rollout, alike) if rollout.wanted else [] for rollout in rollouts]

    # Writing

    def _refresh(self, groups: list[Group]) -> None:
        """Write skills about the groups, each on one process, and add all of them in one order."""
        run = self.require_run()
        owners: dict[int, int] = {}
        for process, group in sorted(run.gather([(run.process_index, group[0].group) for group in groups])):
            owners.setdefault(group, process)
        own = [group for group in groups if owners[group[0].group] == run.process_index]
        with self.raise_on_all_ranks():
            keys, requests, best = self._requests(own)
        # The model is asked in a collective of its own
        with nullcontext() if isinstance(self.author, str) else self.raise_on_all_ranks():
            answers = self.ask(requests, best)
        parsed = [self._skill(*parts) for parts in zip(keys, best, answers, strict=True)]
        written = [(rollout.group, skill) for rollout, skill in zip(best, parsed, strict=True) if skill is not None]
        self.counts["skills_written"] = len(written)
        self.counts["skills_malformed"] = len(parsed) - len(written) - answers.count(None)
        evicted = [self.store.add(skill) for _, skill in sorted(run.gather(written), key=lambda pair: pair[0])]
        self.counts["skills_evicted"] = sum(evicted) if run.process_index == 0 else 0

    def _requests(self, groups: list[Group]) -> tuple[list[str], list[str], list[Rollout]]:
        """Keys, requests and best rollouts of those groups that have a finished rollout and a key."""
        found = []
        for group in groups:
            finished = sorted((one for one in group if not one.truncated), key=_order)
            key = self._key(finished[-1]) if finished else None
            if key is not None:
                found.append((key, self._request(finished[-1], finished[0]), finished[-1]))
        return [key for key, _, _ in found], [text for _, text, _ in found], [best for _, _, best in found]

    def _key(self, rollout: Rollout) -> str | None:
        if self.key is None:
            return ""
        key = self.key(rollout) if callable(self.key) else column_of(rollout, self.key, "key")
        return None if key is None else str(key)

    def _request(self, best: Rollout, worst: Rollout) -> str:
        attempts = [("Best attempt" if worst.total < best.total else "Attempt", best)]
        attempts += [("Worst attempt", worst)] if worst.total < best.total else []
        parts = [f"Task:\n{task_text(best)}"]
        for name, one in attempts:
            reward = "" if math.isnan(one.total) else f", reward {one.total:g}"
            parts.append(f"{name}{reward}:\n{transcript(self.run.tokenizer, one)}")
        return "\n\n".join(parts)

    def _skill(self, key: str, best: Rollout, answer: str | None) -> Skill | None:
        parts = None if answer is None else tagged(answer, TAGS)
        if parts is None:
            return None
        reward = None if math.isnan(best.total) else best.total
        return Skill(key, task_text(best), *(parts[tag] for tag in TAGS), reward, best.step)

    # Reading

    def _views(self, rollout: Rollout, alike: Callable[[str], list[Skill]]) -> list[View]:
        key = self._key(rollout)
        skills = []
        if key is not None:
            skills = alike(task_text(rollout)) if self.key is None else self.store.of_key(key, self.k)
        self.counts["skills_missing"] += not skills
        return [self.view("\n\n".join(map(_shown, skills)))] if skills else []

    # Restarts

    def state_dict(self) -> dict[str, Any]:
        return {"refreshed": self.refreshed, "skills": self.store.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refreshed = state["refreshed"]
        self.store.load_state_dict(state["skills"])


def _order(rollout: Rollout) -> float:
    return -math.inf if math.isnan(rollout.total) else rollout.total


def _shown(skill: Skill) -> str:
    return f"What worked: {skill.success}\nMistakes: {skill.mistakes}\nWorkflow: {skill.workflow}"
