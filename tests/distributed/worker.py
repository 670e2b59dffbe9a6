# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_two_processes.py: trains the tiny model on scripted completions and saves what came out."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig

import conftest  # sets the environment before torch
import tiny
from engine_cases import SKILLS
from families import small_model
from trl_opsd import OPSDConfig, OPSDTrainer


def build(folder: str, options: dict) -> OPSDTrainer:
    """
    A trainer on scripted completions, which depend on the global batch alone and not on its split over ranks.

    Args:
        folder (`str`): Output directory.
        options (`dict`): Of `OPSDConfig`, and of this function: `rows_with_view` (which of eight rows), `model` (by
            default the tiny one, with `model_options`, or one of a `family`; in `bfloat16` if so), `reward`, `lora`
            (of `LoraConfig`) and `eval_rows`, how many there are.
    """
    options = dict(options)
    tokenizer = tiny.tokenizer()
    family, sizes = options.pop("family", None), options.pop("model_options", {})
    model = options.pop("model", None)
    model = model or (small_model(family, tokenizer) if family else tiny.model(tokenizer, **sizes))
    model = model.to(torch.bfloat16) if options.pop("bfloat16", False) else model
    lora, with_view = options.pop("lora", None), options.pop("rows_with_view")
    eval_rows = options.pop("eval_rows", 8)
    rows = [
        {
            "prompt": [{"role": "user", "content": "What is " + "very " * (i % 4) + f"{i}?"}],
            "privileged_context": f"The answer is {i}." if i % 8 in with_view else None,
            "skill": SKILLS[i % 2],
        }
        for i in range(16)
    ]
    arguments = {**conftest.ARGS, "use_cpu": True, "shuffle_dataset": False, "optim": "sgd", "learning_rate": 0.5}
    reward = conftest.length_reward if options.pop("reward", False) else None
    trainer = OPSDTrainer(
        model,
        reward_funcs=reward,
        args=OPSDConfig(output_dir=folder, **{**arguments, **options}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:eval_rows]),
        processing_class=tokenizer,
        peft_config=None if lora is None else LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **lora}),
    )
    rank = trainer.accelerator.process_index

    def single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        # From the prompt and the place in the global batch, so that the split over ranks changes nothing
        sums = [sum(ids) + 31 * (rank * len(prompt_ids) + i) for i, ids in enumerate(prompt_ids)]
        return [[3 + (s * (j + 7)) % 250 for j in range(1 + s % 7)] + [2] for s in sums], None

    trainer._generate_single_turn = single_turn
    return trainer


def main(folder: str, options: dict) -> None:
    torch.set_num_threads(1)
    trainer = build(folder, options)
    rank = trainer.accelerator.process_index
    trainer.train()
    trainer.evaluate()
    torch.save({n: p.detach() for n, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()},
               Path(folder) / f"weights-{rank}.pt")  # fmt: skip
    if rank == 0:
        (Path(folder) / "history.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
