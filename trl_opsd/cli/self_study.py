# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Training data for a prefix that is to hold a document: `trl-opsd self_study`.

A model is shown random parts of the document and asks about them, in five kinds of questions. Each question is a row's
prompt, and the part that it was asked about what the teacher reads (Cartridges,
[2506.06266](https://huggingface.co/papers/2506.06266)).
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trl_opsd.cli.errors import UserError


if TYPE_CHECKING:
    from trl_opsd.rollouts.rollout import Messages

KINDS = {
    "structure": "Write one question about how this text is built: which facts it names, and in what order.",
    "summary": "Write one request to sum up a part of this text, and name the part.",
    "question": "Write one short question that a sentence of this text answers. Name the thing that you ask about.",
    "use": "Write one question of somebody who needs a fact of this text to do something.",
    "creative": "Write one request for a short story or rhyme that uses facts of this text.",
}
ASK = "Here is a part of a text.\n\n{chunk}\n\n{kind} Write nothing else."
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("document", type=Path, help="a text file")
    parser.add_argument("--model", required=True, help="model that asks: a folder or Hub id")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the data, for `dataset_name`")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--chunk_words", type=int, default=64, help="words of a part, in whole sentences")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of questions")
    parser.add_argument("--suffix", default="", help="text after each question, such as a wish for short answers")
    parser.add_argument("--max_new_tokens", type=int, default=48, help="of a question")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)


def random_chunk(sentences: list[str], words: int, rng: random.Random) -> str:
    """Whole sentences in a row, from a random one on, of so many words or more; the last ones may be fewer."""
    first = rng.randrange(len(sentences))
    chunk: list[str] = []
    for sentence in sentences[first:]:
        chunk.append(sentence)
        if sum(len(one.split()) for one in chunk) >= words:
            break
    return " ".join(chunk)


def study(
    text: str, rows: int, words: int, kinds: list[str], seed: int, write: "Callable[[list[Messages]], list[str]]"
) -> list[dict[str, str]]:
    """
    Rows of the data: questions without repetition, each with its part of the text and its kind.

    Args:
        text (`str`): The document.
        rows (`int`): Questions to ask for; those that repeat another one, or say nothing, are asked for again once.
        words (`int`): Words of a part.
        kinds (`list[str]`): Kinds of questions, in turn.
        seed (`int`): Of the choice of parts.
        write (`Callable`): From prompts to the model's texts.
    """
    sentences = [one.strip() for one in SENTENCE_END.split(text) if one.strip()]
    rng, found = random.Random(seed), {}
    for _ in range(2):
        asked = [(kinds[i % len(kinds)], random_chunk(sentences, words, rng)) for i in range(rows - len(found))]
        prompts = [[{"role": "user", "content": ASK.format(chunk=part, kind=KINDS[kind])}] for kind, part in asked]
        for (kind, part), written in zip(asked, write(prompts) if prompts else [], strict=True):
            question = next(iter(written.strip().splitlines()), "").strip().strip('"*').strip()
            if question and question not in found:
                found[question] = {"question": question, "privileged_context": part, "kind": kind}
    return list(found.values())


def writer(model: str, max_new_tokens: int, temperature: float, seed: int) -> "Callable[[list[Messages]], list[str]]":
    """Function that lets a model on disk, in the cache or on the Hub answer prompts in batches."""
    import torch
    from transformers import AutoTokenizer, set_seed

    from trl_opsd.cli.chat import load

    reader, _ = load(model)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    set_seed(seed)

    def write(prompts: "list[Messages]") -> list[str]:
        texts = []
        for start in range(0, len(prompts), 16):
            inputs = tokenizer.apply_chat_template(
                prompts[start : start + 16], add_generation_prompt=True, padding=True, return_tensors="pt",
                return_dict=True,
            ).to(reader.device)  # fmt: skip
            with torch.no_grad():
                ids = reader.generate(
                    **inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
                )
            texts += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    return write


def check(args: argparse.Namespace) -> str:
    """Text of the document, if document and options can be used."""
    from trl_opsd.cli.hub_check import check_model

    for name in ("rows", "chunk_words", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise UserError(f"`--{name}` must be at least 1, got {getattr(args, name)}.")
    if args.temperature < 0:
        raise UserError(f"`--temperature` must not be negative, got {args.temperature}.")
    try:
        text = args.document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the document {args.document} can't be read: {error}") from error
    if not text.strip():
        raise UserError(f"the document {args.document} is empty: give a file with text.")
    check_model("--model", args.model)
    return text


def run(args: argparse.Namespace) -> None:
    """Write the data."""
    text = check(args)
    from transformers.utils import logging

    from trl_opsd.cli.quiet import keep_quiet

    keep_quiet()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    write = writer(args.model, args.max_new_tokens, args.temperature, args.seed)
    rows = study(text, args.rows, args.chunk_words, args.kinds, args.seed, write)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with open(args.output_dir / "train.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            prompt = [{"role": "user", "content": row.pop("question") + args.suffix}]
            file.write(json.dumps({"prompt": prompt, **row}) + "\n")
    print(f"{len(rows)} questions are in {args.output_dir}, of {args.rows} that were asked for; the others repeat one.")
