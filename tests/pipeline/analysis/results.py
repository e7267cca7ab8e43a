"""Results of an evaluation, made by hand."""

from __future__ import annotations

from pipeline.evaluation.results import BenchmarkResult, ModelResult, RunningTextResult


def benchmark(
    accuracy: float,
    n: int = 100,
    calls: int = 0,
    with_call: float | None = None,
    without_call: float | None = None,
) -> BenchmarkResult:
    return BenchmarkResult(
        accuracy=accuracy,
        n=n,
        calls=calls,
        calls_by_tool={},
        failed_calls={},
        accuracy_with_call=with_call,
        accuracy_without_call=without_call,
    )


def model(
    path: str = "m", k: int = 10, *, disabled: bool = False, perplexity: float | None = None, **found: float
) -> ModelResult:
    """`found` has the accuracy by benchmark."""
    return ModelResult(
        model=path,
        k=k,
        disabled=disabled,
        tools_off=(),
        perplexity=perplexity,
        benchmarks={name: benchmark(accuracy) for name, accuracy in found.items()},
    )


def running_text(by_token: float | None) -> RunningTextResult:
    return RunningTextResult(
        word_perplexity=by_token, token_perplexity=by_token, words=9, lines=3, articles=1
    )
