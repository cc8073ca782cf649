"""Which part of an answer is the claim, and what marked it."""

import pytest

from thinkgate.answers import How, Verdict, check, extract

CASES = [
    ("42", "42", How.BARE),
    ("  42\n", "42", How.BARE),
    ("$42$", "42", How.BARE),
    ("x = 5", "x = 5", How.BARE),
    ("a total of 42 apples", "a total of 42 apples", How.BARE),
    (r"\frac{1}{2}", r"\frac{1}{2}", How.BARE),
    ("Evelyn", "Evelyn", How.BARE),
    (r"\boxed{42}", "42", How.BOXED),
    (r"$\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", How.BOXED),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", How.BOXED),
    (r"\boxed {42}", "42", How.BOXED),
    (r"\boxed{a_{b_{c}}}", "a_{b_{c}}", How.BOXED),
    (r"\boxed{1}, then \boxed{2}", "2", How.BOXED),
    (r"\boxed{1}, \boxed{2}", "1, 2", How.BOXED),
    (r"$\boxed{1}$ and $\boxed{2}$", "1, 2", How.BOXED),
    (r"\boxed{2} and again \boxed{2}", "2", How.BOXED),
    (r"\boxed{2} or \boxed{2}", "2", How.BOXED),
    (r"\boxed{\text{so } \boxed{7}}", "7", How.BOXED),
    (r"The answer is 1, I mean \boxed{2}.", "2", How.BOXED),
    ("#### 42", "42", How.HASHES),
    ("so\n#### 1,000", "1,000", How.HASHES),
    ("#### 1\n#### 2", "2", How.HASHES),
    ("#### Step 4: add\nThe answer is 7.", "7", How.PHRASE),
    ("The answer is 42.", "42", How.PHRASE),
    ("The answer is 3.5.", "3.5", How.PHRASE),
    ("The answer is 3.5 cm. Done.", "3.5 cm", How.PHRASE),
    ("The answer is 1. The answer is 2.", "2", How.PHRASE),
    ("**Answer:** 42", "42", How.PHRASE),
    ("Answer:\n\n$$\n\\frac{1}{2}\n$$\nwhich is a half.", "\\frac{1}{2}", How.PHRASE),
    ("The correct choice is (B).", "(B)", How.PHRASE),
    ("<answer>42</answer>", "42", How.ANSWER_TAG),
    ("<answer> The sum is $42$ </answer>", "42", How.ANSWER_TAG),
    ("<answer>42", "42", How.ANSWER_TAG),
    ("42</answer>", "42", How.ANSWER_TAG),
    ("<answer>1</answer> or <answer>2</answer>", "2", How.ANSWER_TAG),
    (r"<answer>\boxed{42}</answer> and \boxed{43}", "42", How.BOXED),
    ("She sold **72** clips in 2 months.", "72", How.EMPHASIS),
    ("In 2 months, that makes $72$ altogether.", "72", How.MATH),
    ("So 48+24 = 72 clips in all.", "72 clips in all", How.LAST_NUMBER),
    ("It took a while. They have 72 clips now!", "They have 72 clips now", How.LAST_NUMBER),
    ("The sum is $7$ units.", "7 units", How.MATH),
    ("It's not 41, so the answer is 42.", "42", How.PHRASE),
]


@pytest.mark.parametrize(("answer", "text", "how"), CASES)
def test_extract(answer: str, text: str, how: How) -> None:
    found = extract(answer)
    assert found is not None
    assert (" ".join(found.text.split()), found.how) == (" ".join(text.split()), how)


NO_CLAIM = [
    None,
    "",
    " \n\t",
    r"\boxed{}",
    r"\boxed{ }",
    r"\boxed{42",
    r"42 \boxed{}",
    r"The answer is not \boxed{42}",
    "<answer></answer>",
    "<answer>  </answer>",
    "I cannot solve this. The options were 41 and 42.",
    "I'm sorry, but as an AI I cannot say 42.",
    "There is not enough information to say 42.",
    "In 2 months she sold 72 clips.",
    "1\n2\n3",
    "It could be 42.",
    "Sorry, no idea. 42 maybe?",
    "I am sorry, 42",
    "I cannot confirm that the answer is 42.",
    "I don't think the answer is 42.",
    "I am not sure whether the answer is 42.",
    "The answer cannot be known but is 42",
]


@pytest.mark.parametrize("answer", NO_CLAIM)
def test_no_claim(answer: str | None) -> None:
    assert extract(answer) is None


@pytest.mark.parametrize(
    "hostile",
    [
        "\\[" * 60_000,
        "\\(" * 60_000 + "\\)",
        "$" * 120_000,
        "**" * 60_000,
        "**" + " " * 100_000,
        "answer " * 20_000,
        "answer" + " " * 100_000 + "x",
        "answer" + "*" * 100_000,
        "answer" + " \n" * 50_000,
        "\\boxed{" * 20_000,
        "\\boxed{1}," * 20_000,
        "\\text{" * 20_000,
        "\\text{a}" * 20_000,
        ". " * 60_000,
        "1. " * 40_000,
        "a b, " * 20_000 + "42",
        "because " * 15_000,
        "#### \n" * 20_000,
        "<answer>" * 15_000,
        "x" * 150_000,
        "1," * 60_000,
        "111," * 30_000,
        "\u2212" * 100_000,
    ],
    ids=lambda text: text[:8],
)
def test_extraction_is_linear(hostile: str) -> None:
    # pytest-timeout would end a quadratic one; this is the generous bound on all of them.
    import time

    start = time.process_time()
    extract(hostile)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "junk", ["0" * 4096, "9" * 5000, "8+0-" + "0" * 4092, "1," * 3000, "-" * 4000 + "1"]
)
def test_a_runaway_generation_makes_no_claim(junk: str) -> None:
    """It was graded ERROR, which a GRPO reward would have left out instead of scoring 0."""
    assert check(junk, "163") is Verdict.NO_ANSWER
    assert check(f"{junk}\n\nThe answer is 163.", "163") is Verdict.CORRECT


def test_a_marked_claim_may_be_long() -> None:
    assert check("\\boxed{" + "0" * 3000 + "163}", "163") is not Verdict.NO_ANSWER
