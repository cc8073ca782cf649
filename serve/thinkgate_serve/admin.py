"""`/admin/deploy`: deploying on demand, and how deploys went. For admin keys only.

Owns these two endpoints; whose key it is was checked in `middleware.py`.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import Field

from thinkgate_serve.deploy import Busy, Deployer
from thinkgate_serve.failures import ApiError
from thinkgate_serve.messages import Body

__all__ = ["add_admin"]


class DeployRequest(Body):
    """What to deploy."""

    target: str | None = Field(None, min_length=1)
    """Registry alias or checkpoint folder; None is what the server was started with, as it is
    now."""


def add_admin(app: FastAPI, deployer: Deployer) -> None:
    """Add the endpoints."""

    @app.post("/admin/deploy", status_code=202)
    async def deploy(body: DeployRequest | None = None) -> dict[str, Any]:
        """Begin a deploy; GET the same path for how it goes."""
        try:
            deployer.start(body.target if body else None)
        except Busy as error:
            raise ApiError(409, str(error), code="deploy_running") from error
        return deployer.status()

    @app.get("/admin/deploy")
    async def status() -> dict[str, Any]:
        """What is served, the deploy under way, and how the last ones went."""
        return deployer.status()
