"""Rewards: the shipped functions, the user's own, judges and reward models, and how they add up."""

from thinkgate_train.rewards.function import RewardFunction, Splitter, text_of
from thinkgate_train.rewards.shipped import REWARDS, build, known

__all__ = ["REWARDS", "RewardFunction", "Splitter", "build", "known", "text_of"]
