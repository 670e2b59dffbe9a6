# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Page of a token report: one HTML file that needs nothing else and asks for nothing."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trl_opsd.token_report.load import Group, RunLog
from trl_opsd.token_report.page_data import embedded, page_data


HERE = Path(__file__).parent
TEMPLATE = "page.html.j2"
ASSETS = HERE / "page"
STYLES = ("page.css", "tokens.css")
SCRIPTS = ("base.js", "charts.js", "overview.js", "colours.js", "panel.js", "rollouts.js", "controls.js")


def build_page(groups: Sequence[Group], log: RunLog, context: bool = True) -> str:
    """
    The page as text.

    Args:
        groups (`list[Group]`): Rollouts, one group a step or a checkpoint.
        log ([`RunLog`]): Numbers and settings of the run.
        context (`bool`): Whether teachers' prompts and contexts go into the page.
    """
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    style = _joined(STYLES)
    script = "(() => {\n'use strict';\n" + _joined(SCRIPTS) + "})();\n"
    return environment.get_template(TEMPLATE).render(
        run=log.name,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(embedded(page_data(groups, log, context))),
    )


def _joined(names: Sequence[str]) -> str:
    return "".join((ASSETS / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    """Hash by which the page's content security policy knows an element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
