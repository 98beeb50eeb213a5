#!/bin/bash
# A comparison as a Slurm array: each method on each task with each seed is a job of its own.
#   export SUITE=suite BACKBONE=small=backbone.safetensors OUT=compare SEEDS=0,1,2,3,4
#   scanside-train compare --suite "$SUITE" --backbone "$BACKBONE" --out "$OUT" --seeds "$SEEDS" --device cuda --list > cells.txt
#   CELLS=cells.txt sbatch --array=1-"$(wc -l < cells.txt)"%8 docs/cluster/slurm-compare.sh
# Afterwards, once: scanside-train compare --suite "$SUITE" --backbone "$BACKBONE" --out "$OUT" --seeds "$SEEDS" --tables
#SBATCH --job-name=scanside-compare
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

cell=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$CELLS")
exec scanside-train compare --suite "$SUITE" --backbone "$BACKBONE" --out "$OUT" --cell "$cell" \
    --device cuda --threads "${SLURM_CPUS_PER_TASK:-1}"
