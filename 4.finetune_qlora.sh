#!/usr/bin/env bash
# Fine-tune with QLoRA to predict where in the cell a protein lives, or what TASK says.
#
#   TRAIN_FILE=deeploc.fasta sbatch 4.finetune_qlora.sh            on the cluster, one node
#   MODEL_NAME_OR_PATH=facebook/esm2_t33_650M_UR50D TRAIN_FILE=deeploc.fasta bash 4.finetune_qlora.sh
#   TASK=residue TRAIN_FILE=secondary_structure.csv sbatch 4.finetune_qlora.sh    a label a residue
#   TASK=regression TRAIN_FILE=stability.csv sbatch 4.finetune_qlora.sh           a number a protein
#
# Arguments go to finetune_localization.py (python finetune_localization.py --help) and override what is set here.
#SBATCH --job-name=esm2-localization
#SBATCH --nodes=1
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
  sed -n 's|^ *Command=\(.*\)/4.finetune_qlora.sh.*|\1|p' || true)"
[ -d "$REPOSITORY/cluster_setup" ] || { echo "4.finetune_qlora.sh: error: this copy is not in its repository; run the one there" >&2; exit 1; }
source "$REPOSITORY/cluster_setup/job_environment.sh"

: "${TASK:=localization}"
: "${OUTPUT_DIR:=$FSX_DIR/runs/$TASK}"
: "${MODEL_NAME_OR_PATH:=$FSX_DIR/runs/ddp/final_model}"
if [ $# = 0 ] && ! in_slurm_job && [ -z "${TRAIN_FILE:-}" ]; then
  say_what_for "no labelled proteins: give them with TRAIN_FILE=labelled.fasta"
fi

TRAINING_ARGUMENTS=(
  --task "$TASK"
  --model_name_or_path "$MODEL_NAME_OR_PATH"
  --output_dir "$OUTPUT_DIR"
)
if [ -n "${TRAIN_FILE:-}" ]; then TRAINING_ARGUMENTS+=(--train_file "$TRAIN_FILE"); fi

launch torchrun finetune_localization.py "${TRAINING_ARGUMENTS[@]}" "$@"
