#!/usr/bin/env bash
# The entrypoint of ray_job.yaml: annotate → merge → finetune → evaluate with the recipe `paper` and
# all five tools.
#
#   cluster/paper.sh FOLDER      FOLDER is on storage that all nodes mount:
#     FOLDER/corpus/       corpus files of CCNet           FOLDER/encyclopedia/   articles for WikiSearch and QA
#     FOLDER/questions/    question files                  FOLDER/held_out/       pages for perplexity
#     FOLDER/index/        the search index (written)      FOLDER/runs/paper/     results (written)
#
# MODEL names another model, TOOLS_FILE another configuration of the tools. Started again after a
# failure, it resumes.
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

# This script runs on a node without a GPU, so evaluation is submitted as a job with one.
ray job submit --working-dir . --entrypoint-num-gpus 1 -- \
    python -m pipeline evaluate --recipe paper --label toolformer --model "$runs/model" --tools-file "$tools" \
    --generation.tools.wikisearch.source "$shared/encyclopedia" --generation.tools.wikisearch.index "$shared/index" \
    --generation.tools.calendar.today \
    --benchmarks "${questions[@]}" --perplexity "$shared/held_out" --output "$runs/evaluation.json"
