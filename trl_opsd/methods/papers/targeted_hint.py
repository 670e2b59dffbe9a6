# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A short hint is put just before a turn that goes wrong, and the model that reads the hint scores the very tokens of that
turn again: nothing is decoded. Only this turn is distilled; the rest learns from the reward. A rule for each class of
error says what the hint is.

    L = KL(sg p(. | s_t, h, y_<t) || p(. | s_t, y_<t)) over the tokens of the failed turn, beside the policy loss

By default as in Kolibri, Aleph Alpha's report: only in groups whose best reward is below 0.2, the rollout with most
tool errors, whose own reward then does not count. As in Composer 2.5, where every failed turn is hinted at and the
reward goes on counting: `privileged_source: {turn_hint: {rules: [...], max_hints: 4}}`. Rules: see docs/privileged.md.

**Changed**: Composer's direction of the KL and weight are not published, nor is Kolibri's weight: it is
`distillation_weight`, 1 here. The default rule takes every tool error; better ones name its class.

**Fails** on mistakes that no rule sees, and where the model ignores the hint.
"""

from trl_opsd.methods.base import Method


RULE = {"hint": "The call below goes wrong. Use a listed tool, with its arguments in the exact types that it declares."}
HINT = {"turn_hint": {"rules": [RULE], "policy": False}}
MOST_ERRORS = {"when": {"condition": "most_errors", "source": HINT}}

METHOD = Method(
    title="Composer 2.5",
    paper="https://cursor.com/blog/composer-2-5",
    label="paper",
    needs="tools or an environment with a reward, and rules that know its errors",
    needs_reward=True,
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "live",
        "privileged_source": {"when": {"condition": {"group_reward_below": 0.2}, "source": MOST_ERRORS}},
    },
)
