"""Tokens are counted as decision 0020 says."""

from __future__ import annotations

import pytest

from bench.code_lines import count

pytestmark = pytest.mark.unit

SOURCE = '''"""A docstring
of two lines."""

# A comment.
x = f(1,
      2)  # behind code
'''


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    counts = count(SOURCE + "y = '" + "z" * 100 + "'\n")
    assert (counts.lines, counts.code_lines, counts.comment_lines, counts.long_lines) == (7, 3, 1, 1)
    assert counts.tokens == len(["x", "=", "f", "(", "1", ",", "2", ")", "y", "=", "'z'"])
