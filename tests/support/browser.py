# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Headless Chromium of the system, driven by Playwright, which brings none of its own here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


CHROMIUM = Path("/usr/bin/chromium")


@dataclass
class Seen:
    """Everything that a page asked for and said."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser; skips the tests where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install '.[dev]'")
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM}: apt-get install -y chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def watch(page: Any) -> Seen:
    """Record what a page asks for and says from now on."""
    seen = Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("dialog", lambda dialog: seen.messages.append(f"dialog: {dialog.message}"))
    return seen
