"""The gate's decision as an in-toto test-result attestation, for anyone's policy engine.

Owns what the statement says and what it is bound to: every model file, the policy, the decision
and the data. https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
"""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

from thinkgate.checkpoint import DECISION, META, Checkpoint, Decision, GateVerdict, is_model_file
from thinkgate.errors import CheckpointError
from thinkgate.provenance.envelope import STATEMENT_TYPE, Statement

__all__ = ["ATTESTATION", "check_statement", "test_result"]

ATTESTATION = "decision.intoto.json"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
# INCONCLUSIVE is FAILED to the outside: whoever asks only "did it pass?" must hear no.
RESULTS = {
    GateVerdict.PASS: "PASSED",
    GateVerdict.FAIL: "FAILED",
    GateVerdict.INCONCLUSIVE: "FAILED",
}


def test_result(
    checkpoint: Checkpoint, decision: Decision, digests: Mapping[str, str]
) -> dict[str, Any]:
    """The statement about `checkpoint`, whose files have these SHA-256 `digests`."""
    named = [(f"{rule.rule} on {rule.suite}", rule.verdict) for rule in decision.rules]
    return {
        "_type": STATEMENT_TYPE,
        "subject": _subjects(digests),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": RESULTS[decision.verdict],
            "configuration": _bindings(checkpoint, decision, digests),
            "passedTests": [name for name, verdict in named if verdict is GateVerdict.PASS],
            "warnedTests": [],
            "failedTests": [name for name, verdict in named if verdict is not GateVerdict.PASS],
        },
    }


def check_statement(
    statement: Statement,
    checkpoint: Checkpoint,
    decision: Decision,
    digests: Mapping[str, str],
) -> None:
    """CheckpointError naming the first thing `statement` says otherwise than the folder."""
    expected = test_result(checkpoint, decision, digests)
    for key in ("predicateType", "subject"):
        if statement.get(key) != expected[key]:
            what = "other model files" if key == "subject" else "something other than a gate"
            raise CheckpointError(f"it is about {what}")
    predicate: Any = statement.get("predicate")
    if not isinstance(predicate, dict):
        raise CheckpointError("it has no predicate")
    said = cast("dict[str, Any]", predicate)
    for key, value in expected["predicate"].items():
        if said.get(key) != value:
            raise CheckpointError(f"its '{key}' is not that of decision {decision.id}")


def _subjects(digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each model file by its own SHA-256, so that a weights file found alone can be looked up."""
    return [_resource(name, digests[name]) for name in sorted(digests) if is_model_file(name)]


def _bindings(
    checkpoint: Checkpoint, decision: Decision, digests: Mapping[str, str]
) -> list[dict[str, Any]]:
    facts = {
        "verdict": str(decision.verdict),
        "id": decision.id,
        "model_digest": checkpoint.digest,
        "template": checkpoint.manifest.template.digest,
        "incumbent": decision.incumbent or "",
    }
    decided = f"{META}/{DECISION}"
    return [
        _resource(f"policy:{decision.policy}", decision.policy_sha256),
        _resource(decided, digests[decided]) | {"annotations": facts},
        *(
            _resource(f"suite:{name}", hashlib.sha256(fingerprint.encode()).hexdigest())
            | {"annotations": {"fingerprint": fingerprint}}
            for name, fingerprint in sorted(decision.suites.items())
        ),
        *(
            _resource(name, digests[name])
            for name in sorted(digests)
            if name.startswith(f"{META}/") and name.endswith(".jsonl")
        ),
        *(
            _resource(f"training-data:{data.name}", data.sha256)
            for data in checkpoint.manifest.data
        ),
    ]


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
