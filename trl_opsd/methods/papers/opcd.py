# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Context distillation moves a context into the weights: the teacher reads lessons from earlier attempts or a system
prompt, the student answers without them and is pulled to the teacher on its own answers. The divergence looks at the
tokens that the student itself finds most likely. The teacher's weights stand still.

    L = mean over t of sum over v in S_256(p_t) of p_tv sg(log(p_tv / q_tv))

A system prompt for all rows: `privileged_source: {fixed: {context: ...}}`. The paper's runs on Llama for safety
renormalise both sides over the set: `distillation_stop_gradient: false`.

**Changed**: where the sum is not renormalised, its true gradient also pushes mass out of the set, and takes a token to
be good only from q = e p on (Many Faces, 2605.11182).

With the ratio held constant that part is left out; it is small where the set holds nearly all mass (`topk_mass` in the
log). How the lessons are extracted is not part of it here.

**Fails** where the model does not follow the context even with it in view; what the weights hold already is not kept
apart from what they learn.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="On-Policy Context Distillation for Language Models",
    paper="2602.12275",
    authors="Tianzhu Ye and Li Dong and Xun Wu and Shaohan Huang and Furu Wei",
    label="code",
    needs="a context in a column, or one for all rows",
    defaults={
        "distillation_alpha": 1.0,
        "distillation_mode": "topk_logits",
        "distillation_topk": 256,
        "distillation_stop_gradient": True,
        "teacher_model_kind": "base",
    },
)
