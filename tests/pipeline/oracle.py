"""The slow plain reference: ordinary forwards of one sequence at a time, no cache, no mask, no batch.

Each function is the paper's text. The engine must agree with it: the same probabilities and losses to 1e-4,
the same draws for the same random numbers, the same calls kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.engine.model import LanguageModel
from pipeline.engine.random_streams import stream_keys, uniforms
from pipeline.syntax.tokenizer import decode_continuations, special_ids, tokenize_continuations
from tools_service.contract.declarations import stream_number
from tools_service.syntax.calls import Malformed, linearise, parse_call
from tools_service.syntax.prompts import PromptTemplate


@torch.no_grad()
def probabilities(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """p(next token) [V] after the ids, float64."""
    return model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1)


def tokens(model: LanguageModel, string: str) -> list[int]:
    return [int(token) for token in tokenize_continuations(model.tokenizer, [string])[0].ids]


def before(model: LanguageModel, template: PromptTemplate, text: str, position: int) -> list[int]:
    """P(x), x_1 .. x_{i-1}."""
    prompt = model.tokenizer(template.prefix, add_special_tokens=False).input_ids
    x = tokens(model, " " + text)
    return [*model.call_tokens.bos, *prompt, *x, *tokens(model, template.suffix), *x[:position]]


def p_api(model: LanguageModel, template: PromptTemplate, text: str, position: int) -> float:
    """p(<API> | P(x), x_1 .. x_{i-1})."""
    context, p = before(model, template, text, position), 1.0
    for token in model.call_tokens.api:
        p *= float(probabilities(model, context)[token])
        context.append(token)
    return p


def draw(
    model: LanguageModel, template: PromptTemplate, text: str, position: int, key: np.ndarray, most: int
) -> str:
    """What one draw writes after <API>, until the text has a ] in it."""
    context = before(model, template, text, position) + list(model.call_tokens.api)
    drawn: list[int] = []
    while len(drawn) < most and "]" not in decode_continuations(model.tokenizer, [drawn])[0]:
        cumulative = probabilities(model, context + drawn).cumsum(-1)
        u = float(uniforms(key, len(drawn))[0])
        drawn.append(int((cumulative > u * cumulative[-1]).nonzero()[0]))
        if drawn[-1] in special_ids(model.tokenizer):
            return ""
    return decode_continuations(model.tokenizer, [drawn])[0]


def calls_at(
    model: LanguageModel,
    template: PromptTemplate,
    text: str,
    position: int,
    m: int,
    most: int,
    seed: int,
    text_id: int,
) -> list[str]:
    """The inputs of the calls among the m draws at a position."""
    keys = stream_keys(seed, text_id, stream_number(template.tool), position, m)
    drawn = [draw(model, template, text, position, keys[j : j + 1], most) for j in range(m)]
    parsed = [parse_call(one, template.tool) for one in drawn]
    return [one for one in parsed if not isinstance(one, Malformed)]


def loss(model: LanguageModel, prefix: str, text: str, position: int) -> float:
    """L_i(z) = - sum_{j=i..n} w_{j-i} log p(x_j | z, x_1 .. x_{j-1}), z before the whole text."""
    z = [*model.call_tokens.bos, *(tokens(model, prefix) if prefix else [])]
    x = tokens(model, " " + text)
    unnormalised = [max(0.0, 1 - 0.2 * t) for t in range(len(x) + 10)]
    total = 0.0
    for j in range(position, len(x)):
        weight = unnormalised[j - position] / sum(unnormalised)
        if weight:
            total -= weight * math.log(float(probabilities(model, z + x[:j])[x[j]]))
    return total


def gain(model: LanguageModel, text: str, position: int, tool: str, argument: str, result: str) -> float:
    """L- - L+."""
    plus = loss(model, linearise(tool, argument, result), text, position)
    minus = min(loss(model, "", text, position), loss(model, linearise(tool, argument), text, position))
    return minus - plus
