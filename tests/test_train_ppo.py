"""PPO's arithmetic against slow references, and the options it refuses."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def ppo() -> ModuleType:
    """The module under test; loads torch, so not when tests are collected."""
    import thinkgate_train.ppo

    return thinkgate_train.ppo


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[int]]:
    """Rewards, values and lengths of padded rows; the padding holds numbers too."""
    count, width = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    row = st.lists(st.floats(-3, 3), min_size=width, max_size=width)
    rows = st.lists(row, min_size=count, max_size=count)
    lengths = draw(st.lists(st.integers(0, width), min_size=count, max_size=count))
    return draw(rows), draw(rows), lengths


def estimate(
    ppo: ModuleType, case: Any, gamma: float, lam: float
) -> tuple[list[list[float]], list[list[float]]]:
    import torch

    rewards, values, lengths = case
    mask = torch.tensor([[float(t < n) for t in range(len(rewards[0]))] for n in lengths])
    given = (torch.tensor(x, dtype=torch.float64) for x in (rewards, values))
    advantages, returns = ppo.advantages_and_returns(*given, mask, gamma, lam)
    return advantages.tolist(), returns.tolist()


def close(found: list[list[float]], wanted: list[list[float]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@given(case=rollouts(), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_advantages_are_the_discounted_sum_of_td_errors(
    ppo: ModuleType, case: Any, gamma: float, lam: float
) -> None:
    wanted = []
    for rewards, values, n in zip(*case, strict=True):
        ahead = [*values[1:n], 0.0]
        delta = [rewards[t] + gamma * ahead[t] - values[t] for t in range(n)]
        sums = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]
        wanted.append(sums + [0.0] * (len(rewards) - n))
    advantages, returns = estimate(ppo, case, gamma, lam)
    close(advantages, wanted)
    values = [
        [v if t < n else 0.0 for t, v in enumerate(r)] for r, n in zip(*case[1:], strict=True)
    ]
    close(
        returns,
        [[a + v for a, v in zip(*r, strict=True)] for r in zip(wanted, values, strict=True)],
    )


@given(case=rollouts(), gamma=st.floats(0, 1))
def test_with_lambda_1_returns_are_what_was_earned(
    ppo: ModuleType, case: Any, gamma: float
) -> None:
    earned = []
    for rewards, _, n in zip(*case, strict=True):
        sums = [sum(gamma ** (k - t) * rewards[k] for k in range(t, n)) for t in range(n)]
        earned.append(sums + [0.0] * (len(rewards) - n))
    close(estimate(ppo, case, gamma, 1.0)[1], earned)


@given(case=rollouts(), gamma=st.floats(0, 1))
def test_with_lambda_0_advantages_are_td_errors(ppo: ModuleType, case: Any, gamma: float) -> None:
    errors = []
    for rewards, values, n in zip(*case, strict=True):
        ahead = [*values[1:n], 0.0]
        own = [rewards[t] + gamma * ahead[t] - values[t] for t in range(n)]
        errors.append(own + [0.0] * (len(rewards) - n))
    close(estimate(ppo, case, gamma, 0.0)[0], errors)


@given(
    log_ratio=st.floats(-1.5, 1.5),
    advantage=st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3),
    cliprange=st.floats(0.05, 0.5),
)
def test_the_policy_loss_stops_pushing_a_ratio_that_has_gone_far_enough(
    ppo: ModuleType, log_ratio: float, advantage: float, cliprange: float
) -> None:
    import torch

    change = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    ppo.policy_loss(change, torch.tensor(advantage, dtype=torch.float64), cliprange).backward()
    ratio = change.detach().exp().item()
    assert change.grad is not None
    far = ratio > 1 + cliprange if advantage > 0 else ratio < 1 - cliprange
    # On the other side of the range too, what moved against its advantage is pulled back.
    assert change.grad.item() == (0 if far else pytest.approx(-ratio * advantage))


@given(*[st.floats(-3, 3)] * 3, st.floats(0.01, 1))
def test_the_value_loss_is_never_less_than_half_the_squared_error(
    ppo: ModuleType, value: float, old: float, target: float, cliprange: float
) -> None:
    import torch

    now, before, wanted = (torch.tensor(x, dtype=torch.float64) for x in (value, old, target))
    plain = 0.5 * (value - target) ** 2
    clipped = ppo.value_loss(now, before, wanted, cliprange).item()
    assert ppo.value_loss(now, before, wanted, None).item() == pytest.approx(plain)
    assert clipped >= plain - 1e-12
    if abs(value - old) <= cliprange:
        assert clipped == pytest.approx(plain)


def test_a_value_that_has_moved_far_enough_towards_its_return_rests(ppo: ModuleType) -> None:
    import torch

    value = torch.tensor([0.5, 0.1, -0.5], requires_grad=True)
    ppo.value_loss(value, torch.zeros(3), torch.ones(3), 0.2).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([0.0, -0.9, -1.5])


@given(st.integers(2, 6).flatmap(lambda n: st.tuples(*[st.tuples(*[st.floats(-4, 4)] * n)] * 2)))
def test_the_logged_divergence_is_unbiased_and_never_negative(ppo: ModuleType, both: Any) -> None:
    import torch

    p, q = (torch.tensor(logits, dtype=torch.float64).log_softmax(0) for logits in both)
    exact = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
    estimates = ppo.divergence(p, q)
    assert (p.exp() * estimates).sum().item() == pytest.approx(exact, abs=1e-9)
    assert (estimates >= -1e-12).all()
    assert not ppo.divergence(p, p).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0.1}, "'beta' is an option of GRPO, not of PPO; set 'kl_coef'"),
        ({"num_iterations": 2}, "set 'num_ppo_epochs'"),
        ({"num_generations": 8}, "'num_generations' is an option of GRPO, not of PPO; leave it"),
        ({"loss_type": "grpo"}, "'loss_type'"),
        ({"num_mini_batches": 0}, "'num_mini_batches' is 0; it must be 1 or more"),
        ({"lam": 1.5}, "'lam' is 1.5; it must be from 0 to 1"),
        ({"per_device_train_batch_size": 1}, "at least 2 rollouts"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    ppo: ModuleType, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ppo.PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_a_batch_of_rollouts_is_all_mini_batches(ppo: ModuleType, tmp_path: Path) -> None:
    config = ppo.PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        num_mini_batches=5,
    )
    assert (config.generation_batch_size, config.num_generations) == (30, 1)
