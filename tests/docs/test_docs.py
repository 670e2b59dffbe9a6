# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The sources that the documentation shows work as they stand there."""

import re
from pathlib import Path

import pytest

from conftest import length_reward
from trl_opsd import OPSDConfig, View


ROOT = Path(__file__).parents[2]


def shown_function(path, name):
    """The function of a Python block in a Markdown file."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.S)
    code = next(block for block in blocks if f"def {name}(" in block)
    code = code[code.index(f"def {name}(") :].split("\n\ntrainer = ")[0]
    namespace = {"View": View}
    exec(code, namespace)
    return namespace[name]


def my_reward(completions, **kwargs):
    return [value / 2 for value in length_reward(completions)]


@pytest.mark.parametrize(("path", "name"), [("README.md", "show_reward"), ("docs/own_source.md", "source")])
def test_shown_sources(make_trainer, path, name):
    trainer = make_trainer(
        reward_funcs=my_reward, privileged=shown_function(path, name), num_generations=4, max_steps=4
    )
    trainer.train()
    shares = [log["self_distillation/view_share"] for log in trainer.state.log_history[:-1]]
    assert 0 < sum(shares) / len(shares) < 1


def test_the_shown_class(make_trainer):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_source.md").read_text(), flags=re.S)
    namespace = {"__name__": "shown"}
    exec(next(block for block in blocks if "class SomeHint" in block), namespace)
    trainer = make_trainer(privileged=namespace["SomeHint"](["Mind the sign.", "Add the tens first."], place="system"))
    trainer.train()
    contexts = {views[0].context for views in trainer.collected.views}
    assert contexts <= {"Mind the sign.", "Add the tens first."}
    assert trainer.state.log_history[0]["self_distillation/view_share"] == 1.0


def test_every_metric_is_documented(make_trainer):
    trainer = make_trainer(distillation_mode="topk_logits", distillation_topk=5)
    trainer.train()
    text = (ROOT / "docs" / "metrics.md").read_text()
    own = {n.removeprefix("self_distillation/") for n in trainer.state.log_history[0] if n.startswith("self_")}
    own = {name.replace("divergence/privileged", "divergence/NAME") for name in own} - {"teacher_prompt_length/max"}
    assert "teacher_prompt_length/mean" in own
    assert not [name for name in own if f"`{name}`" not in text]


def test_options_named_in_the_documentation_exist():
    options = OPSDConfig.__dataclass_fields__
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name in re.findall(r"`((?:distillation|teacher|privileged)_\w+)[`=]", path.read_text()):
            assert name in options or name in ("privileged_context", "teacher_entropy", "teacher_logps"), (
                f"{path.name}: {name}"
            )
