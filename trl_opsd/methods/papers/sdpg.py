# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
GRPO with two small penalties: the reverse KL to the same weights that read the solution, over the whole vocabulary, and
one to the frozen start. The teacher's densely informed distribution is a nudge beside the verifier, not a target.

    L = L_GRPO + beta KL(p || sg q) + alpha E_{y~p} [log^2 (p / p_ref) / 2],  alpha = beta = 0.001

beta is `distillation_weight`, alpha is TRL's `beta`. To distil completions of positive advantage alone, the paper's
gate, put a condition before the source: `privileged_source: {when: {condition: above_group_mean, source: column}}`.

**Changed**: the reference term is TRL's k3 with its importance ratio (`use_bias_correction_kl`, which is on), whose
gradient is that of the reverse KL in expectation, as is the gradient of half a squared logarithm. With the gate our
mean is over the gated tokens alone; how the paper's divides is not known to us.

**Fails** as GRPO does without a spread of rewards in the groups, as far as so small a nudge does not help.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Self-Distilled Policy Gradient",
    paper="2606.04036",
    label="code",
    needs="a reward, and a reference solution in a column",
    needs_reward=True,
    defaults={
        "distillation_alpha": 1.0,
        "distillation_weight": 0.001,
        "teacher_model_kind": "live",
        "beta": 0.001,
    },
)
