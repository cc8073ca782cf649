"""`thinkgate batch`: files of requests, both forms, resumed after whatever happened."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.cli import main
from thinkgate_clients.local import LocalServer


def script(body: dict[str, Any]) -> Says | Fails:
    question = prompt_of(body)
    if question == "bad":
        return Fails(400, {"message": "too long"})
    return Says(f"answer to {question}", f"thought about {question}")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path, *entries: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def batch(source: Path, out: Path, endpoint: ScriptedEndpoint, *more: str) -> int:
    return main(["batch", str(source), str(out), endpoint.base_url, *more])


def test_every_request_gets_a_result_with_thought_and_answer_apart(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"prompt": "1+1", "temperature": 0.5},
        {"id": "b", "messages": [{"role": "user", "content": "2+2"}]},
    )
    with ScriptedEndpoint(script) as endpoint:
        assert batch(source, tmp_path / "o" / "out.jsonl", endpoint, "--temperature", "1") == 0
        asked = {prompt_of(r): r["temperature"] for r in endpoint.requests}
    assert asked == {"1+1": 0.5, "2+2": 1.0}
    found = {line["id"]: line for line in lines(tmp_path / "o" / "out.jsonl")}
    assert found.keys() == {"line-1", "b"}
    first = found["line-1"]
    assert (first["prompt"], first["reasoning"]) == ("1+1", "thought about 1+1")
    assert (first["answer"], first["status"], first["error"]) == ("answer to 1+1", "closed", None)
    assert (first["reasoning_tokens"], first["answer_tokens"]) == (7, 3)


def test_openais_format_gets_openais_format(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "1+1"}], "max_tokens": 9}
    entry = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    source = write(tmp_path / "in.jsonl", entry)
    with ScriptedEndpoint(script) as endpoint:
        assert batch(source, tmp_path / "out.jsonl", endpoint) == 0
        assert endpoint.requests[0]["max_tokens"] == 9
        assert endpoint.requests[0]["model"] == "scripted"
    (result,) = lines(tmp_path / "out.jsonl")
    assert (result["custom_id"], result["error"]) == ("r1", None)
    assert result["response"]["status_code"] == 200
    message = result["response"]["body"]["choices"][0]["message"]
    assert message["content"] == "answer to 1+1"
    assert message["reasoning_content"] == "thought about 1+1"


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"id": i, "prompt": f"q{i}"} for i in range(3)]
    source, out = write(tmp_path / "in.jsonl", *entries), tmp_path / "out.jsonl"
    with ScriptedEndpoint(script) as endpoint:
        assert batch(source, out, endpoint) == 0
        whole = out.read_text().splitlines(keepends=True)
        out.write_text("".join(whole[:2]) + whole[2][:20])  # killed while it wrote
        write(source, *entries, {"id": "new", "prompt": "bad"})
        assert batch(source, out, endpoint) == 1
        assert len(endpoint.requests) == 3 + 2
        assert [line["id"] for line in lines(out)[:2]] == [json.loads(w)["id"] for w in whole[:2]]
        failed = next(line for line in lines(out) if line["id"] == "new")
        assert "too long" in failed["error"]
        write(source, *entries, {"id": "new", "prompt": "good"})  # mended: asked again
        assert batch(source, out, endpoint) == 0
        assert len(endpoint.requests) == 6
        assert batch(source, out, endpoint) == 0
        assert len(endpoint.requests) == 6
    assert lines(out)[-1]["answer"] == "answer to good"


def test_a_server_that_is_gone_stops_it_and_what_was_done_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "a"})
    arguments = ["batch", str(source), str(tmp_path / "out.jsonl"), "http://127.0.0.1:9/v1"]
    assert main([*arguments, "--model", "m"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is the server running?" in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "in.jsonl:1: not JSON"),
        ("[1]", "in.jsonl:1: not a JSON object"),
        ('{"question": "a"}', "in.jsonl:1: neither a 'prompt', nor 'messages', nor a 'custom_id'"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}', "the id '1' is there twice"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "only requests to /v1/chat"),
        ('{"custom_id": "a", "body": {"stream": true}}', "'stream' has no place in a batch"),
        ("", "no requests in it"),
    ],
)
def test_a_mistake_in_the_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    assert main(["batch", str(source), str(tmp_path / "out.jsonl"), "http://h/v1"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_another_file_is_not_appended_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "a"})
    assert main(["batch", str(source), str(source), "http://h/v1"]) == 2
    assert "is no result of a batch" in capsys.readouterr().err
    assert lines(source) == [{"prompt": "a"}]


@pytest.mark.slow
def test_votes_of_a_real_server(served: LocalServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "closed"})
    out = tmp_path / "out.jsonl"
    arguments = ["batch", str(source), str(out), served.base_url, "--consensus", "3"]
    assert main([*arguments, "--temperature", "0.1"]) == 0
    (result,) = lines(out)
    assert (result["reasoning"], result["answer"]) == ("7+8=15", "15")
    assert result["votes"]["15"] >= 2 and result["agreement"] > 0.6
    assert len(result["model_digest"]) == 64
