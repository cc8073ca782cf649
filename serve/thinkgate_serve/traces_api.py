"""`/v1/traces`: looking at and deleting what the trace store keeps.

Owns who sees what: a key sees its own traces, an admin's key all, and without keys everybody does.
"""

from typing import Annotated, Any

from fastapi import FastAPI, Query

from thinkgate_serve.failures import ApiError
from thinkgate_serve.logs import EXCHANGE
from thinkgate_serve.service import Service
from thinkgate_serve.traces import Filter, TraceStatus, TraceStore

__all__ = ["add_traces"]

LARGEST_PAGE = 200


def add_traces(app: FastAPI, service: Service) -> None:
    """The routes; without a store each answers 404 and says how to have one."""

    @app.get("/v1/traces")
    async def traces(
        limit: Annotated[int, Query(ge=1, le=LARGEST_PAGE)] = 30,
        after: str | None = None,
        q: str | None = None,
        status: TraceStatus | None = None,
        model: str | None = None,
        request_id: str | None = None,
    ) -> dict[str, Any]:
        """Traces, newest first; `after` the id of the last one of the page before."""
        wanted = Filter(key=_only(service), q=q, status=status, model=model, request_id=request_id)
        page = await _store(service).page(wanted, limit, after)
        ids = [trace["id"] for trace in page.traces]
        return {
            "object": "list",
            "data": page.traces,
            "has_more": page.has_more,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
        }

    @app.get("/v1/traces/{trace_id}")
    async def trace(trace_id: str) -> dict[str, Any]:
        """One trace: request, thoughts, answers, usage, timings, model and decision."""
        found = await _store(service).get(trace_id, _only(service))
        if found is None:
            raise _unknown(trace_id)
        return found

    @app.delete("/v1/traces/{trace_id}")
    async def delete(trace_id: str) -> dict[str, Any]:
        """Forget one trace."""
        if not await _store(service).delete(trace_id, _only(service)):
            raise _unknown(trace_id)
        return {"id": trace_id, "object": "trace", "deleted": True}


def _store(service: Service) -> TraceStore:
    if service.settings.traces is None:
        raise ApiError(
            404, "this server keeps no traces; --traces FILE makes it", code="traces_off"
        )
    return service.settings.traces


def _only(service: Service) -> str | None:
    """The key whose traces the request may see; None is all of them."""
    exchange = EXCHANGE.get()
    name = exchange.key if exchange is not None else None
    mine = next((key for key in service.keyring.keys if key.name == name), None)
    return None if mine is None or mine.admin else mine.name


def _unknown(trace_id: str) -> ApiError:
    return ApiError(404, f"there is no trace '{trace_id[:80]}'", code="trace_not_found")
