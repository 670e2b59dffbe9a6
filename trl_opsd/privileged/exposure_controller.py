# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Controller of teacher exposure: a policy over the share of a solution that the teacher reads, trained by REINFORCE
(ATESD, 2605.11458).

The share is drawn from Beta(a, b), (a, b) = 1 + softplus(f(s)), where f is a small network and s what is known of the
training. It is held for some optimizer steps, and rewarded by how far the loss falls in them.
"""

import itertools
import math
import random
from typing import Any

import torch

from trl_opsd.rollouts.step_summary import StepSummary


INPUTS, HIDDEN = 5, 32
LEAST = 1e-6  # of a share from 0 and 1, where its density may be 0
EMA = 0.1  # weight of the latest share in its moving average


class ExposureController:
    """
    All that it reads is the same on every process, and its random numbers are its own, so that all draw alike.

    Args:
        hold (`int`): Optimizer steps of a share.
        look_ahead (`int`): Steps whose fall of the loss is its reward, fewer than `hold`: losses under different shares
            can't be compared.
        discount (`float`): Factor on each further step of the reward.
        learning_rate (`float`): Of the policy. At 0 the shares are independent draws from one Beta distribution.
        entropy_target, entropy_weight (`float`): The squared excess of the policy's entropy over the target costs so
            much.
        seed (`int`): Of its start and its draws.
    """

    def __init__(
        self,
        hold: int,
        look_ahead: int,
        discount: float,
        learning_rate: float,
        entropy_target: float,
        entropy_weight: float,
        seed: int,
    ):
        self.hold, self.look_ahead, self.discount, self.learning_rate = hold, look_ahead, discount, learning_rate
        self.entropy_target, self.entropy_weight, self.seed = entropy_target, entropy_weight, seed
        start = random.Random(f"exposure {seed}")
        first = [[start.gauss(0.0, INPUTS**-0.5) for _ in range(HIDDEN)] for _ in range(INPUTS)]
        # The last layer begins at 0: the first shares are drawn alike, whatever the state
        self.weights = [
            torch.tensor(first, dtype=torch.float64),
            *(torch.zeros(*shape, dtype=torch.float64) for shape in ((HIDDEN,), (HIDDEN, 2), (2,))),
        ]
        self.rewards = [0.0, 0.0, 0.0]  # count, mean, and sum of squared deviations
        self.decisions, self.average = 0, 0.5
        self.losses: list[float] = []  # of the steps under the present share
        self.inputs = [0.0, self.average, 0.0, 0.0, 0.0]
        self.share = self.draw()

    def policy(self, weights: list[torch.Tensor]) -> torch.distributions.Beta:
        """Distribution of the share in the present state."""
        w1, b1, w2, b2 = weights
        hidden = torch.tanh(torch.tensor(self.inputs, dtype=torch.float64) @ w1 + b1)
        return torch.distributions.Beta(*(1 + torch.nn.functional.softplus(hidden @ w2 + b2)))

    def observe(self, summary: StepSummary) -> None:
        """Observe a finished step; after the last one of a share, learn from them and draw the next."""
        self.losses.append(summary.loss)
        if len(self.losses) < self.hold:
            return
        self.learn(self.reward())
        self.average += EMA * (self.share - self.average)
        logged = [summary.logged.get(name, 0.0) for name in ("gap/mean", "student_entropy")]
        known = [summary.progress, self.average, summary.loss, *logged]
        self.inputs = [value if math.isfinite(value) else 0.0 for value in known]
        self.losses, self.decisions = [], self.decisions + 1
        self.share = self.draw()

    def reward(self) -> float:
        """Discounted falls of the loss over the steps under the present share."""
        falls = [before - after for before, after in itertools.pairwise(self.losses[: self.look_ahead + 1])]
        return sum(self.discount**i * max(fall, 0.0) for i, fall in enumerate(falls))

    def learn(self, reward: float) -> None:
        """Ascend the expected reward: REINFORCE with the reward in standard deviations from its mean so far."""
        count, mean, squares = self.rewards
        count, delta = count + 1, reward - mean
        mean += delta / count
        squares += delta * (reward - mean)
        self.rewards = [count, mean, squares]
        deviation = math.sqrt(squares / count)
        gradients = self.gradients((reward - mean) / deviation if deviation else 0.0)
        self.weights = [
            weight + self.learning_rate * gradient for weight, gradient in zip(self.weights, gradients, strict=True)
        ]

    def gradients(self, advantage: float) -> tuple[torch.Tensor, ...]:
        """Gradients on the weights: the score function of the share times its advantage, and the entropy's ceiling."""
        with torch.enable_grad():
            weights = [weight.detach().requires_grad_() for weight in self.weights]
            policy = self.policy(weights)
            excess = (policy.entropy() - self.entropy_target).clamp(min=0.0)
            share = torch.tensor(self.share, dtype=torch.float64)
            objective = advantage * policy.log_prob(share) - self.entropy_weight * excess**2
            return torch.autograd.grad(objective, weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as JSON."""
        names = ("rewards", "decisions", "average", "losses", "inputs", "share")
        return {"weights": [one.tolist() for one in self.weights]} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned."""
        weights = [torch.tensor(one, dtype=torch.float64) for one in state["weights"]]
        vars(self).update(state | {"weights": weights, "losses": list(state["losses"])})

    def draw(self) -> float:
        """Share of the present decision."""
        policy = self.policy(self.weights)
        draw = random.Random(f"exposure {self.seed} {self.decisions}")
        share = draw.betavariate(float(policy.concentration1), float(policy.concentration0))
        return min(max(share, LEAST), 1 - LEAST)
