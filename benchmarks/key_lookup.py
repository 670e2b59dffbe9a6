# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Methods of turns beside GRPO and plain distillation on a made-up task, with a model of a few thousand parameters.

The question is "Key g ? =", and the answer one of eight words, at random for each of the sixteen keys. The model is
first taught to copy the word that a context names, right or wrong, and to answer the bare question by any word. So the
context is the only way to know, and what is measured is how much of it the bare question keeps: the probability of the
right word, exactly, as a mean over the keys.
"""

import argparse
import random
import statistics
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.report import table
from trl_opsd import OPSDConfig, OPSDTrainer


KEYS, WORDS = [f"k{i}" for i in range(16)], [f"w{i}" for i in range(8)]
TEMPLATE = "Said {attempt} {privileged_context} {question}"
OTHER = {"other_row": {"column": "privileged_context"}}
# A batch is 32 rows of two tokens each; the texts are a word and its end
BUDGET = {"per_device_train_batch_size": 32, "max_completion_length": 2, "learning_rate": 1e-3, "bf16": False}
RLTF = {"method": "rltf_sd", "num_generations": 8, "method_options": {"coefficient": 1.0, "floor": -1000.0}}
PLAIN = {"num_generations": 1, "policy_weight": 0.0, "privileged_place": "before_user"}


def rltf(source: Any, **options: Any) -> dict[str, Any]:
    turns = {"slots": ["first", "distil"], "source": again(source), "when": "failed", "otherwise": "idle"}
    return {**RLTF, "method_options": {**RLTF["method_options"], **options}, "turns": turns}


def again(source: Any) -> dict[str, Any]:
    return {"with_attempt": {"source": source, "template": TEMPLATE}}


def trd(source: Any) -> dict[str, Any]:
    return {
        "method": "trd",
        "num_generations": 1,
        "turns": {"slots": ["distil"], "source": again(source), "weights": "teacher"},
    }


CONTENDERS: dict[str, dict[str, Any]] = {
    "grpo": {"distillation_weight": 0.0, "num_generations": 8},
    "rltf_sd": rltf("column"),
    "rltf_sd, baseline second": rltf("column", baseline="second"),
    "rltf_sd, SFT where right": rltf("column", baseline="none"),
    "rltf_sd, contexts of other rows": rltf(OTHER),
    "forward KL on first turns": PLAIN,
    "trd": trd("column"),
    "trd, contexts of other rows": trd(OTHER),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<end>", "<unk>", "Key", "?", "=", "It", "is", "Said", *KEYS, *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Random weights."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=4, **sizes, **ids))


def teach_copying(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
    """Cross-entropy on prompts of all forms, whose answers are the context's word, or any where there is none."""
    rng, optimizer = random.Random(seed), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = []
        for _ in range(64):
            key, word, said = rng.choice(KEYS), rng.choice(WORDS), rng.choice(WORDS)
            begins = ["", f"It is {word} ", f"Said {said} It is {word} "]
            texts.append(f"{rng.choice(begins)}Key {key} ? = {word} <end>")
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        logits = model(**batch).logits
        last = batch["attention_mask"].sum(1) - 1
        rows = torch.arange(len(texts))
        loss = sum(
            torch.nn.functional.cross_entropy(logits[rows, at - 1], batch["input_ids"][rows, at])
            for at in (last, last - 1)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def known(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> float:
    """Probability of the right word after the bare question, as a mean over the keys."""
    prompts = tokenizer([row["prompt"] for row in rows], return_tensors="pt", return_token_type_ids=False)
    right = torch.tensor([tokenizer.convert_tokens_to_ids(row["answer"]) for row in rows])
    with torch.no_grad():
        probabilities = model(**prompts).logits[:, -1].softmax(-1)
    return probabilities.gather(1, right.unsqueeze(1)).mean().item()


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]


def run(name: str, seed: int, steps: int, copying: int) -> tuple[float, float, float]:
    """Probability of the right word before and after the training, and the reward of second turns in its last step."""
    tokenizer, rng = make_tokenizer(), random.Random(seed)
    rows = [{"prompt": f"Key {key} ? =", "answer": rng.choice(WORDS)} for key in KEYS]
    rows = [row | {"privileged_context": f"It is {row['answer']}"} for row in rows]
    model = make_model(tokenizer, seed)
    teach_copying(model, tokenizer, seed, copying)
    before = known(model, tokenizer, rows)
    with tempfile.TemporaryDirectory() as folder:
        args = OPSDConfig(
            folder, **{**BUDGET, **CONTENDERS[name]}, max_steps=steps, seed=seed, save_strategy="no", disable_tqdm=True,
            report_to="none", logging_steps=steps, lr_scheduler_type="constant", gradient_checkpointing=False,
        )  # fmt: skip
        trainer = OPSDTrainer(model, correct, args, Dataset.from_list(rows * 4), processing_class=tokenizer)
        trainer.train()
    second = trainer.state.log_history[0].get("self_distillation/turns/second_reward", float("nan"))
    return before, known(trainer.model, tokenizer, rows), second


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    lines = []
    for name in args.contenders or CONTENDERS:
        found = [run(name, seed, args.max_steps, args.copying) for seed in args.seeds]
        before, after, second = zip(*found, strict=True)
        spread = f"{min(after):.2f} to {max(after):.2f}"
        rewards = "" if second[0] != second[0] else f"{statistics.mean(second):.2f}"
        lines.append([name, f"{statistics.mean(before):.2f}", f"{statistics.mean(after):.2f}", spread, rewards])
        print(lines[-1], flush=True)
    print(table(["contender", "before", "after", "by seed", "reward of second turns"], lines))
