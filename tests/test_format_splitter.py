"""The splitter: golden texts at every cut, properties over arbitrary text, exact token counts.

`reference` states DESIGN's rules a second time, on a whole text with regular expressions, so that
the streaming code is never compared with itself.
"""

import codecs
import json
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thinkgate.errors import ConfigError
from thinkgate.format import THINK, Channel, Split, SplitStatus, Tags, ThinkSplitter, split

GOLDEN = json.loads((Path(__file__).parent / "golden" / "split.json").read_text("utf-8"))
EVERY_CUT_UP_TO = 17  # characters: 65,536 ways to cut


def reference(text: str, prefilled: bool, tags: Tags = THINK) -> Split:
    opening = re.escape(tags.open)
    start = re.match(rf"\s*(?:{opening})?\s*" if prefilled else rf"\s*{opening}\s*", text)
    if not start:
        return Split("", text, SplitStatus.UNTAGGED)
    reasoning, closing, answer = text[start.end() :].partition(tags.close)
    if not closing:
        return Split(reasoning, None, SplitStatus.TRUNCATED)
    return Split(reasoning.rstrip(), answer.lstrip(), SplitStatus.CLOSED)


@dataclass
class Stream:
    """What a client has received so far, checked as it arrives."""

    reasoning: str = ""
    answer: str = ""

    def take(self, deltas: list[tuple[Channel, str]]) -> None:
        channels = [channel for channel, _ in deltas]
        assert channels in ([], [Channel.REASONING], [Channel.ANSWER], list(Channel))
        assert all(text for _, text in deltas), "an empty delta"
        for channel, text in deltas:
            if channel is Channel.REASONING:
                assert not self.answer, "reasoning after the answer began"
                self.reasoning += text
            else:
                self.answer += text

    def result(self, splitter: ThinkSplitter) -> Split:
        if splitter.status is SplitStatus.TRUNCATED:
            assert not self.answer
            return Split(self.reasoning, None, splitter.status)
        return Split(self.reasoning, self.answer, splitter.status)


def streamed(pieces: list[str], prefilled: bool, tags: Tags = THINK) -> Split:
    splitter, stream = ThinkSplitter(prefilled, tags), Stream()
    for piece in pieces:
        stream.take(splitter.feed(piece))
    stream.take(splitter.close())
    return stream.result(splitter)


def cut(text: str, places: tuple[int, ...]) -> list[str]:
    ends = (*places, len(text))
    return [text[start:end] for start, end in zip((0, *places), ends, strict=True)]


# Golden texts


@pytest.fixture(params=GOLDEN, ids=[case["name"] for case in GOLDEN])
def golden(request):
    case = request.param
    expected = Split(case["reasoning"], case["answer"], SplitStatus(case["status"]))
    tags = Tags(*case["tags"]) if "tags" in case else THINK
    return case["text"], case["prefilled"], tags, expected


def test_golden_text_whole(golden):
    text, prefilled, tags, expected = golden
    assert split(text, prefilled, tags) == expected
    assert reference(text, prefilled, tags) == expected


def test_golden_text_at_every_cut(golden):
    """All 2**(n-1) ways to cut a short text; up to two cuts of a long one, and even pieces."""
    text, prefilled, tags, expected = golden
    short = len(text) <= EVERY_CUT_UP_TO
    inner = range(1, len(text))
    counts = range(max(1, len(text)) if short else 3)
    cuttings = [places for count in counts for places in combinations(inner, count)]
    assert not short or len(cuttings) == 2 ** max(0, len(text) - 1)
    cuttings += [tuple(range(size, len(text), size)) for size in inner]
    for places in cuttings:
        splitter, parts = ThinkSplitter(prefilled, tags), dict.fromkeys(Channel, "")
        deltas = [delta for piece in cut(text, places) for delta in splitter.feed(piece)]
        for channel, delta in (*deltas, *splitter.close()):
            parts[channel] += delta
        assert parts[Channel.REASONING] == expected.reasoning, places
        assert parts[Channel.ANSWER] == (expected.answer or ""), places
        assert splitter.status is expected.status, places


# Properties over arbitrary text

TAG_PIECES = "< </ </thi <think <think> </think> </think></think> <think><think> </think think> >"
NEAR_TAGS = "<THINK> << </</think> <answer> <r> </r> ◁think▷ ◁/think▷ ◁/ aab aa o"
WORDS = "a word é 漢 😀 e\u0301 \ufffd \u200b \ufeff \x00 \\boxed{1}"
SPACES = [
    "",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\x1c",
    "< think>",
    "</think >",
]
FRAGMENTS = [*TAG_PIECES.split(" "), *NEAR_TAGS.split(" "), *WORDS.split(" "), *SPACES]
fragments = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6))
lists = st.lists(fragments, max_size=14)
# Half the texts begin a thought, or few would get that far.
texts = st.builds(
    lambda start, rest: start + "".join(rest), st.sampled_from(["", "<think>"]), lists
)
all_tags = st.sampled_from(
    [THINK, Tags("◁think▷", "◁/think▷"), Tags("o", "aab"), Tags("<r", "</r")]
)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    """A text cut at any places, the same place several times among them (empty pieces)."""
    text = draw(texts)
    places = draw(st.lists(st.integers(0, len(text)), max_size=12))
    return cut(text, tuple(sorted(places)))


@given(cut_texts(), st.booleans(), all_tags)
@example([" ", "<think> ", "", "a ", "</", "", "think>", "\n", "b"], False, THINK)
@example(["ox", "aaa", "a", "abb"], False, Tags("o", "aab"))
@settings(max_examples=500)
def test_every_cutting_gives_the_same_result(pieces, prefilled, tags):
    text = "".join(pieces)
    expected = reference(text, prefilled, tags)
    assert streamed(pieces, prefilled, tags) == expected
    assert streamed(list(text), prefilled, tags) == expected
    assert split(text, prefilled, tags) == expected


@given(cut_texts(), st.booleans())
@settings(max_examples=500)
def test_nothing_but_tags_and_boundary_whitespace_is_lost_added_or_moved(pieces, prefilled):
    result = streamed(pieces, prefilled)
    reasoning, answer = re.escape(result.reasoning), re.escape(result.answer or "")
    opening = r"\s*(?:<think>)?\s*" if prefilled else r"\s*<think>\s*"
    whole = {
        SplitStatus.CLOSED: rf"{opening}{reasoning}\s*</think>\s*{answer}",
        SplitStatus.TRUNCATED: rf"{opening}{reasoning}",
        SplitStatus.UNTAGGED: answer,
    }[result.status]
    assert re.fullmatch(whole, "".join(pieces))


@given(cut_texts(), st.booleans())
@settings(max_examples=500)
def test_only_what_may_become_a_tag_or_boundary_whitespace_is_held(pieces, prefilled):
    splitter, stream, fed = ThinkSplitter(prefilled), Stream(), ""
    for piece in pieces:
        fed += piece
        stream.take(splitter.feed(piece))
        now = reference(fed, prefilled)
        assert splitter.status is now.status
        assert now.reasoning.startswith(stream.reasoning)
        assert (now.answer or "").startswith(stream.answer)
        held_thought = now.reasoning[len(stream.reasoning) :]
        held_answer = (now.answer or "")[len(stream.answer) :]
        tag = THINK.close if now.status is SplitStatus.TRUNCATED else THINK.open
        may_become_tag = (held_thought + held_answer).lstrip()
        if now.status is SplitStatus.CLOSED:
            assert not held_thought + held_answer
        elif prefilled and fed.lstrip() and THINK.open.startswith(fed.lstrip()):
            assert not stream.reasoning
        else:
            assert tag.startswith(may_become_tag) and may_become_tag != tag


@given(cut_texts(), st.booleans())
@settings(max_examples=500)
def test_closing_ends_the_text(pieces, prefilled):
    splitter = ThinkSplitter(prefilled)
    for piece in pieces:
        splitter.feed(piece)
    status = splitter.status
    splitter.close()
    assert splitter.close() == []
    assert splitter.status is status
    with pytest.raises(ValueError, match="after close"):
        splitter.feed("x")


@pytest.mark.parametrize("noise", [" <", "</thin", "<think>", "word", "a\n", "\n</think >"])
def test_state_stays_small(noise):
    """However long the thought, nothing older than the last tag or whitespace is kept."""
    splitter = ThinkSplitter(prefilled=True)
    for _ in range(10_000):
        splitter.feed(noise)
    assert sum(len(text) for _, text in splitter.close()) <= len(noise) + len(THINK.close)


# Token counts


def reasoning_pieces(pieces: list[str], prefilled: bool, tags: Tags = THINK) -> int:
    """How many pieces begin before the closing tag is complete."""
    text = "".join(pieces)
    status = reference(text, prefilled, tags).status
    if status is not SplitStatus.CLOSED:
        return len(pieces) if status is SplitStatus.TRUNCATED else 0
    opening = re.escape(tags.open)
    start = re.match(rf"\s*(?:{opening})?\s*", text)
    assert start
    end = text.index(tags.close, start.end()) + len(tags.close)
    starts, at = [], 0
    for piece in pieces:
        starts.append(at)
        at += len(piece)
    # An empty piece right behind the tag is the answer's.
    return sum(start < end for start in starts)


@given(cut_texts(), st.booleans())
@settings(max_examples=500)
def test_one_token_per_piece_is_counted_exactly(pieces, prefilled):
    splitter = ThinkSplitter(prefilled)
    for fed, piece in enumerate(pieces, 1):
        splitter.feed(piece, 1)
        assert splitter.reasoning_tokens + splitter.answer_tokens == fed
    splitter.close()
    assert splitter.reasoning_tokens == reasoning_pieces(pieces, prefilled)
    assert splitter.reasoning_tokens + splitter.answer_tokens == len(pieces)


@given(texts, st.booleans(), st.data())
@settings(max_examples=300)
def test_characters_cut_by_the_tokenizer(text, prefilled, data):
    """Tokens of single bytes: most carry no text of their own, and all are counted."""
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    places = data.draw(st.sets(st.integers(0, len(raw)), max_size=20))
    decoder = codecs.getincrementaldecoder("utf-8")()
    ends = (*sorted(places), len(raw))
    tokens = [raw[a:b] for a, b in zip((0, *sorted(places)), ends, strict=True)]
    splitter, stream = ThinkSplitter(prefilled), Stream()
    for token in tokens:
        stream.take(splitter.feed(decoder.decode(token), 1))
    stream.take(splitter.close())
    assert stream.result(splitter) == reference(raw.decode(), prefilled)
    assert splitter.reasoning_tokens + splitter.answer_tokens == len(tokens)


@pytest.mark.parametrize("prefilled", [True, False])
def test_untagged_tokens_wait_until_the_tag_decides(prefilled):
    splitter = ThinkSplitter(prefilled)
    for piece in ("\n", "<th", "ink", ">", "a", "</think>", "\n\n", "b"):
        splitter.feed(piece, 1)
    assert (splitter.reasoning_tokens, splitter.answer_tokens) == (6, 2)


VOCABULARY = [
    "<think>",
    "</think>",
    "</",
    "think",
    ">",
    "><",
    " a",
    "b\n",
    "",
    "é",
    ">b",
    " </",
    "<",
]
token_lists = st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=40)


def decode(ids: list[int]) -> str:
    return "".join(VOCABULARY[index] for index in ids)


@given(token_lists, st.booleans(), st.lists(st.integers(0, 5), max_size=40), st.integers(0, 9))
@settings(max_examples=500)
def test_ids_are_counted_exactly_however_deltas_merge_or_lag(ids, prefilled, sizes, lag):
    """`lag` characters are held back by the engine, as vLLM does where a stop string may begin."""
    splitter, stream, done, sent = ThinkSplitter(prefilled), Stream(), 0, 0
    for size in (*sizes, len(ids)):
        new = ids[done : done + size]
        done = min(done + size, len(ids))
        ready = decode(ids[:done])
        if done < len(ids):
            ready = ready[: max(sent, len(ready) - lag)]
        stream.take(splitter.feed_ids(ready[sent:], new, decode))
        sent = len(ready)
        assert splitter.reasoning_tokens + splitter.answer_tokens == done
    stream.take(splitter.close())
    pieces = [VOCABULARY[index] for index in ids]
    assert stream.result(splitter) == reference("".join(pieces), prefilled)
    assert splitter.reasoning_tokens == reasoning_pieces(pieces, prefilled)


@pytest.mark.parametrize("thought", [0, 1, 124, 125, 126, 127, 128, 5000])
@pytest.mark.parametrize("answer", [0, 1, 127, 5000])
def test_a_whole_output_given_at_once_is_counted_exactly(thought, answer):
    a, piece = VOCABULARY.index(" a"), [VOCABULARY.index(text) for text in ("</", "think", ">b")]
    ids = [0, *[a] * thought, *piece, *[a] * answer]
    decoded: list[int] = []

    def counting_decode(some: list[int]) -> str:
        decoded.append(len(some))
        return decode(some)

    splitter = ThinkSplitter()
    splitter.feed_ids(decode(ids), ids, counting_decode)
    assert (splitter.reasoning_tokens, splitter.answer_tokens) == (thought + 4, answer)
    assert sum(decoded) < 3 * len(ids) + 5000  # one pass, not one per token


def test_multi_byte_tags_over_a_byte_tokenizer():
    tags, text = Tags("◁think▷", "◁/think▷"), "◁think▷é漢◁/think▷漢😀"
    raw = text.encode()
    close_end = raw.index("◁/think▷".encode()) + len("◁/think▷".encode())
    splitter = ThinkSplitter(tags=tags)
    splitter.feed_ids(text, raw, lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert splitter.reasoning_tokens == close_end
    assert splitter.answer_tokens == len(raw) - close_end


# Tags


@pytest.mark.parametrize(
    "pair",
    [("", "</t>"), ("<t>", ""), (" <t>", "</t>"), ("<t>", "</t>\n"), ("<t>", "<t>"), ("<", "</t>")],
)
def test_tags_that_cannot_work_are_refused(pair):
    with pytest.raises(ConfigError, match="tag"):
        Tags(*pair)
