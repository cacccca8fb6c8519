#!/usr/bin/env bash
# Start this node's share of a job: node_launch.sh torchrun|accelerate SCRIPT ARGUMENTS
#
# Runs on every node, inside the Slurm step, and asks Slurm for the nodes again: the variables of the batch
# script do not know a node that HyperPod has put in as a replacement. Without Slurm it runs on this machine.
set -euo pipefail

refuse() { echo "$(basename "$0"): error: $*" >&2; exit 1; }
# shellcheck source=cluster_setup/node_facts.sh
source "$(dirname "${BASH_SOURCE[0]}")/node_facts.sh"

count_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ] && [ "$(amd_gpus)" = 0 ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^([0-9]|GPU-|MIG-)' || true
  else
    echo "$working" # PyTorch has looked at the variables of AMD
  fi
}

# The PCI vendor of an EFA device is Amazon; other RDMA cards are in the same folder.
has_efa() { grep -qs 0x1d0f "${INFINIBAND_DIR:-/sys/class/infiniband}"/*/device/vendor; }

# NCCL and gloo must not choose an interface that other nodes cannot reach.
set_network() {
  if [[ $head_address == 127.* ]]; then
    export GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
    return
  fi
  export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^docker,lo,veth}"
  # gloo would take the interface of this machine's own name, which may be the loopback.
  local default_route
  default_route="$(awk '$2 == "00000000" { print $1; exit }' "${ROUTES_FILE:-/proc/net/route}" 2>/dev/null || true)"
  if [ -n "$default_route" ]; then export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$default_route}"; fi
  if has_efa; then
    export FI_PROVIDER=efa FI_EFA_USE_HUGE_PAGE=0 # with huge pages DataLoader workers cannot fork
    case "$(instance_type)" in
      g5.* | g6.* | g6e.*) export NCCL_SHM_USE_CUDA_MEMCPY=1 ;;
    esac
  fi
}

# Sets nodes, rank, head_address and port.
find_place() {
  nodes="${SLURM_STEP_NUM_NODES:-1}" rank=0 head_address=127.0.0.1
  if [ "$nodes" = 1 ]; then
    port="$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    return
  fi
  # The same on all nodes, but another one when the step is tried again: the old port may still be in use.
  port=$((15000 + (SLURM_JOB_ID * 10 + ${STEP_TRY:-1}) % 10000))
  rank="$SLURM_NODEID"
  if [ -n "${CONTAINER_IMAGE:-}" ]; then # has no scontrol
    head_address="$(sed -E 's/^([^[,]*)(\[([0-9]+)[^]]*\]([^,]*))?.*/\1\3\4/' <<<"$SLURM_STEP_NODELIST")"
    return
  fi
  local names head
  names="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *NodeList=//p')"
  names="$(scontrol show hostnames "$names")"
  rank="$(($(grep -nxF "$SLURMD_NODENAME" <<<"$names" | cut -d: -f1) - 1))"
  head="$(head -n 1 <<<"$names")"
  # An address, not a name: the virtual nodes of local_slurm.sh share one host name.
  head_address="$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
}

python="${VENV:+$VENV/bin/python}"
[ -z "${CONTAINER_IMAGE:-}" ] || python=python3
: "${python:=python3}"
command -v "$python" >/dev/null || refuse "$python: no such Python; set VENV, or make it with: bash cluster_setup/create_environment.sh"

working="$(working_gpus)"
fault="$(gpu_fault "$working")"
[ -z "$fault" ] || refuse "$fault"
gpus="$(count_gpus)"
if [ "$gpus" = 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && [ "$CUDA_VISIBLE_DEVICES" != -1 ] && [ "$working" -gt 0 ]; then
  refuse "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES hides the GPUs of $(uname -n): ask Slurm for them (sbatch --gres=gpu:N), or unset it"
fi
processes="${GPUS_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
[[ $processes =~ ^[1-9][0-9]*$ ]] || refuse "GPUS_PER_NODE=$processes: must be a number from 1 up; unset it to use all GPUs"
if [ "$gpus" -gt 0 ] && [ "$processes" -gt "$gpus" ]; then
  refuse "GPUS_PER_NODE=$processes, but $(uname -n) has $gpus GPU(s); unset it to use all"
fi
if [ "$gpus" = 0 ]; then
  # CPU processes share the cores; more threads than cores make them several times slower.
  cores="${SLURM_CPUS_ON_NODE:-$(env -u OMP_NUM_THREADS nproc)}"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"
fi
find_place
set_network

case "$1" in
  torchrun)
    launcher=(torchrun --nnodes "$nodes" --node_rank "$rank" --nproc_per_node "$processes"
      --master_addr "$head_address" --master_port "$port")
    ;;
  accelerate)
    launcher=(accelerate --config_file "$REPOSITORY/accelerate_fsdp.yaml" --same_network
      --num_machines "$nodes" --machine_rank "$rank" --num_processes $((nodes * processes))
      --main_process_ip "$head_address" --main_process_port "$port")
    ;;
  *) refuse "unknown launcher '$1'" ;;
esac
script="$2"
shift 2
export PYTHONUNBUFFERED=1 PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
echo "node $rank of $nodes ($(uname -n)): $processes process(es), $gpus GPU(s), head $head_address:$port"
command=("$python" -m esm2_hyperpod.jobs.launch "${launcher[@]}" "$REPOSITORY/$script" "$@")
if [ "${DRY_RUN:-0}" = 0 ]; then exec "${command[@]}"; fi

printf 'would run    '
printf ' %q' "${command[@]}"
echo
[ "$rank" != 0 ] || exec "$python" -m esm2_hyperpod.jobs.dry_run --nodes "$nodes" --processes "$processes" \
  --launcher "${launcher[0]}" \
  --instance "$(instance_type)" "$script" "$@"
