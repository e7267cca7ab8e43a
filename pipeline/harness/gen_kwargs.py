"""A task's decoding parameters (`generation_kwargs`) as ours.

In: the dict of a request. Out: `DecodingParams`. What a task does not say stays as configured. A parameter
that would change the text and that the decoder does not have is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from pipeline.harness.errors import HarnessError
from pipeline.inference.params import DecodingParams

# Parameters of transformers with the values that change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "top_k": (None, 0),
    "min_p": (None, 0.0),
    "use_cache": (True, False),
}
_SAMPLING = frozenset({"top_k", "min_p", "top_p", "typical_p"})  # no effect on greedy decoding


def decoding_params(params: DecodingParams, gen_kwargs: Mapping[str, Any]) -> DecodingParams:
    """`params` with what the task says: until, max_gen_toks, do_sample, temperature, top_p.

    A task that samples without a temperature gets that of `params`. Raises HarnessError.
    """
    given = {name: value for name, value in gen_kwargs.items() if value is not None}
    try:
        values = dict(normalize_gen_kwargs(given, params.max_new_tokens))
        until, max_new_tokens = values.pop("until"), values.pop("max_gen_toks")
        sample = values.pop("do_sample", None)
        temperature = float(values.pop("temperature", params.temperature))
        top_p = float(values.pop("top_p", params.top_p))
    except (TypeError, ValueError) as error:
        raise HarnessError(f"generation_kwargs {gen_kwargs}: {error}") from error
    if "do_sample" not in given and "temperature" not in given:
        temperature = params.temperature  # the task leaves it to the configuration
    elif sample is False:
        temperature = 0.0
    stop = tuple(text for text in until if text)
    if not all(isinstance(text, str) for text in stop):
        raise HarnessError(f"generation_kwargs until = {until}: must be strings")
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise HarnessError(
            f"generation_kwargs {gen_kwargs}: max_gen_toks must be at least 1, temperature at least 0, "
            "top_p above 0 and at most 1"
        )
    for name, value in values.items():
        if value in _NEUTRAL.get(name, ()) or (temperature == 0 and name in _SAMPLING):
            continue
        raise HarnessError(
            f"generation_kwargs {name} = {value}: the decoder has no such parameter; it has until, "
            "max_gen_toks, do_sample, temperature and top_p. Change the task with --include-path"
        )
    return replace(
        params,
        stop=tuple(dict.fromkeys((*stop, *params.stop))),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
    )
