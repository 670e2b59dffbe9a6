# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Warnings as alerts of a tracker. Metrics reach the trackers by transformers' own callbacks."""

import contextlib
import io
from collections.abc import Collection


def send_alert(report_to: Collection[str], kind: str, text: str) -> None:
    """
    Send a warning to trackio, if it is a tracker of the run. In the main process alone, whose run it is.

    Args:
        report_to (`Collection[str]`): Trackers of the run.
        kind (`str`): Kind of the warning, the title of the alert.
        text (`str`): The warning.
    """
    if "trackio" not in report_to:
        return
    import trackio

    if trackio.context_vars.current_run.get() is None:  # a process without a run, or after its end
        return
    with contextlib.redirect_stdout(io.StringIO()):  # the log has the warning, and trackio prints it too
        trackio.alert(title=f"self-distillation: {kind.replace('_', ' ')}", text=text)
