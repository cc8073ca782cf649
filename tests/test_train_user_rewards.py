"""The user's own reward functions: the tutorials' paste in and run, mistakes are one sentence."""

import asyncio
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from thinkgate.errors import ConfigError, TrainingError
from thinkgate.format import split
from thinkgate_train.rewards import REWARDS, build
from thinkgate_train.rewards.judges import JudgeArguments
from thinkgate_train.rewards.model import RewardModelArguments

TUTORIAL = '''
def reward_length(completions, **kwargs):
    """Reward completions close to ideal length."""
    ideal_length = 50
    return [-abs(ideal_length - len(c)) for c in completions]

import re

def reward_format(completions, **kwargs):
    """Reward proper think-then-answer format."""
    pattern = r"<think>.*?</think>\\s*<answer>.*?</answer>"
    return [1.0 if re.search(pattern, c, re.DOTALL) else 0.0 for c in completions]

def reward_correctness(completions, answers, **kwargs):
    """Reward correct answers for math problems."""
    rewards = []
    for completion, correct in zip(completions, answers):
        try:
            extracted = extract_answer(completion)  # Your parsing logic
            rewards.append(1.0 if extracted == correct else 0.0)
        except:
            rewards.append(0.0)
    return rewards

def reward_unique_chars(completions, **kwargs):
    """Reward completions with more unique characters."""
    return [len(set(c)) for c in completions]

ideal_length = 50
def reward_len(completions, **kwargs):
    return [-abs(ideal_length - len(c)) for c in completions]

def format_reward(completions, **kwargs):
    pattern = r"<think>.*?</think>.*?<answer>.*?</answer>"
    return [1.0 if re.search(pattern, c, re.DOTALL) else 0.0 for c in completions]

def length_reward(completions, **kwargs):
    return [-abs(100 - len(c)) for c in completions]

def extract_answer(completion):
    return completion.split("<answer>")[1].split("</answer>")[0]
'''


def scores(
    name: str, completions: list[Any], args: dict[str, Any] | None = None, **columns: Any
) -> list[float | None]:
    prompts = ["?"] * len(completions)
    return build(name, split, args or {})(prompts=prompts, completions=completions, **columns)


Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file of the user's and return its path; what it adds to the path is undone."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    files = iter(range(100))

    def one(code: str) -> str:
        file = tmp_path / f"mine{next(files)}.py"
        file.write_text(code, encoding="utf-8")
        return str(file)

    return one


@pytest.mark.parametrize("conversational", [False, True])
def test_the_tutorials_functions_paste_in_and_run(write: Write, conversational: bool) -> None:
    file = write(TUTORIAL)
    texts = ["<think>1+1</think>\n<answer>2</answer>", "<think>1+1</think>2", "x" * 50]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    completions: list[Any] = messages if conversational else texts
    lengths = [len(text) for text in texts]
    columns = {"gold": ["2"] * 3, "answers": ["2"] * 3}
    expected = {
        "reward_length": [-abs(50 - n) for n in lengths],
        "reward_len": [-abs(50 - n) for n in lengths],
        "length_reward": [-abs(100 - n) for n in lengths],
        "reward_format": [1, 0, 0],
        "format_reward": [1, 0, 0],
        "reward_correctness": [1, 0, 0],
        "reward_unique_chars": [len(set(text)) for text in texts],
    }
    for name, values in expected.items():
        reward = build(f"{file}:{name}", split, {})
        assert reward.__name__ == name
        assert reward(prompts=["?"] * 3, completions=completions, **columns) == values, name


def test_shipped_rewards_are_the_tutorials_too(write: Write) -> None:
    file = write(TUTORIAL)
    texts = ["<think>a</think>b", "", "x" * 77]
    for theirs, ours in (("reward_length", "length_target"), ("reward_unique_chars",) * 2):
        name = {"reward_unique_chars": "unique_characters"}.get(ours, ours)
        assert scores(f"{file}:{theirs}", texts) == scores(name, texts)


def test_a_missing_column_is_named_and_can_be_mapped(write: Write) -> None:
    name = f"{write(TUTORIAL)}:reward_correctness"
    with pytest.raises(TrainingError, match=r"takes 'answers', .*columns: gold.*{answers: gold}"):
        scores(name, ["2"], gold=["2"])
    said = ["<answer>2</answer>"]
    assert scores(name, said, {"columns": {"answers": "gold"}}, gold=["2"]) == [1]
    with pytest.raises(TrainingError, match="needs the column 'nil'"):
        scores(name, said, {"columns": {"answers": "nil"}}, gold=["2"])


def test_what_the_function_is_given(write: Write) -> None:
    file = write(
        "seen = []\n"
        "def look(prompts, completions, **rest):\n"
        "    seen.append((prompts, completions, rest))\n"
        "    return [0] * len(prompts)\n"
        "def narrow(completions, gold, bonus=0):\n"
        "    return [bonus + len(g) for g in gold]\n"
    )
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    completion = [{"role": "assistant", "content": "a"}]
    batch: dict[str, Any] = {"prompts": [prompt], "completions": [completion], "gold": ["g"]}
    build(f"{file}:look", split, {"weight": 3})(**batch)
    build(f"{file}:look", split, {"completions": "messages"})(**batch)
    module = next(m for n, m in sys.modules.items() if getattr(m, "__file__", None) == file)
    assert module.seen == [
        (["q"], ["a"], {"gold": ["g"], "weight": 3}),
        ([prompt], [completion], {"gold": ["g"]}),
    ]
    # No **kwargs: it gets what it names, and an argument it does not name is a mistake.
    assert build(f"{file}:narrow", split, {"bonus": 5})(**batch) == [6]
    with pytest.raises(ConfigError, match="unknown argument 'bnus'; did you mean 'bonus'"):
        build(f"{file}:narrow", split, {"bnus": 5})


def test_modules_beside_the_user_are_found(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("beside_me.py").write_text("def f(completions, **_): return [7.0] * len(completions)\n")
    file = write("from beside_me import f\n")
    assert scores("beside_me:f", ["a"]) == scores(f"{Path(file).name}:f", ["a"]) == [7]
    # Edited, it is read again.
    Path(file).write_text("def f(completions, **_): return [8.0] * len(completions)\n")
    assert scores(f"{file}:f", ["a"]) == [8]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_lib", r"raised ModuleNotFoundError: .*no_such_lib.*mine0.py line 1"),
        ("def f(:", "raised SyntaxError: .*line 1"),
        ("x = 1/0", "raised ZeroDivisionError: division by zero .mine0.py line 1"),
        ("import sys; sys.exit(1)", "raised SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported(write: Write, code: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(f"{write(code)}:f", split, {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", "returned 1 values for 2 completions"),
        ("return None", "returned NoneType None, which is no list"),
        ("return 'ab'", "returned str 'ab', which is no list"),
        ("return ['1', 2]", "returned str '1' among the rewards"),
        ("return [float('inf'), 1]", "returned float inf among"),
        ("return [10 ** 400, 1]", "no mean is finite"),
        ("return [[1], [2]]", r"returned list \[1\] among"),
        ("return [nope]", r"raised NameError: name 'nope' is not defined .mine0.py line 2.; mend"),
        ("import json; json.loads('{')", r"raised JSONDecodeError: .* .mine0.py line 2"),
        ("return (1 / 0 for c in completions)", "raised ZeroDivisionError"),
    ],
)
def test_what_ends_a_run(write: Write, body: str, said: str) -> None:
    file = write(f"def f(completions, **_):\n    {body}\n")
    with pytest.raises(TrainingError, match=said) as caught:
        scores(f"{file}:f", ["a", "b"])
    assert f"reward '{file}:f'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "return [1, None, float('nan'), True]",
        "import numpy; return [numpy.float32(1), None, numpy.nan, numpy.bool_(True)]",
        "import torch; return [torch.tensor(1.0), None, torch.tensor(float('nan')), 1]",
        "yield 1; yield None; yield float('nan'); yield 1",
    ],
)
def test_numbers_of_any_library_and_nan_is_none(write: Write, body: str) -> None:
    logged: list[tuple[str, float]] = []
    file = write(f"def f(completions, **_):\n    {body}\n")
    got = scores(f"{file}:f", ["a"] * 4, log_metric=lambda *metric: logged.append(metric))
    assert got == [1, None, None, 1]
    assert logged == [("f/nan", 0.25)]


@pytest.mark.parametrize("library", ["numpy.array", "torch.tensor"])
def test_a_whole_array_is_a_list(write: Write, library: str) -> None:
    module = library.split(".")[0]
    file = write(f"import {module}\ndef f(completions, **_): return {library}([1.0, 2.0])\n")
    assert scores(f"{file}:f", ["a", "b"]) == [1, 2]


def test_async_functions_and_callable_objects(write: Write) -> None:
    file = write(
        "import asyncio\n"
        "loops = set()\n"
        "async def later(completions, **_):\n"
        "    loops.add(asyncio.get_running_loop())\n"
        "    await asyncio.sleep(0)\n"
        "    return [len(c) for c in completions]\n"
        "class Scorer:\n"
        "    def __call__(self, completions, **_):\n"
        "        return [2 * len(c) for c in completions]\n"
        "    def shout(self, completions, **_):\n"
        "        return [9 for c in completions]\n"
        "scorer = Scorer()\n"
    )
    reward = build(f"{file}:later", split, {})
    assert not asyncio.iscoroutinefunction(reward)
    assert reward(completions=["a", "bb"]) == reward(completions=["c", "dd"]) == [1, 2]
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == file)
    assert len(module.loops) == 1  # a client it keeps may stay connected
    assert scores(f"{file}:scorer", ["abc"]) == [6]
    assert scores(f"{file}:scorer.shout", ["abc"]) == [9]


# The README

README = (Path(__file__).parent.parent / "train" / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_what_ships_and_its_recipes_hold() -> None:
    section = README.split("\n## Rewards\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(REWARDS)
    blocks = [yaml.safe_load(b)["rewards"] for b in re.findall(r"```yaml\n(.*?)```", section, re.S)]
    assert len(blocks) == 3
    for reward in itertools.chain(*blocks):
        if reward["name"] == "reward_model":
            RewardModelArguments(**reward["args"])
        elif ":" not in reward["name"] and reward["name"] != "llm_judge":
            assert callable(build(reward["name"], split, reward.get("args", {})))
        elif ":" not in reward["name"]:
            JudgeArguments(**reward["args"])
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    assert code in TUTORIAL
