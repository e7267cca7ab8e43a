"""The parameters of decoding one prompt (paper section 4.2). In: a configuration. Out: `DecodingParams`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipeline.base.inference_config import CallLengths, GenerateConfig
from pipeline.syntax.partial_call import callable_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingParams:
    """The parameters of one prompt. The defaults are the paper's: greedy, k = 10, one call."""

    k: int = 10
    """A call begins where <API> is among the k most likely tokens; 1 is greedy, 0 never calls."""
    disabled: bool = False
    """Set the probability of <API> to 0. k = 0 and a `tools_off` with every tool do the same."""
    tools: Mapping[str, bool] = field(default_factory=callable_tools)
    """Tools that a text can name, and whether each takes an input."""
    tools_off: frozenset[str] = frozenset()
    """Tools that the model cannot name: the most likely token that does not is taken instead."""
    max_calls: int = 1
    """After this many calls the probability of <API> is 0 for that prompt."""
    max_failed_calls: int = 1
    """So it is after this many failed calls."""
    chained_calls: bool = False
    """A call may begin in the input of another one; its result becomes part of that input."""
    max_call_tokens: CallLengths = field(default_factory=CallLengths)
    """A call without an arrow after this many tokens fails, by tool."""
    max_new_tokens: int = 64  # longest continuation in tokens, without calls and results
    stop_at_newline: bool = False  # stop at the end of the first line that is not blank
    stop: tuple[str, ...] = ()  # the text ends before any of them
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0

    @property
    def calls_disabled(self) -> bool:
        """Whether no call can begin."""
        no_tools = self.tools_off >= set(self.tools)
        return self.disabled or self.k < 1 or self.max_calls == 0 or no_tools

    @classmethod
    def of(cls, config: GenerateConfig, available: Collection[str]) -> DecodingParams:
        """Those of a configuration, with the tools that are not `available` switched off."""
        return cls(
            k=config.k,
            disabled=config.disabled,
            tools=callable_tools(config.tools.declared),
            tools_off=frozenset(config.tools.specs).difference(available),
            max_calls=config.max_calls,
            max_failed_calls=config.max_failed_calls,
            chained_calls=config.chained_calls,
            max_call_tokens=config.max_call_tokens,
            max_new_tokens=config.max_new_tokens,
            stop=config.stop,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
        )
