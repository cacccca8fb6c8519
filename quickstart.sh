#!/usr/bin/env bash
# The whole workflow on one machine: data, DDP and FSDP pretraining, QLoRA fine-tuning. No cluster, GPU or
# dataset needed. Run it again after an interruption: it resumes, and does not repeat what is finished.
#
#   bash quickstart.sh                                             synthetic proteins, a tiny model
#   bash quickstart.sh --source my.fasta.gz --labels my_labels.csv --model_size 8M
#
#   --output_dir DIR   where everything goes               (default runs/quickstart)
#   --source FASTA     sequences to pretrain on            (default: 12,000 synthetic ones)
#   --labels FILE      labelled proteins to fine-tune on   (default: made with the synthetic ones)
#   --model_size SIZE  tiny, 8M, 35M, ...                  (default tiny)
#   --steps N          optimizer steps of each training    (default 100; fine-tuning: two epochs)
set -euo pipefail

OUTPUT_DIR=runs/quickstart SOURCE=synthetic LABELS="" MODEL_SIZE=tiny STEPS=""
START_FOLDER="$PWD"
while [ $# -gt 0 ]; do
  case "$1" in
    --output_dir | --source | --labels | --model_size | --steps)
      [ $# -ge 2 ] || { echo "quickstart.sh: error: $1 needs a value" >&2; exit 1; }
      ;;&
    --output_dir) OUTPUT_DIR="$(realpath -m "$2")" ;;
    --source) SOURCE="$2" ;;
    --labels) LABELS="$(realpath -m "$2")" ;;
    --model_size) MODEL_SIZE="$2" ;;
    --steps) STEPS="$2" ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "quickstart.sh: error: unknown option $1; see: bash quickstart.sh --help" >&2; exit 1 ;;
  esac
  shift 2
done
for file in "$SOURCE" "$LABELS"; do
  case "$file" in "" | synthetic | *://*) ;; *)
    [ -f "$START_FOLDER/$file" ] || [ -f "$file" ] || { echo "quickstart.sh: error: $file: no such file" >&2; exit 1; } ;;
  esac
done
if [ -f "$SOURCE" ]; then SOURCE="$(realpath "$SOURCE")"; fi
if [ "$SOURCE" != synthetic ] && [ -z "$LABELS" ]; then
  echo "quickstart.sh: error: --source needs --labels FILE too (FASTA '>ID LABEL', or CSV with sequence,label)" >&2
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV="${VENV:-$PWD/.venv}"
if [ ! -f "$VENV/.installed" ] || [ requirements.txt -nt "$VENV/.installed" ]; then
  echo "Installing the pinned requirements into $VENV (once; some minutes)"
  "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet -r requirements.txt
  touch "$VENV/.installed"
fi
export VENV PATH="$VENV/bin:$PATH"

# What varies between a laptop and a cluster is in these variables; the files are the same.
export DATASET_DIR="$OUTPUT_DIR/processed/arrow" MODEL_SIZE
gpus="$( (nvidia-smi --list-gpus 2>/dev/null || true) | grep -c '^GPU ' || true)"
export GPUS_PER_NODE="${GPUS_PER_NODE:-$((gpus > 0 ? gpus : 2))}"
if [ "$gpus" = 0 ]; then export CUDA_VISIBLE_DEVICES=""; fi # the CPU will do here, whatever the machine should have
: "${LABELS:=$OUTPUT_DIR/csv/localization.csv}"
download=(--output_dir "$OUTPUT_DIR/csv" --source "$SOURCE")
if [ "$SOURCE" = synthetic ]; then download+=(--max_records 12000); fi
finetuning_length=(--num_train_epochs 2)
if [ -n "$STEPS" ]; then finetuning_length=(--max_steps "$STEPS"); fi
: "${STEPS:=100}"
pretrain=(--max_steps "$STEPS" --tokens_per_device 4096 --global_batch_tokens $((4096 * GPUS_PER_NODE))
  --max_seq_length 512 --learning_rate 1e-3 --eval_steps $(((STEPS + 1) / 2)) --save_steps $(((STEPS + 3) / 4)))
finetune=(--max_seq_length 128 --global_batch_size $((4 * GPUS_PER_NODE)) --learning_rate 3e-3
  --lora_targets attention "${finetuning_length[@]}")
# All synthetic families are in both parts of a random split, so there is something to be learned in a minute.
if [ "$SOURCE" = synthetic ]; then finetune+=(--split random); fi
mkdir -p "$OUTPUT_DIR"

# Show a command, run it, and note how long it took.
step() { # NAME COMMAND...
  local name="$1" start="$SECONDS"
  shift
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
  echo "$((SECONDS - start))" >"$OUTPUT_DIR/.seconds-$name"
}

step 0 python 0.download_data.py "${download[@]}"
step 1 python 1.tokenize_uniref_csv.py --input_dir "$OUTPUT_DIR/csv" --output_dir "$DATASET_DIR"
step 2 env OUTPUT_DIR="$OUTPUT_DIR/ddp" bash 2.train_ddp.sh "${pretrain[@]}"
step 3 env OUTPUT_DIR="$OUTPUT_DIR/fsdp" bash 3.train_fsdp.sh "${pretrain[@]}"
step 4 env OUTPUT_DIR="$OUTPUT_DIR/localization" MODEL_NAME_OR_PATH="$OUTPUT_DIR/ddp/final_model" \
  bash 4.finetune_qlora.sh --train_file "$LABELS" "${finetune[@]}"
echo
python -m esm2_hyperpod.runs.quickstart_table "$OUTPUT_DIR"
