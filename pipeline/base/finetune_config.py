"""The configuration of fine-tuning (paper section 4.1, Appendix B), with the paper's values as defaults.

As in config.py, the docstring of a field is its help text. This module touches no file and no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.base.config import ModelConfig
from tools_service.base.settings import (
    FilePath,
    Frozen,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    Text,
)
from tools_service.base.uris import require_whole_scheme

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
SelectBy = Literal["perplexity", "loss"]


class LoraConfig(Frozen):
    """Low-rank adapters (LoRA, arXiv 2106.09685), through peft."""

    rank: NotNegativeInt = 0
    """Rank of the adapters' matrices. 0: no adapters, all weights are trained."""
    alpha: Positive = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout before the adapters."""
    target_modules: tuple[Text, ...] = ()
    """Ends of the names of the layers that get an adapter (q_proj v_proj). Empty: all linear layers but
    the output layer."""
    merge: bool = False
    """Save a whole model, with the adapter added to its weights. False: save the adapter by itself."""

    @model_validator(mode="after")
    def _check_rank(self) -> LoraConfig:
        fields = type(self).model_fields.items()
        changed = [name for name, field in fields if getattr(self, name) != field.default]
        if changed and not self.rank:
            raise ValueError(
                f"lora.{changed[0]} has no effect with lora.rank = 0, which trains all weights: set lora.rank"
            )
        return self


class FinetuneConfig(Frozen):
    """Step 6: language modelling on C* (section 4.1, Appendix B)."""

    model: ModelConfig = ModelConfig()
    data: FilePath = Path("runs/augmented")
    """Folder that merge wrote."""
    column: Literal["text", "plain"] = "text"
    """text: train on C* with its calls; plain: without the calls (the baseline M + CC)."""
    output: FilePath = Path("runs/model")
    """Folder for the final model and the checkpoints."""
    reader: Literal["indexed", "streamed"] = "indexed"
    """indexed: each worker opens all tokens; streamed: Ray Data sends each worker its own. The batches are
    the same."""
    tokens: FilePath | None = None
    """Folder that keeps the tokens of C* for further runs. None: they are removed with the checkpoints."""
    packing: bool = False
    """Put several examples in one row of sequence_length tokens, without attention between them. The loss is
    the same."""
    mask_results: bool = False
    """Leave the tokens of tools' results out of the loss."""
    sequence_length: Annotated[PositiveInt, Field(ge=2)] = 1_024
    """Tokens per example. The first of them is not predicted, so one token would teach nothing."""
    batch_size: PositiveInt = 128
    """Examples per optimizer step over all workers."""
    micro_batch_size: PositiveInt = 8
    """Examples (with packing: rows) per forward pass of a worker."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1e3)] = 1e-5
    """Peak learning rate, reached after the warm-up."""
    warmup_share: Probability = 0.1
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (the paper names no decay), or falling to
    min_rate_share."""
    min_rate_share: Probability = 0.0
    """Share of the peak rate at which a linear or cosine schedule ends."""
    max_steps: PositiveInt = 2_000
    """Optimizer steps. May be raised later; once the run has finished, only if it ran with keep_state."""
    lora: LoraConfig = LoraConfig()
    evaluate_every: PositiveInt = 500
    """Steps between evaluations; each evaluation also writes a checkpoint."""
    held_out: PositiveInt = 1_000
    """Texts held out for the evaluations."""
    select_by: SelectBy = "perplexity"
    """What chooses the best checkpoint: the perplexity of the held-out texts without their calls, as in the
    paper, or the loss on them with their calls."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better one. None: never."""
    probe_prompts: NotNegativeInt = 20
    """Held-out prompts that the model continues at each evaluation, to count the calls it makes."""
    probe_tokens: PositiveInt = 48
    """Maximum tokens per continuation."""
    keep_checkpoints: PositiveInt = 1
    """Number of latest checkpoints to keep while the run is unfinished; the best is kept in addition."""
    keep_state: bool = False
    """Keep the last training state after the end, so that max_steps can be raised later."""
    storage: Text | None = None
    """Folder that all workers see, or URI of an object store (s3://bucket/path), for the checkpoints; each
    run has a folder of its own in it. None: below output."""
    workers: PositiveInt = 8
    """Ray Train workers."""
    use_gpu: bool = True
    """One GPU per worker."""
    cpus_per_worker: PositiveInt = 1
    """CPUs per worker; also its number of threads."""
    wait_s: NotNegative = 30.0
    """Seconds to wait for nodes that a named cluster lacks, each time anew when one joins. While an
    autoscaler starts nodes, the wait has no limit."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """DeepSpeed ZeRO stage."""
    deepspeed: FilePath | None = None
    """DeepSpeed configuration (JSON) for that stage, or the name of one of this package: zero2_offload,
    zero3_offload, zero3_nvme. Sizes and types come from the fields here, and a file that contradicts them
    is refused. None: zeroSTAGE of this package."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: slower, much less memory."""
    max_failures: NotNegativeInt = 3
    """Lost workers or nodes a run tolerates; it restarts from the last checkpoint."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where curves go beside metrics.jsonl: TensorBoard files in output/tensorboard, or a service whose
    package is installed."""
    project: Text = "toolformer"
    """Project of the run in Weights & Biases, MLflow and trackio."""
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] = 0
    """Seed of the held-out texts and of the order of the examples."""

    @property
    def accumulation(self) -> int:
        """Forward passes of each worker per optimizer step, without packing."""
        return self.batch_size // (self.workers * self.micro_batch_size)

    @field_validator("storage")
    @classmethod
    def _whole_scheme(cls, value: str | None) -> str | None:
        require_whole_scheme(value or "")
        return value

    @model_validator(mode="after")
    def _check_batches(self) -> FinetuneConfig:
        if self.batch_size % (self.workers * self.micro_batch_size):
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of workers times micro_batch_size = "
                f"{self.workers} x {self.micro_batch_size}: change one of the three"
            )
        if self.schedule == "constant" and self.min_rate_share:
            raise ValueError(
                f"min_rate_share = {self.min_rate_share}, but the rate stays constant: set schedule to "
                "linear or cosine"
            )
        if self.zero_stage == 0 and self.model.dtype == "bfloat16":
            raise ValueError("zero_stage = 0 trains bfloat16 weights less exactly than other stages: use 1")
        return self


class MergeLoraConfig(Frozen):
    """A LoRA adapter merged into its base model."""

    adapter: FilePath = Path("runs/model")
    """Folder with the adapter, of finetune or of PEFT; its adapter_config.json names the base model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the weights. auto: that of the base model."""
    output: FilePath = Path("runs/merged")
    """Folder for the model."""
