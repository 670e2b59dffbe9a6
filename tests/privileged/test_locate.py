# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Quotes are found in texts, and characters in tokens: against the bytes that each token stands for."""

import codecs
import random
import time

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from smollm2_tokenizer import smollm2_tokenizer
from trl_opsd.privileged import locate as module
from trl_opsd.privileged.locate import decoded, find_quote, token_span


ALPHABET = "ab c\n12=+é€ß漢字👩‍👧🏳️\u200fא\u0301"


def sentencepiece():
    """Pieces and bytes, and a decoder that shows one sign for each byte of a broken character."""
    pieces = ["<s>", "▁", "a", "b", "c", "1", "2", "=", "+", "\n", "é", "▁a", "▁b", "ab"]
    vocab = {piece: i for i, piece in enumerate([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "b"), ("a", "b")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


TOKENIZERS = {"bytes": tiny.tokenizer, "sentencepiece": sentencepiece, "smollm2": smollm2_tokenizer}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def bytes_of_tokens(tokenizer, ids):
    """The bytes of each token, without the decoder. Special ones have none."""
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    pieces = ["" if i in special else piece for i, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)]
    if "<0x00>" in tokenizer.get_vocab():
        return [
            bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
            for piece in pieces
        ]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's: the others go by their order
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return [bytes(alphabet[character] for character in piece) for piece in pieces]


def owners(parts):
    """The sound characters of these bytes, each with the first and the last part that holds something of it."""
    part_of = [number for number, part in enumerate(parts) for _ in part]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = []
    for place, byte in enumerate(b"".join(parts)):
        for character in decoder.decode(bytes([byte])):
            length = 1 if character == "\ufffd" else len(character.encode())
            found.append((character, part_of[place + 1 - length], part_of[place]))
    return found + [("\ufffd", None, None) for _ in decoder.decode(b"", True)]


def check_spans(tokenizer, ids, chance):
    characters = owners(bytes_of_tokens(tokenizer, ids))
    text = decoded(tokenizer, ids)
    if "<0x00>" in tokenizer.get_vocab() and characters and characters[0][0] == " ":
        characters = characters[1:]  # SentencePiece's own first space
    assert text == "".join(character for character, _, _ in characters)
    sound = [i for i, (character, _, _) in enumerate(characters) if character != "\ufffd"]
    for _ in range(5 if sound else 0):
        start, last = sorted(chance.choices(sound, k=2))
        assert token_span(tokenizer, ids, start, last + 1) == (characters[start][1], characters[last][2] + 1)


@every_tokenizer
def test_spans_of_random_texts(kind):
    """The tokens of a span hold it, and no token more does on either side."""
    tokenizer, chance = TOKENIZERS[kind](), random.Random(0)
    for length in range(1, 60, 2):
        text = "".join(chance.choices(ALPHABET, k=length))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if kind == "bytes":
            assert decoded(tokenizer, ids) == text
        check_spans(tokenizer, ids, chance)


@pytest.mark.parametrize("kind", ["bytes", "smollm2"])
def test_spans_of_random_tokens(kind):
    """Also of broken characters, special tokens and tokens that end within a character."""
    tokenizer, chance = TOKENIZERS[kind](), random.Random(1)
    partial = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    few = [*tokenizer.all_special_ids, *partial]
    for length in range(1, 120, 4):
        ids = [chance.choice(few) if chance.random() < 0.5 else chance.randrange(len(tokenizer)) for _ in range(length)]
        check_spans(tokenizer, ids, chance)


def test_spans_leave_out_special_tokens(tokenizer):
    ids = tokenizer("<|im_start|>ab<|im_end|>c<|im_end|>")["input_ids"]
    assert decoded(tokenizer, ids) == "abc"
    assert token_span(tokenizer, ids, 0, 2) == (1, 3)
    assert token_span(tokenizer, ids, 1, 3) == (2, 5)
    assert token_span(tokenizer, ids, 2, 3) == (4, 5)


@pytest.mark.parametrize("span", [(-1, 1), (0, 0), (2, 1), (0, 4)])
def test_spans_that_are_none(tokenizer, span):
    with pytest.raises(ValueError, match="A text of 3 characters has none from"):
        token_span(tokenizer, tokenizer("abc")["input_ids"], *span)


@every_tokenizer
def test_a_span_takes_few_decodings(kind, monkeypatch):
    tokenizer, counts = TOKENIZERS[kind](), [0]

    def counting(*arguments):
        counts[0] += 1
        return decoded(*arguments)

    monkeypatch.setattr(module, "decoded", counting)
    ids = tokenizer("漢ab c1 👩 = " * 400, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2000
    token_span(tokenizer, ids, 1000, 1100)
    assert counts[0] <= 1 + 2 * 4 * len(ids).bit_length()


# Quotes

TEXT = "First, 12 + 30 = 42.\nThen we  add 7 to 42\tand get 50. So the answer is 50."
FOUND = [
    ("we  add 7", 1.0, "we  add 7"),
    ("12 + 30 = 42.", 1.0, "12 + 30 = 42."),
    # White space counts between two words alone
    ("we add 7 to 42 and get 50", 1.0, "we  add 7 to 42\tand get 50"),
    ("12+30=42. Then", 1.0, "12 + 30 = 42.\nThen"),
    ("  50 . ", 1.0, "50."),
    # The first of several
    ("50", 1.0, "50"),
    # Similar ones
    ("Then we add 8 to 42", 0.9, "Then we  add 7 to 42"),
    ("Then we add 8 to 42", 0.95, None),
    ("so the answer is 50.", 0.9, "So the answer is 50"),  # in another spelling
    ("THEN we add **7** to 42", 0.9, "Then we  add 7 to 42"),
    ("wethen", 0.9, None),
    ("weadd", 1.0, None),
    ("so the answer is 50.", 1.0, None),
    ("So the final answer is 50.", 0.7, "So the answer is 50."),
    ("So the final answer is 50.", 0.8, None),
    ("Then we add to 42", 0.88, "Then we  add 7 to 42"),
    ("Then we add to 42", 0.9, None),
    # None
    ("", 0.0, None),
    (" \n", 0.0, None),
    ("xyz", 0.0, None),
    ("entirely different words", 0.6, None),
]


@pytest.mark.parametrize(("quote", "threshold", "expected"), FOUND)
def test_find_quote(quote, threshold, expected):
    found = find_quote(TEXT, quote, threshold)
    assert (None if found is None else TEXT[slice(*found)]) == expected
    assert find_quote("", quote, threshold) is None


def test_the_first_exact_quote_wins():
    assert find_quote("a 51, a 50, a 50", "a 50", 0.5) == (6, 10)


@pytest.mark.parametrize(
    ("text", "quote", "threshold", "expected"),
    [
        ("It is 1 2 3 and 123.", "123", 1.0, (16, 19)),
        ("It is 1 2 3.", "123", 0.8, None),
        ("It is 123.", "1 2 3", 0.8, None),
        ("It is 1\n2  3.", "1 2 3", 1.0, (6, 12)),
        ("of 1234 and 123", "123", 1.0, (12, 15)),  # whole words first
        ("of 1234", "123", 1.0, (3, 6)),
        ("Added. We add", "add", 0.8, (10, 13)),
        ("漢字 問題", "漢字問題", 1.0, (0, 5)),
        ("हिन्दी भाषा है", "हिन्दीभाषा", 1.0, None),
        # Ties: the first part, as long as the quote
        ("x = 3 + 4 = 7. Later 3 + 4 = 8.", "3 + 4 = 9", 0.8, (4, 13)),
        ("We have 12 + 30 = 42. Then 42 + 10 = 53.", "42 + 10 = 52.", 0.8, (27, 40)),
        ("abcXYZ", "abcd", 0.7, (0, 4)),
        ("XYZbcd", "abcd", 0.7, (2, 6)),
        # Other spellings
        ("“so 5 apples are left”", '"so 5 apples are left"', 0.8, (1, 21)),
        ("Die STRASSE", "straße", 0.8, (4, 11)),
        ("un cafe\u0301 noir", "café", 0.8, (3, 8)),
        ("we get 1,000 of them", "1000", 0.8, (7, 12)),
        ("straße", "STRASSE", 1.0, None),
        # Nine of ten characters are a share of 0.9
        ("abcdefghiX", "abcdefghij", 0.9, (0, 10)),
    ],
)
def test_which_part_is_found(text, quote, threshold, expected):
    assert find_quote(text, quote, threshold) == expected


def test_edits_against_every_part():
    """The distance found is the least over all parts of the text."""

    def distance(one, other):
        row = list(range(len(other) + 1))
        for i, a in enumerate(one, 1):
            previous, row[0] = row[0], i
            for j, b in enumerate(other, 1):
                previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
        return row[-1]

    chance = random.Random(2)
    for _ in range(150):
        text, quote = ("".join(chance.choices("abc", k=chance.randrange(1, n))) for n in (14, 7))
        parts = [(i, j) for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
        best = min(distance(text[i:j], quote) for i, j in parts)
        found = find_quote(text, quote, 0.0)
        if best < len(quote):
            assert distance(text[slice(*found)], quote) == best
            share = 1 - best / len(quote)
            assert find_quote(text, quote, share) == found
            assert best == 0 or find_quote(text, quote, share + 0.01) is None


def test_long_quotes_take_no_minutes():
    """A quote of 600 words in 8,000 takes a second at most, and one as long as the text a few."""
    begin = time.process_time()
    assert find_quote("word " * 8000, "other words " * 300, 0.8) is None
    middle = time.process_time()
    assert find_quote("word " * 2000, "wurd " * 1990, 0.75) == (0, 9949)
    assert middle - begin < 1 and time.process_time() - middle < 1.5


def test_a_long_text_is_searched_in_time():
    text = "".join(random.Random(3).choices("abcdef ", k=40000))
    quote = text[30000:30300].replace("a", "b", 5)
    start, end = find_quote(text, quote, 0.9)
    assert abs(start - 30000) <= 2 and abs(end - 30300) <= 2
