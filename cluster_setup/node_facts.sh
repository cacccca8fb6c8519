# shellcheck shell=bash
# What node_launch.sh, job_environment.sh, create_environment.sh and doctor.py ask of a node and its cluster.

on_hyperpod() { [ -d "${HYPERPOD_DIR:-/opt/sagemaker_cluster}" ]; }

# EC2 gives the instance type as the product's name.
instance_type() { cat "${INSTANCE_TYPE_FILE:-/sys/devices/virtual/dmi/id/product_name}" 2>/dev/null || true; }

# GPUs that the driver lists.
working_gpus() { nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true; }

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
gpu_fault() {
  local working expected
  case "${CUDA_VISIBLE_DEVICES-all}" in
    "" | -1) return 0 ;;
    all) expected="$(expected_gpus)" ;;
    *) expected=$(($(expected_gpus) > 0 ? 1 : 0)) ;;
  esac
  working="$(working_gpus)"
  if [ "$working" -lt "$expected" ]; then
    printf '%s' "$(uname -n) should have $expected GPU(s), but nvidia-smi --list-gpus shows $working: have the node" \
      " replaced (sudo scontrol update node=${SLURMD_NODENAME:-NAME} state=fail reason=Action:Replace)," \
      " or set CUDA_VISIBLE_DEVICES= to use the CPU"
  fi
}

# The partition that cluster.yaml's workers are in. HyperPod's default partition, dev, has every node, a login node
# too. Nothing where there is no such partition.
training_partition() {
  if command -v sinfo >/dev/null; then timeout 10 sinfo --noheader --partition=train --format=%R 2>/dev/null | head -n 1; fi
}
