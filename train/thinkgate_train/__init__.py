"""Training: SFT and GRPO on TRL, rewards and plots."""
