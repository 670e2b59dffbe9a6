# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The compiled elementwise pass, made for the CPU by Inductor, against the uncompiled one and the float64 reference.

Each case compiles for seconds. Those without the marker are few; those with it are every spec in every type.

Legend: N tokens, the first M of them distilled, V vocabulary, K views.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_inductor_cache

from conftest import length_reward
from devices import device
from kernel_cases import SINGLE, SPECS, TARGETS, TRANSFORMS, Case, check, close, make, tiles_of
from pairwise import pairwise
from trl_opsd.kernels import PolicyTerm, compiled
from trl_opsd.losses import DivergenceSpec, TokenStats


# Of what is read, of both sides the same logits: only the order of the float32 operations differs
NEAR = {"rtol": 2e-5, "atol": 5e-6}


@pytest.fixture
def compiling(monkeypatch):
    """Compile on the CPU, and also for few tokens; a failure is an error."""
    monkeypatch.setenv(compiled.SWITCH, "1")
    monkeypatch.setattr(compiled, "LEAST_ROWS", 2)
    torch._dynamo.reset()
    compiled._failed.clear()
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*torch.compile. failed")
        yield
    compiled._failed.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def policy(temperature: float = 1.3) -> PolicyTerm:
    return PolicyTerm(lambda logps, entropies: (3 * logps.exp() - 0.3 * entropies).sum(), temperature)


def uncompiled(case: Case, spec: DivergenceSpec, monkeypatch) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setenv(compiled.SWITCH, "0")
        return everything(case, spec)


def everything(case: Case, spec: DivergenceSpec) -> list[torch.Tensor]:
    loss, stats = case.run(spec)
    return [loss.detach(), *stats.values(), *torch.autograd.grad(loss, case.leaves())]


def compare(name: str, dtype: torch.dtype, monkeypatch, **options) -> None:
    """Against the uncompiled function, and against float64."""
    # With this seed no two logits that a top-k set parts are equal in half precision
    case, spec = make(dtype=dtype, seed=51, **options), SPECS[name]
    gots, wants = everything(case, spec), uncompiled(case, spec, monkeypatch)
    for got, want in zip(gots, wants, strict=True):
        assert got.dtype == want.dtype
        last_digits = {"rtol": 2 * torch.finfo(got.dtype).eps, "atol": 1e-4} if got.dtype.itemsize == 2 else NEAR
        torch.testing.assert_close(got, want, **last_digits)
    if dtype.itemsize > 2:
        return check(case, spec, **SINGLE)
    coarse = 8 * torch.finfo(dtype).eps
    want, _ = case.expected(spec)
    torch.testing.assert_close(gots[0].double(), want, rtol=coarse, atol=coarse)
    leaves = case.leaves()
    for got, value in zip(gots[-len(leaves) :], torch.autograd.grad(want, leaves), strict=True):
        assert (got - value).norm() < 3 * coarse * value.norm()


def test_forward_kl_with_a_policy(compiling, monkeypatch):
    options = {"transform": {"scale": 2.5, "softcap": 2.0}, "policy": policy(), "n": 14, "m": 9}
    compare("forward", torch.float32, monkeypatch, **options)
    assert graphs() == 3  # score, distilled tokens, others


def test_one_target_in_bfloat16(compiling, monkeypatch):
    compare("geometric", torch.bfloat16, monkeypatch)
    assert graphs() == 1


def test_one_graph_for_any_number_of_tokens(compiling):
    spec = SPECS["hard"]
    for n in (30, 20, 77, 4):
        case = make(n=n, m=n // 2, k=1, dtype=torch.float32, seed=n, policy=policy(temperature=0.9))
        check(case, spec, **SINGLE)
        assert graphs() == 3


def test_agreement_gives_exact_zeros(compiling):
    # Of all specs the one whose zeros are a difference of two products
    agree(DivergenceSpec("skew_kl", alpha=0.1, entry_clip=0.05, temperature=0.9), torch.float32)


def agree(spec: DivergenceSpec, dtype: torch.dtype) -> None:
    case = make(dtype=dtype, seed=7, v=500, transform={"softcap": 5.0, "scale": 3.0})
    case.teacher_hidden, case.teacher_weight = case.hidden.detach().expand(2, -1, -1).clone(), case.weight.detach()
    case.teacher_bias, case.teacher_transform = case.bias.detach(), case.transform
    loss, stats = case.run(spec)
    assert loss == 0 and (stats["divergence"] == 0).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, case.leaves()))
    assert graphs() >= 1


def on_teachers(stats: TokenStats) -> torch.Tensor:
    """A token weight that reads every statistic, and that no compiler could trace."""
    assert not torch.compiler.is_compiling() and float(stats.student_entropy.sum()) > 0
    likely = stats.teacher_logps.exp() + stats.student_logps.exp()
    return likely * (1 + stats.relative_positions) * stats.taught + stats.teacher_entropy * stats.student_entropy


def test_a_methods_token_weight_runs_between_two_compiled_functions(compiling, monkeypatch):
    case, spec = weighed(n=12), replace(SPECS["forward"], token_weight=on_teachers)
    gots = everything(case, spec)
    assert graphs() == 3  # score of the student, of the teacher with another head, loss
    close(gots, uncompiled(case, spec, monkeypatch), **NEAR)


def weighed(n: int) -> Case:
    class Weighed(Case):
        def task(self, spec):
            positions, rows = torch.arange(n) / n, torch.zeros(n, dtype=torch.long)
            return replace(super().task(spec), relative_positions=positions, rows=rows)

    return Weighed(**vars(make(n=n, dtype=torch.float32, seed=51, teacher_transform={"softcap": 3.0})))


@pytest.mark.parametrize("part", ["target", "auxiliary_loss"])
def test_a_method_that_reads_whole_distributions_is_not_compiled(part, compiling, monkeypatch):
    functions = {
        "target": lambda log_p, log_qs, shares: torch.lerp(log_p, log_qs[0], 0.5),
        "auxiliary_loss": lambda tile: (tile.log_p.exp().sum(-1), torch.zeros_like(tile.p)),
    }
    case, spec = make(dtype=torch.float32, seed=52), replace(SPECS["forward"], **{part: functions[part]})
    gots = everything(case, spec)
    assert graphs() == 0
    close(gots, uncompiled(case, spec, monkeypatch), rtol=0, atol=0)


@pytest.mark.skipif(device() != "cpu", reason="Triton needs no C++ compiler of ours")
def test_a_compiler_that_fails(compiling, monkeypatch):
    """One warning, and then the same digits as uncompiled."""
    case, spec = make(dtype=torch.float32, seed=53), SPECS["reverse"]
    tiles_of(monkeypatch, 3)
    want = uncompiled(case, spec, monkeypatch)
    with inductor.patch({"cpp.cxx": ("/no/such/compiler",)}), fresh_inductor_cache():
        with pytest.warns(UserWarning, match="`torch.compile` failed on `distilled_tile`.*TRL_OPSD_COMPILE=0"):
            close(everything(case, spec), want, rtol=0, atol=0)
        close(everything(case, spec), want, rtol=0, atol=0)


def test_few_tokens_are_not_compiled(compiling, monkeypatch):
    monkeypatch.setattr(compiled, "LEAST_ROWS", 11)
    everything(make(n=10, dtype=torch.float32), SPECS["forward"])
    assert graphs() == 0


@pytest.mark.parametrize(("switch", "cpu", "cuda"), [(None, False, True), ("0", False, False), ("1", True, True)])
def test_switch(switch, cpu, cuda, monkeypatch):
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(compiled.SWITCH, switch)
    assert compiled.wanted(torch.device("cpu")) == cpu and compiled.wanted(torch.device("cuda")) == cuda


def test_a_switch_that_is_neither(monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, "yes")
    with pytest.raises(ValueError, match="`TRL_OPSD_COMPILE` must be 0, 1 or unset, got 'yes'"):
        compiled.wanted(torch.device("cpu"))


EVERY = pairwise(name=list(SPECS), dtype=[torch.float32, torch.bfloat16, torch.float16])


@pytest.mark.engines
def test_a_compiler_that_fails_in_the_middle_of_a_chunk(compiling, monkeypatch):
    """Rows whose gradient stands in the place of their logits already are not done again."""
    case, spec = make(n=7, dtype=torch.float32, seed=54), SPECS["stop-gradient"]
    want = uncompiled(case, spec, monkeypatch)
    # Top-k goes in parts, here of 3, 3 and 1 tokens, and a single token would need a graph of its own
    monkeypatch.setitem(compiled.DYNAMO, "recompile_limit", 1)
    with pytest.warns(UserWarning, match="`torch.compile` failed on `distilled_tile`"):
        close(everything(case, spec), want, **NEAR)
    assert graphs() == 1


@pytest.mark.engines
def test_a_training(compiling, make_trainer, monkeypatch):
    """Weighted tokens and a live teacher, whose forward runs in inference mode."""
    options = {
        "reward_funcs": length_reward,
        "method": "pw_opsd",
        "teacher_model_kind": "live",
        "max_steps": 1,
    }
    logs = []
    for switch, expected in (("1", True), ("0", False)):
        monkeypatch.setenv(compiled.SWITCH, switch)
        counters.clear()
        torch.manual_seed(0)
        trainer = make_trainer(**options)
        trainer.train()
        assert (graphs() > 0) == expected
        logs.append(trainer.state.log_history[0])
    first, second = ({key: value for key, value in log.items() if "time" not in key} for log in logs)
    assert first.keys() == second.keys()
    assert {key: value for key, value in first.items() if value != pytest.approx(second[key], rel=1e-3, abs=1e-5)} == {}


@pytest.mark.engines
@pytest.mark.parametrize(("number", "name", "dtype"), [(i, *case) for i, case in enumerate(EVERY)])
def test_every_spec(number, name, dtype, compiling, monkeypatch):
    options = {"transform": TRANSFORMS[number % 4], "k": 1 + number % 3, "bias": number % 2 == 0}
    term = policy([1.0, SPECS[name].temperature, 0.7][number % 3])
    with_policy = {"policy": term, "n": 12, "m": 8} if number % 5 == 0 else {}
    compare(name, dtype, monkeypatch, **options, **with_policy)
    assert graphs() == (3 if with_policy else 1)


@pytest.mark.engines
@pytest.mark.parametrize(
    ("name", "dtype"),
    pairwise(
        name=[name for name, spec in SPECS.items() if name not in TARGETS and not spec.teacher_temperature],
        dtype=[torch.float32, torch.bfloat16],
    ),
)
def test_agreement_gives_exact_zeros_for_every_spec(name, dtype, compiling):
    agree(SPECS[name], dtype)
