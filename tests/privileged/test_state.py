# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""State of sources: what changes over calls is in `state_dict`, and comes back with `load_state_dict`."""

import json
import types
from dataclasses import dataclass

import numpy as np
import pytest
from datasets import Dataset

from source_arguments import ARGUMENTS
from trl_opsd.privileged import AllOf, FirstOf, Run, Skills, Source, TextSource, When, WithBaselines, call, rollouts_of
from trl_opsd.privileged.named import SOURCES
from trl_opsd.rollouts.rollout import Rollout, Turn


ROWS = [
    {"prompt": [{"role": "user", "content": f"{i} + 1?"}], "solution": f"First.\n\n{i + 1}", "b": str(i + 1)}
    for i in range(4)
]
for _row in ROWS:
    _row |= {"a": _row["solution"], "privileged_context": "Count on fingers.", "feedback": "Almost."}
DATA = Dataset.from_list(ROWS)


def answers(prompts, rollouts):
    """An author whose texts say when they were written."""
    step = rollouts[0].step if rollouts else 0
    lines = "Success: It counted.\nMistakes: None.\nWorkflow: Count on, step {}."
    return [lines.format(step) for _ in prompts]


def lengths(texts):
    return np.array([[len(text), ord(text[0])] for text in texts])


OPTIONS = {
    **ARGUMENTS,
    **{name: {"author": answers} for name in ("critic", "written")},
    "reflection": {"author": answers, "reference": "a"},
    "skills": {"author": answers, "k": 2, "size": 3},
    "retrieval": {"by": lengths},
    "turn_hint": {"function": lambda rollout: [(0, "Count.")]},
}


def groups_of(step):
    """Two groups of a success and a failure; the tasks change from step to step."""
    made = []
    for group in range(2):
        row = ROWS[(step + group) % len(ROWS)]
        texts = [row["b"], "9"]
        made.append([
            Rollout(
                row, row["prompt"], text, [1, step], [2, 3, 4], [Turn(0, 3, {"role": "assistant", "content": text})],
                {"right": 1.0 - i}, 1.0 - i, i == 0, {}, group, 2 * group + i, step, False, True,
            )
            for i, text in enumerate(texts)
        ])  # fmt: skip
    return made


def frozen(value):
    """A copy that can be compared: of functions, tokenizers and the like their type alone; of a source all but its run
    and its counts, which are those of the latest call."""
    if isinstance(value, Source):
        return {name: frozen(item) for name, item in vars(value).items() if name not in ("run", "counts")}
    if isinstance(value, dict):
        return {repr(frozen(key)): frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    plain = hasattr(value, "__dict__") and not callable(value) and not isinstance(value, types.ModuleType)
    return [type(value).__name__, frozen(vars(value))] if plain else type(value).__name__


def ready(make, tokenizer):
    source = make()
    source.setup(Run(tokenizer, DATA, write=None))
    source.check(DATA, "train_dataset")
    assert isinstance(source.columns, list)  # is kept from the first look on
    return source


def check_state(make, tokenizer):
    """
    Whether a source's state holds all that its calls change.

    Sound for what its attributes hold as values. What a function closes over, a global or a file is not seen.
    """
    source = ready(make, tokenizer)
    first = frozen(source)
    for step in range(3):
        call(source, groups_of(step))
    last = frozen(source)
    changed = sorted(name for name in first.keys() | last.keys() if first.get(name) != last.get(name))
    state = source.state_dict()
    assert not changed or state is not None, f"{changed} change over calls, and there is no state_dict"
    if state is None:
        return
    other = ready(make, tokenizer)
    other.load_state_dict(json.loads(json.dumps(state, allow_nan=False)))
    restored = frozen(other)
    lost = [name for name in changed if restored.get(name) != last[name]]
    assert not lost, f"{lost} change over calls, and are not in the state"
    assert other.state_dict() == state
    assert call(other, groups_of(3)) == call(source, groups_of(3)), "a restart asks for other views"
    assert other.counts == source.counts


# The state of `turn_context` is that of the source of the turns, which a run resumes
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "turn_context"])
def test_the_state_of_every_source(name, tokenizer):
    check_state(lambda: SOURCES[name](**OPTIONS.get(name, {})), tokenizer)


def skills(**options):
    return Skills(**OPTIONS["skills"], **options)


COMPOSITES = {
    "first of": lambda: FirstOf(skills(), SOURCES["fixed"]("x")),
    "all of": lambda: AllOf(SOURCES["column"](), skills(name="skills"), skills(name="old", refresh_steps=2)),
    "when": lambda: When(lambda one, _: one.step > 0, skills()),
    "with baselines": lambda: WithBaselines(skills()),
    "nested": lambda: FirstOf(AllOf(When(lambda one, _: True, skills()))),
}


@pytest.mark.parametrize("make", COMPOSITES.values(), ids=COMPOSITES)
def test_the_state_of_parts(make, tokenizer):
    """They write, so that the processes wait for each other: of this one process alone."""
    check_state(make, tokenizer)


# The check itself


@dataclass
class Counting(TextSource):
    """Counts its calls and forgets it at a restart."""

    def __post_init__(self):
        super().__post_init__()
        self.calls, self.log = 0, {"rows": []}

    def __call__(self, groups):
        self.calls += 1
        self.log["rows"].append(groups[0][0].step)
        return [[self.view(f"Call {self.calls}")] for _ in rollouts_of(groups)]


class HalfSaved(Counting):
    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Saved(HalfSaved):
    def state_dict(self):
        return {**super().state_dict(), "rows": self.log["rows"]}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.log["rows"] = list(state["rows"])


class LateAttribute(TextSource):
    def __call__(self, groups):
        self.seen = groups[0][0].step
        return [[] for _ in rollouts_of(groups)]


def test_state_that_is_not_listed(tokenizer):
    with pytest.raises(AssertionError, match=r"\['calls', 'log'\] change over calls, and there is no state_dict"):
        check_state(Counting, tokenizer)
    with pytest.raises(AssertionError, match=r"\['log'\] change over calls, and are not in the state"):
        check_state(HalfSaved, tokenizer)
    with pytest.raises(AssertionError, match=r"\['seen'\] change over calls, and there is no state_dict"):
        check_state(LateAttribute, tokenizer)
    with pytest.raises(AssertionError, match=r"\['parts'\] change over calls"):
        check_state(lambda: FirstOf(Counting()), tokenizer)
    check_state(Saved, tokenizer)
