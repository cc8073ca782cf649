"""From a chat request to what is generated for it: what the chat endpoints share.

Owns what the fields of a request mean together: prompt, budget, the answer's shape, tools. It
does not know how the result is written.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from thinkgate_serve.disconnect import in_time
from thinkgate_serve.engine import BoundCalls, Constraint, NoSchema, RequestFailed, RequestRefused
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Plan, Thinking
from thinkgate_serve.model import Model
from thinkgate_serve.phases import EFFORTS, Phased, bounded
from thinkgate_serve.protocol import ChatRequest, ResponseFormat
from thinkgate_serve.tools import Reader, ToolParser, ToolUse

__all__ = ["Conversation", "prepare"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one request comes to."""

    plan: Plan
    choices: Sequence[Thinking]
    readers: Sequence[Reader]
    """One for each choice: what its answer says."""
    held: Collection[str]
    """Functions whose calls fit their schemas."""


async def prepare(model: Model, request: ChatRequest, parser: ToolParser | None) -> Conversation:
    """ApiError when the request asks for what cannot be done."""
    tools = await _tools(model, request, parser)
    constraint = tools.constraint or _shape(request.response_format)
    shaped_by = "tools" if tools.constraint else "response_format"
    if isinstance(constraint, Constraint) and constraint.schema is not None:
        await _keeps_to(model, constraint, "the schema", shaped_by)
    prompt = await model.render(
        request.messages,
        request.chat_template_kwargs or {},
        tools.shown,
        request.reasoning_history,
        thinking=request.reasoning_effort != "none",
    )
    plan = model.plan(
        request,
        prompt,
        request.limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        stop_in_reasoning=request.stop_in_reasoning,
        constraint=constraint,
        shaped_by=shaped_by,
        logprobs_in_reasoning=request.logprobs_in_reasoning,
        keep_ids=bool(request.stream and tools.shown),
    )
    readers = [tools.make_reader() for _ in range(request.consensus or request.n or 1)]
    if readers[0].keeps_special:
        plan = replace(plan, sampling=replace(plan.sampling, keep_special=True))
    if isinstance(constraint, BoundCalls) and not prompt.prefilled:
        # Free text that began unbound could not be told from a thought in time to begin anew.
        bound = constraint.unless_begun_with(plan.tags.open)
        plan = replace(plan, sampling=replace(plan.sampling, constraint=bound))
    budget = _budget(model, request, plan.sampling.max_tokens)
    if budget is not None:
        plan = replace(plan, thinking_budget=budget)
    kind = Phased if plan.phased else Thinking
    decode = model.engine.tokenizer.decode
    choices = [kind(index, plan, decode) for index in range(len(readers))]
    return Conversation(plan, choices, readers, tools.held)


async def _tools(model: Model, request: ChatRequest, parser: ToolParser | None) -> ToolUse:
    """Its tools; a function that need not be strict is not where its schema cannot be kept to."""
    tools = ToolUse.of(request, parser, model.engine.tokenizer)
    if not isinstance(tools.constraint, BoundCalls):
        return tools
    must = {tool.function.name for tool in tools.shown if tool.function.strict}
    loose: list[str] = []
    for name, schema in tools.constraint.arguments.items():
        whose = f"the schema of '{name}'"
        if not await _keeps_to(model, Constraint(schema), whose, "tools", name in must):
            loose.append(name)
    if loose:
        tools = ToolUse.of(request, parser, model.engine.tokenizer, loose)
    if not isinstance(tools.constraint, BoundCalls):
        return tools
    left = tools.constraint.arguments.keys()
    together = "all schemas of the tools together"
    if await _keeps_to(model, tools.constraint, together, "tools", left <= must):
        return tools
    tools = ToolUse.of(request, parser, model.engine.tokenizer, [*loose, *(left - must)])
    if isinstance(tools.constraint, BoundCalls):
        await _keeps_to(model, tools.constraint, together, "tools")
    return tools


def _budget(model: Model, request: ChatRequest, room: int) -> int | None:
    budget = request.thinking_budget
    if request.reasoning_effort is not None:
        budget = int(EFFORTS[request.reasoning_effort] * room)
    if budget is None:
        return None
    return bounded(budget, room, len(model.closings[1].ids))


def _shape(wanted: ResponseFormat | None) -> Constraint | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Constraint(None)
    schema = wanted.json_schema.json_schema
    if schema is None:
        raise ApiError(400, "response_format has no 'schema'", param="response_format")
    return Constraint(schema)


async def _keeps_to(
    model: Model, constraint: Constraint | BoundCalls, what: str, param: str, must: bool = True
) -> bool:
    """Whether vLLM keeps to it; ApiError 400 when it does not and `must`, and for a schema that
    is none."""
    try:
        async with in_time("the request's time was over before its schemas had been tried"):
            await model.engine.check_constraint(constraint)
    except RequestRefused as error:
        if not must and not isinstance(error, NoSchema):
            return False
        raise ApiError(400, f"{what} cannot be used: {error}", param=param) from error
    except RequestFailed as error:
        raise ApiError(500, f"{what} could not be tried: {error}", code="engine_error") from error
    return True
