# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Short training runs of tiny models whose every logged number and final weight is recorded, one for each way that the
trainer can be used.

    PYTHONPATH=tests python tests/golden/runs.py values.json           # records them
    PYTHONPATH=tests python tests/golden/runs.py values.json ema live  # some of them; the others stay

Under torchrun with two processes, the same for the runs of `TWO_PROCESSES`.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from accelerate import PartialState
from peft import LoraConfig
from trl.chat_template_utils import qwen3_chat_template

import conftest  # sets the environment before torch
import tiny
import tiny_vlm
from scripted import right
from trl_opsd import OPSDConfig, OPSDTrainer, View
from trl_opsd.methods import method_names, method_of
from trl_opsd.privileged import rollouts_of


Run = Callable[[Path], dict[str, Any]]

ROWS = [
    {
        "prompt": [{"role": "user", "content": "What is " + "very " * (i % 4) + f"{i}?"}],
        "privileged_context": f"The answer is {i}." if i % 3 else None,
        "other": f"Think of {i} as one less than {i + 1}.",
        "answer": str(i),
    }
    for i in range(16)
]
TIMES = ("runtime", "per_second", "step_time")


def fingerprint() -> dict[str, str]:
    """Processor and versions: where these are the same, numbers are the same to the last bit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    parts = dict(line.split("\t", 1) for line in lines if line.startswith(("model", "cpu family", "stepping")))
    return {
        "processor": " ".join(part.strip("\t :") for part in parts.values()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{module.__name__: module.__version__ for module in (torch, transformers, trl, datasets)},
    }


def recorded(trainer: OPSDTrainer) -> dict[str, Any]:
    """Every logged number but the times, and for each parameter its checksum and its norm."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = sorted((name, one.detach().float().contiguous()) for name, one in model.named_parameters())
    checksum = hashlib.sha256()
    for name, one in parameters:
        checksum.update(name.encode() + one.numpy().tobytes())
    log = [{k: v for k, v in one.items() if not any(t in k for t in TIMES)} for one in trainer.state.log_history]
    norms = [one.double().norm().item() for _, one in parameters]
    return {"log": log, "weights": checksum.hexdigest(), "norm": sum(norms)}


def length_reward(completions: list, **kwargs: Any) -> list[float]:
    """A reward that differs between completions: the number of characters, modulo 3."""
    return [float(len(c if isinstance(c, str) else c[0]["content"]) % 3) for c in completions]


def every(*views: View) -> Callable[[list], list[list[View]]]:
    """A source that gives every rollout the same views."""
    return lambda groups: [list(views) for _ in rollouts_of(groups)]


def build(folder: Path, model: Any = None, rows: Iterable[dict] = ROWS, **options: Any) -> OPSDTrainer:
    """A trainer on the tiny model. Keys that are arguments of the trainer go there, the others to `OPSDConfig`."""
    names = ("reward_funcs", "peft_config", "eval_dataset", "tools", "rollout_func", "privileged", "processing_class")
    given = {name: options.pop(name) for name in names if name in options}
    tokenizer = given.setdefault("processing_class", tiny.tokenizer())
    groups = {"num_generations": 2} if "reward_funcs" in given else {}
    config = {"output_dir": str(folder), **conftest.ARGS, "use_cpu": True, "seed": 7, **groups, **options}
    if "eval_dataset" in given:
        given["eval_dataset"] = datasets.Dataset.from_list(given["eval_dataset"])
    return OPSDTrainer(
        tiny.model(tokenizer) if model is None else model,
        args=OPSDConfig(**config),
        train_dataset=rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(list(rows)),
        **given,
    )


def plain(**options: Any) -> Run:
    def run(folder: Path) -> dict[str, Any]:
        made = {name: value() if name == "peft_config" else value for name, value in options.items()}
        trainer = build(folder, **made)
        trainer.train()
        return recorded(trainer)

    return run


def from_a_folder(folder: Path) -> dict[str, Any]:
    """Another model as the teacher."""
    tokenizer = tiny.tokenizer()
    tiny.model(tokenizer, seed=1).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    options = {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(folder / "teacher")}
    trainer = build(folder / "run", **options)
    trainer.train()
    return recorded(trainer)


def with_reference_model(folder: Path) -> dict[str, Any]:
    """TRL loads the model that `beta` pulls to from where the student came from."""
    tiny.model(tiny.tokenizer()).save_pretrained(folder / "start")
    trainer = build(folder / "run", str(folder / "start"), **REWARD, beta=0.1)
    trainer.train()
    return recorded(trainer)


def resumed(**options: Any) -> Run:
    """A run that goes on from a checkpoint in the middle of its generation batches."""

    def run(folder: Path) -> dict[str, Any]:
        options_of_both = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, **options}
        build(folder, **options_of_both).train()
        trainer = build(folder, **options_of_both)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
        return recorded(trainer)

    return run


def multiply(a: int, b: int) -> int:
    """
    Multiply two numbers.

    Args:
        a: First number.
        b: Second number.

    Returns:
        Their product.
    """
    return a * b


CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>'


def with_tools(**options: Any) -> Run:
    """A call of a tool, its result, an answer: scripted, as a random model calls no tool."""

    def run(folder: Path) -> dict[str, Any]:
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = qwen3_chat_template
        model = tiny.model(tokenizer, max_position_embeddings=4096)
        trainer = build(
            folder, model, processing_class=tokenizer, tools=[multiply], max_completion_length=400,
            max_tool_calling_iterations=3, **options,
        )  # fmt: skip

        def single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            called = [tokenizer.decode(ids).count("<tool_response>") > 0 for ids in prompt_ids]
            return tokenizer(["It is 12.<|im_end|>" if done else CALL for done in called])["input_ids"], None

        trainer._generate_single_turn = single_turn
        trainer.train()
        return recorded(trainer)

    return run


def with_images(kind: str, **options: Any) -> Run:
    def run(folder: Path) -> dict[str, Any]:
        rows = []
        for i in range(8):
            images = [tiny_vlm.image(10 * i + j, 32 + 16 * (i % 2)) for j in range(1 + i % 2)]
            message = {"role": "user", "content": "What " + "very " * (i % 3) + f"{i}?"}
            rows.append({"prompt": [message], "images": images, "privileged_context": f"It is {i}."})
        data = datasets.Dataset.from_list(rows)
        trainer = build(folder, tiny_vlm.model(kind), data, processing_class=tiny_vlm.processor(kind), **options)
        trainer.train()
        return recorded(trainer)

    return run


# Half of them say 2, so that a group agrees; nobody says 8, so that a group fails
TEXTS = ["no", "it is 2", "7", "2", "so 5", "1 + 1 = 2", "it may be 6", "well, 2"]
TASKS = {"1 + 1?": "2", "4 + 4?": "8", "2 + 3?": "5", "3 + 3?": "6"}


def known_rollouts(prompts: list, trainer: OPSDTrainer) -> dict[str, Any]:
    first = trainer.accelerator.process_index * len(prompts)
    ids = [trainer.processing_class(f"{TEXTS[first + i]}<|im_end|>")["input_ids"] for i in range(len(prompts))]
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}


def on_known_rollouts(**options: Any) -> Run:
    """Groups of eight rollouts with right and wrong answers, for methods and sources that look at rewards."""

    def run(folder: Path) -> dict[str, Any]:
        rows = [
            {"prompt": [{"role": "user", "content": task}], "answer": answer}
            | dict.fromkeys(("privileged_context", "solution"), f"{task[:-1]} = {answer}")
            for task, answer in TASKS.items()
        ]
        processes = PartialState().num_processes
        model: Any = tiny.model(tiny.tokenizer(), max_position_embeddings=4096)
        if processes == 1:  # a method may have a reference model, which TRL loads from the disk
            model.save_pretrained(folder / "start")
            model = str(folder / "start")
        trainer = build(
            folder, model, rows, reward_funcs=right,
            rollout_func=known_rollouts, shuffle_dataset=False,
            **{"num_generations": 8, "per_device_train_batch_size": 8 // processes, "max_steps": 3, **options},
        )  # fmt: skip
        trainer.train()
        return recorded(trainer)

    return run


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


def with_turns(name: str) -> Run:
    """Groups of twelve rollouts of a method that deals them in roles, on the same texts."""

    def run(folder: Path) -> dict[str, Any]:
        rows = [
            {"prompt": [{"role": "user", "content": task}], "answer": answer, "privileged_context": f"{task} {answer}"}
            for task, answer in TASKS.items()
        ]
        turns = {**method_of(name).defaults["turns"]}
        turns |= {"every": 2} if "every" in turns else {}
        if "given" in turns:
            turns["given"] = "privileged_context"
        else:
            turns["source"] = {"with_attempt": "column"} if turns.get("attempt", True) else "column"
        trainer = build(
            folder, tiny.model(tiny.tokenizer(), max_position_embeddings=4096), rows, method=name, turns=turns,
            num_generations=12, per_device_train_batch_size=12, max_steps=3, shuffle_dataset=False,
            reward_funcs=None if "given" in turns else right,  # which a given text has none of
        )  # fmt: skip

        def single_turn(prompt_ids: list, *_: Any) -> tuple[list[list[int]], None]:
            said = [f"{TEXTS[(sum(ids) // 3 + i) % 8]}<|im_end|>" for i, ids in enumerate(prompt_ids)]
            return [trainer.processing_class(text)["input_ids"] for text in said], None

        trainer._generate_single_turn = single_turn
        trainer.train()
        return recorded(trainer)

    return run


def method(name: str) -> Run:
    if "turns" in method_of(name).defaults:
        return with_turns(name)
    sources = dict.fromkeys(("crisp", "opcd"), "column")  # where each row needs one of its own
    sources["atesd"] = {"adaptive_exposure": {"answer": "answer", "hold": 2, "look_ahead": 1}}  # one segment alone
    own = {"privileged_source": sources[name]} if name in sources else {}
    return on_known_rollouts(method=name, **own)


REWARD = {"reward_funcs": length_reward}
SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
TOPK = {"distillation_mode": "topk_logits", "distillation_topk": 8}
EMA = {"teacher_model_kind": "ema", "teacher_update_rate": 0.3}
LIVE = {"teacher_model_kind": "live"}
TWO_COLUMNS = {"privileged_source": {"column": {"column": ["privileged_context", "other"]}}}
TWO_VIEWS = {"privileged": every(View("Be brief.", name="a", weight=2.0), View("Say 7.", place="system", name="b"))}

RUNS: dict[str, Run] = {
    # Teachers
    "base": plain(max_steps=3),
    "live": plain(**LIVE),
    "ema": plain(**EMA, max_steps=3),
    "snapshot": plain(teacher_model_kind="snapshot", teacher_sync_steps=2, max_steps=4),
    "checkpoint": from_a_folder,
    "LoRA, base": plain(peft_config=lora, learning_rate=0.1),
    "LoRA, ema": plain(peft_config=lora, learning_rate=0.1, **EMA),
    "LoRA, live, mixed": plain(peft_config=lora, learning_rate=0.1, **LIVE, **REWARD),
    # Divergences, supports, targets, clips
    "reverse KL": plain(distillation_alpha=1.0),
    "Jensen-Shannon": plain(distillation_alpha=0.3),
    "top-k of the student": plain(**TOPK),
    "top-k of the teacher with a tail": plain(
        **TOPK, distillation_topk_source="teacher", distillation_add_tail=True, distillation_alpha=1.0
    ),
    "top-k of both": plain(**TOPK, distillation_topk_source="union", distillation_alpha=0.5),
    "stopped gradient": plain(**TOPK, distillation_alpha=1.0, distillation_stop_gradient=True),
    "two views": plain(**TWO_VIEWS),
    "two columns": plain(**TWO_COLUMNS),
    "arithmetic target": plain(**TWO_VIEWS, distillation_target="arithmetic"),
    "geometric target": plain(**TWO_VIEWS, distillation_target="geometric", distillation_alpha=1.0),
    "entry clip": plain(distillation_entry_clip=0.05),
    "entry clip, not negative": plain(distillation_entry_clip=0.05, distillation_entry_clip_mode="non_negative"),
    "token clip": plain(distillation_token_clip=0.5),
    "clipped importance weight": plain(distillation_is_clip=1.1, num_iterations=2, steps_per_generation=2, max_steps=4),
    "temperatures": plain(distillation_temperature=2.0, temperature=0.7),
    "small chunks": plain(distillation_chunk_size=5),
    # Reductions
    "sequence mean": plain(distillation_reduction="sequence_mean"),
    "joint token mean": plain(**REWARD, distillation_reduction="joint_token_mean"),
    "skipped tokens": plain(num_loss_tokens_to_skip=3),
    # With rewards
    "mixed": plain(**REWARD, max_steps=3),
    "mixed, top-k": plain(**REWARD, **TOPK, policy_weight=0.5, distillation_weight=2.0),
    "mixed, grpo": plain(**REWARD, loss_type="grpo"),
    "mixed, dr_grpo": plain(**REWARD, loss_type="dr_grpo"),
    "mixed, bnpo": plain(**REWARD, loss_type="bnpo"),
    "mixed, reference model": with_reference_model,
    "mixed, entropy": plain(**REWARD, entropy_coef=0.01, top_entropy_quantile=0.5),
    "sampled token": plain(**REWARD, **SAMPLED),
    "sampled token, pure": plain(**SAMPLED),
    "sampled token, grpo": plain(**REWARD, **SAMPLED, loss_type="grpo", **EMA),
    "no distillation": plain(**REWARD, distillation_weight=0.0),
    "truncated completions masked": plain(**REWARD, mask_truncated_completions=True, max_completion_length=200),
    # Batches
    "accumulation and checkpointing": plain(**REWARD, gradient_accumulation_steps=2, gradient_checkpointing=True),
    "accumulation, pure": plain(gradient_accumulation_steps=4, per_device_train_batch_size=2),
    "buffered": plain(**REWARD, steps_per_generation=2, num_iterations=2, max_steps=5, **EMA),
    "groups of four": plain(num_generations=4, per_device_train_batch_size=8, **EMA),
    "evaluated": plain(**REWARD, eval_dataset=ROWS[:4], eval_strategy="steps", eval_steps=1),
    "resumed, base": resumed(steps_per_generation=2, num_iterations=2),
    "resumed, ema": resumed(**REWARD, **EMA, steps_per_generation=2),
    "bfloat16": plain(bf16=True, **EMA),
    # Prompts
    "template and place": plain(privileged_place="system", privileged_template="Hint: {privileged_context}"),
    "prefill": plain(privileged=every(View("So: ", place="prefill"))),
    "before a token": plain(privileged=every(View(" by the way ", place="before_token", position=2))),
    "part of the completion": plain(privileged=every(View("Be brief.", span=(1, 4)))),
    "dropped": plain(teacher_max_length=64, teacher_overlong="drop_view"),
    "shortened": plain(
        privileged=every(View("One is first. " * 9)), teacher_max_length=128, teacher_overlong="shorten"
    ),
    "other chat template arguments": plain(teacher_chat_template_kwargs={"enable_thinking": True}),
    # Tools and images
    "tools": with_tools(),
    "tools, before a turn": with_tools(privileged=every(View("Say 12.", place="before_turn", position=1))),
    "images, qwen": with_images("qwen"),
    "images, llava": with_images("llava", **REWARD, **LIVE),
    # Sources
    "sibling": on_known_rollouts(privileged_source={"sibling": {"choice": "random"}}),
    "vote": on_known_rollouts(privileged_source="pseudo_reference"),
    "controls": on_known_rollouts(
        privileged_source={"all_of": [{"other_row": {"name": "a", "count": 2}}, {"shuffled": {"name": "b"}}]}
    ),
    "exposure": on_known_rollouts(privileged_source={"exposure": {"column": "solution"}}),
    "feedback where it failed": on_known_rollouts(
        privileged_source={
            "first_of": [{"when": {"condition": "failed", "source": {"feedback": {"key": "solution"}}}}, "column"]
        }
    ),
    # Methods
    **{f"method {name}": method(name) for name in method_names()},
}

TWO_PROCESSES: dict[str, Run] = {
    "two processes": plain(rows=[row | {"privileged_context": None} if i < 4 else row for i, row in enumerate(ROWS)]),
    "two processes, mixed": plain(**REWARD, **EMA, num_generations=4, per_device_train_batch_size=2),
    "two processes, known rollouts": on_known_rollouts(privileged_source={"sibling": {"choice": "shortest"}}),
    "two processes, sampled token": plain(**REWARD, **SAMPLED, peft_config=lora, gradient_accumulation_steps=2),
}


def write(file: Path, values: dict[str, Any]) -> None:
    """One run a line, so that a change shows which."""
    lines = (f"{json.dumps(name)}: {json.dumps(values[name], sort_keys=True)}" for name in sorted(values))
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(file: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    runs = RUNS if state.num_processes == 1 else TWO_PROCESSES
    values = json.loads(file.read_text()) if file.is_file() else {}
    for name in names or runs:
        with tempfile.TemporaryDirectory() as folder:
            values[name] = runs[name](Path(folder))
    if state.is_main_process:
        write(file, values | {"fingerprint": fingerprint()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
