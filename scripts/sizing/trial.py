# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Peak memory of whole training steps of a small model, and all other checks, in a process of its own:

python scripts/scale.py --check
"""

import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.measure import map_arrays, measure
from sizing import memory, tables
from sizing.checks import RUN, Check, all_checks, build
from sizing.setup import Setup
from sizing.shapes import Shape
from trl_opsd import OPSDConfig, OPSDTrainer


SHAPE = Shape("small Qwen3", 4, 384, 1152, 6, 3, 64, 12_288, tied=True, qk_norm=True)
WARM = Shape("warm-up", 1, 32, 64, 2, 1, 16, 100, tied=True, qk_norm=True)
SETTING = {**RUN, "rows": 4, "accumulation": 2, "prompt": 32, "completion": 64, "teacher_prompt": 64}
RUNS: dict[str, dict[str, Any]] = {
    "`base`, checkpointing": {"checkpointing": True},
    "`ema`, bfloat16 weights": {"checkpointing": False, "teacher": "ema", "dtype": "bfloat16"},
    "`base`, adapter of rank 16": {"checkpointing": False, "lora": 16},
}


def setup_of(options: dict[str, Any]) -> Setup:
    return Setup(SHAPE, **{**SETTING, "dtype": "float32", "bf16": False, **options})


def tokenizer() -> PreTrainedTokenizerFast:
    """Ten words, and a template that adds none."""
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefg"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=template
    )


def train(setup: Setup, steps: int) -> None:
    """Build the model and train on completions of exactly the lengths of `setup`."""
    prompt = " ".join("abcdefg"[i % 7] for i in range(setup.prompt))
    context = " ".join("gfedcba"[i % 7] for i in range(setup.teacher_prompt - setup.prompt))
    rows = [{"prompt": [{"role": "user", "content": prompt}], "privileged_context": context}] * 64
    with tempfile.TemporaryDirectory() as folder:
        trainer = OPSDTrainer(
            model=build("qwen3", setup.shape, getattr(torch, setup.dtype)),
            args=OPSDConfig(
                output_dir=folder,
                per_device_train_batch_size=setup.rows,
                gradient_accumulation_steps=setup.accumulation,
                num_generations=1,
                max_completion_length=setup.completion,
                gradient_checkpointing=setup.checkpointing,
                teacher_model_kind=setup.teacher,
                max_steps=steps,
                use_cpu=True,
                bf16=setup.bf16,
                save_strategy="no",
                teacher_share_prefix=False,  # the formulas take a context for each row
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            peft_config=LoraConfig(r=setup.lora, target_modules="all-linear") if setup.lora else None,
        )
        completion = [3 + i % 7 for i in range(setup.completion - 1)] + [1]
        trainer._generate_single_turn = lambda prompts, *_, **__: ([completion] * len(prompts), None)
        trainer.train()


def whole_steps() -> list[Check]:
    """Peak of resident memory from before the model is made to after two optimizer steps."""
    found = []
    for name, options in RUNS.items():
        setup = setup_of(options)
        train(replace(setup, shape=WARM), steps=1)  # what a first run of its kind imports
        measured = measure(lambda setup=setup: train(setup, steps=2), "cpu").peak
        if measured is not None:  # of a system that can tell
            found.append(Check(f"whole step, {name}", memory.peak(setup)[0], measured, 0.15))
    return found


def main() -> None:
    torch.set_num_threads(1)
    found = all_checks()
    map_arrays()
    found += whole_steps()
    print(f"{tables.START}\n{tables.checks(found)}")
    wrong = [f"{one.what}: {one.deviation:+.1%}, allowed {one.tolerance:.0%}" for one in found if not one.holds]
    if wrong:
        sys.exit("error: the formulas in scripts/sizing/memory.py are off: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
