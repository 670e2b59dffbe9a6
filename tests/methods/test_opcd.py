# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""OPCD: reverse KL on the student's top 256, with the ratio held constant."""

from method_cases import V, check_loss


K = 4  # of V: 256 would be the whole toy vocabulary
OPTIONS = {"distillation_topk": K}


def on_top(log_p, values):
    ids = log_p.detach().topk(K, dim=-1).indices
    return [value.gather(-1, ids) for value in values]


def stop_gradient(log_p, log_qs, labels):
    top_p, top_q = on_top(log_p, [log_p, log_qs[0]])
    return (top_p.exp() * (top_p - top_q).detach()).sum(-1)


def test_loss():
    check_loss("opcd", ["privileged"], stop_gradient, **OPTIONS)


def test_renormalised_as_in_the_papers_runs_for_safety():
    def renormalised(log_p, log_qs, labels):
        top_p, top_q = (value.log_softmax(-1) for value in on_top(log_p, [log_p, log_qs[0]]))
        return (top_p.exp() * (top_p - top_q)).sum(-1)

    check_loss("opcd", ["privileged"], renormalised, **OPTIONS, distillation_stop_gradient=False)


def test_the_true_gradient_differs_by_that_of_the_sets_mass():
    """Identity 5 of the notes: grad sum p log(p/q) = grad sum p sg(log(p/q)) + grad sum p, so that what is left out is
    nothing over the whole vocabulary."""

    def true_gradient(log_p, log_qs, labels):
        top_p, top_q = on_top(log_p, [log_p, log_qs[0]])
        mass = top_p.exp().sum(-1)
        return (top_p.exp() * (top_p - top_q)).sum(-1) - (mass - mass.detach())

    check_loss("opcd", ["privileged"], true_gradient, **OPTIONS)

    def whole(log_p, log_qs, labels):
        return (log_p.exp() * (log_p - log_qs[0])).sum(-1)

    check_loss("opcd", ["privileged"], whole, distillation_topk=V)
