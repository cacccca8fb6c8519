#!/usr/bin/env bash
# Measure this machine: is what it computes right, how fast is it, and what memory does it take?
# For one machine with NVIDIA GPUs and the environment of requirements.txt. Each part ends within nine minutes
# and leaves what it has measured, so that a machine lent by the hour can be used part by part.
#
#   bash benchmarks/on_gpu.sh                        all parts
#   bash benchmarks/on_gpu.sh correctness memory     these parts
#
#   correctness    packs, 4 bits, resume, DDP against FSDP2, recompilations, waiting of the host
#   throughput     residues/s, MFU and memory of every way to train, by model size
#   runs           the numbered scripts as they are run: DDP, FSDP2, 4-bit fine-tuning, on all GPUs
#   prediction     prediction with a 4-bit model
#   embedding      embed.py's packs against one protein at a time and padded batches; kills
#   memory         the most memory of a fine-tuning step, estimated and measured
#
# Results: JSON in $OUT (default benchmarks/out), a table in $OUT/results.md, a chart in $OUT/throughput.png.
# MODEL_SIZES="150M 650M" measures these; without a GPU everything runs in the smallest size, to see that it does.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

OUT="${OUT:-benchmarks/out}"
VENV="${VENV:-$PWD/.venv}"
PYTHON="$VENV/bin/python"
[ -x "$PYTHON" ] || PYTHON="$(command -v python3)"
mkdir -p "$OUT"
gpus="$( (nvidia-smi --list-gpus 2> /dev/null || true) | grep -c '^GPU ')"
if [ "$gpus" -gt 0 ]; then
  : "${MODEL_SIZES:=8M 35M 150M 650M 3B}"
  tokens=16384 steps=8 rounds=4 records=20000 timed=500 predicted=650M embedded=150M kills=3
  variants=("padded, eager" "padded, SDPA" "packed" "packed, compiled")
  "$PYTHON" -c 'import torchao' 2> /dev/null && variants+=("packed, compiled, FP8")
else
  : "${MODEL_SIZES:=tiny}"
  tokens=1024 steps=1 rounds=2 records=20 timed=10 predicted=tiny embedded=tiny kills=0
  variants=("padded, eager" "padded, SDPA" "packed" "packed, compiled")
fi
failed=()

# Run one measurement, at most nine minutes; what fails is named at the end and stops nothing else.
measure() { # NAME COMMAND...
  local name="$1"
  shift
  printf '\n%s: %s\n' "$name" "$*"
  timeout 540 "$@" 2> "$OUT/$name.log" || failed+=("$name")
}

correctness() { measure correctness "$PYTHON" benchmarks/correctness.py --json "$OUT/correctness.json"; }

throughput() {
  local size
  for size in $MODEL_SIZES; do
    measure "throughput-$size" "$PYTHON" benchmarks/training_throughput.py --model_size "$size" \
      --tokens "$tokens" --steps "$steps" --rounds "$rounds" --variants "${variants[@]}" \
      --json "$OUT/throughput-$size.json"
  done
}

runs() {
  local size
  for size in $MODEL_SIZES; do
    measure "runs-$size" "$PYTHON" benchmarks/whole_runs.py --model_sizes "$size" --json "$OUT/runs-$size.json"
  done
}

prediction() {
  measure prediction "$PYTHON" benchmarks/prediction_throughput.py --model_size "$predicted" \
    --records "$records" --timed "$timed" --json "$OUT/prediction.json"
}

embedding() {
  measure embedding "$PYTHON" benchmarks/embedding_throughput.py --model_size "$embedded" \
    --records "$records" --timed "$timed" --kills "$kills" --json "$OUT/embedding.json"
}

memory() {
  # shellcheck disable=SC2086  # a list of words
  measure memory "$PYTHON" benchmarks/finetuning_memory.py --sizes $MODEL_SIZES --json "$OUT/memory.json"
}

parts=(correctness throughput runs prediction embedding memory)
for part in "${@:-${parts[@]}}"; do
  case " ${parts[*]} " in *" $part "*) ;; *)
    echo "on_gpu.sh: error: no part $part; there are: ${parts[*]}" >&2
    exit 1
    ;;
  esac
done
for part in "${@:-${parts[@]}}"; do "$part"; done
"$PYTHON" benchmarks/results.py "$OUT" > "$OUT/results.md" && echo "table: $OUT/results.md"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "on_gpu.sh: error: failed or cut off: ${failed[*]}; see the .log files in $OUT" >&2
  exit 1
fi
