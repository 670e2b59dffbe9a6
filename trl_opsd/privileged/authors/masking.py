# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Masking of an API key in what servers say."""

import html
import re


LEAST_SECRET = 8  # characters; a shorter key is no secret, as the "EMPTY" of a local server


def masked(text: str, key: str | None) -> str:
    """Text with `***` for the key, also where JSON, HTML or an address has escaped its characters."""
    return text if key is None else re.sub("".join(map(_spellings, key)), "***", text)


def _spellings(character: str) -> str:
    """Pattern of a character of a key as servers write it: `/`, `\\/`, `\\u002f`, `&#47;`, `&#x2f;`, `%2f`, `&amp;`."""
    code = ord(character)
    forms = [rf"\\?{re.escape(character)}", rf"(?i:\\u{code:04x}|%{code:02x}|&#x0*{code:x};)", f"&#0*{code};"]
    return f"(?:{'|'.join([*forms, re.escape(html.escape(character))])})"
