"""Plans: a run's own averages reproduce that run; time, cost, tools and disk by hand; errors."""

from __future__ import annotations

import io
import math
import os
import shutil
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bench.fixtures import small_run as annotating
from pipeline.base.config import PlanConfig
from pipeline.base.cost import ModelShape
from pipeline.base.hardware import PEAK_FLOPS_PER_S, Hardware
from pipeline.base.records import Cost
from pipeline.planning.assumptions import CALLS_PER_S, DEMO
from pipeline.planning.estimate import Plan, plan
from pipeline.planning.expected_work import PromptSizes
from pipeline.planning.from_run import assumptions_from_run
from pipeline.planning.render import render_plan, warnings
from pipeline.report import losses
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, ManifestError
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.base.errors import ConfigurationError
from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.prompts import load_prompt

pytestmark = pytest.mark.unit

STARTED = 1_767_225_600  # 2026-01-01, UTC


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    annotating.save_model(folder / "model")
    annotating.write_prompts(folder / "prompts")
    annotating.write_corpus(folder / "pages", 2, 24)
    return folder


@pytest.fixture(scope="module")
def real(world: Path) -> AnnotationManifest:
    return set_times(world / "annotations", annotating.finished(world, world / "annotations"))


def set_times(folder: Path, manifest: AnnotationManifest, actors: int = 1) -> AnnotationManifest:
    """As if the run had taken two minutes: the first file after one, each further file ten seconds later."""
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:02:00+00:00", "wall_s": 120.0}
    ray = manifest.config.ray.model_copy(update={"actors": actors})
    changed = {
        "sessions": (manifest.sessions[0].model_copy(update=times),),
        "config": manifest.config.model_copy(update={"ray": ray}),
    }
    manifest = manifest.model_copy(update=changed)
    manifest.write(folder)
    for number, path in enumerate(parquet_files(folder / ROWS)):
        os.utime(path, (STARTED + 60 + 10 * number,) * 2)
    return manifest


def config(world: Path, **changed: object) -> PlanConfig:
    annotate = annotating.config(world, world / "plan.json")
    return PlanConfig(**{**dict(annotate), **changed})


@pytest.fixture(scope="module")
def plan_like_run(world: Path, real: AnnotationManifest) -> Plan:
    return plan(config(world, like=world / "annotations", flops_per_s=1e9))


def test_sizes_are_those_of_the_engine(world: Path) -> None:
    model, method = annotating.annotator_model(), annotating.method(world / "prompts")
    sizes = PromptSizes.of(model.tokenizer, method)
    for tool in method.tools:
        template = load_prompt(tool, method.prompts)
        prompt = model.prompt(template)
        assert sizes.prompts[tool] == (prompt.length, len(prompt.suffix))
        assert sizes.max_text_tokens(tool, model.max_positions, 10) == model.max_text_tokens(template, 10)
    assert sizes.api == len(model.call_tokens.api)


def test_the_averages_of_a_run_reproduce_that_run(plan_like_run: Plan, real: AnnotationManifest) -> None:
    assert real.counts is not None
    assert real.compute is not None
    assert plan_like_run.texts == real.counts.texts
    assert plan_like_run.token_forwards == pytest.approx(real.counts.token_forwards, rel=0.02)
    assert plan_like_run.flops == pytest.approx(real.compute.flops, rel=0.03)
    for tool, counts in real.counts.tools.items():
        assert plan_like_run.tools[tool].texts == counts.selected
        assert plan_like_run.tools[tool].calls == pytest.approx(counts.candidates, rel=0.01)
        assert plan_like_run.tools[tool].texts_kept == pytest.approx(counts.texts_kept, abs=1)
    run = {(row.tool, row.phase): row.run for row in real.counts.work}
    for row in plan_like_run.work:
        assert row.cost.tokens == pytest.approx(run[row.tool, row.phase].tokens, rel=0.1, abs=20)


def test_what_is_left_out_of_the_corpus_is_named(world: Path, tmp_path: Path) -> None:
    annotating.write_corpus(tmp_path / "pages", 1, 4)
    (tmp_path / "pages" / "gone.jsonl").symlink_to("nowhere.jsonl")
    os.mkfifo(tmp_path / "pages" / "pipe.jsonl")
    corpus = config(world).corpus.model_copy(update={"paths": (str(tmp_path / "pages"),)})
    planned = plan(config(world, corpus=corpus))
    assert planned.left_out == (
        "not read: 1 x link without a target (gone.jsonl)",
        "not read: 1 x no regular file, but a FIFO, socket or device (pipe.jsonl)",
    )
    assert list(losses.plan_losses(planned))[:2] == list(planned.left_out)


def test_time_is_work_over_speed_and_what_starting_takes(plan_like_run: Plan) -> None:
    time = plan_like_run.time
    assert time is not None
    assert time.actor_hours == pytest.approx(plan_like_run.flops / 1e9 / 3_600)
    assert time.start_s == plan_like_run.assumptions.start_s > 0
    assert time.hours == pytest.approx(time.actor_hours + time.start_s / 3_600)
    assert (time.gpu_hours, time.cost) == (0, None)


def test_hardware_price_and_deadline(world: Path) -> None:
    deadline = DEMO.start_s / 3_600 + 1e-9
    on_gpus = config(world).ray.model_copy(update={"gpus_per_actor": 1.0})
    result = plan(
        config(
            world,
            ray=on_gpus,
            hardware="A100",
            utilisation=0.5,
            price_per_hour=2.0,
            deadline_hours=deadline,
            sample=20,
        )
    )
    time = result.time
    assert time is not None
    assert time.flops_per_s == 0.5 * 312e12
    assert time.gpu_hours == pytest.approx(result.flops / time.flops_per_s / 3_600)
    assert time.cost == pytest.approx(2 * time.gpu_hours)
    assert time.actors == math.ceil(time.actor_hours / 1e-9) > 1
    assert time.hours <= deadline
    calculator = result.tools["Calculator"]
    needed = calculator.calls / (time.actor_hours * 3_600) / CALLS_PER_S["Calculator"]
    assert calculator.replicas_per_actor == pytest.approx(needed, rel=0.01)
    assert calculator.replicas == max(1, math.ceil(calculator.replicas_per_actor * time.actors))


def test_a_budget_that_does_not_suffice_is_named(plan_like_run: Plan) -> None:
    assert plan_like_run.time is not None
    needed = plan_like_run.time.hours
    for budget, said in ((needed / 2, True), (needed * 2, False)):
        config = plan_like_run.config.model_copy(update={"max_hours": budget})
        lines = list(warnings(plan_like_run.model_copy(update={"config": config})))
        assert any(line.startswith("max_hours = ") for line in lines) is said


def test_disk(plan_like_run: Plan, world: Path) -> None:
    written = sum(path.stat().st_size for path in parquet_files(world / "annotations" / ROWS))
    assert plan_like_run.disk_bytes == pytest.approx(written, rel=0.01)
    assert plan_like_run.disk_files == math.ceil(50 / 8)
    assert plan_like_run.ids_bytes == 8 * 50


def test_without_a_run_the_demo_is_assumed_with_a_warning(world: Path) -> None:
    result = plan(config(world))
    assert result.assumptions == DEMO
    assert result.tools_from_demo == ("Calculator", "Calendar")
    assert result.time is None
    lines = " ".join(warnings(result))
    assert "assumed to be as in the demo" in lines
    assert "no time: name --hardware" in lines


def test_tools_that_the_run_did_not_have_are_taken_from_the_demo(
    world: Path, real: AnnotationManifest
) -> None:
    method = config(world).method
    (world / "prompts" / "qa.txt").write_text("Ask. [QA(who?)] Ann.\n\nInput: {text}\nOutput:")
    both_tools = method.model_copy(update={"tools": ("Calendar", "QA")})
    result = plan(config(world, method=both_tools, like=world / "annotations"))
    assert result.tools_from_demo == ("QA",)
    assert set(result.tools) == {"Calendar", "QA"}


@pytest.mark.parametrize("actors", [1, 2])
def test_the_speed_of_a_run_counts_from_when_all_actors_work(
    actors: int, world: Path, real: AnnotationManifest, tmp_path: Path
) -> None:
    """Seven files, then the same files without their times."""
    folder = tmp_path / "annotations"
    shutil.copytree(world / "annotations", folder)
    set_times(folder, real, actors)
    files = parquet_files(folder / ROWS)
    assumptions = assumptions_from_run(folder)
    assert assumptions.throughput is not None
    assert real.compute is not None
    later = sum(flops_of(path, real.compute.shape) for path in files[actors:])
    speed = later / (10 * (7 - actors))
    assert assumptions.throughput == pytest.approx(speed / actors, rel=0.01)
    assert assumptions.start_s == pytest.approx(120 - real.compute.flops / speed, abs=0.1)
    os.utime(files[-1], (STARTED + 10_000,) * 2)
    unknown = assumptions_from_run(folder)
    assert (unknown.start_s, unknown.throughput) == (DEMO.start_s, None)


def flops_of(path: Path, shape: ModelShape) -> int:
    costs = [phase["run"] for work in pq.read_table(path)["work"].to_pylist() for phase in work]
    return sum(shape.flops(Cost(**cost)) for cost in costs)


def test_no_speed_but_a_deadline_is_refused(world: Path) -> None:
    with pytest.raises(ConfigurationError, match="name hardware, flops_per_s"):
        plan(config(world, deadline_hours=5.0))


def test_a_run_without_a_speed_gives_a_warning(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "annotations"
    shutil.copytree(world / "annotations", copy)
    for path in parquet_files(copy / ROWS):
        os.utime(path, (0, 0))
    result = plan(config(world, like=copy))
    assert result.time is None
    assert any(f"{copy} shows no speed" in line for line in warnings(result))


def test_a_deadline_within_the_start_is_refused(world: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"deadline_hours = 0.01: starting takes {DEMO.start_s:.0f} s"
    ):
        plan(config(world, deadline_hours=0.01, flops_per_s=1e9))


def test_an_unfinished_run_is_refused(world: Path, real: AnnotationManifest, tmp_path: Path) -> None:
    real.model_copy(update={"state": "unfinished", "counts": None, "compute": None}).write(tmp_path)
    with pytest.raises(ManifestError, match="not finished"):
        plan(config(world, like=tmp_path))
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ManifestError, match="not a folder that annotate wrote"):
        plan(config(world, like=tmp_path))


def test_the_plan_is_printed_and_written(plan_like_run: Plan, tmp_path: Path) -> None:
    out = io.StringIO()
    Console(file=out, width=150).print(render_plan(plan_like_run))
    shown = out.getvalue()
    assert "50 texts" in shown
    assert "Calculator" in shown
    assert "positions" in shown
    plan_like_run.write(tmp_path / "new" / "plan.json")
    assert Plan.model_validate_json((tmp_path / "new" / "plan.json").read_text()) == plan_like_run


def test_all_tools_and_hardware_have_figures() -> None:
    assert set(DEMO.tools) == set(CALLS_PER_S) == set(PACKAGED)
    assert set(PEAK_FLOPS_PER_S) == set(get_args(Hardware))


def test_no_weights_are_read(world: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "model" / name, tmp_path / "model")
    model = config(world).model.model_copy(update={"path": str(tmp_path / "model")})
    assert plan(config(world, model=model)).flops == plan(config(world)).flops


def test_a_plan_without_prompts_has_the_engines_sizes_and_takes_less(world: Path) -> None:
    model = annotating.annotator_model()
    prompted = config(world)
    method = prompted.method.model_copy(update={"use_prompts": False})
    sizes = PromptSizes.of(model.tokenizer, method)
    prompt = model.prompt(None)
    for tool in method.tools:
        assert sizes.prompts[tool] == (prompt.length, len(prompt.suffix)) == (0, len(model.call_tokens.bos))
        assert sizes.max_text_tokens(tool, model.max_positions, 10) == model.max_text_tokens(None, 10)
    work = {
        with_prompts: {(row.tool, row.phase): row.cost for row in plan(one).work}
        for with_prompts, one in ((True, prompted), (False, prompted.model_copy(update={"method": method})))
    }
    for tool in method.tools:
        with_prompt, without = (work[one][tool, "positions"] for one in (True, False))
        assert without.tokens < with_prompt.tokens
        assert without.attention_pairs < with_prompt.attention_pairs
