#!/usr/bin/env bash
#SBATCH --job-name=toolformer
#SBATCH --array=0-63
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Annotates a corpus in slices, each on a node of its own with a Ray of its own:
#
#   sbatch cluster/slices.sh FOLDER 64         Slurm: as many slices as --array has tasks, at most as many as there are files
#   kubectl create -f cluster/kubernetes/slices.yaml     Kubernetes: an indexed job (completions = slices)
#   INDEX=5 cluster/slices.sh FOLDER 64        one slice, by hand: the sixth, since they count from 0
#
# FOLDER is as cluster/paper.sh has it; results go to FOLDER/runs/slices/INDEX. What is given after the number of slices goes to annotate.
# A task that was killed goes on when it is started again (sbatch --array=5 …). When all are done:
#
#   python -m pipeline merge --recipe paper --annotations 'FOLDER/runs/slices/*' --output FOLDER/runs/paper/augmented
set -euo pipefail

shared=${1:?"usage: cluster/slices.sh FOLDER SLICES [OPTIONS OF ANNOTATE]"}
slices=${2:?"usage: cluster/slices.sh FOLDER SLICES [OPTIONS OF ANNOTATE]"}
index=${INDEX:-${SLURM_ARRAY_TASK_ID:-${JOB_COMPLETION_INDEX:?"say which slice: INDEX=0"}}}
unset RAY_ADDRESS

# Seven of eight GPUs annotate; QA and MT share the last, as cluster/tools.toml gives them half of one each.
exec python -m pipeline annotate --recipe paper --corpus "$shared/corpus" --slice "$index/$slices" \
    --tools-file "${TOOLS_FILE:-cluster/tools.toml}" --tools.wikisearch.source "$shared/encyclopedia" \
    --tools.wikisearch.index "$shared/index" --ray.actors 7 --output "$shared/runs/slices/$index" "${@:3}"
