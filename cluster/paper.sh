#!/usr/bin/env bash
# The entrypoint of ray_job.yaml: annotate → merge → finetune, with and without calls → evaluate the paper's
# four models → tables, with the recipe `paper` and all five tools.
#
#   cluster/paper.sh FOLDER      FOLDER is on storage that all nodes mount:
#     FOLDER/corpus/       corpus files of CCNet           FOLDER/encyclopedia/   articles for WikiSearch and QA
#     FOLDER/benchmarks/   published files, by name: svamp.json, lama_trex/ (docs/evaluation.md)
#     FOLDER/questions/    question files of your own      FOLDER/held_out/       pages for perplexity
#     FOLDER/index/        the search index (written)      FOLDER/runs/paper/     results (written)
#
# tables.md and tables.tex show the results beside the paper's figures, thresholds.md the examples in C*.
# GPUS is the number of GPUs for annotating actors and training workers, WORKERS that of workers if it is less,
# MICRO_BATCH the examples of a worker's forward, TOOL_REPLICAS the most replicas of QA and of MT. MODEL names
# another model, TOOLS_FILE another configuration of the tools, RECIPE another recipe. Started again after a failure, it resumes.
set -euo pipefail
shopt -s nullglob

shared=${1:?"usage: cluster/paper.sh FOLDER"}
recipe=${RECIPE:-paper}
runs=$shared/runs/$recipe
case $recipe in
single_gpu) model=openai-community/gpt2-large gpus=1 ;;
*) model=EleutherAI/gpt-j-6b gpus=8 ;;
esac
model=${MODEL:-$model}
gpus=${GPUS:-$gpus}
workers=${WORKERS:-$gpus}
micro_batch=${MICRO_BATCH:-8}
replicas=${TOOL_REPLICAS:-2}
tools=${TOOLS_FILE:-cluster/tools.toml}
benchmarks=("$shared"/questions/*.jsonl)
for path in "$shared"/benchmarks/*; do
    name=${path##*/}
    benchmarks+=("${name%%.*}=$path")
done
if ((${#benchmarks[@]} == 0)); then
    echo "cluster/paper.sh: no benchmark in $shared/benchmarks and no question file (*.jsonl) in $shared/questions" >&2
    exit 2
fi

python -m pipeline annotate --recipe "$recipe" --model "$model" --corpus "$shared/corpus" --tools-file "$tools" \
    --tools.wikisearch.source "$shared/encyclopedia" --tools.wikisearch.index "$shared/index" \
    --tools.qa.deployment.max-replicas "$replicas" --tools.mt.deployment.max-replicas "$replicas" \
    --ray.actors "$gpus" --output "$runs/annotations"
python -m pipeline merge --recipe "$recipe" --annotations "$runs/annotations" --output "$runs/augmented"
python -m pipeline finetune --recipe "$recipe" --model "$model" --data "$runs/augmented" \
    --workers "$workers" --micro-batch-size "$micro_batch" --output "$runs/model"
# The baseline M + CC: the same texts without their calls.
python -m pipeline finetune --recipe "$recipe" --model "$model" --data "$runs/augmented" --column plain \
    --workers "$workers" --micro-batch-size "$micro_batch" --output "$runs/model-plain"

# Evaluation runs on the GPUs of the cluster. Calls are off in the baselines, which were not trained to call,
# wherever perplexity is measured; Toolformer's own perplexity is a dash.
python -m pipeline evaluate --recipe "$recipe" --tools-file "$tools" \
    --models "base=$model,disabled-perplexity" "plain=$runs/model-plain,disabled-perplexity" \
    "disabled=$runs/model,disabled" "toolformer=$runs/model" \
    --generation.tools.wikisearch.source "$shared/encyclopedia" --generation.tools.wikisearch.index "$shared/index" \
    --generation.tools.qa.deployment.max-replicas "$replicas" \
    --generation.tools.mt.deployment.max-replicas "$replicas" --generation.tools.calendar.today \
    --benchmarks "${benchmarks[@]}" dateset=0 --perplexity "$shared/held_out" --output "$runs/evaluation.json"

python -m pipeline table "$runs/evaluation.json" --intervals > "$runs/tables.md"
python -m pipeline table "$runs/evaluation.json" --format latex > "$runs/tables.tex"
python -m pipeline thresholds --annotations "$runs/annotations" > "$runs/thresholds.md"
echo "results: $runs/evaluation.json, tables.md, tables.tex, thresholds.md"
