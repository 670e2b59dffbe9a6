# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Conflicts of options that are refused twice: by the command before torch is imported, and by the objects themselves.

Nothing here imports torch.
"""

from typing import Any

from trl_opsd.options import near
from trl_opsd.rollouts.view import PLACEHOLDER


# Options of the dataset column, with their defaults
COLUMN_OPTIONS = (
    ("privileged_column", "privileged_context"),
    ("privileged_template", PLACEHOLDER),
    ("privileged_place", "after_user"),
)

NO_BF16 = (
    "`bf16=True` needs a device that computes in it, and this process has none. Leave `bf16` out or set `bf16=False`. "
    "(`use_cpu=True` would allow it, and a CPU is many times slower in bf16.)"
)
NO_REWARD = (
    "{} looks at rewards, and this run has none. Give a reward function (at `policy_weight: 0` it trains nothing), or "
    "choose what needs no reward."
)


def check_template(name: str, template: str) -> None:
    """
    Refuse a template of an option that would show the context never, or more than once.

    Args:
        name (`str`): How the error names the option.
        template (`str`): Its value.

    Raises:
        ValueError: If it has no placeholder, or several.
    """
    count = template.count(PLACEHOLDER)
    if not count:
        raise ValueError(
            f"`{name}` must contain the placeholder {PLACEHOLDER}, or the teacher would never see the privileged "
            f"context; got {template!r}."
        )
    if count > 1:
        raise ValueError(
            f"`{name}` has the placeholder {PLACEHOLDER} {count} times, and the teacher would read the whole context "
            f"as often: leave one of them; got {template!r}."
        )


def check_column_options(values: dict[str, Any], method: str | None) -> None:
    """
    Refuse options of the dataset column beside a source that replaces it.

    Args:
        values (`dict[str, Any]`): Values of the options, without those that are not set.
        method (`str`, *optional*): Method that brings the source. `None` where the user named it.

    Raises:
        ValueError: If one is set.
    """
    for name, default in COLUMN_OPTIONS:
        if values.get(name, default) == default:
            continue
        if method is None:
            raise ValueError(
                f"`{name}` belongs to the dataset column and `privileged_source` replaces it. Put the option into the "
                "source, without `privileged_`, or leave it out."
            )
        raise ValueError(
            f"The method {method!r} brings its own `privileged_source`, which replaces the dataset column that "
            f"`{name}` belongs to. Leave `{name}` out, or name a `privileged_source` of your own with the option in "
            "it, without `privileged_`."
        )


def check_reward(method: str, needs_reward: bool, policy_weight: float) -> None:
    """
    Refuse a method that learns from rewards in a run without any.

    Args:
        method (`str`): Its name.
        needs_reward (`bool`): Whether it does.
        policy_weight (`float`): Weight of the policy term, 0 without a reward.

    Raises:
        ValueError: If it has nothing to learn from.
    """
    if needs_reward and policy_weight == 0:
        raise ValueError(
            f"The method {method!r} learns from rewards: pass `reward_funcs`, and leave `policy_weight` above 0."
        )


def check_names(where: str, given: Any, known: Any, what: str) -> None:
    """
    Refuse an option that its owner does not have.

    Args:
        where (`str`): Option that holds the options.
        given, known (`Iterable[str]`): Names that the user gave, and those that there are.
        what (`str`): The owner, as the error names it.

    Raises:
        ValueError: For the first of another name; it names one that is near.
    """
    for name in given:
        if name not in known:
            raise ValueError(
                f"`{where}`: {what} has no option {name!r}{near(str(name), known)}; it has {sorted(known) or 'none'}."
            )
