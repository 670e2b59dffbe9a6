# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A conversation with a model, beside another one or beside itself with a context: `trl-opsd chat`.

With `--beside` or `--context` each question is answered by all of them; the conversation goes on with the model's own
answers. The teacher of an adapter with virtual tokens, such as a trained prefix, is the model without them.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.hub_check import beside, check_model


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = list[dict[str, str]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, such as the `output_dir` of a run, or a Hub id")
    parser.add_argument("question", nargs="?", help="without one a conversation starts, which an empty line ends")
    parser.add_argument("--beside", metavar="MODEL", help="another model, such as the one before training")
    parser.add_argument("--context", metavar="TEXT", help="also answer as the teacher, which reads this")
    parser.add_argument("--template", metavar="TEXT", default="{privileged_context}", help="as `privileged_template`")
    parser.add_argument("--place", choices=("system", "before_user", "after_user"), default="after_user",
                        help="as `privileged_place`")  # fmt: skip
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, answers greedily")


class Speaker:
    """
    One voice of the conversation.

    Args:
        name (`str`): Printed before its answers where there are several voices.
        folder (`str`): Folder or Hub id of its model, or of an adapter.
        args (`argparse.Namespace`): Length and temperature of its answers.
        view ([`View`], *optional*): What it reads beside the conversation.
    """

    def __init__(self, name: str, folder: str, args: argparse.Namespace, view: Any = None) -> None:
        self.name, self.view = name, view
        self.model, self.tokenizer = load(folder)
        sampling = {"do_sample": args.temperature > 0} | ({"temperature": args.temperature} if args.temperature else {})
        self.sampling = {"max_new_tokens": args.max_new_tokens, **sampling}

    def answer(self, messages: Messages) -> str:
        """Answer to the last message."""
        from trl_opsd.prompts.teacher_prompt import whole_prompt

        read = messages if self.view is None else whole_prompt(self.view, messages)
        inputs = self.tokenizer.apply_chat_template(
            read, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        with self._as_teacher() if self.view is not None else nullcontext():
            ids = self.model.generate(**inputs, **self.sampling, pad_token_id=self.tokenizer.pad_token_id)
        return self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def _as_teacher(self) -> AbstractContextManager[None]:
        """The weights of the `base` teacher where the adapter is virtual tokens; else those that were trained."""
        from trl_opsd.model.virtual_tokens import prompt_learning_config

        return self.model.disable_adapter() if prompt_learning_config(self.model) else nullcontext()


def load(folder: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model and tokenizer; an adapter comes with the model below it."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_opsd.model.virtual_tokens import mend_generation

    kind = AutoPeftModelForCausalLM if (Path(folder) / "adapter_config.json").is_file() else AutoModelForCausalLM
    try:
        model = kind.from_pretrained(folder, device_map="auto").eval()
        mend_generation(model)
        return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no model {folder}: {str(error).splitlines()[0]}") from error


def run(args: argparse.Namespace) -> None:
    """Answer one question, or hold a conversation."""
    for option, name in (("model", args.model), ("--beside", args.beside)):
        if name and name.count("/") > 1 and not Path(name).is_dir():
            raise UserError(f"`{option}` is {name}, and there is no such folder{beside(name)}.")
        if name:
            check_model(option, name)
    from transformers.utils import logging

    from trl_opsd.cli.quiet import keep_quiet
    from trl_opsd.rollouts import View

    keep_quiet()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    speakers = [Speaker("student", args.model, args)]
    if args.context is not None:
        view = View(args.context, place=args.place, template=args.template)
        speakers.append(Speaker("teacher", args.model, args, view))
    if args.beside is not None:
        speakers.append(Speaker(args.beside, args.beside, args))
    messages: Messages = []
    while question := args.question or input("you: ").strip():
        messages.append({"role": "user", "content": question})
        answers = [speaker.answer(messages) for speaker in speakers]
        for speaker, text in zip(speakers, answers, strict=True):
            print(text if len(speakers) == 1 else f"{speaker.name}: {text}")
        messages.append({"role": "assistant", "content": answers[0]})
        if args.question:
            return
