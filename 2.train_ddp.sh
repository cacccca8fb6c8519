#!/usr/bin/env bash
# Pretrain ESM-2 with DDP: every GPU holds the whole model. Up to 650M on 24 GB GPUs.
#
#   sbatch 2.train_ddp.sh --max_steps 10000                on the cluster, two nodes
#   sbatch --nodes=4 --time=2-00:00:00 2.train_ddp.sh      other nodes and time: sbatch's own options
#   bash 2.train_ddp.sh --model_size tiny                  on this machine alone
#
# Arguments go to train.py (python train.py --help) and override what is set here.
#SBATCH --job-name=esm2-ddp
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

# sbatch runs a copy of this file from Slurm's spool folder, and may have been called in any folder.
REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -d "$REPOSITORY/cluster_setup" ] || REPOSITORY="${SLURM_SUBMIT_DIR:-}"
[ -d "$REPOSITORY/cluster_setup" ] || REPOSITORY="$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null |
  sed -n 's|^ *Command=\(.*\)/2.train_ddp.sh.*|\1|p' || true)"
[ -d "$REPOSITORY/cluster_setup" ] || { echo "2.train_ddp.sh: error: this copy is not in its repository; run the one there" >&2; exit 1; }
source "$REPOSITORY/cluster_setup/job_environment.sh"

: "${OUTPUT_DIR:=$FSX_DIR/runs/ddp}"
if [ $# = 0 ] && ! in_slurm_job && [ ! -e "$DATASET_DIR/manifest.json" ]; then
  say_what_for "$DATASET_DIR holds nothing of step 1; make it with: python 1.tokenize_uniref_csv.py"
fi

TRAINING_ARGUMENTS=(
  --dataset_dir "$DATASET_DIR"
  --output_dir "$OUTPUT_DIR"
  ${MODEL_SIZE:+--model_size "$MODEL_SIZE"}
)

launch torchrun train.py "${TRAINING_ARGUMENTS[@]}" "$@"
