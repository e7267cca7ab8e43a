"""Why no text gets done: one sentence from a snapshot of a run.

In: `Snapshot`, which stall_watch.py takes from the progress actor, Ray and Ray Serve. Out: `Diagnosis`, the
first cause that the snapshot shows, in the order in which the stages need one another: disk, tools,
annotating actors, batches, reading. No Ray here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tools_service.runtime.resources import Node, ProcessRequest, no_room

Reason = Literal[
    "disk",
    "tool has no room",
    "tool starts",
    "tool does not answer",
    "actors have no room",
    "actors start",
    "model loads",
    "batch takes long",
    "reading has no room",
    "reading is slow",
    "batches do not arrive",
    "end does not come",
    "unknown",
]


@dataclass(frozen=True, slots=True)
class ToolWait:
    """Calls that an annotating actor waits for."""

    tool: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchInProgress:
    """A batch of an annotating actor that is alive, and the seconds since it began."""

    first: int
    last: int
    texts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What the processes of a run do now, as the progress actor knows it."""

    done: int
    """Texts, those of earlier sessions included."""
    total: int | None
    """None until all corpus files are read."""
    read: int
    """Groups of corpus files that are read, of `to_read`."""
    to_read: int
    loading: tuple[float, ...] = ()
    """Seconds since each actor that loads its model began."""
    ready: int = 0
    """Actors whose model is loaded."""
    batches: tuple[BatchInProgress, ...] = ()
    waits: tuple[ToolWait, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolState:
    """The replicas of a tool, as Ray Serve counts them."""

    name: str
    replica: ProcessRequest
    running: int
    wanted: int
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run at a moment at which no text has been done for `stalled_s` seconds."""

    stalled_s: float
    activity: Activity
    actors: int
    """Annotating actors that the run wants."""
    annotator: ProcessRequest
    reader: ProcessRequest
    tools: tuple[ToolState, ...] = ()
    free: tuple[Node, ...] = ()
    """What is free on each node."""
    disk: str | None = None
    """What is wrong with the disk of the output."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a run waits for; `reason` has few values, for a metric."""

    reason: Reason
    sentence: str

    @property
    def is_work(self) -> bool:
        """Whether the run may only be as slow as its work is."""
        return self.reason == "batch takes long"


def diagnose(snapshot: Snapshot) -> Diagnosis:
    """The first cause that the snapshot shows."""
    if snapshot.disk is not None:
        return Diagnosis("disk", snapshot.disk)
    return (
        _stopped_tool(snapshot)
        or _silent_tool(snapshot)
        or _missing_actors(snapshot)
        or _long_batch(snapshot.activity)
        or _reading(snapshot)
        or _end(snapshot.activity)
    )


def _stopped_tool(snapshot: Snapshot) -> Diagnosis | None:
    """A tool without a running replica; actors wait for all tools before their first batch."""
    for tool in snapshot.tools:
        if tool.running:
            continue
        state = f"the tool {tool.name} has 0 of {tool.wanted} replicas running"
        if lacking := no_room(tool.replica, snapshot.free):
            advice = _advice(tool.replica, snapshot.free, "end another job or add a node")
            sentence = f"{state}: a replica needs {tool.replica} on one node, and {lacking}; {advice}"
            return Diagnosis("tool has no room", sentence)
        why = f" ({_one_line(tool.message)})" if tool.message else ""
        return Diagnosis("tool starts", f"{state}: Ray Serve is starting one{why}")
    return None


def _silent_tool(snapshot: Snapshot) -> Diagnosis | None:
    """The tool that actors have waited for longest, unless the model works meanwhile."""
    waits, batches = snapshot.activity.waits, snapshot.activity.batches
    if not waits:
        return None
    longest = max(waits, key=lambda wait: wait.seconds)
    of_tool = [wait for wait in waits if wait.tool == longest.tool]
    if len(of_tool) < len(batches) and longest.seconds < snapshot.stalled_s / 2:
        return None
    calls = sum(wait.calls for wait in of_tool)
    state = (
        f"annotators wait for the tool {longest.tool}: {calls} calls, the oldest for {longest.seconds:.0f} s"
    )
    for tool in snapshot.tools:
        if tool.name == longest.tool:
            state += f"; {tool.running} of {tool.wanted} replicas run"
    return Diagnosis("tool does not answer", f"{state}; a tool that is too slow needs more replicas")


def _missing_actors(snapshot: Snapshot) -> Diagnosis | None:
    """No actor has its model yet."""
    activity = snapshot.activity
    if activity.ready:
        return None
    missing = snapshot.actors - len(activity.loading)
    lacking = no_room(snapshot.annotator, snapshot.free) if missing > 0 else None
    pending = f"{missing} of {snapshot.actors} annotating actors wait for {snapshot.annotator} on one node"
    if activity.loading:
        loading = f"{len(activity.loading)} of {snapshot.actors} annotating actors load the model"
        also = f"; {pending}, and {lacking}" if lacking else ""
        return Diagnosis("model loads", f"{loading}, for {max(activity.loading):.0f} s{also}")
    if lacking:
        advice = _advice(snapshot.annotator, snapshot.free, "end another job or add a node")
        held = "it is held by another job, or by actors of this run that are still starting"
        sentence = f"{pending}, and {lacking}: {held}. In the first case {advice}"
        return Diagnosis("actors have no room", sentence)
    if missing > 0:
        starting = f"none of {snapshot.actors} annotating actors runs yet: Ray is starting their processes"
        return Diagnosis("actors start", starting)
    return None


def _long_batch(activity: Activity) -> Diagnosis | None:
    if not activity.batches:
        return None
    longest = max(activity.batches, key=lambda batch: batch.seconds)
    texts = f"texts {longest.first} to {longest.last}" if longest.texts > 1 else f"text {longest.first}"
    number = len(activity.batches)
    plural = "batch is" if number == 1 else "batches are"
    sentence = f"{number} {plural} in progress, the oldest ({texts}) for {longest.seconds:.0f} s"
    idle = activity.ready - number
    if idle > 0:
        others = f"; at least {idle} of {activity.ready} actors are idle"
        sentence += others + (", and nothing is left to read" if activity.total is not None else "")
    return Diagnosis("batch takes long", sentence)


def _reading(snapshot: Snapshot) -> Diagnosis | None:
    """Actors have their models and no batch."""
    activity = snapshot.activity
    if activity.total is not None and activity.done >= activity.total:
        return None
    idle = f"{activity.ready} annotating actors are idle"
    read = f"{activity.read} of {activity.to_read} groups of corpus files are read"
    if lacking := no_room(snapshot.reader, snapshot.free):
        needed = f"a task that reads or cuts batches waits for {snapshot.reader} on one node, and {lacking}"
        advice = "lower ray.actors or ray.cpus_per_actor, end another job or add a node"
        return Diagnosis("reading has no room", f"{needed}; {read}, and {idle}; {advice}")
    if activity.total is None:
        return Diagnosis("reading is slow", f"{idle}, because no text has come from reading; {read}")
    missing = activity.total - activity.done
    return Diagnosis(
        "batches do not arrive",
        f"{idle}: everything is read, but Ray Data has not brought them the last {missing} texts; "
        "the same command resumes the run",
    )


def _end(activity: Activity) -> Diagnosis:
    if activity.total is not None and activity.done >= activity.total:
        return Diagnosis("end does not come", "all texts are done, and Ray Data has not ended yet")
    return Diagnosis("unknown", "no cause was found; Ray's dashboard shows actors, tasks and their logs")


def _advice(process: ProcessRequest, free: Sequence[Node], always: str) -> str:
    lacking = {name for node in free for name in node.lacks(process)} or {"CPU", "GPU"}
    advice = [
        process.fewer_cpus if "CPU" in lacking else None,
        process.fewer_gpus if "GPU" in lacking else None,
    ]
    return ", ".join(text for text in (*advice, process.fewer if process.count > 1 else None) if text) + (
        f", {always}" if any(advice) else always
    )


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:200]} …"
