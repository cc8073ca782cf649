"""Serving: an OpenAI-compatible HTTP server over in-process vLLM."""
