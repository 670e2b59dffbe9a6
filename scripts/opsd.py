# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

# /// script
# dependencies = [
#     "trl-opsd",
# ]
# ///

"""
On-policy self-distillation from a recipe: the same as `trl-opsd train`, as a file for `accelerate launch`.

accelerate launch scripts/opsd.py --config recipes/smollm2_json.yaml
"""

from trl_opsd.cli.arguments import parse
from trl_opsd.cli.train import build_trainer, load_data, load_tokenizer, main, run, save


__all__ = ["build_trainer", "load_data", "load_tokenizer", "main", "parse", "run", "save"]

if __name__ == "__main__":
    run()
