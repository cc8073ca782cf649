"""What xgrammar, which vLLM holds answers to, accepts: characters are its tokens."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

CHARACTERS = [*map(chr, range(32, 127)), "\n"]
END = len(CHARACTERS)
"""The token that ends a text."""


@cache
def compiler() -> Any:
    import xgrammar

    vocabulary = xgrammar.TokenizerInfo([*CHARACTERS, "<eos>"], stop_token_ids=[END])
    return xgrammar.GrammarCompiler(vocabulary)


def accepts(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether `value` is what a JSON schema's grammar lets through."""
    import xgrammar

    grammar = compiler().compile_json_schema(json.dumps(schema))
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(json.dumps(value)) and matcher.is_terminated()


def matcher(format: Mapping[str, Any]) -> Any:
    """Of a structural tag's format, at its beginning."""
    import xgrammar

    tag = json.dumps({"type": "structural_tag", "format": format})
    return xgrammar.GrammarMatcher(compiler().compile_structural_tag(tag))
