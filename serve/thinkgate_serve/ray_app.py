"""The server as a Ray Serve application: replicas over machines, scaled by their load.

    serve run thinkgate_serve.ray_app:app target=production registry=/models/registry

Owns how a replica is made, watched and ended. Each verifies and loads the checkpoint itself and
answers with the very application `thinkgate serve` runs, over a vLLM engine of its own; Ray only
chooses the replica. Arguments are the keys of `serve.yaml` (see `options.py`), with `replicas`,
`max_replicas`, `target_requests`, `gpus` and `cpus` beside them.
"""

from typing import Annotated, Any

from pydantic import Field
from ray import serve

from thinkgate.config import Config, apply_overrides, parse
from thinkgate.errors import ConfigError
from thinkgate.registry import Registry
from thinkgate_serve.adapters import find_adapters, lora_options
from thinkgate_serve.app import create_app
from thinkgate_serve.card import find_target
from thinkgate_serve.model import Deployment
from thinkgate_serve.options import ServeConfig

__all__ = ["Replica", "app"]

SOURCE = "the Ray application's arguments"


class Scale(Config):
    """How many replicas, and what each takes."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """At least so many."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """At most so many, by load; None is exactly `replicas`."""
    target_requests: Annotated[float, Field(gt=0)] = 16
    """Requests running on a replica beyond which another is started."""
    gpus: Annotated[float, Field(ge=0)] = 1
    """Of one replica: its tensor_parallel_size times its pipeline_parallel_size. 0 on CPUs."""
    cpus: Annotated[float, Field(gt=0)] = 1


@serve.ingress()
class Replica:
    """One engine and the application in front of it."""

    def __init__(self, config: dict[str, Any]) -> None:
        chosen = parse(ServeConfig, config, SOURCE)
        registry, ungated = Registry(chosen.registry), chosen.allow_ungated
        card = find_target(
            chosen.target, registry=registry, allow_ungated=ungated, name=chosen.model_name
        )
        adapters = find_adapters(chosen.lora, card, registry=registry, allow_ungated=ungated)
        options = lora_options(adapters) | chosen.engine_options()
        # Ray's workers have threads and a running loop: nothing to fork.
        self._deployment = Deployment.load(
            card, adapters, options, schema_seconds=chosen.max_schema_seconds, fork=False
        )
        self._app = create_app(self._deployment, chosen.settings())

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        if not await self._deployment.engine.ready():
            raise RuntimeError("the engine does not answer")

    def __del__(self) -> None:
        self._deployment.stop()


def app(arguments: dict[str, Any]) -> serve.Application:
    """Ray's application builder. ConfigError for an unknown key or a bad value.

    Words of a command line (`engine.dtype=float32`) come as text by dotted key.
    """
    words = [f"{key}={value}" for key, value in arguments.items() if isinstance(value, str)]
    typed = {key: value for key, value in arguments.items() if not isinstance(value, str)}
    merged = apply_overrides(typed, words)
    given = {key: value for key, value in merged.items() if key in Scale.model_fields}
    rest = {key: value for key, value in merged.items() if key not in given}
    scale = parse(Scale, given, SOURCE)
    parse(ServeConfig, rest, SOURCE).settings()
    if scale.max_replicas is not None and scale.max_replicas < scale.replicas:
        raise ConfigError(
            f"max_replicas is {scale.max_replicas}, fewer than the {scale.replicas} replicas"
        )
    options: dict[str, Any] = {"num_replicas": scale.replicas}
    if scale.max_replicas is not None:
        options = {
            "autoscaling_config": {
                "min_replicas": scale.replicas,
                "max_replicas": scale.max_replicas,
                "target_ongoing_requests": scale.target_requests,
            }
        }
    deployment: Any = serve.deployment(
        Replica,
        name="thinkgate",
        ray_actor_options={"num_gpus": scale.gpus, "num_cpus": scale.cpus},
        max_ongoing_requests=1024,
        graceful_shutdown_timeout_s=60,
        health_check_period_s=5,
        **options,
    )
    return deployment.bind(rest)
