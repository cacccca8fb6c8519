# shellcheck shell=bash
# What 2.train_ddp.sh, 3.train_fsdp.sh and 4.finetune_qlora.sh share. They source this file.
#
#   FSX_DIR        root of all paths                        (default /fsx/$USER)
#   DATASET_DIR    what 1.tokenize_uniref_csv.py wrote      (default $FSX_DIR/processed/arrow)
#   OUTPUT_DIR     checkpoints, metrics, final model        (each script has its own default)
#   GPUS_PER_NODE  GPUs, or processes where there is no GPU (default: all GPUs of the node, else 1)
#   VENV           Python environment, seen by all nodes    (default: .venv beside the scripts, else python3)
#   CONTAINER_IMAGE  run in this image instead of VENV (cluster_setup/Dockerfile): a .sqsh through pyxis, a .sif with
#                  Apptainer or Singularity
#   CONTAINER_MOUNTS  what else it sees: FOLDER:FOLDER,...   (FSX_DIR and this folder it sees always)
#   DRY_RUN=1      print what would run and check what can be checked: with bash on this machine, with
#                  sbatch on the nodes of the job

# Without data or a model to work on, and without arguments: what the script does, and commands to copy.
say_what_for() { # ERROR, or nothing for --help
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0" >&2
  [ -n "$1" ] || exit 0
  echo "$(basename "$0"): error: $1" >&2
  exit 1
}
case "${1:-}" in -h | --help) say_what_for "" ;; esac

: "${FSX_DIR:=/fsx/${USER:-$(id -un 2>/dev/null || id -u)}}"
FSX_DIR="$(realpath -ms -- "$FSX_DIR")" # other nodes, and a container's mounts
: "${DATASET_DIR:=$FSX_DIR/processed/arrow}"
if [ -z "${VENV:-}" ] && [ -x "$REPOSITORY/.venv/bin/python" ]; then VENV="$REPOSITORY/.venv"; fi
export FSX_DIR DATASET_DIR REPOSITORY VENV GPUS_PER_NODE CONTAINER_IMAGE

TO_BE_CONTINUED=75         # train.py: saved and stopped early
TRIES_WITHOUT_PROGRESS=3   # how often in a row a process may be killed before a checkpoint is written
: "${WATCH_SECONDS:=30}"   # how often a running job looks at what HyperPod says of its nodes
: "${VERDICT_SECONDS:=30}" # how long a failed job waits for HyperPod's verdict on its nodes

# shellcheck source=cluster_setup/node_facts.sh
source "$REPOSITORY/cluster_setup/node_facts.sh"

# Run `SCRIPT ARGUMENTS` with torchrun or accelerate: on all nodes of the Slurm job, or on this machine.
launch() { # torchrun|accelerate SCRIPT ARGUMENTS
  local output_dir
  output_dir="$(output_dir_of "$@")"
  refuse_missing_container
  if in_slurm_job; then
    refuse_foreign_nodes
    run_job "$output_dir" "$@"
  else
    local container
    set_container
    exec "${container[@]}" bash "$REPOSITORY/cluster_setup/node_launch.sh" "$@"
  fi
}

# A container that cannot be started, said before a step is.
refuse_missing_container() {
  local wrong="" image="${CONTAINER_IMAGE:-}"
  case "$image" in
    *.sif)
      [ -f "$image" ] || wrong="no such file; make it with: apptainer build $image docker-daemon://esm2-hyperpod:latest"
      [ -n "$(apptainer_program)" ] || wrong="neither apptainer nor singularity is on the PATH: module load them"
      ;;
    ?*) in_slurm_job || wrong="srun starts it, in a job of sbatch; without Slurm use a .sif, or VENV" ;;
  esac
  [ -z "$wrong" ] || { echo "$(basename "$0"): error: CONTAINER_IMAGE=$image: $wrong" >&2; exit 1; }
}

apptainer_program() { command -v apptainer || command -v singularity || true; }

# Sets `container`, the words before a command that run it in a .sif; srun itself starts other images.
set_container() {
  container=()
  case "${CONTAINER_IMAGE:-}" in *.sif) ;; *) return 0 ;; esac
  local program
  program="$(apptainer_program)"
  container=("${program:-apptainer}" exec --bind "$(container_mounts)" --pwd "$REPOSITORY")
  if [ "$(nvidia_gpus)" -gt 0 ]; then
    container+=(--nv)
  elif [ "$(amd_gpus)" -gt 0 ]; then
    container+=(--rocm)
  fi
  container+=("$CONTAINER_IMAGE")
  export PYTHONNOUSERSITE=1 # the home folder is mounted, and packages in ~/.local would come before the image's
}

container_mounts() {
  local mounts="$REPOSITORY:$REPOSITORY,$FSX_DIR:$FSX_DIR" nvme="${NVME_DIR:-/opt/dlami/nvme}"
  if [ -d "$nvme" ]; then mounts="$mounts,$nvme:$nvme"; fi # train.py copies the dataset there
  echo "$mounts${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}"
}

# The last --output_dir among the arguments, which is the one that the Python script uses.
output_dir_of() {
  local value="" previous="" word
  for word in "$@"; do
    case "$previous" in --output_dir | --output-dir) value="$word" ;; esac
    case "$word" in --output_dir=* | --output-dir=*) value="${word#*=}" ;; esac
    previous="$word"
  done
  printf '%s' "$value"
}

# True in a batch script or an salloc shell. In the shell of `srun --pty bash` another srun would wait forever
# for the resources that its own step holds. Real steps are numbered from 0; batch and salloc are above 4e9.
in_slurm_job() {
  [ -n "${SLURM_JOB_ID:-}" ] && { [ -z "${SLURM_STEP_ID:-}" ] || [ "$SLURM_STEP_ID" -gt 4000000000 ]; }
}

# HyperPod's default partition, dev, has every node of the cluster (AWS's page on Slurm configuration), so a job in it
# may have been given a login node.
refuse_foreign_nodes() {
  local partition nodes ours
  if [ "${SLURM_JOB_PARTITION:-}" != dev ] || ! on_hyperpod; then return 0; fi
  partition="$(training_partition)"
  [ -n "$partition" ] || return 0
  nodes="$(job_nodes)"
  ours="$(sinfo --noheader --Node --partition="$partition" --nodes="$nodes" --format=%N | sort -u | wc -l)"
  if [ "$ours" -lt "$SLURM_JOB_NUM_NODES" ]; then
    echo "job $SLURM_JOB_ID: error: not all of $nodes are training nodes: submit it with sbatch" \
      "--partition=$partition, or log in again, which sets SBATCH_PARTITION" >&2
    exit 1
  fi
}

# Run the step. If a process was killed, run it again in the same allocation. After an early stop or the loss
# of a node, requeue the job.
run_job() { # OUTPUT_DIR then as for launch
  local output_dir="$1" code tries=0 before
  shift
  local terminated=0 stopper=""
  watch_nodes &
  watcher=$! # not a local, which would be gone when the trap runs
  trap 'kill "$watcher" 2>/dev/null || true' EXIT
  trap 'ask_to_stop "$output_dir"' USR1 # the time limit is near, or HyperPod wants a node back
  trap 'terminated=1' TERM              # scancel, preemption or a lost node: do not run the step again
  while true; do
    before="$(list_checkpoints "$output_dir")"
    code=0
    STEP_TRY=$((tries + 1)) run_step "$@" || code=$?
    if [ -n "$stopper" ]; then kill "$stopper" && rm -f "$output_dir/stop"; fi
    if [ "$code" = 0 ] || [ "$terminated" = 1 ]; then return "$code"; fi
    if [ "$code" = "$TO_BE_CONTINUED" ] || [ -n "$stopper" ] || ! nodes_are_well; then
      echo "requeueing job $SLURM_JOB_ID; it resumes from its last checkpoint"
      scontrol requeue "$SLURM_JOB_ID"
      return "$code"
    fi
    if [ "$code" -le 128 ]; then return "$code"; fi # an error of the script, which would only happen again
    if [ "$before" != "$(list_checkpoints "$output_dir")" ]; then tries=0; fi
    tries=$((tries + 1))
    if [ "$tries" -ge "$TRIES_WITHOUT_PROGRESS" ]; then return "$code"; fi
    echo "the step ended with exit code $code; starting it again from the last checkpoint"
  done
}

# The peers of a lost node fail long before Slurm notices the loss (SlurmdTimeout, minutes), so ask the nodes
# themselves. A node with a broken GPU does answer; HyperPod's health agent needs a moment to condemn it.
nodes_are_well() {
  if on_hyperpod; then sleep "$VERDICT_SECONDS"; fi
  local condemned
  condemned="$(condemned_nodes)"
  if [ -n "$condemned" ]; then
    echo "$condemned"
    return 1
  fi
  timeout 60 srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --overlap true 2>/dev/null
}

# The job's nodes of now; SLURM_JOB_NODELIST does not know a node that HyperPod has put in as a replacement.
job_nodes() { scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *NodeList=//p'; }

# A line for each of the job's nodes that Slurm or HyperPod holds for broken. HyperPod's health agent sets the state
# to FAIL and the reason to Action:Replace or Action:Reboot, and acts when the node's jobs have ended (AWS's page
# "Manually replace or reboot a node using Slurm").
condemned_nodes() {
  scontrol show node --oneliner "$(job_nodes)" 2>/dev/null | awk '{
    name = state = reason = ""
    for (i = 1; i <= NF; i++) {
      if ($i ~ /^NodeName=/) name = substr($i, 10)
      if ($i ~ /^State=/) state = substr($i, 7)
    }
    if (match($0, / Reason=[^[]*/)) reason = substr($0, RSTART + 8, RLENGTH - 8)
    sub(/ +$/, "", reason)
    if (state ~ /FAIL|DOWN|DRAIN/ || reason ~ /^Action:/) print "node " name " is " state " (" reason ")"
  }' || true
}

# Runs beside the step. HyperPod waits for the job to end before it acts on a node, so end it, with a checkpoint.
watch_nodes() {
  local condemned
  while sleep "$WATCH_SECONDS" >/dev/null 2>&1; do
    condemned="$(condemned_nodes | grep -F '(Action:' || true)"
    if [ -n "$condemned" ]; then
      echo "$condemned: asking the run to save and stop"
      kill -USR1 $$
      return
    fi
  done
}

# All ranks look for this file after each step. It is written repeatedly, because a run that is just starting
# removes it as left over from an earlier run.
ask_to_stop() {
  [ -z "$stopper" ] || return 0
  mkdir -p "$1"
  while true; do touch "$1/stop" && sleep 2; done &
  stopper=$!
}

list_checkpoints() { find "$1" -maxdepth 1 -name 'checkpoint-*' 2>/dev/null | sort || true; }

# Sets `step`, the command that starts one task per node; doctor.py asks for it, too.
#
# A container goes without HyperPod's auto-resume. Sources disagree whether its plug-in and pyxis work in one step,
# and nothing is lost: on nodes whose GPUs Slurm knows, it requeues the whole job (AWS's page "SageMaker HyperPod
# release notes", August 20, 2024), and so does run_job.
set_step() {
  local container
  set_container
  step=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 "${container[@]}")
  if [ -n "${container[*]}" ]; then
    return
  elif [ -n "${CONTAINER_IMAGE:-}" ]; then
    step+=(--container-image="$CONTAINER_IMAGE" --container-workdir="$REPOSITORY"
      --container-mounts="$(container_mounts)")
  elif on_hyperpod && srun --help | grep -q -- --auto-resume; then
    step+=(--auto-resume=1) # HyperPod's plug-in; stock srun refuses it
  fi
}

# When one task has ended, the others have a minute to end with their own exit code; srun returns
# the highest. --kill-on-bad-exit would hide "to be continued" behind SIGTERM. bash runs a trap only between
# commands, so srun runs in the background, and we wait until it has ended, not until the next signal.
run_step() {
  local step
  set_step
  "${step[@]}" bash "$REPOSITORY/cluster_setup/node_launch.sh" "$@" &
  local pid=$! code=0
  while true; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || return "$code"
  done
}
