#!/usr/bin/env bash
# One shard of a certdef job for each task of a SLURM array. submit.sh starts it; one shard again:
#   sbatch --array=2 --export=ALL,SHARDS=3 deploy/slurm/shards.sh --config my.yaml
#SBATCH --job-name=certdef-shards
#SBATCH --array=1-3
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
exec certdef certify --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-3}" --quiet "$@"
