#!/usr/bin/env bash
#SBATCH --job-name=toolformer
#SBATCH --array=0-63
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Annotates a corpus in slices, each on its own node with its own Ray cluster:
#
#   sbatch cluster/slices.sh FOLDER 64     Slurm: one slice per task of --array, at most one per corpus file
#   kubectl create -f cluster/kubernetes/slices.yaml  Kubernetes: an indexed job
#   INDEX=5 cluster/slices.sh FOLDER 64        one slice by hand: the sixth, counted from 0
#
# GPUS is the number of GPUs of a node: by default Slurm's, otherwise 8. With four, for example,
# sbatch --gpus-per-node=4 cluster/slices.sh FOLDER 64.
#
# FOLDER is that of cluster/paper.sh; results go to FOLDER/runs/slices/INDEX. Further options are
# passed to annotate. A killed task resumes when it is started again (sbatch --array=5 …). When all
# slices are annotated:
#
#   python -m pipeline merge --recipe paper --annotations 'FOLDER/runs/slices/*' --output FOLDER/runs/paper/augmented
set -euo pipefail

shared=${1:?"usage: cluster/slices.sh FOLDER SLICES [OPTIONS OF ANNOTATE]"}
slices=${2:?"usage: cluster/slices.sh FOLDER SLICES [OPTIONS OF ANNOTATE]"}
index=${INDEX:-${SLURM_ARRAY_TASK_ID:-${JOB_COMPLETION_INDEX:?"name the slice, e.g. INDEX=0"}}}
unset RAY_ADDRESS

# All GPUs but one annotate. QA and MT share the last one: cluster/tools.toml gives each half a GPU. A single
# GPU is shared by all: half of it annotates.
gpus=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}
sizes=(--ray.actors "$((gpus - 1))")
if ((gpus == 1)); then
    sizes=(--ray.actors 1 --ray.gpus-per-actor 0.5 --tools.qa.deployment.gpus 0.25 --tools.mt.deployment.gpus 0.25)
fi
exec python -m pipeline annotate --recipe paper --corpus "$shared/corpus" --slice "$index/$slices" \
    --tools-file "${TOOLS_FILE:-cluster/tools.toml}" --tools.wikisearch.source "$shared/encyclopedia" \
    --tools.wikisearch.index "$shared/index" "${sizes[@]}" --output "$shared/runs/slices/$index" "${@:3}"
