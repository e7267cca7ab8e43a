"""TRL trains two steps on each export, and its masks leave out what the export says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.base.config import ExportConfig
from pipeline.exporting.run import export
from tests.pipeline.exporting.augmented import augmented
from tests.pipeline.inference.test_decode_batch import random_model

pytest.importorskip("trl")
pytestmark = pytest.mark.unit

TEMPLATE = (
    "{{ tools | tojson }}"
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}{{ call.function.arguments }}{% endfor %}"
    "</>{% endgeneration %}{% else %}{{ message.content }}</>{% endif %}{% endfor %}"
)


def trainer_on(tmp_path: Path, export_options: dict[str, Any], **options: Any) -> Any:
    import datasets
    from trl import SFTConfig, SFTTrainer

    output = tmp_path / "export"
    export(ExportConfig(data=augmented(tmp_path, texts=4), output=output, **export_options))
    rows = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    model = random_model("Llama", "bytes")
    tokenizer = model.tokenizer
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if "segments" in rows.column_names:
        rows = rows.map(lambda row: tokenized(row, tokenizer), remove_columns=rows.column_names)
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        activation_checkpointing=False,
        disable_tqdm=True,
        logging_steps=1,
        max_length=None,
        **options,
    )
    return SFTTrainer(model=model.model, args=config, train_dataset=rows, processing_class=tokenizer)


def tokenized(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """Segments as input_ids and labels, as docs/exporting.md shows it."""
    ids: list[int] = []
    labels: list[int] = []
    for segment in row["segments"]:
        tokens = tokenizer(segment["text"], add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if segment["label"] else [-100] * len(tokens)
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize(
    ("export_options", "options", "learned", "masked"),
    [
        ({"format": "text"}, {}, "[QA(who?) -> a nurse] The", ""),
        ({"format": "text", "mask_results": True}, {}, "[QA(who?) ->", " a nurse]"),
        ({"format": "chat"}, {}, "a nurse", ""),
        ({"format": "chat"}, {"assistant_only_loss": True}, 'QA{"input": "who?"}', "a nurse"),
    ],
    ids=["text", "segments", "chat", "chat-assistant-only"],
)
def test_trl_trains_two_steps(
    tmp_path: Path, export_options: dict[str, Any], options: dict[str, Any], learned: str, masked: str
) -> None:
    trainer = trainer_on(tmp_path, export_options, **options)
    [batch, *_] = trainer.get_train_dataloader()
    predicted = batch["labels"][0].tolist()
    text = trainer.processing_class.decode([token for token in predicted if token != -100])
    assert learned in text
    assert not masked or masked not in text
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
