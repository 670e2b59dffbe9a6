# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The model teaches itself to be brief: the teacher is asked for the same answer in few words, the student is not, and is
pulled to it on its own answers.

No solution and no reward are needed. The teacher is the student of up to 50 steps ago, so that each renewal asks the
shortened student to be shorter still.

    L = mean over t of KL(p_t || q_t),  q_t = snapshot(. | x, instruction, y_<t), renewed every 50 steps

Another instruction: `privileged_source: {fixed: {context: ..., place: ...}}`.

**Changed**: the instruction is in our own words, and stands as the system message. The KL is over the whole vocabulary.

**Fails** where brevity costs accuracy: nothing looks at whether answers stay right, so watch a reward at weight 0, and
stop before the next renewal once it falls. An instruction that the model does not follow teaches nothing.
"""

from trl_opsd.methods.base import Method


INSTRUCTION = "Be concise. Reason in as few words as the task allows, without repeating yourself, and then answer."

METHOD = Method(
    title="On-Policy Self-Distillation for Reasoning Compression",
    paper="2603.05433",
    authors="Hejian Sang and Yuanda Xu and Zhengze Zhou and Ran He and Zhipeng Wang and Jiachen Sun",
    label="code",
    needs="prompts alone",
    defaults={
        "distillation_alpha": 1.0,
        "teacher_model_kind": "snapshot",
        "teacher_sync_steps": 50,
        "privileged_source": {"fixed": {"context": INSTRUCTION}},
    },
)
