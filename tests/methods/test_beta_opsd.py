# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""beta-OPSD, as we read it: logits interpolated with the frozen base on the bare prompt."""

import pytest

from method_cases import check_loss
from trl_opsd.losses.mixing import interpolated


def forward_kl(log_p, log_q):
    return (log_q.exp() * (log_q - log_p)).sum(-1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_loss(share):
    def formula(log_p, log_qs, labels):
        weighted = log_qs[0].exp() ** (1 - share) * log_qs[1].exp() ** share
        return forward_kl(log_p, (weighted / weighted.sum(-1, keepdim=True)).log())

    check_loss("beta_opsd", ["privileged", "bare"], formula, method_options={"share": share})


def test_the_ends_are_opsd_and_the_base():
    for share, view in ((0.0, 0), (1.0, 1)):
        check_loss(
            "beta_opsd", ["privileged", "bare"], lambda log_p, log_qs, _, view=view: forward_kl(log_p, log_qs[view]),
            method_options={"share": share},
        )  # fmt: skip


def test_it_is_the_softmax_of_interpolated_logits():
    import torch

    a, b = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = interpolated(a.log_softmax(-1), b.log_softmax(-1), 0.25)
    torch.testing.assert_close(got, (0.75 * a + 0.25 * b).log_softmax(-1))


def test_without_the_bare_view_it_says_so():
    with pytest.raises(ValueError, match=r"needs a view named 'bare', and the source gave \['privileged'\]"):
        check_loss("beta_opsd", ["privileged"], lambda log_p, log_qs, _: forward_kl(log_p, log_qs[0]))
