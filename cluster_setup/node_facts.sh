# shellcheck shell=bash
# What node_launch.sh, job_environment.sh, create_environment.sh and doctor.py ask of a node and its cluster.

on_hyperpod() { [ -d "${HYPERPOD_DIR:-/opt/sagemaker_cluster}" ]; }

# EC2 gives the instance type as the product's name.
instance_type() { cat "${INSTANCE_TYPE_FILE:-/sys/devices/virtual/dmi/id/product_name}" 2>/dev/null || true; }

# GPUs that NVIDIA's driver lists, and that AMD's does, which counts each half of an MI250X, as PyTorch does.
nvidia_gpus() { nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true; }
amd_gpus() {
  { grep -lsE '^simd_count [1-9]' "${KFD_NODES:-/sys/class/kfd/kfd/topology/nodes}"/*/properties || true; } | wc -l
}

# GPUs that can be used. Of AMD's those that PyTorch sees, which heeds ROCR_VISIBLE_DEVICES and the like: a laptop's
# processor with graphics is in the driver's list, too.
working_gpus() {
  local count
  count="$(nvidia_gpus)"
  if [ "$count" = 0 ] && [ "$(amd_gpus)" -gt 0 ]; then
    count="$("${python:-python3}" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null)" || count="$(amd_gpus)"
  fi
  echo "$count"
}

# GPUs that this node should have: the most that the PCI bus, Slurm and the instance type know of. A GPU that has
# fallen off the bus is still known to Slurm. Without a GPU instance type the bus says no more than "one": a
# container sees all of its host's devices there, and may use only some.
expected_gpus() {
  local device pci=0 gres number slurm="${SLURM_GPUS_ON_NODE:-0}"
  for device in "${PCI_DEVICES:-/sys/bus/pci/devices}"/*; do
    # NVIDIA, and a display or 3D controller: not a GPU's sound device or an NVSwitch
    if grep -qsx 0x10de "$device/vendor" && grep -qsE '^0x030[02]' "$device/class"; then pci=$((pci + 1)); fi
  done
  case "$(instance_type)" in
    g[0-9]*.* | gr[0-9]*.* | p[0-9]*.*) pci=$((pci > 0 ? pci : 1)) ;;
    *) pci=$((pci > 0 ? 1 : 0)) ;;
  esac
  if [ -n "${SLURMD_NODENAME:-}" ] && command -v scontrol >/dev/null; then
    gres="$(scontrol show node "$SLURMD_NODENAME" 2>/dev/null | sed -n 's/^ *Gres=//p')"
    number="$(grep -oE 'gpu(:[^:,(]+)?:[0-9]+' <<<"$gres" | sed 's/.*://' | paste -sd+ || true)"
    number=$((${number:-0}))
    slurm=$((number > slurm ? number : slurm))
  fi
  echo $((pci > slurm ? pci : slurm))
}

# Prints what is wrong if GPUs that should be here do not work: a program would train on its CPU, unseen, beside
# neighbours on their GPUs. CUDA_VISIBLE_DEVICES= asks for the CPU; with some devices named, one must work.
gpu_fault() { # GPUs that can be used, if they are counted already
  local working="${1:-}" expected shown="nvidia-smi --list-gpus shows" rocm=""
  case "${CUDA_VISIBLE_DEVICES-${HIP_VISIBLE_DEVICES-${ROCR_VISIBLE_DEVICES-all}}}" in
    "" | -1) return 0 ;;
    all) expected="$(expected_gpus)" ;;
    *) expected=$(($(expected_gpus) > 0 ? 1 : 0)) ;;
  esac
  : "${working:=$(working_gpus)}"
  if [ "$working" -lt "$expected" ]; then
    if [ "$(amd_gpus)" -gt 0 ]; then shown="PyTorch sees" rocm="use a VENV or CONTAINER_IMAGE with PyTorch for ROCm, "; fi
    printf '%s' "$(uname -n) should have $expected GPU(s), but $shown $working: ${rocm}have the node" \
      " replaced (sudo scontrol update node=${SLURMD_NODENAME:-NAME} state=fail reason=Action:Replace)," \
      " or set CUDA_VISIBLE_DEVICES= to use the CPU"
  fi
}

# The partition that cluster.yaml's workers are in. HyperPod's default partition, dev, has every node, a login node
# too. Nothing where there is no such partition.
training_partition() {
  if command -v sinfo >/dev/null; then timeout 10 sinfo --noheader --partition=train --format=%R 2>/dev/null | head -n 1; fi
}
