#!/usr/bin/env bash
# The entrypoint of cluster/kubernetes/trial.yaml, the first contact with a cluster: is the machine fit, does
# the model run on the GPU, do all five tools answer? Some hundred texts of the demo with the demo's models;
# needs nothing but the image.
#
#   cluster/trial.sh [FOLDER]      results go to FOLDER, by default runs/trial
#
# GPUS=0 runs the model on the CPU, TEXTS is the number of texts.
set -euo pipefail

output=${1:-runs/trial}
gpus=${GPUS:-1}

python -m pipeline doctor
python -m pipeline annotate --recipe demo --model.device auto --ray.actors 1 --ray.gpus-per-actor "$gpus" \
    --corpus.max-texts "${TEXTS:-300}" --output "$output/annotations"
python -m pipeline merge --recipe demo --annotations "$output/annotations" --output "$output/augmented"
echo "trial: the cluster runs Toolformer"
