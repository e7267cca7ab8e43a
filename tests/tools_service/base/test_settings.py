"""Settings: immutable, strict about names, and aware of their old names."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tools_service.base.settings import Frozen

pytestmark = pytest.mark.unit


class Settings(Frozen):
    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    max_batch_tokens: int = 5
    other: int = 1


def test_an_old_name_is_read_and_wins_over_the_present_one() -> None:
    assert Settings.model_validate({"batch_tokens": 7}) == Settings(max_batch_tokens=7)
    assert Settings.model_validate({"max_batch_tokens": 5, "other": 2, "batch_tokens": 7}) == Settings(
        max_batch_tokens=7, other=2
    )
    assert "batch_tokens" not in Settings.model_validate({"batch_tokens": 7}).model_dump()


def test_unknown_names_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="tokens"):
        Settings.model_validate({"tokens": 7})
    with pytest.raises(ValidationError, match="frozen"):
        Settings().other = 2  # type: ignore[misc]
