# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Unlearning by SHRED and its controls: SmolLM2 learns twenty made-up facts, and is then made to forget ten of them.

python -m benchmarks unlearning --seeds 1 2 3

Gradient ascent stops where it has forgotten as much as SHRED with its defaults did on the same seed, or at the last
step. Each line of the file is one model: nats for each token of the sentences to forget and to keep, and of a text,
right answers to questions about both halves, right sums, and the nats that five steps of learning bring back.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.environment import ROOT
from benchmarks.report import table
from benchmarks.score import answers, nats, unseen_sums
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.examples import document, smollm2, tasks
from trl_opsd.methods.papers import shred


FACTS, RELEARNING = 20, 5
ARMS: dict[str, dict[str, Any]] = {
    "shred": {},
    "shred, all tokens": {"share": 1.0},
    "shred, other tokens": {},  # as many, at random
    "shred, nucleus": {"nucleus": 0.9},
}
Rows = list[tuple[tasks.Messages, str]]


def facts() -> tuple[Rows, Rows]:
    """Questions with their sentences: those to forget, and those to keep."""
    rows = [(row["prompt"], row["privileged_context"]) for row in document.questions()[:FACTS]]
    return rows[::2], rows[1::2]


def likelihood(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> torch.Tensor:
    """Mean negative log-likelihood of a token of the sentences, with the end of each."""
    prompts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt, _ in rows]
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for _, text in rows]
    longest = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        end = len(prompt) + len(text)
        ids[i, :end], mask[i, :end] = torch.tensor(prompt + text), 1
        labels[i, len(prompt) : end] = torch.tensor(text)
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def descend(
    model: PreTrainedModel, loss: Callable[[], torch.Tensor], steps: int, rate: float, enough: float | None = None
) -> int:
    """
    AdamW steps on a loss; their number.

    Args:
        enough (`float`, *optional*): Value at which it stops before the last step.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        value = loss()
        if enough is not None and value.item() <= enough:
            return step
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return steps


@contextmanager
def tokens_at_random(wanted: bool) -> Iterator[None]:
    """As many tokens of a text as SHRED demotes, chosen by digits of the frozen model's log-probability."""
    lowest = shred.lowest
    if wanted:
        shred.lowest = lambda logps, rows, share: lowest(logps.double().mul(1e3).round().mul(0.6180339887).frac().abs(),
                                                         rows, share)  # fmt: skip
    try:
        yield
    finally:
        shred.lowest = lowest


class Study:
    """
    One seed: a model that has learnt the facts, and what each arm makes of it.

    Args:
        seed (`int`): Of the order of rows.
        args (`argparse.Namespace`): The command line.
    """

    def __init__(self, seed: int, args: argparse.Namespace):
        self.seed, self.args = seed, args
        self.tokenizer = AutoTokenizer.from_pretrained(smollm2.MODEL_DIR, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(smollm2.MODEL_DIR, dtype=torch.float32)
        self.forget, self.keep = facts()
        self.untaught = self.measured("before the facts")
        torch.manual_seed(seed)
        self.learn(self.model, self.forget + self.keep, args.learning_steps)
        self.taught = {name: value.clone() for name, value in self.model.state_dict().items()}

    def nats(self, rows: Rows) -> torch.Tensor:
        return likelihood(self.model, self.tokenizer, rows)

    def learn(self, model: PreTrainedModel, rows: Rows, steps: int) -> None:
        descend(model, partial(self.nats, rows), steps, rate=2e-5)

    def right(self, rows: list[document.Row]) -> float:
        model, most = self.model.eval(), 24
        written = answers(model, self.tokenizer, [row["prompt"][0]["content"] for row in rows], most)
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
        return sum(document.names_answer(texts, [row["answer"] for row in rows])) / len(rows)

    def measured(self, arm: str, **more: Any) -> dict[str, Any]:
        """Of the model as it is; the relearning comes last and changes it."""
        questions, sums = document.questions()[:FACTS], unseen_sums(self.args.problems)
        self.model.eval()
        with torch.no_grad():
            known = {"forget": self.nats(self.forget).item(), "keep": self.nats(self.keep).item()}
        text = (ROOT / "docs" / "privileged.md").read_text(encoding="utf-8")
        written = answers(self.model, self.tokenizer, [question for question, _ in sums], 24)
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
        found = {
            "arm": arm, "seed": self.seed, **known, "right_forget": self.right(questions[::2]),
            "right_keep": self.right(questions[1::2]), "text": nats(self.model, self.tokenizer, text),
            "sums": sum(tasks.correct_sum(texts, [total for _, total in sums])) / len(sums), **more,
        }  # fmt: skip
        if arm not in ("before the facts", "with the facts"):
            self.learn(self.model, self.forget, RELEARNING)
            self.model.eval()
            with torch.no_grad():
                found["relearnt"] = self.nats(self.forget).item()
        return found

    def run(self, arm: str, enough: float | None = None) -> dict[str, Any]:
        """
        Measurements of one arm.

        Args:
            enough (`float`, *optional*): Nats of the sentences to forget at which gradient ascent stops.
        """
        self.model.load_state_dict(self.taught)
        if arm == "with the facts":
            return self.measured(arm)
        if arm == "gradient ascent":
            steps = descend(self.model, lambda: -self.nats(self.forget), self.args.max_steps, self.args.rate, -enough)
            return self.measured(arm, steps=steps)
        options = OPSDConfig(
            str(self.args.output / "trainer"), method="shred", method_options=ARMS[arm], num_generations=1,
            turns={"slots": ["given"], "given": "forget"}, max_steps=self.args.max_steps, seed=self.seed,
            per_device_train_batch_size=len(self.forget), learning_rate=self.args.rate, max_completion_length=32,
            lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False, save_strategy="no",
            dataloader_pin_memory=False, report_to="none", disable_tqdm=True, logging_steps=self.args.max_steps,
        )  # fmt: skip
        rows = Dataset.from_list([{"prompt": prompt, "forget": text} for prompt, text in self.forget])
        trainer = OPSDTrainer(self.model, args=options, train_dataset=rows, processing_class=self.tokenizer)
        with tokens_at_random(arm == "shred, other tokens"):
            trainer.train()
        return self.measured(arm, steps=self.args.max_steps)


def main(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for seed in args.seeds:
        wanted = [arm for arm in ("with the facts", *ARMS, "gradient ascent") if arm in (args.arms or [arm])]
        missing = [arm for arm in wanted if (arm, seed) not in {(one["arm"], one["seed"]) for one in found}]
        if not missing:
            continue
        study = Study(seed, args)
        found.append(study.untaught)
        for arm in missing:
            forgotten = next((one["forget"] for one in found if (one["arm"], one["seed"]) == ("shred", seed)), None)
            if arm == "gradient ascent" and forgotten is None:
                raise SystemExit("error: gradient ascent stops where SHRED did, so it needs the arm `shred`.")
            found.append(study.run(arm, forgotten))
            print(json.dumps(found[-1]), flush=True)
            path.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    columns = ["forget", "keep", "right_forget", "right_keep", "text", "sums", "relearnt", "steps"]
    arms = dict.fromkeys(one["arm"] for one in found)
    lines = [[arm, *(_cell([one[name] for one in found if one["arm"] == arm and name in one]) for name in columns)]
             for arm in arms]  # fmt: skip
    print(table(["model", *columns], lines))


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.2f}"
    return mean if min(values) == max(values) else f"{mean} ({min(values):.2f} to {max(values):.2f})"
