# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
SD-Zero and its controls on a model of 0.3M weights that half knows how to add, in minutes on a CPU:

python -m benchmarks revision --seeds 1 2 3

The model is trained from nothing on sums, a third of which show an attempt with a verdict before the answer, until it
is right in 30 % of unseen sums. Digits are written last first. Then each seed samples, fine-tunes and distils.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from benchmarks.report import table
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.monitoring.json_lines import read, write
from trl_opsd.phases.collect import Collection, collect


RIGHT, WRONG, BLANK = "y", "n", "\n\n"
ATTEMPT, REVISED = 6, 24  # most tokens of an attempt, and of an answer that revises itself
COMMON: dict[str, Any] = {
    "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False, "save_strategy": "no",
    "use_cpu": True, "dataloader_pin_memory": False, "lr_scheduler_type": "constant", "logging_steps": 1000,
    "per_device_train_batch_size": 64, "learning_rate": 5e-4,
}  # fmt: skip
HELD_OUT = 500


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    tokens = ["<pad>", "<end>", *f"0123456789+=\n{RIGHT}{WRONG}"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")


def new_model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer()), hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def pairs(seed: int = 0) -> tuple[list, list, list]:
    """Held-out pairs of numbers, those to sample on, and those of the first training."""
    found = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(found)
    return found[:HELD_OUT], found[HELD_OUT:2500], found[2500:]


def question(a: int, b: int) -> str:
    return f"{a:02d}+{b:02d}="


def answer(a: int, b: int) -> str:
    """Three digits, the last one first."""
    return f"{a + b:03d}"[::-1]


def is_right(completions: Iterable[str], answer: Iterable[str], **kwargs: Any) -> list[float]:
    """Whether the last part of a text is the answer."""
    return [float(text.split(BLANK)[-1] == wanted) for text, wanted in zip(completions, answer, strict=True)]


def evaluated(model: Qwen2ForCausalLM, found: list) -> dict[str, float]:
    """Share of right greedy answers, the share whose first attempt is right, and their mean length."""
    words, model = tokenizer(), model.eval()
    ids = torch.tensor([words(question(*pair))["input_ids"] for pair in found])
    output = model.generate(ids, max_new_tokens=REVISED, do_sample=False)[:, ids.shape[1] :].tolist()
    texts = [words.decode(row).split("<end>")[0] for row in output]
    wanted = [answer(*pair) for pair in found]
    first = [float(text.split(BLANK)[0] == one) for text, one in zip(texts, wanted, strict=True)]
    right = is_right(texts, wanted)
    return {
        name: statistics.mean(one) for name, one in (("right", right), ("first", first), ("length", map(len, texts)))
    }


def half_trained(least: float) -> Qwen2ForCausalLM:
    """A model of random weights, trained until it is right in that share of held-out sums."""
    held_out, _, seen = pairs()
    words, model, rng = tokenizer(), new_model(0), random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(1, 4000):
        rows = [words(_shown(*rng.choice(seen), rng))["input_ids"] for _ in range(64)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        labels = ids.masked_fill(ids == 0, -100)
        labels[:, : len(question(0, 0))] = -100
        model.train()
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 600 and step % 20 == 0 and evaluated(model, held_out)["right"] >= least:
            break
    return model


def _shown(a: int, b: int, rng: random.Random) -> str:
    text, right = question(a, b), answer(a, b)
    if rng.random() < 1 / 3:
        attempt = answer(rng.randrange(100), rng.randrange(100)) if rng.random() < 0.7 else right
        text += f"{attempt}{BLANK}{RIGHT if attempt == right else WRONG}{BLANK}"
    return f"{text}{right}<end>"


class Study:
    """
    One seed: samples, fine-tunings and distillations from the same start.

    Args:
        start (`Qwen2ForCausalLM`): The half-trained model.
        seed (`int`): Of everything after it.
        folder (`Path`): For what trainers write.
        steps (`int`): Optimizer steps of each training, of 64 rows.
        rate (`float`): Learning rate of the distillations.
    """

    def __init__(self, start: Qwen2ForCausalLM, seed: int, folder: Path, steps: int, rate: float):
        self.weights, self.seed, self.folder = start.state_dict(), seed, folder
        self.steps, self.rate = steps, rate
        self.held_out, own, _ = pairs()
        self.rows = Dataset.from_list([{"prompt": question(*pair), "answer": answer(*pair)} for pair in own])

    def model(self, weights: dict[str, torch.Tensor] | None = None) -> Qwen2ForCausalLM:
        model = new_model(0)
        model.load_state_dict(self.weights if weights is None else weights)
        return model

    def trainer(self, model: Qwen2ForCausalLM, most: int, swapped: bool = False, **options: Any) -> OPSDTrainer:
        phrases = (WRONG, RIGHT) if swapped else (RIGHT, WRONG)
        source = {"self_revision": dict(zip(("right", "wrong"), phrases, strict=True))}
        given = {"method": "sd_zero", "num_generations": 4, "privileged_source": source} | options
        given |= {"max_completion_length": most, "max_steps": self.steps, "seed": self.seed, "learning_rate": self.rate}
        args = OPSDConfig(str(self.folder / "opsd"), **{**COMMON, **given})
        return OPSDTrainer(model, is_right, args, self.rows, processing_class=tokenizer())

    def sampled(self, keep: list[str], layouts: list[str], rows: int) -> Collection:
        return collect(self.trainer(self.model(), ATTEMPT), rows, layouts=layouts, keep=keep)

    def tuned(self, found: Collection, layouts: list[str]) -> dict[str, torch.Tensor]:
        """Weights after a fine-tuning of the start."""
        rows = Dataset.from_list([row for layout in layouts for row in found.rows[layout]])
        args = SFTConfig(str(self.folder / "sft"), max_steps=self.steps, seed=self.seed, **COMMON)
        trainer = SFTTrainer(self.model(), args, train_dataset=rows, processing_class=tokenizer())
        trainer.train()
        return trainer.model.state_dict()

    def distilled(self, weights: dict[str, torch.Tensor] | None, most: int, **options: Any) -> dict[str, torch.Tensor]:
        """Weights after the second phase."""
        trainer = self.trainer(self.model(weights), most, **options)
        trainer.train()
        return trainer.model.state_dict()

    def run(self, rows: int, note: Callable[[str, dict[str, Any]], None]) -> None:
        """Run everything, and note each result."""
        both, right = ["generation", "revision"], ["succeeded", "not_truncated", "unique"]
        found = self.sampled(right, ["answer", *both], rows)
        counts = {layout: len(one) for layout, one in found.rows.items()}
        note("start", counts | evaluated(self.model(), self.held_out))
        srt, alone = self.tuned(found, both), self.tuned(found, ["revision"])
        unfiltered = self.sampled(right[1:], both, rows)
        grpo = {"method": None, "privileged_source": None, "distillation_weight": 0.0}
        made = {
            "RFT": self.tuned(found, ["answer"]),
            "SRT": srt,
            "SRT, unfiltered": self.tuned(unfiltered, both),
            "SRT on revisions alone": alone,
            "GRPO": self.distilled(None, ATTEMPT, **grpo),
            "phase 2 without SRT": self.distilled(None, ATTEMPT),
            "SRT, then phase 2": self.distilled(srt, REVISED),
            "SRT on revisions alone, then phase 2": self.distilled(alone, ATTEMPT),
            "the same with swapped verdicts": self.distilled(alone, ATTEMPT, swapped=True),
        }
        for name, weights in made.items():
            note(name, evaluated(self.model(weights), self.held_out))


def results_table(lines: list[dict[str, Any]]) -> str:
    """Mean and range over the seeds of each contender."""
    names = list(dict.fromkeys(line["name"] for line in lines))
    rows = []
    for name in names:
        own = [line for line in lines if line["name"] == name]
        right = [line["right"] for line in own]
        spread = f"{statistics.mean(right):.1%} ({min(right):.1%} to {max(right):.1%})"
        others = [statistics.mean(line[key] for line in own) for key in ("first", "length")]
        rows.append([name, spread, f"{others[0]:.1%}", f"{others[1]:.1f}"])
    return table(["contender", "right", "first attempt right", "characters"], rows)


def main(args: argparse.Namespace) -> None:
    folder = args.output
    folder.mkdir(parents=True, exist_ok=True)
    start = new_model(0)
    if (folder / "start.pt").is_file():
        start.load_state_dict(torch.load(folder / "start.pt"))
    else:
        start = half_trained(args.start)
        torch.save(start.state_dict(), folder / "start.pt")
    for seed in args.seeds:
        begun, lines = time.time(), []

        def note(name: str, result: dict[str, Any]) -> None:
            lines.append({"seed": seed, "name": name, **result, "seconds": round(time.time() - begun)})  # noqa: B023
            print(json.dumps(lines[-1]), flush=True)  # noqa: B023

        Study(start, seed, folder, args.steps, args.rate).run(args.rows, note)
        write(folder / f"seed-{seed}.jsonl", lines)
    print(results_table([line for path in sorted(folder.glob("seed-*.jsonl")) for line in read(path)]))
