"""Errors of fine-tuning."""

from __future__ import annotations

from tools_service.base.errors import ConfigurationError, ToolformerError

_SHOWN_IDS = 8  # text ids in an error message


class CheckpointError(ConfigurationError):
    """A worker could not load the model or its tokenizer; other workers may have loaded them."""


class PackingError(ConfigurationError):
    """The model lets examples of one row attend to one another."""


class NonFiniteLossError(ToolformerError):
    """The loss of an example is infinite or not a number. The step was not taken."""

    def __init__(self, step: int, text_ids: list[int]) -> None:
        super().__init__(step, text_ids)
        self.step, self.text_ids = step, text_ids

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.text_ids[:_SHOWN_IDS]))
        hidden = len(self.text_ids) - _SHOWN_IDS
        more = f" and {hidden} more" if hidden > 0 else ""
        return (
            f"step {self.step}: the loss is not finite on text_id {shown}{more}. Look at these texts; if "
            "nothing is wrong with them, the weights have diverged: lower learning_rate or raise warmup_share"
        )


class DivergedError(ToolformerError):
    """All losses are finite, but their gradient is not."""
