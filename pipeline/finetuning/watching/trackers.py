"""Where the curves of a run go beside metrics.jsonl: TensorBoard files, Weights & Biases, MLflow, trackio.

In: the lines of metrics.jsonl and the configuration. Out: numbers by step, and nothing else: no text of
the data, no console output, no code. Each tracker works in a thread of its own, so that a slow server
does not hold up the training; one that fails is given up with a warning. metrics.jsonl is what counts: a
resumed run hands each tracker all lines again, and it leaves out the steps that it has.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.watching.metrics_log import Event, numbers
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write, writing

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
RUN_ID = "tracked_run.txt"
_PACKAGES = {TENSORBOARD: "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
_INSTALL = {"tensorboardX": "tensorboardX", "mlflow": "mlflow-skinny"}
_MLFLOW_URI, _MLFLOW_FILE = "MLFLOW_TRACKING_URI", "mlflow.db"
_CLOSE_S = 60.0  # how long the end of a training waits for each tracker


class Tracker(Protocol):
    """A place that takes numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step, which come in the order of the steps."""
        ...

    def close(self) -> None:
        """Write everything out."""
        ...


def require_installed(config: FinetuneConfig) -> None:
    """Raise ConfigurationError for a tracker whose package is missing, before anything runs."""
    for name in config.trackers:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(
                f"trackers: {name} needs the package {package}, which is not installed: "
                f"pip install {_INSTALL.get(package, package)}, or leave {name} out of --trackers"
            )
    has_database = importlib.util.find_spec("sqlalchemy") is not None
    if "mlflow" in config.trackers and not os.environ.get(_MLFLOW_URI) and not has_database:
        raise ConfigurationError(
            f"trackers: mlflow has no place to write: name a server in the variable {_MLFLOW_URI}, or "
            f"install mlflow instead of mlflow-skinny for a file {_MLFLOW_FILE} in the output"
        )


class Trackers:
    """The trackers of a run, fed by the first worker."""

    def __init__(self, config: FinetuneConfig, events: Sequence[Event]) -> None:
        """`events`: the lines of metrics.jsonl that a resumed run begins with."""
        self._feeds = [
            _Feed(name, lambda name=name: _OPEN[name](config))  # type: ignore[misc]
            for name in dict.fromkeys(config.trackers)
        ]
        for event in events:
            self.log(event)

    def log(self, event: Event) -> None:
        """Hand a line of metrics.jsonl to every tracker. Neither waits nor raises."""
        values = tracked_values(event)
        for feed in self._feeds:
            feed.put((event["step"], values))

    def close(self) -> None:
        """Wait until the trackers have written everything, a minute each at most."""
        for feed in self._feeds:
            feed.close()


def tracked_values(event: Event) -> dict[str, float]:
    """The numbers of a line, named train/…, held_out/… or probe/…, as trackers group them."""
    group = "train" if "loss" in event else "held_out" if "held_out_loss" in event else "probe"
    return {f"{group}/{name}": value for name, value in numbers(event).items()}


class _Feed:
    """A tracker in its thread."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self._name, self._open = name, open_tracker
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, item: tuple[int, dict[str, float]] | None) -> None:
        if self._thread.is_alive():
            self._waiting.put(item)

    def close(self) -> None:
        self.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            logger.warning("%s has not taken all curves after %.0f s: %s", self._name, _CLOSE_S, _REST)

    def _run(self) -> None:
        try:
            tracker = self._open()
            while (item := self._waiting.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except (Exception, SystemExit) as error:  # a tracker must never end the training
            logger.warning("%s failed and gets no more curves: %s: %s", self._name, brief(error), _REST)


_REST = "the training goes on, and metrics.jsonl has them all"


def _run_id(config: FinetuneConfig) -> str:
    """A name for the run that its restarts share; a run that starts over has another."""
    path = config.output / RUN_ID
    if not path.exists():
        atomic_write(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()


def _settings(config: FinetuneConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


class _TensorBoard:
    """Event files in output/tensorboard. A start writes all steps anew, so that no step is there twice."""

    def __init__(self, config: FinetuneConfig) -> None:
        from tensorboardX import SummaryWriter

        folder = config.output / TENSORBOARD
        with writing(folder):
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: FinetuneConfig) -> None:
        import wandb

        self._run = wandb.init(
            project=config.project,
            name=config.output.name,
            id=_run_id(config),
            resume="allow",
            dir=str(config.output),
            config=_settings(config),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                silent=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        self._first = self._run.step  # 0, or the first that a resumed run lacks

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, config: FinetuneConfig) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(
            os.environ.get(_MLFLOW_URI) or f"sqlite:///{config.output / _MLFLOW_FILE}"
        )
        found = self._client.get_experiment_by_name(config.project)
        experiment = found.experiment_id if found else self._client.create_experiment(config.project)
        run_id = _run_id(config)
        runs = self._client.search_runs([experiment], filter_string=f"tags.toolformer_run = '{run_id}'")
        if runs:
            self._run = runs[0].info.run_id
        else:
            run = self._client.create_run(
                experiment, run_name=config.output.name, tags={"toolformer_run": run_id}
            )
            self._run = run.info.run_id
            for name, value in _settings(config).items():
                self._client.log_param(self._run, name, value)
        self._sent: dict[str, int] = {}  # last step by name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        moment = int(1_000 * time.time())
        new = [
            Metric(name, value, moment, step)
            for name, value in values.items()
            if step > self._last_step(name)
        ]
        if new:
            self._client.log_batch(self._run, new)

    def _last_step(self, name: str) -> int:
        if name not in self._sent:
            history = self._client.get_metric_history(self._run, name)
            self._sent[name] = max((metric.step for metric in history), default=-1)
        return self._sent[name]

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Trackio:
    def __init__(self, config: FinetuneConfig) -> None:
        import trackio

        self._run = trackio.init(
            project=config.project,
            name=f"{config.output.name}-{_run_id(config)[:8]}",
            config=_settings(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        # trackio has no public name for the first step that a resumed run lacks.
        self._first = getattr(self._run, "_next_step", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_OPEN: dict[str, Callable[[FinetuneConfig], Tracker]] = {
    TENSORBOARD: _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
