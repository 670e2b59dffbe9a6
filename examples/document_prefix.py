# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A document of 40 facts in 64 virtual tokens: trains prefixes by the recipe `smollm2_document_prefix`, and asks them, the
model without a prefix and the model that reads the whole document about each fact:

python examples/document_prefix.py --seeds 1 2 3 --max_steps 40

Each line of demo/output/document-prefix/results.jsonl is one model. A model that is there is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trl_opsd.examples.tasks import Messages

MODEL, DATA = "demo/models/smollm2-135m", Path("demo/data/document")
OUTPUT = Path("demo/output/document-prefix")
RESULTS = OUTPUT / "results.jsonl"
MAX_NEW_TOKENS = 16
RECIPE = ROOT / "recipes" / "smollm2_document_prefix.yaml"
# Options that a training has in place of the recipe's
ARMS = {
    "trained": {},
    "own rollouts": {"turns": None, "max_completion_length": 12},
    "other text": {"dataset_name": f"{DATA}_other", "prefix_text": f"{DATA}_other/text/document.txt"},
    "random start": {"prefix_text": None},
}
UNTRAINED = ("no prefix", "untrained", "whole document")


def train(arm: str, seed: int, max_steps: int) -> Path:
    """Folder of a trained prefix."""
    folder = OUTPUT / f"{arm.replace(' ', '-')}-{seed}"
    if not (folder / "adapter_config.json").is_file():
        options = yaml.safe_load(RECIPE.read_text(encoding="utf-8")) | ARMS[arm]
        options |= {"max_steps": max_steps, "seed": seed, "output_dir": str(folder)}
        path = OUTPUT / f"{folder.name}.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in options.items() if value is not None}))
        command = [sys.executable, "-m", "trl_opsd.cli.main", "train", "--config", str(path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return folder


def load(name: str, folder: Path | None) -> "PreTrainedModel":
    """The model without a prefix, with that of the untrained start, or with one from a folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trl_opsd.cli.prefix import model_with_prefix
    from trl_opsd.model.virtual_tokens import mend_generation

    if name == "untrained":
        start = Namespace(prefix_tokens=64, prefix_frozen=1, prefix_text=DATA / "text" / "document.txt")
        source = Namespace(model_name_or_path=MODEL, model_revision="main")
        model = model_with_prefix(start, Namespace(seed=0, model_init_kwargs={}), source)
    else:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder)
    mend_generation(model)
    return model.eval()


def answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: "list[Messages]", batch: int = 10
) -> list[str]:
    """Greedy answers."""
    import torch

    texts = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer.apply_chat_template(
            prompts[start : start + batch], add_generation_prompt=True, padding=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        with torch.no_grad():
            ids = model.generate(
                **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        texts += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def log_probability(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: "list[Messages]", sentences: list[str]
) -> float:
    """Mean log-probability of a token of the right sentences as answers, row by row."""
    import torch

    values = []
    for prompt, sentence in zip(prompts, sentences, strict=True):
        read = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        inputs = torch.tensor([read + ids])
        with torch.no_grad():
            logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, len(read) - 1 : -1]
        values += logits.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1).tolist()
    return sum(values) / len(values)


def ask(name: str, folder: Path | None = None) -> dict[str, object]:
    """Answers of a model to the questions about the document, its right ones and its log-probability."""
    from transformers import AutoTokenizer

    from trl_opsd.examples.document import document, names_answer, questions

    model, tokenizer = load(name, folder), AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    rows = questions()
    system = [{"role": "system", "content": document()}] if name == "whole document" else []
    prompts = [system + row["prompt"] for row in rows]
    texts = answers(model, tokenizer, prompts)
    scores = names_answer(texts, [row["answer"] for row in rows])
    sentences = [row["privileged_context"] for row in rows]
    known = log_probability(model, tokenizer, prompts, sentences)
    return {"right": sum(scores), "of": len(rows), "log_probability": known, "scores": scores, "answers": texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--max_steps", type=int, default=40)
    parser.add_argument("--arms", nargs="+", choices=[*UNTRAINED, *ARMS], default=["no prefix", "untrained", *ARMS])
    args = parser.parse_args()
    os.chdir(ROOT)  # the recipe's paths start at the repository's root
    from transformers.utils import logging

    logging.disable_progress_bar()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    done = {(line["arm"], line["seed"]) for line in map(json.loads, lines)}
    for seed in args.seeds:
        for arm in args.arms:
            key = (arm, seed if arm in ARMS else None)
            if key in done:
                continue
            done.add(key)
            result = ask(arm, train(arm, seed, args.max_steps) if arm in ARMS else None)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"arm": arm, "seed": key[1], **result}) + "\n")
            print(f"{arm}, seed {key[1]}: {result['right']:g} of {result['of']} right, log-probability of a token "
                  f"{result['log_probability']:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
