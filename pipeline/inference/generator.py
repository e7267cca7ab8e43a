"""Step 7: continues texts with a model that calls tools (paper section 4.2, "Decoding").

In: prompts, the date of each, a model, a tool client. Out: one `Generation` per prompt, in order.
request.py has the rules and decoder.py the batch; docs/evaluation.md lists the rules, docs/decisions/0006
gives the reasons. streaming.py gives events on the way.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pipeline.base.inference_config import GenerateConfig
from pipeline.engine.model import LanguageModel
from pipeline.inference.decoder import Decoder
from pipeline.inference.generation import Generation, PromptError
from pipeline.inference.params import DecodingParams
from pipeline.inference.request import Emit, Request
from pipeline.inference.vocabulary import Vocabulary
from pipeline.storage.tools_json import read_tools
from pipeline.syntax.tokenizer import tokenize_continuations
from tools_service.contract.tool import ToolUnavailableError
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import require_available

logger = logging.getLogger(__name__)

# Prompts are sorted by length within so many batches; more save padding but delay the first result.
_WINDOW_BATCHES = 4


class Generator:
    """Continues prompts with one model and one tool client."""

    def __init__(self, model: LanguageModel, tools: ToolClient) -> None:
        self.model = model
        self.tools = tools
        self._vocabulary = Vocabulary(model)

    def generate(
        self,
        prompts: Sequence[str],
        params: DecodingParams,
        dates: Sequence[str | None] | None = None,
        batch_size: int = 64,
    ) -> Iterator[Generation]:
        """Yield the continuations in the order of the prompts, while later prompts still wait.

        At most `batch_size` prompts are decoded together, fewer if the model's `max_batch_tokens` do not
        allow more; what is decoded together does not change the results. `dates` (YYYY-MM-DD) are for the
        calendar. Decoding also stops at an end-of-text token and at a full context. Trailing spaces of a
        prompt are removed, because the first generated token brings its own. A prompt that cannot be
        continued is refused alone: see PromptError.
        """
        requests = (
            self.request(prompt, params, date)
            for prompt, date in zip(prompts, dates or [None] * len(prompts), strict=True)
        )
        decoder = Decoder(self.model, self.tools, batch_size)
        unread: deque[Request] = deque()
        while True:
            # The next window begins when the batch can no longer be filled from the last one.
            if decoder.pending < batch_size:
                window = list(islice(requests, _WINDOW_BATCHES * batch_size))
                unread.extend(window)
                for request in sorted(window, key=lambda request: len(request.tokens)):
                    if request.generation is None:
                        decoder.inbox.put(request)
            while unread and (generation := unread[0].generation) is not None:
                unread.popleft()
                yield generation
            if not unread:
                return
            decoder.step()

    def request(
        self,
        prompt: str | Sequence[int],
        params: DecodingParams,
        date: str | None = None,
        emit: Emit | None = None,
    ) -> Request:
        """A prompt as a request for a Decoder; it has ended already if the prompt cannot be continued.

        A prompt may be token ids, as a chat template gives them.
        """
        try:
            tokens, refused = self.encode(prompt), None
        except PromptError as error:
            tokens, refused = [], error
        request = Request(self._vocabulary, tokens, params, date, emit)
        if refused is not None:
            request.finish("refused", refused)
        return request

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens of ``" "`` and the prompt, as in every step; BOS if the tokenizer adds one.

        Token ids stay as they are. Raises PromptError for an empty prompt, one that leaves no room in the
        context, and one that is no text in UTF-8.
        """
        tokens = self._encode_text(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise PromptError("empty", "a prompt is empty, and the tokenizer has no BOS to start from")
        if len(tokens) >= self.model.max_positions:
            problem = f"no room for one more in the context of {self.model.max_positions}"
            shown = f" {prompt[:60]!r}" if isinstance(prompt, str) else ""
            message = f"the prompt{shown} has {len(tokens)} tokens: {problem}"
            raise PromptError("too_long", message)
        return tokens

    def _encode_text(self, prompt: str) -> list[int]:
        if not prompt.isascii() and prompt.encode("utf-8", "replace").decode("utf-8") != prompt:
            raise PromptError("not_text", f"the prompt {prompt[:60]!r} is not text in UTF-8")
        tokens = list(self.model.call_tokens.bos)
        if stripped := prompt.rstrip(" "):
            tokens += tokenize_continuations(self.model.tokenizer, [" " + stripped])[0].ids.tolist()
        return tokens


def available_tools(config: GenerateConfig) -> tuple[str, ...]:
    """The tools not in `tools_off` that this machine can run; logs a warning for the others."""
    tools: list[str] = []
    for tool in (name for name in config.tools.specs if name not in config.tools_off):
        try:
            require_available([tool], config.tools, field="tools_off", can_be_left_out=False)
            tools.append(tool)
        except ToolUnavailableError as error:
            logger.warning("%s is switched off: %s", tool, error)
    _warn_of_learned_tools(config)
    return tuple(tools)


def _warn_of_learned_tools(config: GenerateConfig) -> None:
    """Log a warning if tools that the model was trained on will not answer (tools.json in its folder)."""
    learned = read_tools(Path(config.model.path))
    if learned is None or config.calls_disabled:
        return
    names = [tool.name for tool in learned.tools]
    unknown = [name for name in names if name not in config.tools.specs]
    off = [name for name in names if name in config.tools_off]
    for tools, why in ((unknown, "unknown here: declare them in a --tools-file"), (off, "off: tools_off")):
        if tools:
            logger.warning(
                "%s was trained on calls of %s, which are %s", config.model.path, ", ".join(tools), why
            )
