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

# Seven of eight GPUs annotate. QA and MT share the last one: cluster/tools.toml gives each half a
# GPU.
exec python -m pipeline annotate --recipe paper --corpus "$shared/corpus" --slice "$index/$slices" \
    --tools-file "${TOOLS_FILE:-cluster/tools.toml}" --tools.wikisearch.source "$shared/encyclopedia" \
    --tools.wikisearch.index "$shared/index" --ray.actors 7 --output "$shared/runs/slices/$index" "${@:3}"
