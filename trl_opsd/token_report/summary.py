# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Numbers of a token report: where the divergence of recorded rollouts lies, and on which tokens."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trl_opsd.token_report.record import Line
from trl_opsd.token_report.stops import StopMass, stop_mass
from trl_opsd.token_report.tokens import TaughtToken, is_estimate, taught_tokens


MOST = 10  # rows of a table
NAMED = 3  # tokens of the student in the headline
# Sizes of a gap in nats at which a colour of the page and a bar of the histogram begin, on both sides of 0
GAP_EDGES = (0.25, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Part:
    """Tokens at some positions: their share of the cost and of the tokens, and the mean divergence."""

    label: str
    cost: float
    tokens: float
    mean: float


@dataclass(frozen=True)
class CostlyToken:
    """Token text with its count, summed divergence and share of the cost."""

    text: str
    count: int
    divergence: float
    cost: float


@dataclass(frozen=True)
class Replacement:
    """Student's token and the one that the teacher finds likeliest there: count, mean gap and share of the cost."""

    student: str
    teacher: str
    count: int
    gap: float
    cost: float


@dataclass(frozen=True)
class Wanted:
    """Token that the teacher would rather write, over all the student's tokens, of which `students` are the dearest."""

    teacher: str
    students: list[str]
    count: int
    cost: float


@dataclass(frozen=True)
class Summary:
    """
    Overview of recorded rollouts.

    Args:
        rollouts, tokens (`int`): Rollouts and tokens of their completions.
        taught (`float`): Share of these tokens that are distilled.
        clipped (`float`): Share of the distilled tokens whose loss is less than their divergence.
        leaked (`float`): Share of rollouts that give a context away.
        success (`float`, *optional*): Share of successful rollouts among those of which it is known.
        estimated (`bool`): Whether divergences are estimates from the sampled tokens; the cost is their size then.
        divergence, gap (`float`): Means over the distilled tokens.
        first (`float`): Share of the cost at the first tokens.
        positions, quarters (`list[Part]`): The same by position and by quarter of the completion.
        costly (`list[CostlyToken]`): Tokens that cost most.
        rather (`list[Replacement]`): Tokens that the teacher would rather write, by cost.
        wanted (`Wanted`, *optional*): The one that it would rather write at the largest cost in all.
        gaps (`list[int]`): Distilled tokens by gap, between the edges of [`gap_bins`].
        stops (`StopMass`, *optional*): Probability of the stop tokens.
    """

    rollouts: int
    tokens: int
    taught: float
    clipped: float
    leaked: float
    success: float | None
    estimated: bool
    divergence: float
    gap: float
    first: float
    positions: list[Part]
    quarters: list[Part]
    costly: list[CostlyToken]
    rather: list[Replacement]
    wanted: Wanted | None
    gaps: list[int]
    stops: StopMass | None


def summarize(rollouts: Sequence[Line], head: Line) -> Summary:
    """
    Overview of rollouts.

    Args:
        rollouts (`list[dict]`): Lines of a record.
        head (`dict`): Its first line.
    """
    taught = list(taught_tokens(rollouts, head["strings"]))
    tokens = sum(len(line["ids"]) for line in rollouts)
    known = [line["success"] for line in rollouts if line["success"] is not None]
    whole = sum(token.cost for token in taught)
    first = sum(token.cost for token in taught if token.position == 0)
    rather = _rather(taught, whole)
    return Summary(
        rollouts=len(rollouts),
        tokens=tokens,
        taught=_ratio(len(taught), tokens),
        clipped=_ratio(sum(map(is_clipped, taught)), len(taught)),
        leaked=_ratio(sum(bool(line["leak"]) for line in rollouts), len(rollouts)),
        success=_ratio(sum(known), len(known)) if known else None,
        estimated=any(map(is_estimate, rollouts)),
        divergence=_ratio(sum(token.divergence for token in taught), len(taught)),
        gap=_ratio(sum(token.gap for token in taught), len(taught)),
        first=_ratio(first, whole),
        positions=_parts(taught, whole, lambda token: int(math.log2(token.position + 1)), _position_label),
        quarters=_parts(taught, whole, lambda token: 4 * token.position // token.length, _quarter_label),
        costly=_costly(taught, whole),
        rather=rather[:MOST],
        wanted=_wanted(rather),
        gaps=_histogram(token.gap for token in taught),
        stops=stop_mass(rollouts, head),
    )


def is_clipped(token: TaughtToken) -> bool:
    """Whether the loss of a token is less than its divergence, by more than the digits of a record explain."""
    return token.loss < token.divergence - 0.01 * abs(token.divergence) - 1e-3


def gap_bins() -> list[tuple[float | None, float | None]]:
    """Edges of the histogram of gaps; `None` is no edge."""
    edges = [*(-edge for edge in reversed(GAP_EDGES)), *GAP_EDGES]
    return list(zip([None, *edges], [*edges, None], strict=True))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _parts(
    taught: list[TaughtToken], whole: float, part_of: Callable[[TaughtToken], int], label: Callable[[int], str]
) -> list[Part]:
    """Share of the cost in each part of the completions, up to the last part that has a token."""
    if not taught:
        return []
    members: dict[int, list[TaughtToken]] = defaultdict(list)
    for token in taught:
        members[part_of(token)].append(token)
    return [
        Part(
            label(number),
            _ratio(sum(token.cost for token in members[number]), whole),
            len(members[number]) / len(taught),
            _ratio(sum(token.divergence for token in members[number]), len(members[number])),
        )
        for number in range(max(members) + 1)
    ]


def _position_label(number: int) -> str:
    first, last = 2**number, 2 ** (number + 1) - 1
    return str(first) if first == last else f"{first}–{last}"


def _quarter_label(number: int) -> str:
    return ("first", "second", "third", "last")[number] + " quarter"


def _costly(taught: list[TaughtToken], whole: float) -> list[CostlyToken]:
    members: dict[str, list[TaughtToken]] = defaultdict(list)
    for token in taught:
        members[token.text].append(token)
    rows = [
        CostlyToken(text, len(own), sum(one.divergence for one in own), _ratio(sum(one.cost for one in own), whole))
        for text, own in members.items()
    ]
    return sorted(rows, key=lambda row: -row.cost)[:MOST]


def _rather(taught: list[TaughtToken], whole: float) -> list[Replacement]:
    members: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for token in taught:
        for teacher, gap, cost in token.rather:
            members[token.text, teacher].append((gap, cost))
    rows = [
        Replacement(*texts, len(own), sum(gap for gap, _ in own) / len(own), _ratio(sum(c for _, c in own), whole))
        for texts, own in members.items()
    ]
    return sorted(rows, key=lambda row: -row.cost)


def _wanted(rather: list[Replacement]) -> Wanted | None:
    members: dict[str, list[Replacement]] = defaultdict(list)
    for row in rather:
        members[row.teacher].append(row)
    rows = [
        Wanted(text, [one.student for one in own[:NAMED]], sum(one.count for one in own), sum(one.cost for one in own))
        for text, own in members.items()
    ]
    return max(rows, key=lambda row: row.cost, default=None)


def _histogram(gaps: Iterable[float]) -> list[int]:
    """Counts of gaps: an edge belongs to the bar beyond it, seen from 0, as with the colours of the page."""
    counts = [0] * len(gap_bins())
    for gap in gaps:
        level = sum(edge <= abs(gap) for edge in GAP_EDGES)
        counts[len(GAP_EDGES) + (level if gap > 0 else -level)] += 1
    return counts
