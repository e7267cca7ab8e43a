"""The inference engines that bench.annotate can compare ours with, by the name in its options."""

from bench.opponents.opponent import Opponent
from bench.sglang import settings as sglang
from bench.vllm import settings as vllm

OPPONENTS = {
    "vllm": Opponent("vLLM", "bench.vllm.worker", vllm.engine_settings, vllm.environment),
    "sglang": Opponent("SGLang", "bench.sglang.worker", sglang.engine_settings, sglang.environment),
}
