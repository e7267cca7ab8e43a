"""What a task says of decoding goes first; what the decoder lacks is refused."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval>=0.4.13,<0.5'")

from pipeline.harness.errors import HarnessError
from pipeline.harness.gen_kwargs import decoding_params
from pipeline.inference.params import DecodingParams

pytestmark = pytest.mark.unit
OURS = DecodingParams(k=3, max_new_tokens=20, stop=("END",), temperature=0.5, top_p=0.75)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (("END",), 20, 0.5, 0.75)),
        ({"until": ["\n", "END", ""]}, (("\n", "END"), 20, 0.5, 0.75)),
        ({"until": "\n\n"}, (("\n\n", "END"), 20, 0.5, 0.75)),
        ({"until": None}, (("END",), 20, 0.5, 0.75)),
        ({"max_gen_toks": 7}, (("END",), 7, 0.5, 0.75)),
        ({"max_new_tokens": 7}, (("END",), 7, 0.5, 0.75)),
        ({"do_sample": False}, (("END",), 20, 0.0, 0.75)),
        ({"do_sample": False, "temperature": 0.8}, (("END",), 20, 0.0, 0.75)),
        ({"do_sample": True}, (("END",), 20, 0.5, 0.75)),
        ({"temperature": 0.0}, (("END",), 20, 0.0, 0.75)),
        ({"temperature": 0.9, "do_sample": True, "top_p": 0.95}, (("END",), 20, 0.9, 0.95)),
        ({"do_sample": False, "top_k": 50}, (("END",), 20, 0.0, 0.75)),
        ({"num_beams": 1, "repetition_penalty": 1.0, "top_k": 0}, (("END",), 20, 0.5, 0.75)),
    ],
)
def test_the_task_goes_first(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    params = decoding_params(OURS, given)
    assert (params.stop, params.max_new_tokens, params.temperature, params.top_p) == expected
    assert params.k == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams = 4: the decoder has no such parameter"),
        ({"top_k": 50, "do_sample": True}, "top_k = 50"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"until": [3]}, "must be strings"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1"),
        ({"max_gen_toks": "many"}, "many"),
        ({"temperature": -1.0, "do_sample": True}, "temperature at least 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p above 0"),
    ],
)
def test_what_the_decoder_lacks_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        decoding_params(OURS, given)
