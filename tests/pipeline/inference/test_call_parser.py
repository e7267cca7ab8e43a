"""The tokens that can begin a call."""

import pytest
import torch

from pipeline.inference.call_parser import ApiTokenMask
from tests.pipeline.scripted import call_tokens

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", ["bytes", "words", "merging", "metaspace"])
def test_every_spelling_of_api_is_known(kind: str) -> None:
    known = call_tokens(kind)
    api_mask = ApiTokenMask(known, torch.device("cpu"))
    space, letter = known.token_strings.index(" "), known.token_strings.index("a")
    after_space, after_letter = api_mask.after(torch.tensor([space, letter]))
    bracket = known.token_strings.index("[")
    assert bool(after_space[bracket])
    assert not bool(after_letter[bracket])
    if len(known.api) == 1:
        assert after_letter[known.api[0]]
    spelling = {known.token_strings[token] for token in after_space.nonzero().flatten().tolist()}
    assert all(string == "[" or string.endswith(" [") for string in spelling)
