"""A try for people: renderables of rich, which print as plain text where there is no terminal.

In: a `TryRun`, its trials, a `Summary`. Out: the heading, a view of each text, the summary. Words say what
colours say. Texts, draws and results are strangers' strings: control characters come out escaped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text as Styled

from pipeline.base.records import Call, Text
from pipeline.method.merging import kept_calls
from pipeline.trying.advice import advice
from pipeline.trying.run import TryRun
from pipeline.trying.scan import TYPED, shown_reasons
from pipeline.trying.summary import Stage, Summary
from pipeline.trying.trial import Draw, Position, Trial
from tools_service.base.printable import printable
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.calls import linearise

MAX_POSITIONS = 5  # shown per text, besides those with a kept call
MAX_CALLS = 3  # shown per position, besides the kept ones
_CONTEXT = 100  # characters shown on either side of a mark or a call
_NEXT_CHARACTERS = 30  # characters of the text that name a position
_MAX_WRITTEN = 60
_MAX_EXAMPLES = 3
_MAX_RESULT = 300
_INDENT = (0, 0, 0, 2)
_HEADER = "         gain l_empty l_plus l_call"
_KEPT = " kept"

Span = tuple[int, Styled]
"""A character of a text, and what is inserted before it."""


def heading(run: TryRun) -> RenderableType:
    """What is tried, with which settings, on what."""
    config, settings, scan = run.config, run.settings, run.scan
    names = ["tau_s", "k", "m", "tau_f", "max_call_tokens", "given_name"]
    values = [(name, getattr(settings, name)) for name in names]
    numbers = "  ".join(f"{name} {_value(value)}" for name, value in values)
    lines = [
        Styled.assemble((run.tool, "bold"), f" with {config.model.path}"),
        Styled(f"  {numbers}  seed {run.method.seed}"),
        Styled(f"  prompt of {run.prompt_tokens:,} tokens" if run.prompt else "  without a prompt"),
    ]
    if config.text is None:
        where = ", ".join(config.corpus.paths)
        sentence = f"  {len(scan.selected):,} of {scan.looked_at:,} texts looked at are selected, {where}"
        lines.append(Styled(printable(sentence, 1_000)))
        if scan.turned_down:
            lines.append(Styled(f"  not selected: {shown_reasons(scan.turned_down)}", style="dim"))
    return Group(*lines)


def trial_view(
    number: int, total: int, trial: Trial, tool: str, settings: ToolMethod, *, all_draws: bool = False
) -> RenderableType:
    """One text: its positions, its draws, their results and gains, and the kept calls in place."""
    text = trial.annotation.text
    source = printable(text.document.url or text.document.source)
    title = Styled(f"text {number} of {total}" + ("" if source == TYPED else f" · {source}"), "bold")
    parts: list[RenderableType] = [
        "",
        Rule(title, align="left", style="dim"),
        _selection(trial),
        Padding(_text_with_positions(text, trial.positions), _INDENT),
    ]
    if trial.failed is not None:
        parts.append(Styled(f"failed: {printable(trial.failed, 500)}", style="red"))
        return Group(*parts)
    parts.append(_probabilities(trial, settings))
    parts += _positions(trial, settings, all_draws=all_draws)
    parts += _in_place(trial, tool, settings)
    return Group(*parts)


def summary_view(summary: Summary, tool: str, seconds: float) -> RenderableType:
    """All texts: the funnel, the gains, other thresholds, what to change."""
    texts = f"{summary.texts} text{'' if summary.texts == 1 else 's'}"
    parts: list[RenderableType] = [
        "",
        Rule(Styled(f"summary · {texts} in {seconds:.0f} s", "bold"), align="left", style="dim"),
        _funnel(summary.stages),
    ]
    if quantiles := summary.gain_quantiles():
        values = (
            ("min" if q == 0 else "max" if q == 1 else f"{q:.0%}", gain) for q, gain in quantiles.items()
        )
        row = {name: f"{gain:+.2f}" for name, gain in values}
        parts.append(_numbers("gain of scored calls (nats)", row))
        kept_at = {f"{at:g}": str(number) for at, number in summary.texts_kept_at().items()}
        parts.append(_numbers("texts kept at tau_f", kept_at, f"{summary.settings.tau_f:g}"))
    if summary.best_p_api:
        located = {f"{at:g}": str(number) for at, number in summary.texts_located_at().items()}
        parts.append(_numbers("texts with a position at tau_s", located, f"{summary.settings.tau_s:g}"))
    parts.append("")
    for sentence in advice(summary, tool):
        parts.append(Styled.assemble(("! ", "bold yellow"), printable(sentence, 1_000)))
    return Group(*parts)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _selection(trial: Trial) -> Styled:
    selection = trial.selection
    if selection.chosen:
        date = f"; its calls have the date {selection.date}" if selection.date else ""
        return Styled(f"selected: {printable(selection.rule)}{date}", style="dim")
    reason = printable(selection.rule.removeprefix("no: "))
    return Styled(f"not selected: {reason}; tried all the same", style="yellow")


def _text_with_positions(text: Text, positions: Iterable[Position]) -> Styled:
    spans: list[Span] = []
    for position in positions:
        # Behind the space of a token that begins with one.
        offset = position.position + text.text[position.position : position.position + 1].isspace()
        style = "bold black on cyan" if position.chosen else "dim"
        spans.append((offset, Styled(_mark(position), style=style)))
    return _with_insertions(text.text, spans)


def _mark(position: Position) -> str:
    return f"«{position.rank}»"


def _with_insertions(text: str, spans: Iterable[Span]) -> Styled:
    """The text with the spans in place; long stretches between them are cut."""
    ordered = sorted(spans, key=lambda span: span[0])
    if not ordered:
        return Styled(_line(_shorten(text, 4 * _CONTEXT, 0)))
    result, start = Styled(), 0
    for offset, inserted in ordered:
        result.append(_line(_shorten(text[start:offset], _CONTEXT if start else 0, _CONTEXT)))
        result.append_text(inserted)
        start = offset
    return result.append(_line(_shorten(text[start:], _CONTEXT, 0)))


def _line(text: str) -> str:
    return printable(text.replace("\n", " ¶ "), 1_000_000)


def _shorten(stretch: str, head: int, tail: int) -> str:
    """The first and last characters of a stretch, cut at words, if it is much longer."""
    if len(stretch) <= 1.5 * (head + tail):
        return stretch
    first = stretch[:head].rpartition(" ")[0] + " " if head else ""
    last = stretch[len(stretch) - tail :].partition(" ")[2] if tail else ""
    return f"{first}… {last}"


def _probabilities(trial: Trial, settings: ToolMethod) -> Styled:
    """How many positions reach tau_s, and how that could change."""
    passing, k = sum(p_api > settings.tau_s for p_api in trial.p_api), settings.k
    chosen = sum(position.chosen for position in trial.positions)
    line = f"p(<API>) > tau_s = {settings.tau_s:g} at {passing} of {len(trial.p_api)} positions"
    if passing > k:
        line += f"; k = {k} takes the likeliest {chosen}, down to {_probability(trial.p_api[k - 1])}"
    elif len(trial.p_api) > k > passing:
        line += f"; below {_probability(trial.p_api[k - 1])} tau_s admits k = {k}"
    return Styled(line)


def _probability(p_api: float) -> str:
    return f"{p_api:.4f}" if p_api >= 0.0001 else f"{p_api:.1e}"


def _positions(trial: Trial, settings: ToolMethod, *, all_draws: bool) -> Iterator[RenderableType]:
    """Each position, and its draws below: numbers on the left, call and result on the right."""
    yield Styled(_HEADER, style="dim")
    hidden: list[Position] = []
    for number, position in enumerate(trial.positions):
        if not all_draws and number >= MAX_POSITIONS and not any(draw.kept for draw in position.draws):
            hidden.append(position)
            continue
        yield _position(trial, position, settings)
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=len(_HEADER) + len(_KEPT))
        table.add_column(overflow="fold")
        for row in _rows(position.draws, all_draws=all_draws):
            table.add_row(*row)
        if table.rows:
            yield table
    if hidden:
        draws = sum(draw.count for position in hidden for draw in position.draws)
        yield Styled(f"and {len(hidden)} positions with {draws} draws (--all-draws)", style="dim")


def _position(trial: Trial, position: Position, settings: ToolMethod) -> Styled:
    text = trial.annotation.text.text
    text_after = _line(text[position.position :][:_NEXT_CHARACTERS].strip())
    label = f"{_mark(position)} p {_probability(position.p_api)} before “{text_after}”"
    if position.chosen:
        names = [draw.call.p_name for draw in position.draws if draw.call is not None]
        name = f", p(name) {_probability(names[0])}" if names and names[0] is not None else ""
        return Styled(label + name, style="bold cyan")
    if position.p_api > settings.tau_s:
        return Styled(f"{label}: {'no loss there' if position.position == 0 else 'beyond k'}", style="yellow")
    return Styled(f"{label}: not above tau_s", style="dim")


def _rows(draws: Sequence[Draw], *, all_draws: bool) -> Iterator[tuple[Styled, Styled]]:
    """Scored calls one by one, then what was lost: one by one, or by reason."""
    scored = [draw for draw in draws if draw.call is not None]
    shown = [draw for number, draw in enumerate(scored) if all_draws or draw.kept or number < MAX_CALLS]
    yield from map(_scored_row, shown)
    if hidden := scored[len(shown) :]:
        count = sum(draw.count for draw in hidden)
        yield Styled(_count(count)), Styled(f"{len(hidden)} more with less gain", style="dim")
    lost: defaultdict[str, list[Draw]] = defaultdict(list)
    for draw in draws:
        if draw.call is None:
            lost[draw.lost or ""].append(draw)
    for reason, dropped in lost.items():
        groups = [[draw] for draw in dropped] if all_draws else [dropped]
        for group in groups:
            examples = " | ".join(_written(draw) for draw in group[:_MAX_EXAMPLES])
            more = f" | {len(group) - _MAX_EXAMPLES} more" if len(group) > _MAX_EXAMPLES else ""
            count = sum(draw.count for draw in group)
            why = Styled.assemble(_count(count), (f"  {printable(reason)}", "yellow"))
            yield why, Styled(examples + more, style="dim")


def _scored_row(draw: Draw) -> tuple[Styled, Styled]:
    call = draw.call
    assert call is not None
    assert call.l_call is not None
    style = "bold green" if draw.kept else ""
    losses = f" {call.l_empty:7.2f} {call.l_plus:6.2f} {call.l_call:6.2f}"
    numbers = Styled.assemble(
        _count(draw.count),
        (f" {call.gain:+6.2f}", style or ("red" if call.gain < 0 else "")),
        losses,
        (_KEPT if draw.kept else "", style),
    )
    written, result = printable(call.input) or "()", printable(call.result, _MAX_RESULT)
    return numbers, Styled(f"{written} → {result}", style=style)


def _count(count: int) -> str:
    return f"{count:>4} x"


def _written(draw: Draw) -> str:
    if draw.input is not None:
        return printable(draw.input, _MAX_WRITTEN)
    return printable(draw.written, _MAX_WRITTEN) or "(nothing)"


def _in_place(trial: Trial, tool: str, settings: ToolMethod) -> Iterator[RenderableType]:
    """The text as merge would write it, or the best call in its place if none is kept."""
    calls, text = trial.annotation.calls, trial.annotation.text.text
    if not calls:
        return
    rows = map(asdict, trial.kept(settings.tau_f))
    merged, label, style = kept_calls(rows, text, {tool: settings.tau_f}), "kept: ", "bold green"
    if not merged:
        merged, label, style = [max(calls, key=lambda call: call.gain)], "best call, not kept: ", "yellow"
    spans = [(call.position, Styled(_written_call(call), style=style)) for call in merged]
    yield Padding(Styled.assemble((label, "dim")).append_text(_with_insertions(text, spans)), _INDENT)


def _written_call(call: Call) -> str:
    result = _shorten(call.result, 2 * _MAX_WRITTEN, 0)
    written = printable(linearise(call.tool, call.input, result), 1_000)
    return written if call.position else written[1:] + " "  # as in x*: a text begins with no space


def _funnel(stages: Iterable[Stage]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("in", "out", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("lost", overflow="fold")
    for stage in stages:
        share = f"{1 - stage.share_lost:.0%}" if stage.entered else "–"
        lost = Styled(printable(shown_reasons(stage.lost), 1_000), style="dim")
        table.add_row(stage.name, f"{stage.entered:,}", f"{stage.left:,}", share, lost)
    return table


def _numbers(title: str, values: dict[str, str], current: str | None = None) -> RenderableType:
    """A line of named numbers under a title; the one of the present setting stands out."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=title, title_justify="left")
    table.title_style = "italic"
    for name in values:
        table.add_column(f"{name} *" if name == current else name, justify="right", no_wrap=True)
    table.add_row(*(Styled(value, "bold" if name == current else "") for name, value in values.items()))
    return Group("", table)
