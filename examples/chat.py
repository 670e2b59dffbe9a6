# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Talk to a model, one question or a conversation:

python examples/chat.py --model demo/output/smollm2-json "What is a volcano?"
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", help="without one, a conversation starts; an empty line ends it")
    parser.add_argument("--model", default="demo/output/smollm2-json", help="a folder or a Hub id")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    args = parser.parse_args()
    if args.model.count("/") > 1 and not Path(args.model).is_dir():
        sys.exit(f"error: there is no model in {args.model}: `make demo` trains one, or name another with --model.")

    from transformers import GenerationConfig, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chat = pipeline("text-generation", model=args.model)
    tokens = chat.tokenizer
    settings = GenerationConfig(
        max_new_tokens=args.max_new_tokens, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id
    )

    messages: list[dict[str, str]] = []
    while question := args.question or input("you: ").strip():
        messages.append({"role": "user", "content": question})
        messages = chat(messages, generation_config=settings)[0]["generated_text"]
        print(messages[-1]["content"])
        if args.question:
            return


if __name__ == "__main__":
    try:
        main()
    except (EOFError, KeyboardInterrupt):
        print()
