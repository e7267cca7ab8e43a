#!/usr/bin/env bash
# The paper's run: annotate → merge → finetune → evaluate with the recipe `paper` and all five tools. What ray_job.yaml starts.
#
#   cluster/paper.sh FOLDER      FOLDER is on storage that every node sees:
#     FOLDER/corpus/               CCNet shards              FOLDER/encyclopedia/   what WikiSearch and QA search
#     FOLDER/questions/            question files            FOLDER/held_out/       pages for perplexity
#     FOLDER/index/                the search index          FOLDER/runs/paper/     results; both are written
#
# MODEL names another model, TOOLS_FILE another configuration of the tools. Run again after a failure, it goes on where it stopped.
set -euo pipefail
shopt -s nullglob

shared=${1:?"usage: cluster/paper.sh FOLDER"}
runs=$shared/runs/paper
model=${MODEL:-EleutherAI/gpt-j-6b}
tools=${TOOLS_FILE:-cluster/tools.toml}
questions=("$shared"/questions/*.jsonl)
if ((${#questions[@]} == 0)); then
    echo "cluster/paper.sh: no question file (*.jsonl) in $shared/questions" >&2
    exit 2
fi

python -m pipeline annotate --recipe paper --model "$model" --corpus "$shared/corpus" --tools-file "$tools" \
    --tools.wikisearch.source "$shared/encyclopedia" --tools.wikisearch.index "$shared/index" \
    --output "$runs/annotations"
python -m pipeline merge --recipe paper --annotations "$runs/annotations" --output "$runs/augmented"
python -m pipeline finetune --recipe paper --model "$model" --data "$runs/augmented" --output "$runs/model"

# This script runs where there is no GPU; evaluation is a job of its own where there is one.
ray job submit --working-dir . --entrypoint-num-gpus 1 -- \
    python -m pipeline evaluate --recipe paper --label toolformer --model "$runs/model" --tools-file "$tools" \
    --generation.tools.wikisearch.source "$shared/encyclopedia" --generation.tools.wikisearch.index "$shared/index" \
    --generation.tools.calendar.today \
    --benchmarks "${questions[@]}" --perplexity "$shared/held_out" --output "$runs/evaluation.json"
