# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
One process of test_vllm_colocate.py: trains the tiny model with a colocated vLLM and writes down what was seen.

The runs share a process, as importing vLLM takes longer than loading an engine of this size.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig

import conftest
import tiny
from batches import batch_of
from dense import dense_logits
from processes import free_port
from trl_opsd import OPSDConfig, OPSDTrainer


os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; else a share of the memory, less what the process has taken by then
os.environ["MASTER_PORT"] = str(free_port())  # so that two runs of the tests do not meet at the default port
MAX_MODEL_LENGTH = 80
RATIO_CAP = 1.5
ALIVE: list[OPSDTrainer] = []  # an engine that is deleted takes the process group of the next one with it
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}?"}],
        "privileged_context": "It is long. " * 12 + f"The answer is {i}." if i % 3 else None,
    }
    for i in range(16)
]


def build(folder: Path, config: type[GRPOConfig] = OPSDConfig, rows: list[dict] = ROWS, **options: Any) -> OPSDTrainer:
    """A trainer on the saved model `folder / "model"`, with an engine of its own."""
    tokenizer = tiny.tokenizer()
    reward = conftest.length_reward if config is GRPOConfig else None
    arguments = {
        **conftest.ARGS,
        "use_cpu": True,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": MAX_MODEL_LENGTH,
        "vllm_gpu_memory_utilization": 0.2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "shuffle_dataset": False,
        "num_generations": 2 if reward else 1,
    }
    trainer = OPSDTrainer(
        str(folder / "model"),
        reward_funcs=reward,
        peft_config=options.pop("peft_config", None),
        args=config(output_dir=str(folder / "out"), **{**arguments, **options}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:8]),
        processing_class=tokenizer,
    )
    ALIVE.append(trainer)
    return trainer


def disagreement(trainer: OPSDTrainer) -> float:
    """Mean over sampled tokens of |vLLM's log-probability - the trainer's|, by the model's own plain forward."""
    prompts = [trainer._tokenize_prompts([row["prompt"]])[0][0] for row in ROWS[:8]]
    _, completions, logps, _ = trainer.vllm_generation.generate(prompts, images=None, num_generations=1)
    differences = []
    for prompt, completion, sampled in zip(prompts, completions, logps, strict=True):
        ids = torch.tensor([prompt + list(completion)])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        differences += (own - torch.tensor([value[0] for value in sampled])).abs().tolist()
    return sum(differences) / len(differences)


def watched(trainer: OPSDTrainer) -> list[tuple[float, float]]:
    """Record, at each sync of the coming training, the disagreement just before it and just after it."""
    seen, sync = [], trainer.vllm_generation.sync_weights

    def sync_weights() -> None:
        stale = disagreement(trainer)
        sync()
        seen.append((stale, disagreement(trainer)))

    trainer.vllm_generation.sync_weights = sync_weights
    return seen


def requests(trainer: OPSDTrainer) -> list[str]:
    """Record the prompts, as text, that vLLM is sent from now on."""
    seen, generate = [], trainer.vllm_generation.llm.generate

    def recorded(prompts: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        seen.extend(trainer.processing_class.decode(prompt["prompt_token_ids"]) for prompt in prompts)
        return generate(prompts, *args, **kwargs)

    trainer.vllm_generation.llm.generate = recorded
    return seen


def unsynced(trainer: OPSDTrainer) -> dict[str, float]:
    """A micro-batch whose sampler lags behind: its loss beside a dense float64 computation."""
    trainer.vllm_generation.sync_weights = lambda: None
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
        trainer.model.model.norm.weight.mul_(0.5)  # flatter than the sampler, so that most ratios are below 1
    inputs = batch_of(trainer)
    loss = trainer._compute_loss(trainer.model, inputs).item()

    _, log_p = dense_logits(trainer.model, inputs["prompt_ids"], inputs["prompt_mask"], inputs)
    views = (
        inputs["distillation"].views["privileged"].prompt_ids,
        inputs["distillation"].views["privileged"].prompt_mask,
    )
    with trainer.teacher.teacher_forward(trainer.model) as teacher:
        _, log_q = dense_logits(teacher, *views, inputs)
    mask = inputs["completion_mask"].bool() & (inputs["distillation"].views["privileged"].weight > 0).unsqueeze(1)
    own = log_p.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    ratio = (own - inputs["sampling_per_token_logps"]).exp().clamp(max=RATIO_CAP)
    divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
    return {
        "loss": loss,
        "expected": (divergence * ratio)[mask].mean().item(),
        "uncorrected": divergence[mask].mean().item(),
        "mean_distance_of_ratio_from_1": (ratio - 1)[mask].abs().mean().item(),
    }


def with_turns(folder: Path) -> dict[str, Any]:
    """A generation batch in roles: prompts of each call, and by role what is known of the sampler; and the steps."""
    turns = {"slots": ["first", "second", "distil"], "source": "column", "otherwise": "idle"}
    rows = [row | {"privileged_context": row["privileged_context"] and "Be brief."} for row in ROWS]
    trainer = build(
        folder, rows=rows, turns=turns, num_generations=3, per_device_train_batch_size=12, max_completion_length=16,
        privileged_source={"turn_context": {"roles": ["first", "second", "distil"]}}, max_steps=2,
    )  # fmt: skip
    seen, generate = [], trainer.vllm_generation.generate

    def recorded(prompts: list, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(prompts))
        return generate(prompts, *args, **kwargs)

    trainer.vllm_generation.generate = recorded
    batch = batch_of(trainer)
    roles = [trainer.collected.rollouts[i].role for i in batch["distillation"].index.tolist()]
    known: dict[str, list] = {}
    ratio, mask = batch["importance_sampling_ratio"], batch["completion_mask"].bool()
    for row, role in enumerate(roles):
        logps = batch["sampling_per_token_logps"][row][mask[row]]
        ones = ratio[row] == 1 if ratio.shape[1] == 1 else ratio[row][mask[row]] == 1
        known.setdefault(role, []).append([int(logps.isnan().sum()), len(logps), bool(ones.all())])
    trainer.train()
    return {"calls": seen, "known": known, "history": trainer.state.log_history}


def too_long(folder: Path) -> str:
    """What is said of a second turn's prompt that vLLM can't read."""
    turns = {"slots": ["distil"], "source": "column", "attempt": False}
    try:
        batch_of(build(folder, turns=turns, privileged_source="turn_context"))
    except ValueError as error:
        return str(error)
    return ""


def refusal(folder: Path, **options: Any) -> str:
    """What the user is told when a trainer can't be built."""
    try:
        build(folder, **options)
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = tiny.tokenizer()
    tiny.model(tokenizer, hidden_size=128, initializer_range=0.1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    results: dict[str, Any] = {}

    options = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": RATIO_CAP}
    trainer = build(folder, optim="adamw_torch", learning_rate=5e-3, **options)
    results["full"], results["requests"] = watched(trainer), requests(trainer)
    trainer.train()
    # The first one syncs, and what watches that draws samples of its own
    results["evaluations"] = [trainer.evaluate()["eval_loss"] for _ in range(3)][1:]
    results["history"] = trainer.state.log_history
    results["unsynced"] = unsynced(trainer)

    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = build(folder, peft_config=lora, learning_rate=2.0)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if "base_layer" in name}
    results["lora"] = watched(trainer)
    trainer.train()
    weights = dict(trainer.model.named_parameters())
    results["lora_base_moved"] = max((weights[name] - value).abs().max().item() for name, value in before.items())

    trainer = build(folder, GRPOConfig, learning_rate=0.5)
    results["grpo"] = watched(trainer)
    trainer.train()

    results["turns"], results["turn too long"] = with_turns(folder), too_long(folder)

    long_prompt = {"prompt": [{"role": "user", "content": "very " * 12}], "privileged_context": "x"}
    results["overlong"] = refusal(folder, rows=[*ROWS[:5], long_prompt])
    results["sleep_mode"] = refusal(folder, vllm_enable_sleep_mode=True)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
