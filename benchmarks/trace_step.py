# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Trace of one training step through the package's files.

The second `training_step` of a tiny model on 4 rows is traced with `sys.setprofile`: pure distillation over the full
vocabulary from a `base` teacher, from sampling to the gradient. A move is a call of a function of the package whose
file is not that of the call before; moves with returns are the changes of the innermost package file on the stack, at
calls and at returns. Libraries between two files of the package do not count.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM

import trl_opsd
from trl_opsd import OPSDConfig, OPSDTrainer


PACKAGE = Path(trl_opsd.__file__).parent
ROWS, TRACED = 4, 2
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


class Trace:
    """Calls of the package's functions, and moves between its files, while it is active."""

    def __init__(self) -> None:
        self.stack: list[str] = []  # files of the package's frames, the innermost last
        self.calls: list[str] = []  # files of the functions called
        self.stays: list[str] = []  # the innermost file at each call and return

    def __enter__(self) -> "Trace":
        sys.setprofile(self.see)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event not in ("call", "return") or not path.is_relative_to(PACKAGE):
            return
        if event == "call":
            self.calls.append(str(path.relative_to(PACKAGE)))
            self.stack.append(self.calls[-1])
        else:
            self.stack.pop()
        self.stays += self.stack[-1:]

    @staticmethod
    def moves(files: list[str]) -> Counter[tuple[str, str]]:
        """Changes from a file to the next, by pair in either direction."""
        return Counter(tuple(sorted(pair)) for pair in pairwise(files) if pair[0] != pair[1])


def trainer(folder: str) -> OPSDTrainer:
    """A trainer of a tiny model with random weights, on rows with a privileged context each."""
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefg"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE
    )
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": f"a b {word}"}], "privileged_context": f"c {word}"} for word in "abcd"
    ]
    return OPSDTrainer(
        model=Qwen2ForCausalLM(config),
        args=OPSDConfig(
            output_dir=folder, per_device_train_batch_size=ROWS, num_generations=1, max_completion_length=8,
            max_steps=TRACED, teacher_model_kind="base", distillation_mode="full_logits", bf16=False, use_cpu=True,
            gradient_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip


def traced_step() -> Trace:
    """Train, and trace the last `training_step`."""
    trace, calls = Trace(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(folder)
        made.remove_callback(PrinterCallback)
        step: Callable = made.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            calls["steps"] += 1
            if calls["steps"] < TRACED:
                return step(*args, **kwargs)
            with trace:
                return step(*args, **kwargs)

        made.training_step = training_step
        made.train()
    return trace


def main(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    trace = traced_step()
    moves, with_returns = (trace.moves(files).total() for files in (trace.calls, trace.stays))
    print(f"{len(set(trace.calls))} files of the package, {moves} moves ({with_returns} with returns), "
          f"{len(trace.calls)} calls. The most frequent moves:")  # fmt: skip
    for (one, other), count in trace.moves(trace.calls).most_common(args.pairs):
        print(f"{count:5d}  {one} ~ {other}")
