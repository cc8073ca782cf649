"""Preflight: what is looked at before anything is trained, and what is refused."""

from thinkgate_train.preflight.checks import preflight, require_chat_template

__all__ = ["preflight", "require_chat_template"]
