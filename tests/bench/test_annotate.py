"""The options of bench.annotate."""

from __future__ import annotations

import pytest

from bench.annotate import parse

pytestmark = pytest.mark.unit


def test_several_engines_and_data_types_in_one_command() -> None:
    engines = ["--against", "sglang", "vllm", "--vllm-python", "v", "--sglang-python", "s"]
    args = parse([*engines, "--dtype", "float32", "bfloat16", "--rounds", "3"])
    assert args.against == ["sglang", "vllm"]
    assert args.pythons == {"vllm": "v", "sglang": "s"}
    assert args.dtypes == ["float32", "bfloat16"]
    assert args.dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "vllm"], "--against vllm and --vllm-python go together"),
        (["--sglang-python", "s"], "--against sglang and --sglang-python go together"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--processes", "2", "--device", "cuda"], "--processes divides the cores"),
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(options)
    assert message in capsys.readouterr().err
