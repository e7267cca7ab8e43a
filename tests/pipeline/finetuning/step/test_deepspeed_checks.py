"""What DeepSpeed does not know, and what the machine lacks, is named before workers start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.finetuning.step.deepspeed_checks import require_machine
from tests.pipeline.finetuning.inputs import configuration
from tests.pipeline.finetuning.step.test_deepspeed_settings import HERE, require_refused, with_file
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

REFUSED: list[tuple[Any, str]] = [
    ({"gradient_cliping": 1.0}, "DeepSpeed knows no gradient_cliping"),
    ({"zero_optimisation": {"stage": 2}}, "DeepSpeed knows no zero_optimisation"),
    ({"learning_rate": 1e-5}, "DeepSpeed knows no learning_rate"),
    ({"zero_optimization": {"overlap_com": True}}, "DeepSpeed refuses it: .*overlap_com"),
    ({"zero_optimization": {"reduce_bucket_size": "big"}}, "DeepSpeed refuses it: .*reduce_bucket_size"),
    ({"zero_optimization": {"reduce_bucket_size": -1}}, "DeepSpeed refuses it: .*reduce_bucket_size"),
    ({"bf16": {"enable": True}}, "DeepSpeed refuses it: .*enable"),
    ({"fp16": {"loss_scale": "high"}}, "DeepSpeed refuses it: .*loss_scale"),
    ({"flops_profiler": {"enabeld": True}}, "enabeld"),
    ({"gradient_clipping": "1.0"}, "gradient_clipping = '1.0' is not a number"),
    ({"gradient_clipping": -1}, "gradient_clipping = -1 is not a number from 0 on"),
    ({"wall_clock_breakdown": "false"}, "wall_clock_breakdown = 'false' is neither true nor false"),
    ({"communication_data_type": "fp12"}, "DeepSpeed refuses it"),
    # DeepSpeed's own message names no key, or the value is long or breaks lines.
    ({"communication_data_type": 5}, "communication_data_type: 'int' object"),
    ({"flops_profiler": [1]}, "flops_profiler: 'list' object"),
    ({"checkpoint": {"parallel_write": "x"}}, "checkpoint: 'str' object"),
    ({"data_types": "fp32"}, "data_types: 'str' object"),
    ({"\x1b[31m\n\n\nx": 1}, r"knows no \\x1b\[31m\\n\\n\\nx: "),
    ({"": 1}, 'knows no "": '),
    ({"k" * 100_000: 1}, "100,000 characters"),
    ({f"k{number}": 1 for number in range(500)}, "knows no k0, k1, k2, k3, k4, 495 more"),
    ({"gradient_clipping": "\n" * 1_000}, "gradient_clipping = "),
]


@pytest.mark.parametrize(("content", "named"), REFUSED, ids=[str(case[0])[:60] for case in REFUSED])
def test_what_deepspeed_refuses_is_named(tmp_path: Path, content: Any, named: str) -> None:
    require_refused(tmp_path, content, named)


def test_what_the_machine_lacks_is_said_with_the_file_and_the_key(tmp_path: Path) -> None:
    disk = {"device": "nvme", "nvme_path": str(tmp_path / "disk")}
    config = with_file(tmp_path, {"zero_optimization": {"offload_param": disk}}, zero_stage=3)
    with pytest.raises(ConfigurationError) as caught:
        require_machine(config)
    assert str(caught.value) == (
        f"deepspeed {config.deepspeed}: zero_optimization.offload_param.nvme_path = {tmp_path}/disk is not a "
        "folder on this machine: make it, or name another"
    )
    require_machine(configuration(HERE))
