#!/bin/bash
# Cross-validation as a Slurm array: each fold and seed is a job of its own.
#   TASK=task.toml DATA=data.csv BACKBONE=backbone.safetensors OUT=cv sbatch docs/cluster/slurm-folds.sh
# A job that is requeued goes on after its last finished epoch. Afterwards: scanside-train summarize --runs cv
#SBATCH --job-name=scanside-folds
#SBATCH --array=0-14%4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

# The array has folds × seeds jobs.
folds=5
seeds=(0 1 2)

fold=$((SLURM_ARRAY_TASK_ID % folds))
seed=${seeds[SLURM_ARRAY_TASK_ID / folds]}
exec scanside-train fit --task "$TASK" --data "$DATA" --backbone "$BACKBONE" --out "$OUT" \
    --folds "$folds" --fold "$fold" --seeds "$seed" \
    --device cuda --threads "${SLURM_CPUS_PER_TASK:-1}"
