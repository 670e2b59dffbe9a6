# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rewards, or other rollouts of a prompt, must be there where a method or a source looks at them: said when built."""

import pytest
from datasets import Dataset

from conftest import length_reward
from trl_opsd import View, preflight
from trl_opsd.methods import method_names, method_of
from trl_opsd.privileged import SiblingSuccess, rollouts_of


NO_MODEL = "no/such-model"  # loading it would be another error
NO_REWARD = r"looks at rewards, and this run has none\. Give a reward function"
NO_GROUP = "looks at other rollouts of a prompt, and `num_generations=1` gives none"

OF_REWARDS = {
    "sibling": "The source `sibling`",
    "reflection": "The source `reflection`",
    "wrong_demonstration": "The source `wrong_demonstration`",
    "a first one": "The source `sibling`",
    "feedback": "The source `feedback`",
    "failed": "The condition `failed`",
    "reward_from": "The condition `reward_from`",
    "above_group_mean": "The condition `above_group_mean`",
    "with baselines": "The source `sibling`",
}
SPECS = {
    "a first one": {"first_of": ["column", {"all_of": ["column", "sibling"]}]},
    "feedback": {"feedback": {"skip_successes": True}},
    "failed": {"when": {"condition": "failed", "source": "column"}},
    "reward_from": {"first_of": [{"when": {"condition": {"reward_from": 1}, "source": "column"}}]},
    "above_group_mean": {"when": {"condition": "above_group_mean", "source": "column"}},
    "consensus": {"when": {"condition": "consensus", "source": "column"}},
    "with baselines": {"with_baselines": {"source": "sibling"}},
}


@pytest.mark.parametrize("name", OF_REWARDS)
def test_a_source_of_rewards_in_a_run_without(make_trainer, name):
    with pytest.raises(ValueError, match=rf"^{OF_REWARDS[name]} {NO_REWARD}"):
        make_trainer(model=NO_MODEL, privileged_source=SPECS.get(name, name), num_generations=2)


OF_GROUPS = {
    "sibling": "The source `sibling`",
    "reflection": "The source `reflection`",
    "wrong_demonstration": "The source `wrong_demonstration`",
    "pseudo_reference": "The source `pseudo_reference`",
    "above_group_mean": "The condition `above_group_mean`",
    "consensus": "The condition `consensus`",
}


@pytest.mark.parametrize("name", OF_GROUPS)
def test_a_source_of_groups_in_a_run_of_single_rollouts(make_trainer, name):
    options = {"num_generations": 1, "policy_weight": 0.0, "reward_funcs": length_reward}
    with pytest.raises(ValueError, match=rf"^{OF_GROUPS[name]} {NO_GROUP}"):
        make_trainer(model=NO_MODEL, privileged_source=SPECS.get(name, name), **options)


ALONE = [
    {"sibling": {"exclude_own": False}},
    {"reflection": {"reference": "privileged_context"}},
    {"reflection": {"failed_groups": True}},
    {"wrong_demonstration": "privileged_context"},
    {"when": {"condition": "group_failed", "source": "column"}},
]


@pytest.mark.parametrize("spec", ALONE, ids=str)
def test_what_a_single_rollout_gives_is_enough(make_trainer, spec):
    make_trainer(privileged_source=spec, num_generations=1, policy_weight=0.0, reward_funcs=length_reward)


METHODS = [name for name in method_names() if "a reward" in method_of(name).needs]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_needs_a_reward_says_so_before_the_model_is_loaded(make_trainer, name):
    with pytest.raises(ValueError, match=rf"(looks at rewards, and this run has none|'{name}' learns from rewards)"):
        make_trainer(
            model=NO_MODEL, method=name, num_generations=12, per_device_train_batch_size=12, dataset=everything()
        )


def test_the_method_is_named(make_trainer):
    with pytest.raises(ValueError, match=r"`sibling` looks at rewards.* It is a source of the method 'sdpo'\.$"):
        make_trainer(model=NO_MODEL, method="sdpo", num_generations=2)
    with pytest.raises(ValueError, match=r"`consensus` looks at other .* It is a source of the method 'gates'\.$"):
        make_trainer(model=NO_MODEL, method="gates")
    with pytest.raises(ValueError, match="The method 'cgtr' looks at rewards"):
        make_trainer(model=NO_MODEL, method="cgtr")


def everything():
    """Every column that a method's source may name."""
    texts = dict.fromkeys(("privileged_context", "solution", "answer"), "A text of 2 words.")
    return Dataset.from_list([{"prompt": [{"role": "user", "content": f"What is {i}?"}], **texts} for i in range(8)])


def test_a_source_of_ones_own_says_what_it_needs(make_trainer):
    class Own:
        needs_reward = needs_groups = True

        def __call__(self, groups):
            return [[View("Think!")] for _ in rollouts_of(groups)]

    with pytest.raises(ValueError, match=f"^The source `Own` {NO_REWARD}"):
        make_trainer(model=NO_MODEL, privileged=Own(), num_generations=2)
    with pytest.raises(ValueError, match=f"^The source `Own` {NO_GROUP}"):
        make_trainer(model=NO_MODEL, privileged=Own(), num_generations=1, policy_weight=0.0, reward_funcs=length_reward)
    make_trainer(privileged=Own(), reward_funcs=length_reward)


def test_a_source_to_compare_with(make_trainer):
    with pytest.raises(ValueError, match=f"`sibling` {NO_REWARD}"):
        preflight(make_trainer(num_generations=2), 4, sources={"sibling": SiblingSuccess()})
