"""Gets everything ready for a try, and runs it text by text.

In: `TryConfig`. Out: a `TryRun`: what is tried, and a stream of trials. What can be wrong with the
command is found before the model is loaded, the cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.base.config import MethodConfig, TryConfig
from pipeline.syntax.tokenizer import TokenCounter, require_separate_heads
from pipeline.trying.scan import Scan, scan
from tools_service.base.errors import ConfigurationError
from tools_service.contract.spec import ToolMethod
from tools_service.serving.local import start_local_tools
from tools_service.syntax.prompts import PromptTemplate, load_prompt
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import require_available

if TYPE_CHECKING:  # they import torch, which takes seconds: not before the command is found right
    from pipeline.engine.model import LanguageModel
    from pipeline.trying.trial import Trial


@dataclass(frozen=True, slots=True)
class TryRun:
    """A tool with its prompt, if it gets one, the model, and the texts to try."""

    tool: str
    config: TryConfig
    method: MethodConfig
    prompt: PromptTemplate | None
    scan: Scan
    model: LanguageModel
    tools: ToolClient

    @property
    def settings(self) -> ToolMethod:
        """Of the tool."""
        return self.method.of(self.tool)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt without a text; 0 without a prompt."""
        if self.prompt is None:
            return 0
        prompt = self.model.prompt(self.prompt)
        return prompt.length + len(prompt.suffix)

    def trials(self) -> Iterator[Trial]:
        """One per text, each as soon as it is done. Raises NonFiniteError."""
        from pipeline.trying.trial import try_text

        for text, selection in self.scan.selected:
            yield try_text(self.model, self.tools, self.prompt, self.method, text, selection)


def prepare(config: TryConfig, tell: Callable[[str], None]) -> TryRun:
    """Find texts, load the model, start the tool. `tell` is told what takes a while.

    Raises ConfigurationError: no such tool, a prompt that does not fit, no text selected, no usable
    model, a tool that cannot be started.
    """
    if config.tool is None:
        raise ConfigurationError(f"--tool: name the tool to try; there are {', '.join(config.tools.specs)}")
    tool = config.tool
    require_available([tool], config.tools, "--tool", can_be_left_out=False)
    method = config.method_of_tool(tool)
    prompt = load_prompt(tool, method.prompts, method.of(tool).prompt) if method.use_prompts else None
    import torch

    from pipeline.engine.loading import load_language_model, require_model

    require_model(config.model)
    found = scan(config, method, tell)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tell("loading the model")
    model = load_language_model(config.model)
    require_separate_heads(model.tokenizer, [tool])
    tell(f"starting {tool}")
    tools = start_local_tools(config.tools, [tool], TokenCounter(config.model.path))
    return TryRun(tool, config, method, prompt, found, model, tools)
