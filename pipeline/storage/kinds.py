"""The kinds of output that the commands write, so that nothing else is ever removed or replaced.

Out: an `OutputKind` for each (tools_service/base/ownership.py has the rule, indexing/build.py the kind of
an index). A command that writes a new file adds its name here.
"""

from __future__ import annotations

from tools_service.base.ownership import OutputKind

OWN_ROW_FILE = r"([0-9a-f]{24}|(\d+|[0-9a-f]{32})_\d{6}(_\d{6})?(-\d+)?)\.parquet"
"""Expression for the names of complete row files; the second form is that of an earlier version."""
PARTIAL_ROW_FILE = r"[0-9a-f]{24}\.parquet(\.[0-9a-f]{32})?\.part"
"""Expression for the names of row files that are not complete yet."""

_MANIFEST = r"manifest\.json(\.part)?"
_CARD = r"README\.md(\.part)?"
_REPORT = r"report\.html(\.part)?"
_PROGRESS = r"progress\.json(\.part)?"
_MODEL_FILE = (
    r"((generation_|tokenizer_|processor_|preprocessor_|adapter_)?config\.json"
    r"|adapter_model\.safetensors"
    r"|(pytorch_)?model(-\d{5}-of-\d{5,6})?\.(safetensors|bin)(\.index\.json)?"
    r"|tools\.json|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template\.(jinja|json)|(tokenizer|spiece|sentencepiece(\.bpe)?)\.model)"
)

_TOKEN_FOLDER = r"([0-9a-f]{32}|\.[0-9a-f]{32}\.[0-9a-f]{8}\.(part|old))"
_TOKEN_FILE = r"((tokens|results)\.bin|index\.npy|store\.json(\.part)?)"

ANNOTATION = OutputKind(
    name="an annotation",
    marks={"manifest.json": frozenset({"state", "corpus", "sessions"})},
    paths=(
        _MANIFEST,
        _CARD,
        _REPORT,
        _PROGRESS,
        r"rows/",
        rf"rows/({OWN_ROW_FILE}|{PARTIAL_ROW_FILE})",
        r"logs/",
        r"logs/[^/]+-\d+\.jsonl",
    ),
)

AUGMENTED = OutputKind(
    name="a result of merge",
    marks={"manifest.json": frozenset({"sources", "texts", "calls"})},
    paths=(_MANIFEST, _CARD, _REPORT, r"rows/", r"rows/\d{5}\.parquet"),
)

EXPORT = OutputKind(
    name="a result of export",
    marks={"manifest.json": frozenset({"source", "format", "texts"})},
    paths=(_MANIFEST, _CARD, r"rows/", r"rows/\d{5}\.(parquet|jsonl)"),
)

TOKENS = OutputKind(
    name="the tokens of a C*",
    marks={"store.json": frozenset({"format", "examples", "files"})},
    paths=(_TOKEN_FILE,),
    core=frozenset({"tokens.bin", "results.bin", "index.npy"}),
)

FINE_TUNED = OutputKind(
    name="a run of finetune",
    marks={
        "manifest.json": frozenset({"data", "best", "texts"}),
        "checkpoints/run.json": frozenset({"data"}),
    },
    paths=(
        _MANIFEST,
        _CARD,
        _REPORT,
        _MODEL_FILE,
        r"metrics\.jsonl(\.part)?",
        r"tracked_run\.txt(\.part)?",
        r"tensorboard/(events\.out\.tfevents\.[^/]+)?",
        r"mlflow\.db(-journal|-wal|-shm)?",
        r"wandb/.*",  # the package names the files in its folder
        r"checkpoints/",
        r"checkpoints/(run\.json(\.part)?|checkpoint_manager_snapshot\.json|\.validate_storage_marker)",
        r"checkpoints/tokens/",
        r"checkpoints/tokens/\.[0-9a-f]{32}\.lock",
        rf"checkpoints/tokens/{_TOKEN_FOLDER}/({_TOKEN_FILE})?",
        r"checkpoints/step-\d{6,}/",
        rf"checkpoints/(model/|model/{_MODEL_FILE})",
        r"checkpoints/step-\d{6,}/(latest|latest_universal|zero_to_\w+\.py|model/|\.metadata\.json)",
        rf"checkpoints/step-\d{{6,}}/model/{_MODEL_FILE}",
        r"checkpoints/merged/",
        rf"checkpoints/merged/{_MODEL_FILE}",
        r"checkpoints/step-\d{6,}/state/",
        r"checkpoints/step-\d{6,}/(state|universal)/[\w.-]+\.pt",
        r"checkpoints/step-\d{6,}/state/offloaded_tensors/([\w.-]+/)*([\w.-]+)?",
        r"checkpoints/step-\d{6,}/universal/((zero|tmp)/([\w.-]+/)*([\w.-]+)?)?",
    ),
)

MERGED_MODEL = OutputKind(
    name="a result of merge-lora",
    marks={"manifest.json": frozenset({"adapter", "base", "files"})},
    paths=(_MANIFEST, _MODEL_FILE),
)

STAGED = OutputKind(
    name="a staged model",
    marks={"manifest.json": frozenset({"source", "commit", "pickled", "files"})},
    paths=(_MANIFEST, _MODEL_FILE, r"[\w.-]+\.safetensors"),
)

PART_OF_SCORES = r"\d{5}-\d{10}\.jsonl"
"""Expression for the names of files with scores: number of the input file, and of its first line."""

SCORES = OutputKind(
    name="a result of score",
    marks={"manifest.json": frozenset({"state", "files", "started"})},
    paths=(
        _MANIFEST,
        _CARD,
        r"scores/",
        rf"scores/{PART_OF_SCORES}(\.part)?",
        r"logs/",
        r"logs/[^/]+-\d+\.jsonl",
    ),
)

PART_OF_PREDICTIONS = r"(?P<dot>\.)?[0-9a-f]{32}-\d{8}-[0-9a-f]{32}\.parquet(?(dot)\.[0-9a-f]{32}\.part)"
"""Expression for the names of chunks of predictions: a fingerprint, and the index of the first question."""

EVALUATION = OutputKind(name="a result of evaluate", marks={"": frozenset({"models"})})
PLAN = OutputKind(name="a plan", marks={"": frozenset({"assumptions", "sample", "time"})})
HARNESS = OutputKind(
    name="a result of harness", marks={"": frozenset({"results", "configs", "lm_eval_version"})}
)
