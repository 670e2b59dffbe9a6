# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Noise of other packages that the command keeps from the terminal. A script of one's own decides that for itself."""

import os
import sys
import warnings

import datasets
import huggingface_hub.utils
import torch
from transformers.utils import logging


# Names of transformers' that TRL and PEFT still use
OLD_NAMES = (
    "`(is_gradient_checkpointing|gradient_checkpointing_(enable|disable))` is deprecated",
    "`past_key_values` is deprecated",
)


def keep_quiet() -> None:
    """Silence what a user can do nothing about, and progress bars where nobody watches them."""
    for name in OLD_NAMES:
        warnings.filterwarnings("ignore", message=name, category=FutureWarning)
    if not torch.accelerator.is_available():  # else DeepSpeed looks for a device, and prints that there is none
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
        logging.disable_progress_bar()
