"""What training, evaluation, serving and clients share: one meaning of reasoning, answer, correct.

Importing this package imports nothing heavy; torch, vLLM, TRL and lm-eval load inside the
functions that need them.
"""

__version__ = "0.1.0"
