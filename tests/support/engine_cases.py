# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What tests/distributed/test_sharded.py trains, under which engine, and what it is compared with."""

from pathlib import Path
from typing import Any


# The second step shows what the first one, and an evaluation after it, leave behind in an engine
SKILLS = ("math", "code")  # of the rows in turn
COMMON = {"max_steps": 2, "max_grad_norm": 0.0, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.1}
UNTIED = {"model_options": {"tie_word_embeddings": False}}
LIVE = {"teacher_model_kind": "live"}
EMA = {"teacher_model_kind": "ema", "teacher_update_rate": 0.3}
SNAPSHOT = {"teacher_model_kind": "snapshot", "teacher_sync_steps": 2, "max_steps": 3}
# Adam has a state to resume; its epsilon keeps the rounding of gradients that are almost zero from becoming a step
ADAM = {"optim": "adamw_torch", "adam_epsilon": 0.01, "learning_rate": 0.03}
RESUMED = {"resume": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **ADAM}
LORA = {"lora": {}, "learning_rate": 1.0}
PAIRS = {"reward": True, "num_generations": 2}
TOKENS = {"log_tokens": 3, "log_tokens_probe": 1}
# The teacher answers in evaluations, greedily, so that its answers are the same under every engine
SCORED = {"eval_teacher_prompts": 8, "generation_kwargs": {"do_sample": False}, **TOKENS, **PAIRS}
SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
TOPK = {"distillation_mode": "topk_logits", "distillation_topk": 8}

# Eight rollouts a step, of which the first of two ranks has the first four: of the data's rows 0 to 7 in both steps
# without groups, of 0 to 3 and then 4 to 7 in groups of two, of 0 and 1 and then 2 and 3 in groups of four
CASES: dict[str, dict[str, Any]] = {
    # Views on one rank alone, tied and untied heads, groups that straddle the ranks
    "pure, tied": {"rows_with_view": [5, 6, 7], **LIVE},
    "pure, untied": {"rows_with_view": [0, 1, 2], **LIVE, **UNTIED},
    "mixed, tied": {"rows_with_view": [0, 1], "reward": True, "num_generations": 8, **LIVE},
    "mixed, untied": {"rows_with_view": [0, 3], "reward": True, "num_generations": 4, **LIVE, **UNTIED},
    # No view on a rank in some micro-batches, on any rank in others, and none at all
    "views in one micro-batch": {"rows_with_view": [0, 7], "gradient_accumulation_steps": 4, **LIVE, **UNTIED},
    "mixed, without a view": {"rows_with_view": [], "gradient_accumulation_steps": 2, **PAIRS, **UNTIED},
    "sampled, without a view": {"rows_with_view": [], **PAIRS, **SAMPLED},
    # Every kind of teacher, on full weights and LoRA, and every mode, pure and mixed
    "base": {"rows_with_view": [1, 2, 5, 7], "distillation_alpha": 1.0},
    "base, untied": {"rows_with_view": [0, 1, 6, 7], **SCORED, **TOPK, "distillation_add_tail": True, **UNTIED},
    "ema": {"rows_with_view": [1, 2, 6], "distillation_alpha": 0.5, **EMA},
    "ema, untied": {"rows_with_view": [0, 1, 6, 7], "num_iterations": 2, "max_steps": 3, **SCORED, **EMA, **UNTIED},
    "snapshot": {"rows_with_view": [0, 1, 2, 5], **PAIRS, **SNAPSHOT, "distillation_alpha": 0.5},
    "snapshot, untied": {"rows_with_view": [0, 5], **TOPK, "distillation_topk_source": "teacher", **SNAPSHOT, **UNTIED},
    "sampled token": {"rows_with_view": [0, 1, 6, 7], **TOKENS, **PAIRS, **SAMPLED, **LIVE, **UNTIED},
    "sampled token, pure, base": {"rows_with_view": [0, 1, 6], **SAMPLED, **UNTIED},
    "sampled token, ema": {"rows_with_view": [0, 1, 6, 7], **PAIRS, **SAMPLED, **EMA},
    "accumulation and checkpointing": {
        "rows_with_view": [0, 2, 6, 7], "gradient_accumulation_steps": 2, "gradient_checkpointing": True, **PAIRS,
        **LIVE, **UNTIED,
    },
    "base, accumulation and checkpointing": {
        "rows_with_view": [0, 2, 6, 7], "gradient_accumulation_steps": 2, "gradient_checkpointing": True, **PAIRS,
    },
    "steps per generation": {
        "rows_with_view": [0, 1, 3, 6], "gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 3,
        **PAIRS, **EMA, **UNTIED,
    },
    "LoRA, pure, tied": {"rows_with_view": [5, 6, 7], **LORA},
    "LoRA, mixed, untied": {"rows_with_view": [0, 1, 6, 7], **SCORED, **LORA, **UNTIED},
    "LoRA, mixed, live": {"rows_with_view": [2, 3, 4, 5], **PAIRS, **LORA, **LIVE},
    "LoRA, ema": {"rows_with_view": [1, 2, 7], **TOPK, **LORA, **EMA, **UNTIED},
    "LoRA, snapshot": {
        "rows_with_view": [0, 1, 2, 5, 6], "gradient_accumulation_steps": 2, **PAIRS, **LORA, **SNAPSHOT,
    },
    "LoRA with a head of its own": {
        "rows_with_view": [1, 2, 7], **LORA, "lora": {"modules_to_save": ["lm_head"]}, "learning_rate": 0.1, **UNTIED,
    },
    "LoRA with a head of its own, ema": {
        "rows_with_view": [1, 2, 7], **LORA, "lora": {"modules_to_save": ["lm_head"]}, "learning_rate": 0.1, **UNTIED,
        **EMA,
    },
    "LoRA, adapters": {
        "rows_with_view": [0, 1, 6, 7], **PAIRS, **LORA, "teacher_model_kind": "adapters",
        "privileged_source": {"column": {"name_column": "skill"}},
    },
    "teacher from a folder": {"rows_with_view": [1, 2, 7], "teacher_model_kind": "checkpoint", **UNTIED},
    "student from a folder": {"rows_with_view": [1, 2, 7], "model": "folder"},
    # Measured within the first forward, where an engine shards the parameters
    "absolute positions": {
        "rows_with_view": [0, 1, 6, 7], "family": "gpt2", "num_iterations": 2, "max_steps": 3, **PAIRS,
    },
    # Resumed under the engine after two steps, against the uninterrupted run; evaluated before it trains
    "base, resumed": {"rows_with_view": [1, 2, 5, 7], **RESUMED},
    "ema, resumed": {"rows_with_view": [0, 1, 6, 7], **PAIRS, **EMA, **UNTIED, **RESUMED},
    "LoRA, snapshot, resumed": {
        "rows_with_view": [0, 1, 2, 5, 6], **PAIRS, **LORA, **SNAPSHOT, "teacher_sync_steps": 3, **RESUMED,
    },
    "base, evaluated first": {"rows_with_view": [1, 2, 5, 7], "evaluate_first": True, **UNTIED},
    # Twenty steps of a moving teacher, and one that moves less than bfloat16 can tell
    "ema, twenty steps": {"rows_with_view": [1, 2, 6, 7], **EMA, "max_steps": 20, "weights": True},
    "LoRA, ema, twenty steps": {
        "rows_with_view": [1, 2, 6, 7], **LORA, **EMA, "learning_rate": 0.3, "max_steps": 20, "weights": True,
    },
    "slow ema of bfloat16": {
        "rows_with_view": [1, 2, 6, 7], **EMA, "teacher_update_rate": 0.001, "max_steps": 4, "weights": True,
        "bfloat16": True,
    },
}  # fmt: skip

# Which rollouts share an optimizer step depends on the number of ranks: TRL shuffles the buffer of each one
COMPARED_WITH_DDP = ("steps per generation",)
# accelerate refuses to prepare a model for FSDP2 without an optimizer, and its DeepSpeed engine does not outlive the
# evaluation
DDP_ONLY = ("base, evaluated first",)
BFLOAT16 = "slow ema of bfloat16"

# By launch: engine and layout, and the cases that tell something about it
PROCESSES = {"one process": 1, "ddp": 2, "fsdp2": 2, "zero": 2}
MATRIX: dict[str, dict[tuple[str, str], list[str]]] = {
    "one process": {("none", ""): [case for case in CASES if case not in COMPARED_WITH_DDP]},
    "ddp": {("ddp", ""): [case for case in CASES if case != "student from a folder"]},
    "fsdp2": {
        ("fsdp2", "reshard"): [case for case in CASES if case not in DDP_ONLY],
        ("fsdp2", "keep"): [
            "pure, tied", "mixed, untied", "LoRA, mixed, untied", "student from a folder", "base", "ema, untied",
            "LoRA, ema",
        ],
        ("fsdp2", "root reshards"): ["pure, tied", "mixed, untied", "LoRA, pure, tied", "snapshot"],
        ("fsdp2", "own head"): [
            "pure, untied", "mixed, untied", "sampled token", "accumulation and checkpointing", "LoRA, mixed, untied",
            "LoRA with a head of its own", "teacher from a folder", "base, untied", "ema, untied",
            "LoRA with a head of its own, ema",
        ],
        ("fsdp2", "own head, root reshards"): ["pure, untied", "mixed, untied", "base, untied"],
    },
    "zero": {
        ("zero3", ""): [case for case in CASES if case not in DDP_ONLY],
        ("zero3", "small ones whole"): ["pure, untied", "mixed, tied", "base", "ema, untied", "LoRA, ema"],
        ("zero2", ""): [case for case in CASES if case not in ("student from a folder", *DDP_ONLY)],
        ("zero1", ""): ["mixed, untied", "ema", "LoRA, snapshot"],
    },
}  # fmt: skip


def options(case: str, processes: int, saved: Path) -> dict[str, Any]:
    """
    Options of `worker.build` for a case.

    Args:
        case (`str`): One of `CASES`.
        processes (`int`): Over how many the eight rollouts of a step are spread.
        saved (`Path`): Folder of a model and its tokenizer.
    """
    merged = {**COMMON, **CASES[case]}
    if "model" in merged:
        merged["model"] = str(saved)
    if merged.get("teacher_model_kind") == "checkpoint":
        merged["teacher_model_name_or_path"] = str(saved)
    if merged.get("teacher_model_kind") == "adapters":
        merged["teacher_adapters"] = {name: str(saved / name) for name in SKILLS}
    rows = 8 // processes
    merged["per_device_train_batch_size"] = rows // merged.get("gradient_accumulation_steps", 1)
    return {**merged, "per_device_eval_batch_size": rows}
