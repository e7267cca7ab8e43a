"""Typed configuration of the command `harness`, which runs tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.base.inference_config import GenerateConfig
from tools_service.base.settings import FilePath, Frozen, NotNegativeInt, PositiveInt, Text


class HarnessConfig(Frozen):
    """A model, the harness's tasks, and whether the model may call tools."""

    generation: GenerateConfig = Field(default_factory=lambda: GenerateConfig(max_new_tokens=256))
    """Decoding. What a task says of it (until, max_gen_toks, temperature, top_p) goes first."""
    tasks: tuple[Text, ...] = ()
    """Tasks, groups or tags of the harness: wikitext, gsm8k; `lm_eval ls tasks` lists them."""
    include_path: FilePath | None = None
    """Folder with task files (YAML) of your own."""
    calls: bool = True
    """Let the model call tools while it generates. Without calls, <API> has probability 0 in generated
    text; likelihoods are always those of the plain language model."""
    likelihoods_without_calls: bool = False
    """With calls on, compute likelihoods (multiple choice, perplexity) without calls instead of refusing
    them: with calls they are intractable (footnote 8)."""
    num_fewshot: NotNegativeInt | None = None
    """Examples in each prompt. None: as the task says."""
    limit: Annotated[float, Field(gt=0.0, le=2**31)] | None = None
    """Documents per task, for a try; below 1, a share of them."""
    max_length: Annotated[int, Field(ge=2, le=2**31)] | None = None
    """Tokens of a window in likelihoods. None: the model's context, as in the harness."""
    batch_size: PositiveInt = 32
    """Prompts decoded together. Batches of likelihoods follow model.max_batch_tokens."""
    log_samples: bool = False
    """Add each document with the model's answer to the result file."""
    output: FilePath = Path("runs/harness.json")
    """File for the result, as the harness gives it."""
