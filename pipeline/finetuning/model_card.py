"""README.md in the folder of a fine-tuned model: its card, for people and for the Hugging Face hub.

In: the manifest of a finished run and its metrics.jsonl. Out: a page with data, recipe, curves, limits and
versions. The licence is the user's to choose: a card that was edited is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest
from pipeline.finetuning.watching.metrics_log import Event, numbers, read_events
from pipeline.storage.card import cell, marked_page, table, write_card
from pipeline.storage.tools_json import LearnedTools, read_tools
from tools_service.base.staged_models import hub_name

_LICENCE = (
    "**Licence:** none is given here. The model keeps the licence of the model before, and texts keep those "
    "of their sources; write `license:` into the header before you publish.\n"
)
_LIMITS = (
    "- It calls a tool only where a server runs the call and writes its result: without one, what follows "
    "the arrow is the model's guess.",
    "- One call per input; it was not trained to use the result of one call in another (paper section 7).",
    "- Whether it calls a tool depends on the wording of the input.",
    "- Results of tools may be wrong, and the model repeats them. The cost of a call plays no role.",
)
_MOST_EVALUATIONS = 20
_COLUMNS = {
    "loss": "training loss",
    "held_out_loss": "held-out loss",
    "plain_loss": "without calls",
    "perplexity": "perplexity",
}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The content of a card."""

    folder: Path
    manifest: FinetuneManifest
    events: Sequence[Event]
    tools: LearnedTools | None

    def written(self) -> str:
        """The page."""
        parts = (
            f"---\n# license: choose one and write it here\n{yaml.safe_dump(self._header())}---",
            f"\n# {cell(self.folder.name)}\n",
            f"Fine-tuned {self.manifest.created} with [toolformer-on-ray](https://arxiv.org/abs/2302.04761), "
            "Toolformer's method: the model writes calls of tools where they help it to predict the text.\n",
            _LICENCE,
            *self._tools(),
            *(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in self._sections()),
            "Versions: "
            + ", ".join(f"{name} {value}" for name, value in self.manifest.versions.items())
            + ".",
        )
        return marked_page("\n".join(parts) + "\n\n")

    def _header(self) -> dict[str, Any]:
        is_adapter = (self.folder / "adapter_config.json").is_file()
        header: dict[str, Any] = {
            "library_name": "peft" if is_adapter else "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["tool-use", "toolformer"],
        }
        base = hub_name(self.manifest.config.model.path)
        if _is_hub_id(base):
            header["base_model"] = base
            header["base_model_relation"] = "adapter" if is_adapter else "finetune"
        return header

    def _tools(self) -> Iterator[str]:
        if self.manifest.config.column == "plain":
            yield "It was trained on the texts of C* without their calls: a baseline.\n"
        if self.tools is None:
            return
        syntax = self.tools.syntax
        yield (
            f"A call is written `{syntax.api_start}Tool(input){syntax.arrow}result{syntax.api_end}`. It "
            f"starts where `{syntax.api_start}` is among the {self.tools.k} likeliest tokens, at most "
            f"{self.tools.max_calls} per input; `tools.json` has what a server needs. The tools:\n"
        )
        for tool in self.tools.tools:
            yield f"- {cell(tool.name)}: {cell(tool.description or 'no description')}"
        yield ""

    def _sections(self) -> Iterator[tuple[str, list[str]]]:
        config, texts = self.manifest.config, self.manifest.texts
        yield (
            "Data",
            [
                f"- C*: {cell(config.data)}, column {config.column}, digest {self.manifest.data}",
                *(f"- {name.replace('_', ' ')}: {number:,}" for name, number in texts.items()),
            ],
        )
        yield (
            "Recipe",
            [
                f"- model before: {cell(config.model.path)}, {config.model.dtype}",
                f"- steps: {config.max_steps:,} of {config.batch_size} examples of at most "
                f"{config.sequence_length} tokens",
                f"- AdamW, learning rate {config.learning_rate:g}, warm-up over {config.warmup_share:.0%} "
                f"of the steps, then {config.schedule}",
                f"- adapters: {f'LoRA of rank {config.lora.rank}' if config.lora.rank else 'none'}",
                f"- {config.workers} workers, ZeRO stage {config.zero_stage}, seed {config.seed}",
            ],
        )
        best = self.manifest.best
        yield (
            "Evaluations",
            [
                f"Losses in nats per token, on held-out texts. The weights are of step {best.step:,}.\n",
                *self._evaluations(),
            ],
        )
        yield "Limits", list(_LIMITS)

    def _evaluations(self) -> list[str]:
        """A table of at most about twenty evaluations, the first, the best and the last among them."""
        evaluations = [event for event in self.events if "held_out_loss" in event]
        every = -(-len(evaluations) // _MOST_EVALUATIONS) or 1
        last = len(evaluations) - 1
        shown = [
            event
            for number, event in enumerate(evaluations)
            if number % every == 0 or number == last or event["step"] == self.manifest.best.step
        ]
        values: dict[int, dict[str, float]] = {}  # of the step, the evaluation and the probe, by step
        for event in self.events:
            values.setdefault(event["step"], {}).update(numbers(event))
        rows = [{"step": event["step"]} | dict(_row(values[event["step"]])) for event in shown]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return table(names, [[row.get(name, "") for name in names] for row in rows])


def _row(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The cells of an evaluation, by column."""
    for name, value in values.items():
        if name in _COLUMNS:
            yield _COLUMNS[name], f"{value:.5g}"
        elif name.startswith("calls/"):
            yield name.replace("/", " of "), f"{value:g}"


def write_model_card(folder: RunFolder) -> None:
    """Write README.md of a finished run; one that a user edited stays."""
    card = ModelCard(folder.path, folder.manifest(), read_events(folder.metrics)[0], read_tools(folder.path))
    write_card(folder.path, card)


def _is_hub_id(path: str) -> bool:
    """Whether a model's path is a name on the hub: the header must not name a folder of this machine."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not Path(path).exists()
