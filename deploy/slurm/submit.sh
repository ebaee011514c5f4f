#!/usr/bin/env bash
# A certdef job as three SLURM jobs: prepare, an array of shards, merge. From the folder that the job runs in:
#   SHARDS=8 WORK_DIR=runs/digits deploy/slurm/submit.sh --config my.yaml
set -euo pipefail
shards=${SHARDS:-3} work_dir=${WORK_DIR:?the work_dir of the job}
here=$(cd "$(dirname "$0")" && pwd)
options=$(printf '%q ' --work-dir "$work_dir" "$@")

prepared=$(sbatch --parsable --job-name=certdef-prepare --requeue --mem=8G --wrap "certdef certify --prepare --quiet $options")
voted=$(sbatch --parsable --dependency="afterok:$prepared" --array="1-$shards" --export="ALL,SHARDS=$shards" \
    "$here/shards.sh" --work-dir "$work_dir" "$@")
sbatch --dependency="afterok:$voted" --job-name=certdef-merge --requeue --mem=8G \
    --wrap "certdef merge $(printf '%q' "$work_dir")/shards/*-of-$shards --quiet"
