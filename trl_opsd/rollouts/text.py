# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Text equality: the normal form under which two spellings of a text are equal, its words, and the places of one text in
another.

White space, letter case, punctuation of sentences, markup (Markdown, LaTeX, simple HTML) and the composition of Unicode
characters do not count, nor do separators of thousands and zeros at the end of a decimal. What carries meaning does:
operators, brackets, signs, the decimal point. Case does not count in single letters either: an answer `a` is the choice
`A` far more often than x and X are two variables of one problem. [`occurrences`] alone, which reads prose, tells them
apart, as `a` is a word there.
"""

import functools
import itertools
import re
import unicodedata
from collections import deque
from collections.abc import Iterator


def _marks_and_digits() -> tuple[str, dict[int, str]]:
    """Combining marks, and the digits of other scripts with their value."""
    blocks = ((0x300, 0x3100), (0xA000, 0xAC00), (0xFB00, 0xFF00), (0x10000, 0x12000), (0x1D000, 0x1F000))
    characters = [chr(code) for block in blocks for code in range(*block)]
    kinds = [unicodedata.category(character) for character in characters]
    pairs = list(zip(characters, kinds, strict=True))
    digits = {ord(one): str(unicodedata.decimal(one)) for one, kind in pairs if kind == "Nd"}
    return "".join(one for one, kind in pairs if kind[0] == "M"), digits


_MARKS, _DIGITS = _marks_and_digits()
_JOINERS = "\u00ad\u200c\u200d\ufe00-\ufe0f"  # within words, without a meaning for equality
# Scripts that set no spaces between words: Thai and Lao, Burmese, Khmer, kana, Chinese characters
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_RAISED = "\u00b2\u00b3\u00b9\u2070\u2074-\u2079"
_VULGAR = "\u00bc-\u00be\u2150-\u215e"
# Punctuation of sentences, quotation marks, control characters, and marks of mathematics and code in a text
_DROPPED = (
    "\x00-\x20.,:;?!\"'`$\\\\\\-\x7f-\xa1\xab\xad\xb7\xbb\xbf\u055a-\u055f\u0589\u05be\u05c0\u05c3\u060c\u061b\u061f\u06d4"
    "\u0964\u0965\u0e2f\u0e4f\u0e5a\u0e5b\u104a-\u104f\u1361-\u1368\u17d4-\u17da\u2000-\u202f\u2031-\u206f\u3000-\u3003"
    "\u3008-\u3011\u3014-\u301f\u30fb\ufe10-\ufe19\ufe30-\ufe6f\ufeff\uff61-\uff65"
)
_LETTERS = r"[^\W\d_]{2}"
_PART = rf"[^\W_{_UNSPACED}{_RAISED}{_VULGAR}]"
_MARK = f"[{_MARKS}{_JOINERS}]"
_WORD_CHARACTER = re.compile(rf"[^\W{_UNSPACED}]|{_MARK}")
_THOUSANDS = r"(?:[,'_]|\{,\}|\\,)"
_POINTS = r"[1-9]\d{0,2}(?:\.\d{3})+"
# None of them holds white space, so that a text is cut at that first
_PIECE = re.compile(
    "|".join(
        (
            rf"(?!\d){_PART}(?:{_PART}+|{_MARK}+|_+(?={_PART})|_\{{[^\W_]+\}})*",
            rf"[1-9]\d{{0,2}}(?:{_THOUSANDS}\d{{3}})+(?!\d)(?:\.\d+)?",
            r"[1-9]\d?(?:,\d\d)+,\d{3}(?!\d)(?:\.\d+)?",  # in India
            rf"{_POINTS}(?:,\d+|(?<=\.\d{{3}}\.\d{{3}})(?![\d.]))",
            r"\d+(?:\.\d+)*",
            r"(?<![\w.])\.\d+",
            r"\\(?:begin|end)\{\w+\*?\}",
            r"\\[A-Za-z]+|\\\S",
            r"\^(?:\\circ(?![A-Za-z])|\{\\circ\})",
            rf"(?!\W)[{_UNSPACED}]{_MARK}*",
            f"[{_RAISED}]+|[{_VULGAR}]",
            "<=|>=|!=|==|->",
            rf"-(?=\d)|(?<!-)(?:(?<!{_LETTERS})-(?!-)|-(?!-|{_LETTERS}))",  # no hyphen between words
            rf"(?<=[\w)\]])(?<!{_LETTERS})!",  # a factorial
            r"(?<=\w)'+(?=\()",  # a derivative
            rf"[^\w\s{_MARKS}{_JOINERS}{_DROPPED}]{_MARK}*",
        )
    )
)

_TRANSLATED = _DIGITS | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_TRANSLATED |= str.maketrans("\u2212\u2010\u2011\u2012\u2013\u00d7\u00b7\u22c5\u2217\u00f7\u2215\u2044\u2019\u02bc",
                             "-----****///''")  # fmt: skip
_LOWERED = {0x2080 + digit: f"_{digit}" for digit in range(10)} | dict.fromkeys(map(ord, "{}\u00ad\u200c\u200d"))
_LOWERED |= dict.fromkeys(range(0xFE00, 0xFE10))

_BOLD = re.compile(r"(?<![A-Za-z0-9_)*])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?![A-Za-z0-9(*])")
_UNSEEN = re.compile(
    r"</?(?:b|i|em|strong|u|p|br|code|span|div)\s*/?>|&nbsp;"
    rf"|^[ \t]*(?:#{{1,6}}|[-*+\u2022](?=[ \t]+{_LETTERS}))[ \t]+",
    re.MULTILINE | re.IGNORECASE,
)
_SPACED_THOUSANDS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)")

_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
_PLAIN = {
    f"\\{name}"
    for name in (
        "text textbf textit textrm texttt mathrm mathbf mathit mathsf mathtt operatorname boxed fbox mbox emph "
        "underline left right big Big bigl bigr Bigl Bigr bigg Bigg displaystyle textstyle limits quad qquad"
    ).split()
}
_SYMBOLS = {
    "\\times": "*", "\\cdot": "*", "\\div": "/", "\\le": "≤", "\\leq": "≤", "\\ge": "≥", "\\geq": "≥", "\\ne": "≠",
    "\\neq": "≠", "\\pm": "±", "\\infty": "∞", "\\pi": "π", "\\sqrt": "√", "\\to": "→", "\\rightarrow": "→",
    "\\%": "%", "\\#": "#", "\\&": "&", "\\{": "{", "\\}": "}", "<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "->": "→",
}  # fmt: skip
_DEPTH = 30  # of braces within braces: what is deeper has no structure

Token = tuple[str, int]  # a part of the normal form, and the number of the piece of text that it comes from


def normalised(text: str) -> str:
    """
    Normal form of a text: equal for two spellings of one.

    `"So, $x = 1{,}000.50$"` and `"so X=1000.5"` are `"so x = 1000.5"`. Numbers such as 3.5 and 35, 1 2 3 and 123, or -1
    and 1 stay different. A text of which nothing is left, such as `"?!"`, is itself without white space.
    """
    tokens = [token for token, _ in _tokens(_pieces(text))]
    if tokens[:1] == ["+"] and tokens[1:] and tokens[1][0].isdigit():
        tokens = tokens[1:]
    return " ".join(tokens) or unicodedata.normalize("NFC", "".join(text.split()))


def words(text: str) -> list[str]:
    """Words and numbers of a text in their normal form. Where a script sets no spaces, a character is a word; vowel
    signs and other marks belong to theirs."""
    pieces = _pieces(text)
    if "\\" in text:
        return [token for token, _ in _tokens(pieces) if token[0].isalnum()]
    return [token for piece in pieces for token in _leaf(piece) if token[0].isalnum()]


def occurrences(text: str, part: str) -> list[tuple[int, int]]:
    """
    Places of a part in a text, in any spelling: whole words and numbers, a number with its sign. A single letter is
    found in its own case only.

    Args:
        text (`str`): Text to search.
        part (`str`): Part to find, such as an answer.

    Returns:
        `list[tuple[int, int]]`: Characters `[start, end)` of each, in order, without overlap.
    """
    own = _pieces(part)
    wanted = _tokens(own)
    if not wanted:
        return [match.span() for match in re.finditer(re.escape(part.strip()), text)] if part.strip() else []
    matches = list(_PIECE.finditer(_prepared(text)))
    tokens = _tokens([match.group() for match in matches])
    found, free = [], 0
    for first in _places(tokens, wanted):
        if first < free:
            continue
        here = tokens[first : first + len(wanted)]
        pairs = ((matches[at].group(), own[number]) for (_, at), (_, number) in zip(here, wanted, strict=True))
        if any(one != other and len(one) == len(other) == 1 and one.isalpha() for one, other in pairs):
            continue
        if not _stands_alone(text, tokens, first, matches):
            continue
        start = min(matches[at].start() for _, at in here)
        end = max(matches[at].end() for _, at in here)
        while text.count("{", start, end) > text.count("}", start, end) and text[end : end + 1] == "}":
            end += 1
        found.append((start, end))
        free = first + len(wanted)
    return found


def is_word(character: str) -> bool:
    """Whether a character is a part of a word or a number that white space ends."""
    return _WORD_CHARACTER.match(character) is not None


def _places(tokens: list[Token], wanted: list[Token]) -> Iterator[int]:
    """Numbers of the tokens at which others begin, in linear time."""
    text, sought = ("\n" + "".join(f"{token}\n" for token, _ in some) for some in (tokens, wanted))
    begins = itertools.accumulate((len(token) + 1 for token, _ in tokens), initial=0)
    number = {begin: number for number, begin in enumerate(begins)}
    place = text.find(sought)
    while place >= 0:
        yield number[place]
        place = text.find(sought, place + 1)


def _stands_alone(text: str, tokens: list[Token], first: int, matches: list[re.Match[str]]) -> bool:
    """Whether a token that may be a sign is one, and one that may be a number has none before it."""
    token, at = tokens[first]
    if token in "+-":
        return _is_sign(text, matches[at].start())
    if not token[0].isdigit() or not first or tokens[first - 1][0] != "-":
        return True
    return not _is_sign(text, matches[tokens[first - 1][1]].start())


def _is_sign(text: str, at: int) -> bool:
    """Whether a plus or minus is the sign of what follows, and no operator: in `-3` and `is -3`, not in `2-3`."""
    before = text[:at].rstrip()
    if not before or not re.match(r"[\w)\]}]", before[-1]):
        return True
    return len(before) < at and not text[at + 1 : at + 2].isspace()


def _prepared(text: str) -> str:
    """Text of the same length, with one sign for signs of the same meaning, and blanks for markup without any."""
    if not text.isascii():
        text = text.translate(_TRANSLATED)
    text = _UNSEEN.sub(lambda found: " " * len(found.group()), text)
    for _ in range(2 if "*" in text else 0):  # the second time for what stood within another
        text = _BOLD.sub(lambda found: f"{' ' * len(found[1])}{found[2]}{' ' * len(found[1])}", text)
    return _SPACED_THOUSANDS.sub(lambda found: "_".join(found.group().split()), text)


def _pieces(text: str) -> list[str]:
    # Most words come again. What is longer is none
    parts = (_word(part) if len(part) < 50 else _PIECE.findall(part) for part in _prepared(text).split())
    return [piece for part in parts for piece in part]


@functools.lru_cache(maxsize=1 << 15)
def _word(part: str) -> list[str]:
    """Pieces of a short text without white space."""
    return _PIECE.findall(part)


def _tokens(pieces: list[str]) -> list[Token]:
    """Parts of the normal form. Braces group where the text holds LaTeX, and are signs of their own elsewhere."""
    if any(piece[0] in "\\^" for piece in pieces):
        return _group(deque((piece, at) for at, piece in enumerate(pieces)), 0)
    return [(token, at) for at, piece in enumerate(pieces) for token in _leaf(piece)]


def _group(left: deque[Token], depth: int) -> list[Token]:
    """Parts up to the brace that closes a group, or to the end."""
    found = []
    while left:
        piece, at = left.popleft()
        if piece == "}" and depth:
            break
        if piece[0] in "{}\\":
            found += _meaning(piece, at, left, depth)
        else:
            for token in _leaf(piece):
                found.append((token, at))
    return found


def _meaning(piece: str, at: int, left: deque[Token], depth: int) -> list[Token]:
    """Parts that a piece stands for, with the arguments that it takes from those after it."""
    if piece == "{" and depth < _DEPTH:
        inner = _group(left, depth + 1)
        return inner if len(inner) < 2 else [("(", at), *inner, (")", at)]
    if piece in "{}":
        return []
    if piece in _FRACTIONS and depth < _DEPTH:
        over = _argument(left, depth)
        return [*over, ("/", at), *_argument(left, depth)]
    if piece in _PLAIN:
        if left and left[0][0] == "{" and depth < _DEPTH:
            left.popleft()
            return _group(left, depth + 1)
        return []
    return [(token, at) for token in _leaf(piece)]


def _argument(left: deque[Token], depth: int) -> list[Token]:
    """Parts of the argument of a command: a group, or the next character."""
    if not left:
        return []
    piece, at = left.popleft()
    if len(piece) > 1 and piece[0].isalnum():
        left.appendleft((piece[1:], at))
        return [(piece[0], at)]
    return _meaning(piece, at, left, depth + 1)


@functools.lru_cache(maxsize=1 << 16)
def _leaf(piece: str) -> tuple[str, ...]:
    """Parts that a piece stands for by itself."""
    first = piece[0]
    if first.isdecimal() or (first == "." and len(piece) > 1):
        return (_number(piece),)
    if piece in _SYMBOLS:
        return (_SYMBOLS[piece],)
    if first == "\\":
        return (piece[1:].casefold(),) if piece[1:].isalpha() else ()
    if first == "^" and len(piece) > 1:
        return ("°",)
    if re.match(f"[{_RAISED}]", first):
        return ("^", unicodedata.normalize("NFKC", piece))
    if re.match(f"[{_VULGAR}]", first):
        over, under = unicodedata.normalize("NFKC", piece).split("\u2044")
        return (over, "/", under)
    if len(piece) == 1 and not first.isalnum():
        return (piece,)
    return (unicodedata.normalize("NFC", piece.casefold().translate(_LOWERED)),)


def _number(piece: str) -> str:
    """Number without separators of thousands and zeros at its end. Several points are thousands or a version."""
    text = re.sub(_THOUSANDS, ",", piece)
    if re.fullmatch(_POINTS, text.partition(",")[0]) and ("," in text or text.count(".") > 1):
        text = text.replace(".", "").replace(",", ".")
    whole, point, rest = text.replace(",", "").partition(".")
    rest = rest if "." in rest else rest.rstrip("0")
    return f"{whole or 0}{point}{rest}" if rest else whole or "0"
