"""What annotate, merge, finetune, evaluate and all of them together would do.

In: a step's configuration. Out: entries of a Preview. The checks are those that the steps make before they
start; what costs weights, a cluster or the network is left to the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.base.analysis_config import ReportConfig, StatusConfig
from pipeline.base.config import AnnotateConfig, CorpusConfig, MergeConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.benchmarks.published import sources_of
from pipeline.cli.dry_running.preview import Preview, count_and_bytes
from pipeline.cli.recipes import Recipe
from pipeline.corpus.files import CorpusFile, CorpusListing, files_of_slice, find_files
from pipeline.corpus.texts import require_readable
from pipeline.report.html.document import require_report
from pipeline.report.run_parts import parts_of, report_path
from pipeline.storage.kinds import ANNOTATION, AUGMENTED, EVALUATION
from pipeline.storage.manifest import begin, read_finished, read_manifest
from pipeline.storage.row_files import count_in_footers
from tools_service.config import ToolsConfig
from tools_service.tools.registry import files_read, require_available


def preview_corpus(preview: Preview, config: CorpusConfig) -> tuple[CorpusListing, list[CorpusFile]] | None:
    """The files of a corpus; None if they cannot be listed."""
    found: tuple[CorpusListing, list[CorpusFile]] | None = None
    with preview.checking():
        listing = find_files(config)
        found = listing, files_of_slice(listing.files, config)
    if found is not None:
        shown = ", ".join(config.paths) + (f", slice {config.slice}" if config.slice else "")
        preview.reads.append(("corpus", f"{shown}: {count_and_bytes(file.size for file in found[1])}"))
        with preview.checking():
            require_readable(found[1], config)
    return found


def preview_tools(preview: Preview, config: ToolsConfig, tools: Iterable[str], *, on_ray: bool) -> None:
    """The tools, what they read, and where they run."""
    for tool in tools:
        with preview.checking():
            require_available([tool], config)
            for name in files_read(config, [tool]):
                if preview_is_new(preview, name):
                    preview.read_model(name, tool)
        deployment = config.of(tool).deployment
        counts = dict.fromkeys((deployment.min_replicas, deployment.max_replicas))
        replicas = f"on Ray, replicas: {' to '.join(map(str, counts))}"
        preview.runs.append((tool, replicas if on_ray else "in this process"))


def preview_is_new(preview: Preview, name: str) -> bool:
    return not any(details.startswith(f"{name}: ") for _, details in preview.reads)


def preview_model(preview: Preview, path: str) -> bool:
    """A model, checked by its configuration and tokenizer if it is on this machine; return whether it is
    and has passed."""
    from pipeline.base.config import ModelConfig
    from pipeline.engine.loading import require_model

    if preview.read_model(path):
        with preview.checking():
            require_model(ModelConfig(path=path))
            return True
    return False


def preview_annotate(preview: Preview, config: AnnotateConfig) -> None:
    """Steps 1-4."""
    found = preview_corpus(preview, config.corpus)
    preview_model(preview, config.model.path)
    prompts = [path for path in (config.method.prompts,) if path and config.method.use_prompts]
    preview.read("prompts", prompts)
    ray = config.ray
    number = f"{ray.actors}" if ray.max_actors is None else f"{ray.actors} to {ray.max_actors}"
    actors = f"{number} actors, {ray.gpus_per_actor:g} GPUs and {ray.cpus_per_actor:g} CPUs each"
    preview.runs.append(("annotate", f"{actors}; model {config.model.path}, {config.model.dtype}"))
    preview_tools(preview, config.tools, config.method.tools, on_ray=True)
    for tool in config.method.tools:
        settings = config.method.of(tool)
        numbers = {name: getattr(settings, name) for name in ("tau_s", "k", "m", "tau_f")}
        preview.runs.append((tool, ", ".join(f"{name} {value:g}" for name, value in numbers.items())))
    state = "refused"
    with preview.checking():
        ANNOTATION.refuse_another(config.output)
        if found is not None:
            whole_corpus = None if config.corpus.slice is None else found[0].files
            begin(config.output, config, found[1], whole_corpus)
        state = _annotation_state(config)
    preview.write(config.output, ANNOTATION, state)


def _annotation_state(config: AnnotateConfig) -> str:
    if not config.output.exists() or not any(config.output.iterdir()):
        return "new"
    manifest = read_manifest(config.output)
    if manifest.state == "finished" and not config.retry_failed:
        return "finished, nothing to do"
    return f"unfinished with {count_in_footers(config.output):,} texts, would be resumed"


def preview_merge(preview: Preview, config: MergeConfig) -> None:
    """Step 5."""
    from pipeline.augmentation.merge import annotated_thresholds, thresholds
    from pipeline.augmentation.slices import expand, require_together

    with preview.checking():
        folders = expand(config.annotations)
        preview.read("annotations", folders)
        sources = {folder: read_finished(folder) for folder in folders}
        require_together(sources, config.missing_slices, config.same_texts)
        tau_f = thresholds(config, annotated_thresholds(sources))
        preview.runs += [
            (tool, f"tau_f {value:g}, at most {config.max_examples:,} texts") for tool, value in tau_f.items()
        ]
    preview.write(config.output, AUGMENTED)


def preview_finetune(preview: Preview, config: FinetuneConfig, *, force: bool = False) -> None:
    """Step 6."""
    from pipeline.finetuning.adapters import count_parameters
    from pipeline.finetuning.checkpoints.run_folder import RunFolder
    from pipeline.finetuning.checkpoints.run_identity import RunIdentity
    from pipeline.finetuning.data.augmented_files import read_index
    from pipeline.finetuning.data.run_size import run_size
    from pipeline.finetuning.run import check_settings, with_absolute_paths

    preview.read("data", [config.data])
    has_model = preview_model(preview, config.model.path)
    gpus = "a GPU" if config.use_gpu else f"{config.cpus_per_worker} CPUs"
    preview.runs.append(("finetune", f"{config.workers} workers with {gpus} each, ZeRO {config.zero_stage}"))
    folder, state = RunFolder(config.output), "refused"
    with preview.checking():
        preview.runs += run_size(config, read_index(config.data), count_tokens=has_model).lines()
    with preview.checking():
        check_settings(with_absolute_paths(config))
    if has_model and config.lora.rank:
        with preview.checking():
            parameters = count_parameters(config)
            trained = f"{parameters.trained:,} of {parameters.total:,} parameters are trained"
            preview.runs.append(("adapters", f"LoRA of rank {config.lora.rank}, {trained}"))
    with preview.checking():
        folder.check(force=force)
        if force:
            state = "removed, and started over" if config.output.exists() else "new"
        elif preview.problems:
            pass  # what is missing would be missing here, too
        elif not config.output.exists():
            state = "new"
        else:
            words = {"unfinished": "unfinished, would be resumed", "finished": "finished, nothing to do"}
            run = folder.state(RunIdentity.of(with_absolute_paths(config)))
            state = words.get(run, "new")
    preview.writes.append((str(config.output), state))
    if config.tokens is not None:
        preview.writes.append((str(config.tokens), "keeps the tokens of C*"))
    if config.storage is not None:
        preview.writes.append((config.storage, "the checkpoints, while the run is unfinished"))


def preview_generation(preview: Preview, config: GenerateConfig, *, on_ray: bool) -> None:
    """A model that decodes, with its tools."""
    if preview_is_new(preview, config.model.path):
        preview_model(preview, config.model.path)
    tools = () if config.calls_disabled else [t for t in config.tools.specs if t not in config.tools_off]
    new = [tool for tool in tools if all(what != tool for what, _ in preview.runs)]
    preview_tools(preview, config.tools, new, on_ray=on_ray)


def preview_evaluate(preview: Preview, configs: Mapping[str, EvaluateConfig]) -> None:
    """Step 8."""
    from pipeline.evaluation.inputs import read_inputs
    from pipeline.evaluation.placement import runs_on_ray
    from pipeline.evaluation.results import Evaluation

    on_ray = runs_on_ray(list(configs.values()))
    for label, config in configs.items():
        where = f"{config.ray.actors or 'as many as fit'} actors" if on_ray else "in this process"
        generation = config.generation
        calls = "calls disabled" if generation.calls_disabled else f"k {generation.k}"
        preview.runs.append((label, f"{generation.model.path}, {calls}, {where}"))
        preview_generation(preview, generation, on_ray=on_ray)
    config = next(iter(configs.values()))
    preview.read("benchmarks", [path for entry in config.benchmarks for path in sources_of(entry)])
    with preview.checking():
        tools = config.generation.tools.specs
        for benchmark in read_inputs(config.benchmarks, tools, first_line=config.first_line).benchmarks:
            preview.runs.append(("questions", f"{benchmark.name}: {len(benchmark.questions):,}"))
    if config.perplexity:
        preview_corpus(preview, CorpusConfig(paths=config.perplexity))
    state = "new"
    with preview.checking():
        if stored := Evaluation.read(config.output).models:
            state = f"exists with {', '.join(stored)}; the labels {', '.join(configs)} are added or replaced"
    preview.write(config.output, EVALUATION, state)


def preview_demo(preview: Preview, recipe: Recipe, *, force: bool = False) -> None:
    """All steps: the inputs that no step makes, and which steps are finished."""
    from pipeline.cli.demo import chained, models_of, steps_of
    from pipeline.cli.steps import StepCache

    recipe = chained(recipe)
    preview_corpus(preview, recipe.annotate.corpus)
    for path in dict.fromkeys((recipe.annotate.model.path, recipe.finetune.model.path)):
        preview_model(preview, path)
    preview_tools(preview, recipe.annotate.tools, recipe.annotate.method.tools, on_ray=True)
    preview.read("benchmarks", [path for entry in recipe.evaluate.benchmarks for path in sources_of(entry)])
    preview.runs.append(("models", f"{', '.join(models_of(recipe))} are evaluated"))
    with preview.checking():
        cache = StepCache.open(recipe.evaluate.output.with_name("steps.json"))
        runs = False
        for step in steps_of(recipe):
            unchanged = cache.is_unchanged(step) and not force
            finished = unchanged and cache.is_finished(step) and step.problem() is None
            runs = runs or not finished
            preview.runs.append((step.name, "would run" if runs else "finished before, would be skipped"))
            exists = step.output.exists()
            changed = (
                "exists: resumed if it fits" if unchanged else "exists: started over if it was made here"
            )
            state = "stays" if not runs else changed if exists else "new"
            preview.write(step.output, step.kind, state)


def preview_report(preview: Preview, config: ReportConfig | StatusConfig) -> None:
    """The outputs that a folder holds, and the page on them."""
    with preview.checking():
        parts = parts_of(config.folder)
        kinds = {"annotations": parts.annotations, "C*": parts.augmented}
        kinds |= {"models": parts.models, "evaluations": parts.evaluations}
        preview.reads += [(kind, str(path)) for kind, paths in kinds.items() for path in paths]
        preview.problems += parts.problems
    if isinstance(config, ReportConfig):
        path = config.output or report_path(config.folder)
        with preview.checking():
            require_report(path)
            preview.writes.append((str(path), "exists, would be replaced" if path.exists() else "new"))
