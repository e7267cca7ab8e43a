"""The tools of the paper (section 3, Appendix A), declared as any other tool is.

Their order is their number in the random streams of draws: a new one goes to the end.
"""

from __future__ import annotations

from tools_service.contract.spec import Select, ToolSpec

BUILTIN = (
    ToolSpec(
        name="QA",
        implementation="tools_service.tools.qa:QA",
        config="tools_service.config:QAConfig",
        settings={"index_of": "WikiSearch"},
        description="Answers a question about facts with a few words.",
    ),
    ToolSpec(
        name="WikiSearch",
        implementation="tools_service.tools.wikisearch:WikiSearch",
        config="tools_service.config:WikiSearchConfig",
        description="Finds the passage of an encyclopedia that fits a search term best.",
    ),
    ToolSpec(
        name="Calculator",
        implementation="tools_service.tools.calculator:Calculator",
        description="Evaluates an expression of numbers, + - * / and parentheses.",
        select=Select(rule="pipeline.method.selection:arithmetic", random_share=0.01),
        tau_s=0.0,
        k=20,
        m=10,
        tau_f=0.5,
    ),
    ToolSpec(
        name="Calendar",
        implementation="tools_service.tools.calendar:Calendar",
        config="tools_service.config:CalendarConfig",
        description="Says which day it is.",
        select=Select(rule="dated"),
        takes_input=False,
        dated=True,
    ),
    ToolSpec(
        name="MT",
        implementation="tools_service.tools.mt:MT",
        config="tools_service.config:MTConfig",
        description="Translates a text in any language into English.",
        select=Select(rule="pipeline.method.selection:foreign_passage"),
        drop_input_only_after=True,
        tau_s=0.0,
        k=20,
        m=10,
        tau_f=0.5,
        # A translated paragraph: in GPT-2's vocabulary a Hindi question often takes more than 60 tokens.
        max_call_tokens=256,
    ),
)
