#!/bin/bash
# Many tasks as a Slurm array: each line of the list is a folder with a task.toml and a data.csv, and a job of its own.
#   LIST=tasks.txt BACKBONE=backbone.safetensors sbatch --array=1-"$(wc -l < tasks.txt)" docs/cluster/slurm-tasks.sh
# The run, its report and the exported plugin are left in the folder.
#SBATCH --job-name=scanside-tasks
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

folder=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$LIST")
machine=(--device cuda --threads "${SLURM_CPUS_PER_TASK:-1}")
scanside-train fit --task "$folder/task.toml" --data "$folder/data.csv" --backbone "$BACKBONE" --out "$folder/run" \
    "${machine[@]}"
scanside-train export --run "$folder/run" --out "$folder" "${machine[@]}"
scanside-train report --run "$folder/run" --out "$folder/report.html" "${machine[@]}"
