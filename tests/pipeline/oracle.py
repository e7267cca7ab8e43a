"""The slow plain reference: ordinary forwards of one sequence at a time, no cache, no mask, no batch.

Each function is the paper's text. The engine must agree with it: the same probabilities and losses to 1e-4,
the same draws for the same random numbers, the same calls kept.
"""

from __future__ import annotations

import math
import re

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


def before(model: LanguageModel, template: PromptTemplate | None, text: str, position: int) -> list[int]:
    """P(x), x_1 .. x_{i-1}; without a prompt only x_1 .. x_{i-1}."""
    if template is None:
        return [*model.call_tokens.bos, *tokens(model, " " + text)[:position]]
    prompt = model.tokenizer(template.prefix, add_special_tokens=False).input_ids
    x = tokens(model, " " + text)
    return [*model.call_tokens.bos, *prompt, *x, *tokens(model, template.suffix), *x[:position]]


def p_api(model: LanguageModel, template: PromptTemplate | None, text: str, position: int) -> float:
    """p(<API> | P(x), x_1 .. x_{i-1})."""
    context, p = before(model, template, text, position), 1.0
    for token in model.call_tokens.api:
        p *= float(probabilities(model, context)[token])
        context.append(token)
    return p


class Names:
    """The probabilities of all token sequences that write `opening` after a context, one forward for each
    beginning of one that is not beyond rounding."""

    def __init__(self, model: LanguageModel, context: list[int], opening: str, most: int) -> None:
        self.model, self.context, self.opening, self.most = model, context, opening, most
        self.strings = dict(enumerate(model.call_tokens.token_strings))
        for special in special_ids(model.tokenizer):
            del self.strings[special]
        self.known: dict[tuple[int, ...], torch.Tensor] = {}

    def following(self, drawn: tuple[int, ...], reached: float = 1.0) -> torch.Tensor:
        """p(token, and the opening complete sooner or later) [V] after the context and `drawn`."""
        if drawn not in self.known:
            p = probabilities(self.model, [*self.context, *drawn])
            joint = torch.zeros_like(p)
            written = "".join(self.strings[token] for token in drawn)
            for token, string in self.strings.items():
                if (written + string).startswith(self.opening):
                    joint[token] = p[token]
                elif self.opening.startswith(written + string) and len(drawn) + 1 < self.most:
                    reaches = reached * float(p[token])
                    if reaches > 1e-12:
                        joint[token] = p[token] * self.following((*drawn, token), reaches).sum()
            self.known[drawn] = joint
        return self.known[drawn]

    def draw(self, key: np.ndarray) -> list[int]:
        """The tokens of a draw up to the one that completes the opening."""
        drawn: list[int] = []
        while not "".join(self.strings[token] for token in drawn).startswith(self.opening):
            drawn.append(invert(self.following(tuple(drawn)), key, len(drawn)))
        return drawn


def invert(p: torch.Tensor, key: np.ndarray, step: int) -> int:
    """The first token whose cumulative probability exceeds the step's random number."""
    cumulative = p.cumsum(-1)
    u = float(uniforms(key, step)[0])
    return int((cumulative > u * cumulative[-1]).nonzero()[0])


def draw(
    model: LanguageModel,
    template: PromptTemplate | None,
    text: str,
    position: int,
    key: np.ndarray,
    most: int,
    names: Names | None = None,
) -> str:
    """What one draw writes after <API>, until the text has a ] in it, or an arrow if there is no prompt."""
    ends = ("]",) if template else ("]", "->")
    context = before(model, template, text, position) + list(model.call_tokens.api)
    drawn: list[int] = names.draw(key) if names else []
    while len(drawn) < most:
        written = decode_continuations(model.tokenizer, [drawn])[0]
        if any(end in written for end in ends):
            break
        drawn.append(invert(probabilities(model, context + drawn), key, len(drawn)))
        if drawn[-1] in special_ids(model.tokenizer):
            return ""
    return decode_continuations(model.tokenizer, [drawn])[0]


def calls_at(
    model: LanguageModel,
    template: PromptTemplate | None,
    text: str,
    position: int,
    m: int,
    most: int,
    seed: int,
    text_id: int,
    names: Names | None = None,
    tool: str = "",
) -> list[str]:
    """The inputs of the calls among the m draws at a position, of `tool` if there is no prompt."""
    tool = template.tool if template else tool
    keys = stream_keys(seed, text_id, stream_number(tool), position, m)
    drawn = [draw(model, template, text, position, keys[j : j + 1], most, names) for j in range(m)]
    if template is None:  # what a model that was trained on results writes before the result
        drawn = [re.sub(r"^([^]]*?)\s*->.*", r"\1]", one, flags=re.DOTALL) for one in drawn]
    parsed = [parse_call(one, tool) for one in drawn]
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
