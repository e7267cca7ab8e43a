"""Every decoding rule, on a scripted model with four kinds of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from pipeline.base.inference_config import CallLengths
from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import Generation
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from tests.pipeline.scripted import ScriptedModel
from tools_service.config import ToolsConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit
KINDS = ["bytes", "words", "merging", "metaspace"]

PROMPT = "The answer to 27 + 4 is"
PLAIN = PROMPT + "| thirty."
CALLS = PROMPT + "| [|Calculator|(|27 + 4|)| ->| 31|]|"


class Asks:
    """A client that keeps what it is asked and answers from `results`, by input."""

    def __init__(self, **results: str | None) -> None:
        self.results = results
        self.lists: list[tuple[str, list[ToolInput]]] = []

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        self.lists.append((tool, list(inputs)))
        answers = [self.results.get(one.text, "31") for one in inputs]
        return [ToolResult(answer, None if answer else "no_answer") for answer in answers]

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return self.call(tool, inputs)


def decode(
    paths: list[str],
    prompt: str = PROMPT,
    *,
    kind: str = "words",
    tools: Asks | LocalTools | None = None,
    max_positions: int = 2**31,
    date: str | None = None,
    **settings: object,
) -> Generation:
    model = ScriptedModel(kind, paths, max_positions)
    params = DecodingParams(**{"k": 2, **settings})  # type: ignore[arg-type]
    [generation] = Generator(model, tools or Asks()).generate([prompt], params, [date])
    return generation


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_goes_on_after_the_response(kind: str) -> None:
    found = decode([PLAIN, CALLS + " 31 exactly."], kind=kind)
    assert found.text == " 31 exactly."
    assert found.calls == (CompletedCall("Calculator", "27 + 4", "31", 0),)
    assert found.annotated == " [Calculator(27 + 4) -> 31] 31 exactly."
    assert (found.failed, found.stop_reason) == ((), "eos")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arrow", ["|) ->| 31", "|) -> |31", "|)->| 31", "|) ->|  31"])
def test_the_arrow_is_a_border_in_the_text_not_a_token(kind: str, arrow: str) -> None:
    # Where a token such as ") -> " holds more than the arrow, the call is written anew.
    written = PROMPT + "| [|Calculator|(|27 + 4" + arrow
    then = PROMPT + "| [Calculator(27 + 4)" + (" ->" if " ->" in arrow else "->") + " 31]| yes."
    found = decode([PLAIN, written, then], kind=kind)
    assert found.calls == (CompletedCall("Calculator", "27 + 4", "31", 0),)
    assert found.text == " yes."


def test_the_call_begins_where_api_is_among_the_k_most_likely() -> None:
    others = [PROMPT + f"| {word}." for word in ("hello", "long", "on")]
    paths = [*others, CALLS + " 31."]
    assert decode(paths, k=4).text == " 31."
    assert decode(paths, k=3).text == " hello."


def test_ties_are_ranked_as_greedy_decoding_breaks_them() -> None:
    class Tied(ScriptedModel):
        def _prefer(self, visible: list[int]) -> torch.Tensor:
            logits = super()._prefer(visible)
            return logits.clamp(max=99.0) if self.seen[-1] == " " + PROMPT else logits

    api = ScriptedModel("words", []).call_tokens.api[0]
    for word in (" is", " hello"):
        model = Tied("words", [PROMPT + f"|{word}.", CALLS + " 31."])
        [found] = Generator(model, Asks()).generate([PROMPT], DecodingParams(k=1))
        assert bool(found.calls) == (api < model.call_tokens.token_strings.index(word))


def test_k_1_is_plain_greedy_decoding() -> None:
    assert decode([PLAIN, CALLS + " 31."], k=1).text == " thirty."
    assert decode([CALLS + " 31.", PLAIN], k=1).text == " 31."


@pytest.mark.parametrize("settings", [{"k": 0}, {"disabled": True}, {"max_calls": 0}])
@pytest.mark.parametrize("kind", KINDS)
def test_without_calls_api_has_probability_0_at_every_step(kind: str, settings: dict[str, object]) -> None:
    found = decode([CALLS + " 31.", PLAIN, CALLS + " 32."], kind=kind, **settings)
    assert (found.text, found.calls, found.failed) == (" thirty.", (), ())


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_call_per_prompt_even_where_greedy_decoding_would_begin_another(kind: str) -> None:
    again = CALLS + " so| [|Calculator|(|27 + 4|)| ->| 31|]| twice."
    tools = Asks()
    found = decode([again, CALLS + " so once."], kind=kind, tools=tools)
    assert found.text == " so once."
    assert len(tools.lists) == 1


def test_more_calls_are_an_option() -> None:
    again = CALLS + " so| [|Calculator|(|27 + 4|)| ->| 31|]| twice."
    found = decode([again], max_calls=2)
    assert found.text == " so twice."
    assert [call.position for call in found.calls] == [0, 3]
    assert found.annotated == " [Calculator(27 + 4) -> 31] so [Calculator(27 + 4) -> 31] twice."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("| [|1|]| note.", "no_tool"),
        ("| [|Calculator|(|27 + 4|)|]| 31.", "no_arrow"),
        ("| [|Calculator|(|27|\n|)", "newline"),
        ("| [|Calculator|(|27 + 4| ->", "no_parenthesis"),
        ("| [|Calendar|(|27", "input_not_empty"),
        ("| [|Calculator|(|27", "ended"),
        ("| [|Calculator|(|" + "1" * 80, "too_long"),
        ("| [|Calculator|(|27 / 0|)| ->", "no_answer"),
    ],
)
def test_a_call_that_fails_is_rolled_back(kind: str, call: str, reason: str) -> None:
    tools = Asks(**{"27 / 0": None})
    found = decode(
        [PROMPT + call, PROMPT + "| thirty| [|Calculator|(|27", PROMPT + "| thirty or so."],
        kind=kind,
        tools=tools,
        max_call_tokens=CallLengths(**dict.fromkeys(CallLengths.model_fields, 40)),
    )
    assert [attempt.reason for attempt in found.failed] == [reason]
    assert (found.text, found.calls) == (" thirty or so.", ())
    assert found.annotated == found.text


def test_a_call_with_a_token_that_only_the_vocabulary_calls_special_is_rolled_back() -> None:
    model = ScriptedModel("words", [PROMPT + "| [|Calculator|(|9|)| ->", PROMPT + "| thirty or so."])
    model.tokenizer = deepcopy(model.tokenizer)
    model.tokenizer.backend_tokenizer.add_special_tokens([AddedToken("9", special=True)])
    assert model.tokenizer.convert_tokens_to_ids("9") not in model.tokenizer.all_special_ids
    tools = Asks()
    [found] = Generator(model, tools).generate([PROMPT], DecodingParams(k=2), [None])
    assert [(attempt.written, attempt.reason) for attempt in found.failed] == [
        ("Calculator(9", "special_token")
    ]
    assert (found.text, found.calls, tools.lists) == (" thirty or so.", (), [])


def test_later_tokens_do_not_see_a_call_rolled_back() -> None:
    model = ScriptedModel("words", [PROMPT + "| [|1", PROMPT + "| thirty or so."])
    list(Generator(model, Asks()).generate([PROMPT], DecodingParams(k=1)))
    assert " The answer to 27 + 4 is [" in model.seen
    after = model.seen[model.seen.index(" The answer to 27 + 4 is thirty") :]
    assert all(text.startswith(" The answer to 27 + 4 is thirty") for text in after)


def test_a_result_that_would_break_the_syntax_is_not_inserted() -> None:
    found = decode([CALLS + " 31.", PLAIN], tools=Asks(**{"27 + 4": "3] [1"}))
    assert [attempt.reason for attempt in found.failed] == ["unsafe_result"]
    assert found.text == " thirty."


def test_the_tools_of_the_service_are_called_with_the_prompts_own_day() -> None:
    config = ToolsConfig()
    tools = LocalTools({"Calculator": Calculator(), "Calendar": Calendar()}, config)
    day = "| [|Calendar|(|)| ->"
    sentence = "Today is Monday, January 30, 2023."
    found = decode(
        [PROMPT + day, PROMPT + f"| [Calendar() -> {sentence}]| a day."], tools=tools, date="2023-01-30"
    )
    assert found.calls == (CompletedCall("Calendar", "", sentence, 0),)
    assert found.text == " a day."
    assert decode([CALLS + " 31."], tools=tools).text == " 31."


def test_prompts_share_the_lists_of_tool_calls() -> None:
    prompts = [f"{number} and {number} is" for number in (1, 2, 3)]
    paths = [f"{number} and {number} is| [|Calculator|(|{number} + {number}|)| ->" for number in (1, 2, 3)]
    paths += [
        f"{number} and {number} is [Calculator({number} + {number}) -> 31]| it." for number in (1, 2, 3)
    ]
    tools = Asks()
    generator = Generator(ScriptedModel("bytes", paths), tools)
    found = generator.generate(prompts, DecodingParams(), ["2023-01-30", None, None])
    assert [generation.text for generation in found] == [" it."] * 3
    [(tool, inputs)] = tools.lists
    assert tool == "Calculator"
    assert sorted(inputs, key=lambda one: one.text) == [
        ToolInput("1 + 1", "2023-01-30"),
        ToolInput("2 + 2"),
        ToolInput("3 + 3"),
    ]


class TestToolsSwitchedOff:
    CALENDAR = PROMPT + "| [|Calendar|(|)| ->| 31|]|"

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_most_likely_tool_of_those_that_are_on_is_called(self, kind: str) -> None:
        paths = [CALLS + " 31.", self.CALENDAR + " today."]
        assert decode(paths, kind=kind).text == " 31."
        found = decode(paths, kind=kind, tools_off=frozenset({"Calculator"}))
        assert found.text == " today."
        assert [call.tool for call in found.calls] == ["Calendar"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_where_no_other_tool_comes_the_text_goes_on_without(self, kind: str) -> None:
        found = decode([CALLS + " 31.", PLAIN], kind=kind, tools_off=frozenset({"Calculator"}))
        assert (found.text, found.calls) == (" thirty.", ())
        assert len(found.failed) == 1

    def test_all_of_them_off_is_disabled(self) -> None:
        everything = frozenset({"QA", "WikiSearch", "Calculator", "Calendar", "MT"})
        found = decode([CALLS + " 31.", PLAIN], tools_off=everything)
        assert (found.text, found.failed) == (" thirty.", ())


class TestStops:
    def test_the_call_and_its_result_do_not_count_as_new_tokens(self) -> None:
        found = decode([CALLS + "| one| two| three| four"], max_new_tokens=3, kind="bytes")
        assert (found.text, found.tokens, found.stop_reason) == (" on", 3, "length")
        assert len(found.calls) == 1

    def test_a_newline_stops_after_the_first_line_that_is_not_blank(self) -> None:
        path = PROMPT + "|\n|\n|thirty|\n|Q: Why?"
        assert decode([path], stop_at_newline=True).text == "\n\nthirty"
        assert decode([path], stop_at_newline=True).stop_reason == "newline"
        assert decode([path]).text == "\n\nthirty\nQ: Why?"

    def test_the_end_of_the_text_comes_after_a_call_that_is_among_the_k(self) -> None:
        found = decode([PROMPT, CALLS + " 31."])
        assert found.text == " 31."
        assert decode([PROMPT, CALLS + " 31."], k=1).text == ""

    @pytest.mark.parametrize("room", [1, 2, 3, 4, 20, 26, 27, 28, 40])
    def test_the_context_is_never_left(self, room: int) -> None:
        size = len(" " + PROMPT) + room
        model = ScriptedModel("bytes", [PROMPT + "| thirty" + " more" * 20, CALLS + " 31."], size)
        [found] = Generator(model, Asks()).generate([PROMPT], DecodingParams())
        assert max(len(text) for text in model.seen) < size
        assert found.stop_reason in ("context", "eos", "length")
        assert bool(found.calls) == (room > len(" [Calculator(27 + 4) -> 31]"))

    def test_a_prompt_that_fills_the_context_is_refused(self) -> None:
        found = decode([PLAIN], kind="bytes", max_positions=24)
        assert found.refused is not None
        assert (found.text, found.stop_reason, found.refused.reason) == ("", "refused", "too_long")
        assert "'The answer to 27 + 4 is' has 24 tokens" in str(found.refused)


class TestPrompts:
    @pytest.mark.parametrize("spaces", ["", " ", "   "])
    def test_spaces_at_the_end_are_the_next_tokens(self, spaces: str) -> None:
        assert decode([PLAIN], PROMPT + spaces).text == " thirty."

    def test_an_empty_prompt_is_refused(self) -> None:
        found = decode([PLAIN], "  ")
        assert found.refused is not None
        assert found.refused.reason == "empty"

    @pytest.mark.parametrize("bad", ["", "   ", "x" * 200, "a\ud800", "\udcff", "é" * 90])
    @pytest.mark.parametrize("place", range(4))
    def test_a_prompt_that_cannot_be_asked_does_not_harm_its_batch(self, bad: str, place: int) -> None:
        prompts = [PROMPT] * 3
        prompts.insert(place, bad)
        model = ScriptedModel("bytes", [PLAIN], 100)
        for batch_size in (1, 2, 64):
            found = list(Generator(model, Asks()).generate(prompts, DecodingParams(), batch_size=batch_size))
            assert [one.refused is not None for one in found] == [prompt == bad for prompt in prompts]
            assert [one.text for one in found if one.refused is None] == [" thirty."] * 3

    @pytest.mark.parametrize(
        "prompt",
        [
            "[Calculator(1 + 1) -> 2] and",
            "[Calculator(",
            "a ] -> b",
            "<s> </s> [UNK] <unk> [PAD]",
            "[",
            " ->",
            "]",
            "a\u2028b\x0bc\x85d",
            "\t\n",
            "दिन กิน 你好 🙂",
            "\x00",
            "\ufeff",
        ],
    )
    def test_a_prompt_with_our_syntax_or_odd_characters_is_continued(self, prompt: str) -> None:
        found = decode([prompt + "| thirty."], prompt, kind="bytes")
        assert found.refused is None
        assert found.text == " thirty."


class TestCallLengths:
    @pytest.mark.parametrize(("tool", "limit"), [("MT", 256), ("QA", 60), ("WikiSearch", 60)])
    def test_a_call_has_the_limit_of_its_tool(self, tool: str, limit: int) -> None:
        for length, completed in ((limit - len(f"{tool}()->"), True), (limit, False)):
            argument = "x" * length
            paths = [PLAIN, f"{PROMPT}| [|{tool}|(|{argument}|)|->| 31"]
            paths.append(f"{PROMPT}| [{tool}({argument})-> 31]| yes.")
            found = decode(paths, kind="bytes")
            assert bool(found.calls) == completed
            assert [failed.reason for failed in found.failed] == ([] if completed else ["too_long"])
            assert found.text == (" yes." if completed else " thirty.")

    def test_the_limits_are_settings(self) -> None:
        paths = [PLAIN, f"{PROMPT}| [|MT|(|{'x' * 30}|)|->| 31"]
        found = decode(paths, kind="bytes", max_call_tokens=CallLengths(mt=20))
        assert [failed.reason for failed in found.failed] == ["too_long"]


class Raises:
    name = "Calculator"

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        raise RuntimeError("broken")


class TestTools:
    def test_a_tool_that_raises_fails_the_call_alone(self) -> None:
        found = decode([PLAIN, CALLS + " 31."], tools=LocalTools({"Calculator": Raises()}, ToolsConfig()))
        assert (found.text, found.calls, len(found.failed)) == (" thirty.", (), 1)

    def test_a_tool_that_is_not_there_fails_the_call_alone(self) -> None:
        found = decode([PLAIN, CALLS + " 31."], tools=LocalTools({}, ToolsConfig()))
        assert (found.text, found.calls, len(found.failed)) == (" thirty.", (), 1)


class TestPromptOrder:
    def test_results_come_in_the_order_of_the_prompts_whatever_the_batches(self) -> None:
        prompts = [word * size for word, size in (("a", 1), ("b", 9), ("c", 3), ("d", 20))]
        model = ScriptedModel("bytes", [f"{prompt}| is {prompt}" for prompt in prompts])
        model.max_batch_tokens = 20
        for batch_size in (1, 2, 64):
            found = Generator(model, Asks()).generate(prompts, DecodingParams(), batch_size=batch_size)
            assert [generation.text for generation in found] == [f" is {prompt}" for prompt in prompts]

    def test_a_batch_has_at_most_batch_size_rows_of_similar_length(self) -> None:
        prompts = ["a", "b" * 9, "c" * 3, "d" * 8, "e" * 2]
        model, batches = ScriptedModel("bytes", []), []
        forward = model.forward

        def recorded(input_ids: torch.Tensor, *inputs: Any, **options: Any) -> torch.Tensor:
            batches.append(tuple(input_ids.shape))
            return forward(input_ids, *inputs, **options)

        model.forward = recorded  # type: ignore[method-assign, assignment]
        list(Generator(model, Asks()).generate(prompts, DecodingParams(), batch_size=2))
        assert batches == [(2, 3), (2, 9), (1, 10)]  # each prompt begins with a space

    def test_finished_prompts_are_yielded_while_later_ones_wait(self) -> None:
        prompts = [f"{number} and" for number in range(10)]
        model = ScriptedModel("bytes", [f"{prompt}| so on" for prompt in prompts])
        generations = Generator(model, Asks()).generate(prompts, DecodingParams(), batch_size=1)
        assert next(generations).text == " so on"
        assert not any(" 9 and" in text for text in model.seen)
        assert len(list(generations)) == 9

    def test_none_gives_none(self) -> None:
        assert list(Generator(ScriptedModel("bytes", []), Asks()).generate([], DecodingParams())) == []


def test_a_prompt_whose_logits_are_not_finite_is_refused_alone() -> None:
    class Broken(ScriptedModel):
        def _prefer(self, visible: list[int]) -> torch.Tensor:
            logits = super()._prefer(visible)
            return logits * torch.nan if self.seen[-1].endswith("5 is") else logits

    prompts = [f"{number} is" for number in (3, 4, 5, 6)]
    model = Broken("words", [f"{prompt}| thirty." for prompt in prompts])
    found = list(Generator(model, Asks()).generate(prompts, DecodingParams()))
    assert [one.text for one in found] == [" thirty.", " thirty.", "", " thirty."]
    assert found[2].refused is not None
    assert (found[2].stop_reason, found[2].refused.reason) == ("refused", "not_finite")
    assert "not finite after ' 5 is'" in str(found[2].refused)


def test_a_failed_call_says_what_was_written() -> None:
    found = decode([PROMPT + "| [|Calculator|(|27|\n", PLAIN])
    assert found.failed == (FailedCall("Calculator(27\n", "newline"),)


class TestOptions:
    """What the paper leaves out, off by default."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_text_ends_before_a_stop_string(self, kind: str) -> None:
        path = PROMPT + "| thirty| or so|. Q: Why?"
        found = decode([path], kind=kind, stop=("Q:", "never"))
        assert (found.text, found.stop_reason) == (" thirty or so. ", "stop")
        assert decode([path], kind=kind, stop=("never",)).text == " thirty or so. Q: Why?"

    def test_a_call_within_a_stop_string_stands_at_the_end_of_the_text(self) -> None:
        paths = [
            PROMPT + "| so| [|Calculator|(|27 + 4|)| ->",
            PROMPT + "| so [Calculator(27 + 4) -> 31]| on|.",
        ]
        found = decode(paths, stop=("o on",))
        assert (found.text, found.stop_reason) == (" s", "stop")
        assert found.calls[0].position == 2
        assert found.annotated == " s [Calculator(27 + 4) -> 31]"

    def test_a_result_is_no_stop_string(self) -> None:
        found = decode([CALLS + " 31 exactly."], stop=("31]", "exact"))
        assert (found.text, len(found.calls)) == (" 31 ", 1)

    def test_a_call_inside_of_a_stop_string_stands_at_the_end_of_the_text(self) -> None:
        paths = [
            PROMPT + "| so [Calculator(27 + 4) -> 31]| it| is",
            PROMPT + "| so| [|Calculator|(|27 + 4|)| ->",
        ]
        found = decode([*paths, PROMPT + "| so"], k=3, stop=("o it",))
        assert (found.text, found.stop_reason) == (" s", "stop")
        assert [call.position for call in found.calls] == [2]

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_model_may_ask_again_elsewhere_after_a_failed_call(self, kind: str) -> None:
        paths = [
            PROMPT + "| [|Calculator|(|27|\n",
            PROMPT + "| so| [|Calculator|(|27 + 4|)| ->",
            PROMPT + "| so [Calculator(27 + 4) -> 31]| yes.",
            PROMPT + "| so| no.",
        ]
        once = decode(paths, kind=kind)
        assert (once.text, once.calls, len(once.failed)) == (" so no.", (), 1)
        again = decode(paths, kind=kind, max_failed_calls=2)
        assert (again.text, len(again.calls), len(again.failed)) == (" so yes.", 1, 1)
        assert again.calls[0].position == len(" so")
        assert again.failed[0].position == 0

    CHAINED = (
        PROMPT + "| [|Calculator|(| [|QA|(|How many?|)| ->",
        PROMPT + "| [|Calculator|(|27| + 4|)| ->",
        PROMPT + "| [Calculator(27 + 4) -> 31]| so.",
        PROMPT + "| none.",
    )

    @pytest.mark.parametrize("kind", ["bytes", "words", "metaspace"])
    def test_the_result_of_a_call_may_become_part_of_another_ones_input(self, kind: str) -> None:
        tools = Asks(**{"How many?": "27", "27 + 4": "31"})
        found = decode(list(self.CHAINED), kind=kind, tools=tools, chained_calls=True, max_calls=2)
        assert found.text == " so."
        assert found.calls == (
            CompletedCall("QA", "How many?", "27", 0),
            CompletedCall("Calculator", "27 + 4", "31", 0),
        )
        assert found.annotated == " [QA(How many?) -> 27] [Calculator(27 + 4) -> 31] so."
        assert [tool for tool, _ in tools.lists] == ["QA", "Calculator"]

    @pytest.mark.parametrize("settings", [{}, {"chained_calls": True}, {"max_calls": 2}])
    def test_no_call_is_chained_unless_it_may_be_and_there_may_be_two(self, settings: dict[str, Any]) -> None:
        tools = Asks(**{"How many?": "27", "27 + 4": "31"})
        found = decode(list(self.CHAINED), tools=tools, **settings)
        assert "QA" not in [tool for tool, _ in tools.lists]
        assert [call.tool for call in found.calls] in ([], ["Calculator"])

    @pytest.mark.parametrize("answer", [None, "3] [1", "(27"])
    def test_a_chained_call_that_fails_leaves_the_outer_one(self, answer: str | None) -> None:
        tools = Asks(**{"How many?": answer, "27 + 4": "31"})
        settings = {"chained_calls": True, "max_calls": 2, "max_failed_calls": 2}
        found = decode(list(self.CHAINED), tools=tools, **settings)
        assert len(found.failed) == 1
        if answer == "(27":  # a result that is inserted, and that the outer call cannot have
            assert [call.tool for call in found.calls] == ["QA"]
            assert found.text == " none."
        else:
            assert [(call.tool, call.input) for call in found.calls] == [("Calculator", "27 + 4")]
            assert found.text == " so."
