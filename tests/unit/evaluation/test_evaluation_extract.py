import pytest

from doratune.evaluation.generate import extract_answer

BOOL = ("true", "false")
THREE = ("answer1", "answer2", "answer3")


@pytest.mark.parametrize(
    ("text", "pattern", "labels", "expected"),
    [
        ("the correct answer is true", "true|false", BOOL, "true"),
        ("false. The statement is not true.", "true|false", BOOL, "false"),
        ("True", "true|false", BOOL, None),
        ("FALSE or true", "true|false", BOOL, "true"),
        ("I do not know", "true|false", BOOL, None),
        ("", "true|false", BOOL, None),
        ("untrue", "true|false", BOOL, "true"),
        ("the correct answer is answer2", "answer[1-5]", THREE, "answer2"),
        ("answer4, no, answer1", "answer[1-5]", THREE, None),
        ("line one\nanswer3", "answer[1-5]", THREE, "answer3"),
    ],
)
def test_first_match_or_none(text, pattern, labels, expected):
    assert extract_answer(text, pattern, labels) == expected
