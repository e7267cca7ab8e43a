#!/usr/bin/env bash
# The paper's run: annotate → merge → finetune → evaluate with the recipe `paper`. What ray_job.yaml starts on a cluster.
#
#   cluster/paper.sh FOLDER      FOLDER is on storage that every node sees:
#     FOLDER/corpus/               CCNet shards              FOLDER/encyclopedia/   what WikiSearch searches
#     FOLDER/questions/            question files            FOLDER/held_out/       pages for perplexity
#     FOLDER/runs/paper/           everything this writes
#
# MODEL names another model. Run again after a failure, it goes on where it stopped.
set -euo pipefail

shared=${1:?"usage: cluster/paper.sh FOLDER"}
runs=$shared/runs/paper
model=${MODEL:-EleutherAI/gpt-j-6b}

python -m pipeline annotate --recipe paper --model "$model" --corpus "$shared/corpus" \
    --tools.wikisearch.source "$shared/encyclopedia" --method.tools WikiSearch Calculator Calendar \
    --output "$runs/annotations"
python -m pipeline merge --recipe paper --annotations "$runs/annotations" --output "$runs/augmented"
python -m pipeline finetune --recipe paper --model "$model" --data "$runs/augmented" --output "$runs/model"

# This script runs where the job was started, on a head without GPU; evaluation is a job of its own on a GPU node.
ray job submit --working-dir . --entrypoint-num-gpus 1 -- \
    python -m pipeline evaluate --recipe paper --label toolformer --model "$runs/model" \
    --generation.tools.wikisearch.source "$shared/encyclopedia" \
    --benchmarks "$shared"/questions/*.jsonl --perplexity "$shared/held_out" --output "$runs/evaluation.json"
