# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Recipe in the making: groups of options with the reasons for them, and its text as commented YAML."""

import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass
class Section:
    """Options of a recipe with the reason for them, and lines that are switched off."""

    comment: str
    options: dict[str, Any]
    off: list[str] = field(default_factory=list)


@dataclass
class Recipe:
    """
    Recipe in the making.

    Args:
        sections (`list[Section]`): Its sections in their order.
    """

    sections: list[Section] = field(default_factory=list)

    def add(self, comment: str, *off: str, **options: Any) -> None:
        self.sections.append(Section(comment, options, list(off)))

    @property
    def options(self) -> dict[str, Any]:
        return {name: value for section in self.sections for name, value in section.options.items()}

    def change(self, options: dict[str, Any], comment: str) -> None:
        """Change options where they stand; add the others in a section of their own."""
        for section in self.sections:
            section.options |= {name: value for name, value in options.items() if name in section.options}
        if added := {name: value for name, value in options.items() if name not in self.options}:
            self.add(comment, **added)


def text_of(made: Recipe, head: str, commands: list[str]) -> str:
    """
    Recipe as YAML, with its comments.

    Args:
        made ([`Recipe`]): The recipe.
        head (`str`): Comment at the top.
        commands (`list[str]`): Commands that come next, each whole in a line of its own.
    """
    parts = ["\n".join([commented(head), "#", *(f"# {line}" for command in commands for line in command.split("\n"))])]
    for section in made.sections:
        lines = [commented(section.comment)]
        lines += [yaml_line(name, value) for name, value in section.options.items()]
        lines += [f"# {text}" for text in section.off]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def commented(text: str) -> str:
    """Comment in lines of at most 110 characters."""
    return textwrap.fill(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, lists of plain values in one line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def yaml_line(name: str, value: Any) -> str:
    """Option of a recipe as YAML."""
    flow = isinstance(value, list) and not any(isinstance(one, dict) for one in value)
    if flow:
        return f"{name}: {yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True).strip()}"
    text = yaml.dump({name: value}, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False,
                     width=1000)  # fmt: skip
    return text.rstrip("\n")
