"""Whatever our own OpenAPI document allows, and much it does not: no answer is a 500, and each has
the shape the document says."""

import schemathesis
from fake_engine import CARD, FakeEngine, characters
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from starlette.types import Receive, Scope, Send

from thinkgate_serve.app import create_app
from thinkgate_serve.model import Deployment

app = create_app(Deployment(FakeEngine(characters("<think>why</think>42")), CARD))


async def always_open(scope: Scope, receive: Receive, send: Send) -> None:
    """Schemathesis starts and stops an application around each request; ours stops for good."""
    if scope["type"] != "lifespan":
        await app(scope, receive, send)
        return
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


schema = schemathesis.openapi.from_asgi("/openapi.json", always_open)


@schema.parametrize()
@settings(
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_a_server_error_or_answered_otherwise(case: Case) -> None:
    case.call_and_validate(
        checks=[not_a_server_error, response_schema_conformance, status_code_conformance]
    )
