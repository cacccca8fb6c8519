#!/usr/bin/env bash
# Make the Python environment that all nodes share, and check that it trains:
#   bash cluster_setup/create_environment.sh           on the controller or login node, 10 to 20 minutes
#   bash cluster_setup/create_environment.sh verify    only check it, on this node
#
# The environment is .venv beside the scripts (or VENV=/other/place), made from requirements.txt with python3
# (or PYTHON=/other/python) if that is 3.10 or newer, else with conda. If interrupted, run it again and it
# finishes. If nothing has changed, it does nothing.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
: "${VENV:=$ROOT/.venv}"
: "${PYTHON:=python3}"
MARK="$VENV/.made_from"
# shellcheck source=cluster_setup/node_facts.sh
source "$ROOT/cluster_setup/node_facts.sh"

fail() {
    echo "create_environment.sh: error: $*" >&2
    exit 1
}

make_environment() {
    if "$VENV/bin/python" -m pip --version > /dev/null 2>&1; then
        return
    fi
    if [ -e "$VENV/pyvenv.cfg" ] || [ -d "$VENV/conda-meta" ]; then
        rm -rf "$VENV" # an incomplete environment
    fi
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
        "$PYTHON" -m venv "$VENV" || fail "$PYTHON cannot make a venv: sudo apt-get install -y python3-venv"
    elif command -v conda > /dev/null; then
        conda create --yes --quiet --prefix "$VENV" python=3.11
    else
        fail "$PYTHON is not Python 3.10 or newer and conda is not installed; set PYTHON to a newer one," \
            "or install conda from https://github.com/conda-forge/miniforge"
    fi
}

install_packages() {
    echo "installing requirements.txt into $VENV"
    "$VENV/bin/python" -m pip install --quiet -r "$ROOT/requirements.txt"
    "$VENV/bin/python" -m pip check > /dev/null || fail "the packages in $VENV conflict; see: $VENV/bin/python -m pip check"
}

# What the environment was made from; the same text means there is nothing to do.
fingerprint() {
    sha256sum < "$ROOT/requirements.txt"
    "$VENV/bin/python" --version
}

# Checks imports, the GPU if there is one, then everything from synthetic proteins to two optimizer steps.
verify() {
    local python="$VENV/bin/python"
    local device fault
    fault="$(gpu_fault)"
    [ -z "$fault" ] || fail "$fault"
    [ -x "$python" ] || fail "no environment at $VENV; make it with: bash cluster_setup/create_environment.sh"
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT # not a local, which would be gone by then
    # bitsandbytes warns of a kernel it does without
    device="$("$python" -c 'import logging; logging.disable(logging.WARNING)
import accelerate, bitsandbytes, datasets, peft, torch, transformers
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")' | tail -n 1)" ||
        fail "$(hostname): the packages in $VENV cannot be imported; delete $VENV and run this again"
    if [ "$device" = CPU ] && [ -n "${CUDA_VISIBLE_DEVICES-unset}" ] && [ "$(working_gpus)" -gt 0 ]; then
        fail "$(hostname): PyTorch cannot use the GPU: compare the driver in nvidia-smi" \
            "with what this PyTorch needs (python -c 'import torch; print(torch.version.cuda)')"
    fi
    if ! (
        cd "$ROOT"
        export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
        "$python" 0.download_data.py --source synthetic --max_records 300 --num_partitions 2 \
            --output_dir "$scratch/csv"
        "$python" 1.tokenize_uniref_csv.py --input_dir "$scratch/csv" --output_dir "$scratch/arrow"
        "$python" train.py --dataset_dir "$scratch/arrow" --output_dir "$scratch/run" --model_size tiny \
            --max_steps 2 --tokens_per_device 2048 --global_batch_tokens 2048 --max_seq_length 512
    ) > "$scratch/log" 2>&1; then
        tail -n 20 "$scratch/log" >&2
        fail "$(hostname): the packages can be imported, but two training steps failed; see the log above"
    fi
    echo "$(hostname): two training steps on $device"
}

# The controller has no GPU, so with Slurm the check runs on a worker.
verify_on_a_worker() {
    if [ -n "${SLURM_JOB_ID:-}" ] || ! command -v sinfo > /dev/null || ! sinfo > /dev/null 2>&1; then
        verify
        return
    fi
    export VENV
    local partition
    partition="$(training_partition)"
    srun ${partition:+--partition="$partition"} --nodes=1 --ntasks=1 --immediate=60 --job-name=verify bash "$ROOT/cluster_setup/create_environment.sh" \
        verify || fail "the check failed, or no worker was free for a minute (see sinfo); the packages are installed:" \
        "run this again when a worker is idle"
}

if [ "${1:-}" = verify ]; then
    verify
    exit
fi
[ $# -eq 0 ] || fail "unknown argument $1; use none, or: verify"

if ! mkdir -p "$(dirname "$VENV")" || ! touch "$VENV.lock"; then
    fail "cannot write beside $VENV; allow it with: sudo install -d -o $(id -un) $(dirname "$VENV")"
fi
exec {lock}> "$VENV.lock"
flock --nonblock "$lock" || fail "another run is making $VENV; wait for it to end"
if [ -x "$VENV/bin/python" ] && [ "$(cat "$MARK" 2> /dev/null)" = "$(fingerprint)" ]; then
    echo "$VENV is complete and up to date"
    exit 0
fi
rm -f "$MARK"
make_environment
install_packages
verify_on_a_worker
fingerprint > "$MARK"
echo "$VENV is ready"
