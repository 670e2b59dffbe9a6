# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Token report in a terminal: the overview and the first rollouts of each group, with rich."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_opsd.token_report.checks import Check, check_record
from trl_opsd.token_report.load import Group, RunLog
from trl_opsd.token_report.record import Line
from trl_opsd.token_report.summary import GAP_EDGES, Part, Summary, gap_bins, summarize


FIRST = 3  # rollouts of a group
BAR = 20  # characters
# Styles from the least gap to the largest: the terminal's own blue and yellow, underlined where the gap is large
MORE = ("", "blue", "blue", "bold blue", "bold blue underline", "bold reverse blue")
LESS = ("", "yellow", "yellow", "bold yellow", "bold yellow underline", "bold reverse yellow")
# C0 and C1 controls, of which a terminal would take some for commands, and marks that turn the direction of a text
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def print_report(groups: Sequence[Group], log: RunLog, console: Console | None = None) -> None:
    """
    Print the report.

    Args:
        groups (`list[Group]`): Rollouts, one group a step or a checkpoint.
        log ([`RunLog`]): Numbers and settings of the run.
        console (`Console`, *optional*): Where to print; by default the terminal.
    """
    console = console or Console(highlight=False)
    console.print(Text(f"What the teacher teaches: {log.name}", style="bold"))
    for group in groups:
        summary = summarize(group.rollouts, group.head)
        console.rule(Text(safe(group.label)))
        console.print(_headline(summary))
        console.print(_figures(summary))
        for table in _tables(summary):
            console.print()
            console.print(table)
        console.print()
        for check in check_record(group.rollouts, group.same_weights):
            console.print(_check(check))
        for line in group.rollouts[:FIRST]:
            console.print()
            console.print(_rollout(line))
        left = len(group.rollouts) - FIRST
        if left > 0:
            console.print(f"\n{left} more rollouts are on the page.")
    console.print("\nBlue: the teacher likes the token more than the student did; yellow: less.")


def safe(text: str) -> str:
    """A text whose control characters are named instead of obeyed."""
    return UNSAFE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def quoted(text: str) -> Text:
    """A token by itself, its ends visible."""
    return Text(f"‹{safe(text)}›".replace("\n", "↵")) if text else Text("part of a character", style="italic")


def _headline(summary: Summary) -> Text:
    wanted = summary.wanted
    if wanted is None:
        return Text("The teacher would write what the student wrote.")
    text = Text.assemble("The teacher would rather write ", quoted(wanted.teacher), " where the student wrote ")
    text.append_text(Text(", ").join(map(quoted, wanted.students)))
    text.append(f": {wanted.count} times, {wanted.cost:.0%} of the divergence. ")
    return text.append(f"{summary.first:.0%} of the divergence lies on the first tokens.")


def _figures(summary: Summary) -> Text:
    facts = [
        f"{summary.rollouts} rollouts, {summary.tokens} tokens",
        f"taught {summary.taught:.0%}",
        f"divergence {summary.divergence:.3g} nats a token{' (estimated)' if summary.estimated else ''}",
        f"mean gap {summary.gap:.3g} nats",
        f"clipped {summary.clipped:.0%}",
        f"leaked {summary.leaked:.0%}",
    ]
    if summary.success is not None:
        facts.append(f"successful {summary.success:.0%}")
    return Text("; ".join(facts) + ".", style="dim")


def _tables(summary: Summary) -> list[Table]:
    rather = Table(
        "student", "teacher", "of the divergence", "times", "mean gap", title="The teacher would rather write"
    )
    for row in summary.rather:
        cells = f"{row.cost:.1%}", str(row.count), f"{row.gap:.3g}"
        rather.add_row(quoted(row.student), quoted(row.teacher), *cells)
    costly = Table("student", "of the divergence", "times", "nats", title="Tokens that cost most")
    for token in summary.costly:
        costly.add_row(quoted(token.text), f"{token.cost:.1%}", str(token.count), f"{token.divergence:.3g}")
    gaps = Table("gap", "tokens", "", title="Does the teacher agree?")
    most = max(summary.gaps, default=0) or 1
    for (low, high), count in reversed(list(zip(gap_bins(), summary.gaps, strict=True))):
        label = f"under {high:g}" if low is None else f"over {low:g}" if high is None else f"{low:g} to {high:g}"
        gaps.add_row(label, str(count), "█" * round(BAR * count / most))
    tables = [rather, costly, _parts("place", summary.positions), _parts("quarter", summary.quarters), gaps]
    if summary.stops:
        stops = Table("stop tokens " + safe(" ".join(summary.stops.texts)), "student", "teacher", "tokens")
        mass = summary.stops
        if mass.ends:
            stops.add_row("where it stopped", f"{mass.student_end:.1%}", f"{mass.teacher_end:.1%}", str(mass.ends))
        stops.add_row(
            "before" if mass.ends else "anywhere",
            f"{mass.student_before:.1%}",
            f"{mass.teacher_before:.1%}",
            str(mass.others),
        )
        tables.append(stops)
    return tables


def _parts(head: str, parts: list[Part]) -> Table:
    table = Table(head, "divergence", "tokens", "nats a token", "", title=f"Where it teaches, by {head}")
    for part in parts:
        shares = f"{part.cost:.1%}", f"{part.tokens:.1%}", f"{part.mean:.3g}"
        table.add_row(part.label, *shares, "█" * round(BAR * max(part.cost, 0)))
    return table


def _check(check: Check) -> Text:
    sign, style = {True: ("✓", "blue"), False: ("✗", "bold yellow"), None: ("–", "dim")}[check.passed]
    return Text.assemble((f"{sign} ", style), check.name, " ", (check.detail, "dim"))


def _rollout(line: Line) -> Text:
    """A completion coloured by gap, each token by the view with the largest share in its loss."""
    facts = [f"Rollout {line['index'] + 1}"]
    facts += [f"{name} {value}" for name, value in line["rewards"].items()]
    facts += ["success" if line["success"] else "no success"] * (line["success"] is not None)
    facts += [safe(f"leak: {line['leak']}")] * bool(line["leak"])
    text = Text().append(", ".join(facts) + "\n", style="bold")
    for position, piece in enumerate(line["texts"]):
        text.append(safe(piece), style=_style(line, position))
    return text


def _style(line: Line, position: int) -> str:
    p = line["p"][position]
    views = [view for view in line["views"].values() if view["share"][position] and view["q"][position] is not None]
    if p is None or not views:
        return "dim"
    gap = max(views, key=lambda view: view["share"][position])["q"][position] - p
    level = sum(edge <= abs(gap) for edge in GAP_EDGES)
    return (MORE if gap > 0 else LESS)[level]
