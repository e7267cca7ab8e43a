"""Memory of fine-tuning before a GPU is rented: by model, ZeRO stage, GPUs, micro-batch and offloading.

    python -m bench.finetune_memory                                   # GPT-J, Llama 1B and 8B
    python -m bench.finetune_memory --model FOLDER --gpus 1 8 --sequence-length 1024
    python -m bench.finetune_memory --check                           # predicted and measured on this CPU

Per GPU, in GiB, in bfloat16:

    states      stages 2 and 3: DeepSpeed's estimators (stage 3: 4 bytes a parameter of the largest layer, and
                18 a parameter over all GPUs). Stage 1: 2 + 2 bytes a parameter, and 16 over all GPUs.
                offload: optimizer on the CPU (stage 3: weights, too).
    activations with checkpointing: the input of each block, and all that the backward pass of one block
                needs; without: the latter for each block. What one block keeps is counted, not assumed: one
                and two blocks of the real width run on 16 and 32 tokens here, and torch says what they save.
    logits      of one micro-batch, and their gradient, in bfloat16; float32 copies of a part of them
                (token_loss.py).

Model and layers are counted on the meta device: no weights are built, but for two blocks. What the GPU's
libraries, fragmentation and buckets of communication need is not in the table: leave 10 to 15 % free.
Out: a table and runs/bench/finetune_memory.json. Needs neither Ray nor faiss.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig

from bench import results
from pipeline.finetuning.step.accelerator import prepare_deepspeed
from pipeline.finetuning.step.token_loss import MAX_FLOAT32_LOGITS
from tools_service.base.checkpoints import empty_model, load_config

GIB = 2**30
_FLOAT32_COPIES = 3  # of a part of the logits: themselves, their log-softmax, its gradient


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the memory of a model depends on."""

    parameters: int
    largest_layer: int  # parameters of the module that has most of its own
    layers: int
    hidden: int
    vocabulary: int
    linear: float  # bytes that a block keeps for the backward pass, per token
    quadratic: float  # the same per pair of tokens: eager attention

    def kept_by_block(self, rows: int, tokens: int) -> float:
        return rows * (self.linear * tokens + self.quadratic * tokens**2)

    def activations(self, rows: int, tokens: int, *, checkpointing: bool, value_bytes: int = 2) -> float:
        """Bytes of a forward and backward pass over `rows` rows of `tokens` tokens, without logits."""
        block = self.kept_by_block(rows, tokens)
        if not checkpointing:
            return self.layers * block
        return self.layers * rows * tokens * self.hidden * value_bytes + block

    def logits(self, rows: int, tokens: int, value_bytes: int = 2) -> float:
        """Bytes of the logits, their gradient and the float32 copies of a part."""
        count = rows * tokens * self.vocabulary
        return 2 * value_bytes * count + 4 * _FLOAT32_COPIES * min(count, MAX_FLOAT32_LOGITS)


def model_size(config: Any, dtype: torch.dtype = torch.bfloat16) -> ModelSize:
    """Count the model of this configuration."""
    from deepspeed.runtime.zero.stage3 import model_to_params

    with torch.device("meta"):
        model = empty_model(AutoModelForCausalLM, config)
    # All tensors of the meta device have the address 0, so DeepSpeed's total would be one parameter's.
    _, largest_layer = model_to_params(model)
    linear, quadratic = _kept_by_block(config, dtype)
    return ModelSize(
        sum(parameter.numel() for parameter in model.parameters()),
        largest_layer,
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        linear,
        quadratic,
    )


def _kept_by_block(config: Any, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes that one block saves per token, and per pair of tokens."""
    few, many = 16, 32
    at = {
        tokens: _saved(config, 2, tokens, dtype) - _saved(config, 1, tokens, dtype) for tokens in (few, many)
    }
    quadratic = (at[many] / many - at[few] / few) / (many - few)
    if abs(quadratic) * few < 0.01 * at[few] / few:  # alignment of small buffers
        quadratic = 0.0
    return at[many] / many - quadratic * many, quadratic


def _saved(config: Any, layers: int, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps after the forward pass of a model with `layers` blocks."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size = layers, 64
    small.bos_token_id = small.eos_token_id = small.pad_token_id = None
    torch.manual_seed(0)
    with torch.device("meta"):
        model = empty_model(AutoModelForCausalLM, small).to(dtype)
    model = model.to_empty(device="cpu").train()
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.zeros_(tensor)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept.setdefault(storage, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def model_states(size: ModelSize, stage: int, gpus: int, *, offload: bool) -> tuple[float, float]:
    """Bytes of weights, gradients and optimizer: per GPU, and of the CPU of a node with all GPUs."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if stage == 3:
        cpu, gpu, _ = estimate_zero3_model_states_mem_needs(
            size.parameters, size.largest_layer, gpus, cpu_offload=offload, cpu_offload_params=offload
        )
        return gpu, cpu
    cpu, gpu = estimate_zero2_model_states_mem_needs(size.parameters, gpus, cpu_offload=offload)
    if stage == 1:
        # Each GPU keeps all gradients; DeepSpeed has no estimator for that.
        gpu = 4 * size.parameters + (0 if offload else 16 * size.parameters // gpus)
    return gpu, cpu


def llama_config(hidden: int, layers: int, inner: int, *, tied: bool) -> LlamaConfig:
    """The shapes of Llama 3."""
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=tied,
    )


MODELS = {
    "GPT-J 6B": GPTJConfig,
    "Llama 1B": lambda: llama_config(2_048, 16, 8_192, tied=True),
    "Llama 8B": lambda: llama_config(4_096, 32, 14_336, tied=False),
}


def table(size: ModelSize, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each stage, number of GPUs and micro-batch."""
    rows = []
    for stage in (1, 2, 3):
        for gpus in arguments.gpus:
            for micro_batch in arguments.micro_batches:
                tokens = arguments.sequence_length
                states, _ = model_states(size, stage, gpus, offload=False)
                offloaded, cpu = model_states(size, stage, gpus, offload=True)
                logits = size.logits(micro_batch, tokens)
                kept, all_kept = (
                    size.activations(micro_batch, tokens, checkpointing=checkpointing)
                    for checkpointing in (True, False)
                )
                row = {
                    "states": states,
                    "activations": kept,
                    "logits": logits,
                    "total": states + kept + logits,
                    "without_checkpointing": states + all_kept + logits,
                    "offloaded": offloaded + kept + logits,
                    "cpu": cpu,
                }
                sizes = {name: round(value / GIB, 1) for name, value in row.items()}
                rows.append({"stage": stage, "gpus": gpus, "micro_batch": micro_batch, **sizes})
    return rows


def show(name: str, size: ModelSize, rows: Sequence[dict[str, Any]]) -> None:
    """Print one model's table in Markdown."""
    print(f"\n{name}: {size.parameters / 1e9:.2f} billion parameters, {size.layers} blocks")
    headers = (
        *("ZeRO", "GPUs", "micro-batch", "states", "activations", "logits", "total"),
        *("without checkpointing", "total, offloaded", "CPU of the node, offloaded"),
    )
    print(f"| {' | '.join(headers)} |\n|{'---|' * len(headers)}")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")


def check() -> list[dict[str, Any]]:
    """Peak memory of training steps of small shapes on this CPU, beside the prediction, in MiB."""
    from bench.finetune import SHAPES, system
    from bench.finetune_systems import Workload, save_model

    rows = []
    for name, micro_batch, checkpointing in (
        ("llama-20m", 2, False),
        ("llama-20m", 8, False),
        ("llama-20m", 8, True),
    ):
        shape = SHAPES[name]
        config = shape.config()
        size = model_size(config, torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            save_model(config, Path(folder))
            workload = Workload(
                folder,
                config.vocab_size,
                shape.sequence_length,
                micro_batch,
                micro_batch,
                ragged=False,
                gradient_checkpointing=checkpointing,
            )
            with system(workload, "zero2") as take:
                peak = take(1, 2).peak_mib
        tokens = shape.sequence_length
        # float32: weights, gradients, a bucket, a flat copy, the optimizer's weights and two moments.
        states = 4 * 7 * size.parameters
        activations = size.activations(micro_batch, tokens, checkpointing=checkpointing, value_bytes=4)
        predicted = (states + activations + size.logits(micro_batch, tokens, 4)) / 2**20
        rows.append(
            {
                "shape": name,
                "micro_batch": micro_batch,
                "checkpointing": checkpointing,
                "predicted_mib": round(predicted),
                "measured_mib": round(peak),
                "measured_of_predicted": round(peak / predicted, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder or hub name; without it GPT-J, Llama 1B and 8B")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--sequence-length", type=int, default=1_024)
    parser.add_argument("--check", action="store_true", help="train small models, and measure")
    arguments = parser.parse_args()
    prepare_deepspeed(use_gpu=False)
    if arguments.check:
        print(f"written: {results.write('finetune_memory_check', vars(arguments), check())}")
        return
    if arguments.model:
        configs = {arguments.model: load_config(arguments.model, "model")}
    else:
        configs = {name: build() for name, build in MODELS.items()}
    measured = {}
    for name, config in configs.items():
        size = model_size(config)
        rows = table(size, arguments)
        show(name, size, rows)
        measured[name] = {"size": asdict(size), "rows": rows}
    print(f"\nwritten: {results.write('finetune_memory', vars(arguments), measured)}")


if __name__ == "__main__":
    main()
