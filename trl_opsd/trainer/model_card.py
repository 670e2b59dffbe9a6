# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Model card: TRL's, with the method's paper and the settings of the distillation."""

import textwrap
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard
from trl import GRPOConfig

from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.methods.registry import method_of
from trl_opsd.teacher import TEACHER_KINDS


PAPER = {
    "title": "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    "id": "2601.18734",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @article{zhao2026selfdistilled,
            title        = {{Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models}},
            author       = {Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and Aditya Grover},
            year         = 2026,
            eprint       = {arXiv:2601.18734},
        }"""),  # noqa: E501
}

_HEADING = "### Framework versions"


def paper_of(args: OPSDConfig) -> dict[str, str | None]:
    """The paper that a model's card cites: that of its method, none for a method of the user's own."""
    if args.method is None:
        return PAPER
    method = method_of(args.method)
    if not method.paper:
        return {}
    return {"title": method.title, "id": method.paper if method.on_arxiv else None, "citation": method.bibtex}


def settings_section(args: OPSDConfig, policy_weight: float) -> str:
    """Markdown section with every option of the method that `GRPOConfig` lacks. Sources stand there by name alone."""
    inherited = {item.name for item in fields(GRPOConfig)}
    public = args.public()
    settings = {item.name: getattr(public, item.name) for item in fields(args) if item.name not in inherited}
    settings["policy_weight"] = policy_weight
    lines = [f"| `{name}` | `{value!r}` |" for name, value in sorted(settings.items())]
    teacher = TEACHER_KINDS[args.teacher_model_kind].description
    mixed = "mixed with a GRPO loss on rewards" if policy_weight else "without a reward"
    method = "" if args.method is None else f" The method is {method_of(args.method).title}."
    return "\n".join(
        [
            "### Self-distillation",
            "",
            "The model sampled its own answers to bare prompts; a teacher that read the same prompts with privileged "
            f"context, {teacher}, scored every token of them ({mixed}).{method} The privileged "
            "context is not needed to use the model.",
            "",
            "| Option | Value |",
            "| --- | --- |",
            *lines,
            "",
        ]
    )


def add_settings(path: Path, args: OPSDConfig, policy_weight: float) -> None:
    """
    Add the section of [`settings_section`] and this package's version to the card that TRL wrote at `path`.

    Args:
        path (`Path`): The card.
        args ([`OPSDConfig`]): Options of the run.
        policy_weight (`float`): Resolved weight of the policy term.
    """
    card = ModelCard.load(path)
    versions = f"{_HEADING}\n\n- trl_opsd: {version('trl-opsd')}"
    card.text = card.text.replace(f"{_HEADING}\n", f"{settings_section(args, policy_weight)}\n{versions}", 1)
    # TRL writes "None" for a base model that is a local folder and for a model that has no Hub id
    card.text = card.text.replace("[None](https://huggingface.co/None)", "a local model")
    card.text = card.text.replace('model="None"', f'model="{path.parent}"')
    card.save(path)
