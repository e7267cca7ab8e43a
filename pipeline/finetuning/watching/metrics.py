"""The metrics of a fine-tuning run on Ray's endpoint for Prometheus (runtime/metrics.py).

In: the lines of metrics.jsonl, as the first worker writes them. Out: gauges with their latest values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.finetuning.watching.metrics_log import numbers
from pipeline.runtime.metrics import Metric, Sample


def _gauge(name: str, description: str, *labels: str) -> Metric:
    return Metric("gauge", f"toolformer_training_{name}", description, labels)


STEPS_DONE = _gauge("steps_done", "Optimizer steps taken, those of earlier starts included")
MAX_STEPS = _gauge("max_steps", "Optimizer steps of the run")
EVALUATED = _gauge("evaluation", "What an evaluation found beside loss and perplexity, by name", "name")
_OF_VALUE = {
    "loss": _gauge("loss", "Mean loss of the step's batch, nats per token"),
    "held_out_loss": _gauge("held_out_loss", "Mean loss of the held-out texts, nats per token"),
    "plain_loss": _gauge("plain_loss", "Mean loss of the held-out texts without calls, nats per token"),
    "perplexity": _gauge("perplexity", "Perplexity of the held-out texts without calls"),
    "learning_rate": _gauge("learning_rate", "Learning rate of the step"),
    "gradient_norm": _gauge("gradient_norm", "Norm of the gradient before clipping; none at ZeRO stage 0"),
    "seconds": _gauge("step_seconds", "Seconds of the step, with loading its data"),
    "tokens_per_s": _gauge("tokens_per_s", "Tokens of examples per second over all workers"),
    "flops_per_s": _gauge("flops_per_s", "FLOPs of the model per second over all workers"),
    "hardware_flops_per_s": _gauge("hardware_flops_per_s", "The same with recomputed activations"),
    "utilisation": _gauge("utilisation", "FLOPs of the model over the BF16 peak of all GPUs, if known"),
    "memory_bytes": _gauge("memory_bytes", "First worker: peak of its GPU, or resident memory on a CPU"),
}
METRICS = (STEPS_DONE, MAX_STEPS, EVALUATED, *_OF_VALUE.values())
_NOT_SHOWN = ("tokens", "plain_tokens", "prompts")  # of the held-out texts: they never change


def event_samples(event: Mapping[str, Any], max_steps: int) -> list[Sample]:
    """The values of a line of metrics.jsonl."""
    samples: list[Sample] = [
        (STEPS_DONE, (), float(event["step"])),
        (MAX_STEPS, (), float(max_steps)),
    ]
    for name, value in numbers(event).items():
        if name in _OF_VALUE:
            samples.append((_OF_VALUE[name], (), value))
        elif name not in _NOT_SHOWN:
            samples.append((EVALUATED, (name,), value))
    return samples
