#!/usr/bin/env bash
# Pretrain ESM-2 with FSDP2: parameters, gradients and optimizer state are shared out over all GPUs.
#
#   MODEL_SIZE=3B sbatch --nodes=4 3.train_fsdp.sh         on the cluster, four nodes
#   bash 3.train_fsdp.sh --model_size tiny                 on this machine alone
#
# Arguments go to train.py (python train.py --help) and override what is set here.
#SBATCH --job-name=esm2-fsdp
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@900
set -euo pipefail

# sbatch runs a copy of this file from Slurm's spool folder, and may have been called in any folder.
REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -d "$REPOSITORY/cluster_setup" ] || REPOSITORY="${SLURM_SUBMIT_DIR:-}"
[ -d "$REPOSITORY/cluster_setup" ] || REPOSITORY="$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null |
  sed -n 's|^ *Command=\(.*\)/3.train_fsdp.sh.*|\1|p' || true)"
[ -d "$REPOSITORY/cluster_setup" ] || { echo "3.train_fsdp.sh: error: this copy is not in its repository; run the one there" >&2; exit 1; }
source "$REPOSITORY/cluster_setup/job_environment.sh"

: "${OUTPUT_DIR:=$FSX_DIR/runs/fsdp}"
if [ $# = 0 ] && ! in_slurm_job && [ ! -e "$DATASET_DIR/manifest.json" ]; then
  say_what_for "$DATASET_DIR holds nothing of step 1; make it with: python 1.tokenize_uniref_csv.py"
fi

TRAINING_ARGUMENTS=(
  --dataset_dir "$DATASET_DIR"
  --output_dir "$OUTPUT_DIR"
  ${MODEL_SIZE:+--model_size "$MODEL_SIZE"}
)

launch accelerate train.py "${TRAINING_ARGUMENTS[@]}" "$@"
