"""The content of a report: what the page receives as one JSON object.

Sections collect it (annotation_section.py, …), document.py puts it into the page, assets/ shows it. Each
part is None or empty where the folder has none. Probabilities are between 0 and 1, losses and gains in nats.
"""

from __future__ import annotations

from typing import Literal

from pipeline.report.reasons import ReasonStage
from tools_service.base.settings import Frozen


class Fact(Frozen):
    """A line of a table of facts: `model`, `demo/models/annotator`."""

    name: str
    value: str


class Stage(Frozen):
    """A stage of the funnel of a tool. The stages follow each other; their units differ."""

    name: str  # as in the manifest: selected, positions, draws, candidates, executed, scored, kept
    unit: Literal["texts", "positions", "draws", "calls"]
    count: int


class Reason(Frozen):
    """What was lost under one reason, in plain words (reasons.py)."""

    stage: ReasonStage
    tool: str | None  # None: of the text, under every tool
    reason: str  # as in the files
    count: int
    unit: Literal["texts", "draws", "calls", "positions"]
    meaning: str  # one sentence
    advice: str  # what to change, a clause without a full stop; empty if nothing is wrong


class ToolFunnel(Frozen):
    """One tool of an annotation."""

    tool: str
    tau_s: float
    k: int
    m: int
    tau_f: float  # the threshold that the annotation is exact down to
    stages: tuple[Stage, ...]
    scored: int  # calls with losses
    kept: int  # at tau_f
    texts_kept: int
    flops: float | None  # of the model for this tool
    gain_kept: float  # nats, summed over the calls that `merge` could keep at tau_f
    largest_gain: float | None
    largest_gain_is_bound: bool


class ScoredCalls(Frozen):
    """The scored calls that merge could keep, as columns of equal length, for counting at any threshold.

    Left out are calls that merge drops at every threshold: those with a better call of the same tool at the
    same position, and those that break the rule on inputs (method/merging.py, `kept_calls`). With these
    columns, merge's rules are: keep calls with a gain of at least tau_f; of each tool the `max_examples`
    texts with the lowest `order` stay; with `one_call_per_position`, of several kept calls at one position
    of a text the one with the lowest `order` stays. Columns are little-endian arrays in base64.

    If there are too many calls, whole texts are sampled by a hash of their ids. Counts divided by `sampled`
    are then estimates for the whole, and the cap within the sample is `max_examples` times `sampled`.
    """

    number: int
    text: str  # uint32: index of the text among the sampled texts
    tool: str  # uint8: index in `AnnotationSection.tools`
    position: str  # uint32: characters of the text before the call
    gain: str  # float64
    order: str  # uint32: rank of (tool, text) in merge's seeded choice, over all tools; equal for one pair
    p_api: str  # float32
    is_bound: str  # uint8: 1 where `gain` is an upper bound, because l_call was not computed
    texts: int  # sampled texts with a call here
    sampled: float  # share of the texts with a call that are in here; 1 unless there are too many calls
    max_examples: int
    one_call_per_position: bool
    seed: str  # of merge's choice; a whole number of 64 bits, which JavaScript cannot hold


class CallInContext(Frozen):
    """A scored call to be read, one of those that merge could keep. Sorted by tool, largest gain first."""

    tool: str
    text: int  # index in `AnnotationSection.texts`
    position: int  # UTF-16 code units of the text before the call, as JavaScript counts
    call: str  # as it is written: " [Calculator(1 + 2) -> 3]"
    input: str
    result: str
    p_api: float
    l_plus: float
    l_empty: float
    l_call: float | None
    gain: float
    kept: bool  # at the annotation's tau_f
    chosen: tuple[Literal["best", "worst", "near", "random"], ...]
    """Why it is shown: the largest and smallest gains of a tool, those nearest to tau_f, a random sample."""


class TextInContext(Frozen):
    """A text that a call in context stands in. A long text is cut to a window around the call; another call
    in the same text then has its own window."""

    text_id: str  # an int64, which JavaScript cannot hold
    text: str
    source: str  # FILE#LINE
    url: str | None
    left_out_before: int = 0  # characters of the text before `text`
    left_out_after: int = 0


class Histogram(Frozen):
    """Counts between edges; len(edges) == len(counts) + 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Placement(Frozen):
    """Where the calls stand that merge could keep at the annotation's tau_f."""

    tool: str
    in_text: Histogram  # position divided by the length of the text
    places: dict[str, int]
    """Calls by the characters around them. A call has exactly one of placements.py's PLACES: "between words",
    "inside a word", "inside a number", "at the start", …; places without a call are left out."""


class PhaseCost(Frozen):
    """Work of the model in one phase for one tool (None: shared by all)."""

    tool: str | None
    phase: str
    tokens: int  # run, without padding
    padding: int
    lower_bound_tokens: int
    flops: float | None
    lower_bound_flops: float | None


class Session(Frozen):
    """One start of a command; `wall_s` is None if it was killed or still runs."""

    started: str
    wall_s: float | None


class AnnotationSection(Frozen):
    """An annotation, finished or not."""

    folder: str
    state: Literal["finished", "unfinished"]
    facts: tuple[Fact, ...]
    texts_done: int
    status: dict[str, int]  # texts by status
    tools: tuple[ToolFunnel, ...]
    reasons: tuple[Reason, ...]
    losses: tuple[str, ...]  # sentences of report/losses.py
    calls: ScoredCalls
    texts: tuple[TextInContext, ...]
    contexts: tuple[CallInContext, ...]
    placements: tuple[Placement, ...]
    costs: tuple[PhaseCost, ...]
    sessions: tuple[Session, ...]
    flops_per_s: float | None  # over all sessions, starts and waiting included
    warnings: tuple[str, ...] = ()  # such as: counts of an unfinished run, damaged files


class MergedTool(Frozen):
    """One tool in C*."""

    tool: str
    tau_f: float
    candidates: int  # texts with a kept call
    examples: int  # texts of C* with a call
    calls: int
    at: dict[str, int | None]  # texts at tau_f 0.5, 1.0, 2.0, as in the paper's Table 2
    paper: dict[str, int | None]  # the paper's own figures, where it has the tool


class MergedText(Frozen):
    """A text of C*, with its calls and without."""

    text: str
    plain: str
    tools: tuple[str, ...]


class AugmentedSection(Frozen):
    """C*."""

    folder: str
    facts: tuple[Fact, ...]
    texts: int
    calls: int
    tools: tuple[MergedTool, ...]
    losses: tuple[str, ...]
    examples: tuple[MergedText, ...]


class Curve(Frozen):
    """A curve over optimizer steps."""

    name: str  # loss, held-out loss, perplexity, …; "group: name" for the values of a group
    steps: tuple[int, ...]
    values: tuple[float, ...]


class TrainingSection(Frozen):
    """A run of finetune, finished or not."""

    name: str  # of its folder
    folder: str
    state: Literal["finished", "unfinished"]
    facts: tuple[Fact, ...]
    curves: tuple[Curve, ...]
    best_step: int | None
    losses: tuple[str, ...]


class Score(Frozen):
    """A cell of the table of results. Accuracy and interval in percent."""

    value: float
    low: float | None
    high: float | None
    n: int
    calls: int  # questions with a completed call
    p: float | None  # McNemar, against `EvaluationSection.compared_with`
    paper: float | None  # the paper's figure for this row, where it has one


class EvaluationRow(Frozen):
    """A model."""

    label: str
    model: str
    scores: dict[str, Score]  # by benchmark
    calls_by_tool: dict[str, dict[str, int]]  # by benchmark and tool
    failed_calls: dict[str, int]
    perplexity: float | None
    losses: tuple[str, ...]


class PaperRow(Frozen):
    """A model of the paper on the benchmarks that were evaluated here."""

    label: str
    scores: dict[str, float]


class Question(Frozen):
    """A question with its answer by one model, to be read."""

    benchmark: str
    label: str
    prompt: str
    generated: str  # with calls
    answers: tuple[str, ...]
    right: bool


class EvaluationSection(Frozen):
    """An evaluation."""

    file: str
    benchmarks: tuple[str, ...]
    rows: tuple[EvaluationRow, ...]
    paper: tuple[PaperRow, ...]
    compared_with: str | None
    questions: tuple[Question, ...]


class Report(Frozen):
    """The whole content of the page."""

    title: str
    folder: str
    created: str  # ISO time
    version: str
    annotation: AnnotationSection | None = None
    augmented: AugmentedSection | None = None
    trainings: tuple[TrainingSection, ...] = ()
    evaluation: EvaluationSection | None = None
    problems: tuple[str, ...] = ()  # parts that could not be read, one sentence each
