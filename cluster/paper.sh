#!/usr/bin/env bash
# The entrypoint of ray_job.yaml: annotate → merge → finetune twice → evaluate → table, with the recipe
# `paper` and all five tools.
#
#   cluster/paper.sh FOLDER      FOLDER is on storage that all nodes mount:
#     FOLDER/corpus/       corpus files of CCNet           FOLDER/encyclopedia/   articles for WikiSearch and QA
#     FOLDER/benchmarks/   the paper's benchmarks, each file or folder by the benchmark's name: svamp.json,
#                          lama_trex/, wikitext.raw; a file dateset.SEED generates Dateset
#     FOLDER/questions/    question files of your own      FOLDER/held_out/       pages for perplexity
#     FOLDER/index/        the search index (written)      FOLDER/runs/paper/     results (written)
#
# evaluation.json has the paper's four models: base, plain (fine-tuned on the same texts without calls,
# M + CC), disabled and toolformer. tables.md and tables.tex show them beside the paper's figures.
# MODEL names another model, TOOLS_FILE another configuration of the tools, RECIPE another recipe. Started
# again after a failure, it resumes.
set -euo pipefail
shopt -s nullglob

shared=${1:?"usage: cluster/paper.sh FOLDER"}
recipe=${RECIPE:-paper}
runs=$shared/runs/$recipe
model=${MODEL:-EleutherAI/gpt-j-6b}
tools=${TOOLS_FILE:-cluster/tools.toml}
benchmarks=("$shared"/questions/*.jsonl)
for path in "$shared"/benchmarks/*; do
    file=${path##*/}
    name=${file%%.*}
    if [[ $name == dateset ]]; then path=${file#*.}; fi
    benchmarks+=("$name=$path")
done
if ((${#benchmarks[@]} == 0)); then
    echo "cluster/paper.sh: no benchmark in $shared/benchmarks and no question file (*.jsonl) in $shared/questions" >&2
    exit 2
fi

python -m pipeline annotate --recipe "$recipe" --model "$model" --corpus "$shared/corpus" --tools-file "$tools" \
    --tools.wikisearch.source "$shared/encyclopedia" --tools.wikisearch.index "$shared/index" \
    --output "$runs/annotations"
python -m pipeline merge --recipe "$recipe" --annotations "$runs/annotations" --output "$runs/augmented"
python -m pipeline finetune --recipe "$recipe" --model "$model" --data "$runs/augmented" --output "$runs/model"
python -m pipeline finetune --recipe "$recipe" --model "$model" --data "$runs/augmented" --column plain \
    --output "$runs/model-plain"

# This script runs on a node without a GPU; the questions run on an actor for each GPU of the cluster.
python -m pipeline evaluate --recipe "$recipe" --tools-file "$tools" \
    --models "base=$model,plain-perplexity" "plain=$runs/model-plain,plain-perplexity" \
    "disabled=$runs/model,disabled" "toolformer=$runs/model" \
    --generation.tools.wikisearch.source "$shared/encyclopedia" --generation.tools.wikisearch.index "$shared/index" \
    --generation.tools.calendar.today \
    --benchmarks "${benchmarks[@]}" --perplexity "$shared/held_out" --output "$runs/evaluation.json"

python -m pipeline table "$runs/evaluation.json" --intervals > "$runs/tables.md"
python -m pipeline table "$runs/evaluation.json" --format latex > "$runs/tables.tex"
python -m pipeline thresholds --annotations "$runs/annotations" > "$runs/thresholds.md"
echo "results: $runs/evaluation.json, tables.md, tables.tex, thresholds.md"
