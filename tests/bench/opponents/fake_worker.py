"""A worker of an inference engine, played by the tests' own model."""

from __future__ import annotations

import json
from typing import Any

import torch

from pipeline.engine.model import LanguageModel


class FakeWorker:
    """Responds like the worker, with the tests' model; `asked` counts the sequences."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.asked = (
            model,
            dict.fromkeys(("token_logprobs", "next_logprob", "sample", "score", "reset"), 0),
        )
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, method: str, **fields: Any) -> dict[str, Any]:
        self.asked[method] += len(fields.get("ids", ()))
        response = getattr(self, method)(**json.loads(json.dumps(fields)))
        timing = {
            "wall_s": 0.5,
            "cpu_s": 0.25,
            "forwards": 3,
            "fed": [len(sequence) for sequence in fields.get("ids", ())],
        }
        if method == "sample":
            timing["fed"] = [[size] * fields["m"] for size in timing["fed"]]
        return json.loads(json.dumps(response | timing))

    @torch.inference_mode()
    def after(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities [n, V] after each token."""
        return self.model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def reset(self) -> dict[str, Any]:
        return {}

    def token_logprobs(self, ids: Any, starts: Any, token: int, top: int) -> dict[str, Any]:
        logprobs, lowest = [], []
        for sequence, start in zip(ids, starts, strict=True):
            rows = self.after(sequence)[start - 1 : -1]
            best = rows.topk(top)
            listed = (best.indices == token).any(1).tolist()
            logprobs.append(
                [p if found else None for p, found in zip(rows[:, token].tolist(), listed, strict=True)]
            )
            lowest.append(best.values[:, -1].tolist())
        return {"logprobs": logprobs, "lowest": lowest}

    def next_logprob(self, ids: Any, token: int) -> dict[str, Any]:
        return {"logprobs": [float(self.after(sequence)[-1, token]) for sequence in ids]}

    def sample(self, ids: Any, m: int, max_tokens: int, stop: list[int]) -> dict[str, Any]:
        return {
            "drawn": [[self.continue_one(sequence, max_tokens, stop) for _ in range(m)] for sequence in ids]
        }

    def continue_one(self, sequence: list[int], max_tokens: int, stop: list[int]) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < max_tokens and not {*drawn[-1:]} & {*stop}:
            probabilities = self.after([*sequence, *drawn])[-1].exp()
            drawn.append(int(torch.multinomial(probabilities, 1, generator=self.generator)))
        return drawn

    def score(self, ids: Any, indices: Any) -> dict[str, Any]:
        logprobs = []
        for sequence, of_sequence in zip(ids, indices, strict=True):
            rows = self.after(sequence)
            logprobs.append([float(rows[t - 1, sequence[t]]) for t in of_sequence])
        return {"logprobs": logprobs}
