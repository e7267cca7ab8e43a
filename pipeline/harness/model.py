"""Our model as a model of lm-evaluation-harness, `toolformer`.

In: requests of the harness's tasks. Out: likelihoods and generated text. Likelihoods are those of the plain
language model, with the tokens and the windows of the harness's Hugging Face model (`hf`): the tokens of a
context and its continuation together, a BOS (else EOS) in front of an empty context, windows that share
one token. With calls on they are intractable (footnote 8) and refused. Generation is that of
`toolformer generate`: trailing spaces of a prompt are removed, calls and results are not in the answer.
Chat templates are not applied.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from pipeline.base.harness_config import HarnessConfig
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.harness.errors import HarnessError
from pipeline.harness.gen_kwargs import decoding_params
from pipeline.harness.likelihood import continuation_logprobs
from pipeline.harness.model_args import config_of
from pipeline.inference.generation import Generation
from pipeline.inference.generator import Generator, available_tools
from pipeline.inference.params import DecodingParams
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import ToolClient

logger = logging.getLogger(__name__)

Pair = tuple[list[int], list[int]]  # tokens of a context and of its continuation


@register_model("toolformer")
class ToolformerLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A language model that can call tools, with the tools in this process.

    `generations` has everything that was generated, in the order of the requests of each call.
    """

    def __init__(
        self, config: HarnessConfig, model: LanguageModel | None = None, tools: ToolClient | None = None
    ) -> None:
        """Load the model and start the tools that `config` names, unless they are given.

        Raises ModelError, ConfigurationError.
        """
        super().__init__()
        generation = config.generation
        self.harness_config = config
        self.engine = model or load_language_model(generation.model)
        self.tokenizer = self.engine.tokenizer
        self._device = self.engine.device
        off = not calls_configured(config)
        available: tuple[str, ...] = ()
        if not off and tools is None:
            available = available_tools(generation)
        elif not off:
            available = tuple(set(generation.tools.specs).difference(generation.tools_off))
        self.params = DecodingParams.of(generation, available)
        self.calls = not self.params.calls_disabled
        self.generator = Generator(self.engine, tools or start_local_tools(generation.tools, available))
        self.generations: list[Generation] = []
        self.truncated_prompts = 0

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """The model of ``pretrained=PATH,calls=False,…``; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """The model of `model_args`: fields of HarnessConfig, GenerateConfig and ModelConfig by their
        names, `pretrained` for the model's path, `tools_file`. Raises HarnessError."""
        extra = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(config_of({**extra, **arg_dict}))

    @property
    def eot_token_id(self) -> int:
        """EOS of the tokenizer. Raises HarnessError if it has none."""
        return self._token_id("eos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, or EOS if there is none."""
        return self._token_id("bos_token_id", "eos_token_id")

    @property
    def max_length(self) -> int:
        """Tokens of a window."""
        context = resolve_max_length(self.engine.model.config, self.tokenizer)
        return min(self.harness_config.max_length or context, self.engine.max_positions)

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, as the harness's `hf` model has them."""
        special: dict[str, bool] = {}
        if add_special_tokens is not None:
            special["add_special_tokens"] = add_special_tokens
        elif has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            special["add_special_tokens"] = False
        return list(self.tokenizer.encode(string, verbose=False, **special))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text (nats), in windows of `max_length` tokens."""
        texts = [request.args[0] for request in requests]
        windows: list[tuple[int, Pair]] = []
        for number, text in enumerate(texts):
            tokens = self.tok_encode(text)
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows += [(number, make_disjoint_window(window)) for window in rolling]
        scores = self._loglikelihood_tokens([((texts[number], ""), *pair) for number, pair in windows])
        totals = [0.0] * len(texts)
        for (number, _), (logprob, _) in zip(windows, scores, strict=True):
            totals[number] += logprob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding gives it.

        A context that is too long loses its beginning. Raises HarnessError with calls on.
        """
        if self.calls and not self.harness_config.likelihoods_without_calls:
            raise HarnessError(likelihoods_refused("a task"))
        pairs, truncated = [], 0
        for (context, continuation), context_ids, ids in requests:
            text = (context + continuation)[-60:]
            if not ids:
                raise HarnessError(f"a task asks for the likelihood of no token, at the end of {text!r}")
            if len(ids) > self.max_length:
                problem = f"{len(ids)} tokens do not fit the context of {self.max_length}"
                raise HarnessError(f"the continuation that ends in {text!r}: {problem}")
            truncated += len(context_ids) + len(ids) > self.max_length + 1
            pairs.append((context_ids[-(self.max_length + 1 - len(ids)) :], ids))
        if truncated:
            logger.warning(
                "%d of %d contexts are too long and lose their beginning", truncated, len(requests)
            )
        scores = continuation_logprobs(self.engine, pairs)
        for ((context, continuation), *_), (logprob, _) in zip(requests, scores, strict=True):
            if not math.isfinite(logprob):
                end = (context + continuation)[-60:]
                raise HarnessError(f"the log-likelihood of the text that ends in {end!r} is not finite")
        return scores

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each prompt, without calls and their results.

        A prompt that cannot be continued has the answer "". Raises HarnessError for parameters that the
        decoder does not have, and where no room is left for a prompt.
        """
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        repeats: Counter[tuple[str, str]] = Counter()
        for number, request in enumerate(requests):
            context, gen_kwargs = request.args
            key = json.dumps(gen_kwargs, sort_keys=True, default=str)
            # A prompt that a task samples several times gets another seed each time.
            groups[key, repeats[context, key]].append(number)
            repeats[context, key] += 1
        generations: dict[int, Generation] = {}
        with tqdm(total=len(requests), desc="generate", disable=disable_tqdm, leave=False) as bar:
            for (_, repeat), numbers in groups.items():
                params = decoding_params(self.params, requests[numbers[0]].args[1])
                params = replace(params, seed=params.seed + repeat)
                prompts = [self._fit(requests[number].args[0], params.max_new_tokens) for number in numbers]
                dates = [self.harness_config.generation.date] * len(prompts)
                batch_size = self.harness_config.batch_size
                found = self.generator.generate(prompts, params, dates, batch_size)
                for number, generation in zip(numbers, found, strict=True):
                    generations[number] = generation
                    bar.update()
        self.generations += [generations[number] for number in range(len(requests))]
        return [self._answer(request, generations[number]) for number, request in enumerate(requests)]

    def _answer(self, request: Any, generation: Generation) -> str:
        """The text of a generation; the spaces that it begins with and the prompt ended in are gone."""
        context, gen_kwargs = request.args
        text = generation.text
        for _ in range(len(context) - len(context.rstrip(" "))):
            text = text.removeprefix(" ")
        if generation.refused is None:
            self.cache_hook.add_partial("generate_until", (context, gen_kwargs), text)
        else:
            logger.warning("the answer is empty: %s", generation.refused)
        return text

    def _fit(self, prompt: str, max_new_tokens: int) -> str:
        """The end of a prompt that leaves room for so many tokens. Raises HarnessError."""
        bos = len(self.engine.call_tokens.bos)
        room = self.engine.max_positions - max_new_tokens - bos
        if room < 1:
            raise HarnessError(
                f"max_gen_toks = {max_new_tokens} leaves no room for a prompt in the context of "
                f"{self.engine.max_positions} tokens; lower it in the task, or --generation.max-new-tokens"
            )
        stripped = prompt.rstrip(" ")
        # Each token has at least one byte: most prompts need not be counted.
        if len(stripped.encode("utf-8", "replace")) < room:
            return prompt
        starts = self.engine.encode([stripped])[0].starts
        if len(starts) <= room:
            return prompt
        self.truncated_prompts += 1
        known = starts[-room:]
        return stripped[known[known >= 0][0] :].lstrip(" ")

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Refused: in our prompts, special tokens are plain text."""
        raise HarnessError("toolformer applies no chat template; leave apply_chat_template out")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to `config` of its results: settings, and calls so far."""
        return {
            "model_num_parameters": sum(weights.numel() for weights in self.engine.model.parameters()),
            "toolformer": {
                "config": self.harness_config.model_dump(mode="json"),
                "calls": self.calls,
                **call_counts(self.generations),
                "truncated_prompts": self.truncated_prompts,
            },
        }

    def _token_id(self, *names: str) -> int:
        for name in names:
            if (token := getattr(self.tokenizer, name)) is not None:
                return int(token)
        raise HarnessError(f"the tokenizer {self.tokenizer_name} has no {' and no '.join(names)}")


def calls_configured(config: HarnessConfig) -> bool:
    """Whether a model with this configuration calls tools, if it has them."""
    generation = config.generation
    tools = set(generation.tools.specs).difference(generation.tools_off)
    return config.calls and not DecodingParams.of(generation, tools).calls_disabled


def call_counts(generations: Sequence[Generation]) -> dict[str, Any]:
    """Counts over generations: prompts, those with a call, calls by tool, failed calls, refused prompts."""
    return {
        "generations": len(generations),
        "generations_with_call": sum(bool(generation.calls) for generation in generations),
        "calls_by_tool": dict(Counter(call.tool for g in generations for call in g.calls).most_common()),
        "failed_calls": dict(Counter(call.reason for g in generations for call in g.failed).most_common()),
        "not_asked": dict(Counter(g.refused.reason for g in generations if g.refused).most_common()),
    }


def likelihoods_refused(tasks: str) -> str:
    """Why a task cannot be run with calls on, and what to do."""
    return (
        f"{tasks}: asks for likelihoods, which are intractable with calls on (footnote 8 of the paper); "
        "switch calls off (--no-calls, calls=False), or compute them without calls "
        "(--likelihoods-without-calls)"
    )
