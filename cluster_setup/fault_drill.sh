#!/usr/bin/env bash
# Break a running job on purpose and measure how long it takes to resume.
#
#   bash cluster_setup/fault_drill.sh process JOB_ID OUTPUT_DIR    kill one training process
#   bash cluster_setup/fault_drill.sh node JOB_ID OUTPUT_DIR       lose a node (Slurm administrators only)
#   bash cluster_setup/fault_drill.sh gpu JOB_ID OUTPUT_DIR [--yes]  have HyperPod replace a node: it asks first
#
# OUTPUT_DIR is the job's --output_dir. Prints the time until the run is further than before the fault, and
# the steps done twice. To lose a node, it is set DOWN in Slurm, which ends the job as a real loss would. It is
# resumed afterwards.
set -euo pipefail

refuse() { echo "fault_drill.sh: error: $*" >&2; exit 1; }

# 0 if nothing is logged, as in the moment when a resumed run rewrites its log.
last_step() {
  local step
  step="$(sed -n 's/^{"step": \([0-9]*\).*/\1/p' "$output/metrics.jsonl" 2>/dev/null | tail -n 1)"
  echo "${step:-0}"
}
starts() { grep -c '"started"' "$output/run.json" || true; }
from_step() { sed -n 's/.*"from_step": \([0-9]*\).*/\1/p' "$output/run.json" | tail -n 1; }
state() { squeue --noheader --jobs="$job" --states=all --format=%T; }

kill_process() {
  # shellcheck disable=SC2016 # for the shell on the node
  srun --jobid="$job" --overlap --nodes=1 --ntasks=1 --nodelist="$node" bash -c '
    for process in /proc/[0-9]*; do
      if tr "\0" "\n" 2>/dev/null <"$process/environ" | grep -qx "SLURM_JOB_ID=$SLURM_JOB_ID" &&
        tr "\0" "\n" 2>/dev/null <"$process/environ" | grep -qx "SLURMD_NODENAME=$SLURMD_NODENAME" &&
        tr "\0" "\n" 2>/dev/null <"$process/environ" | grep -qx "LOCAL_RANK=0"; then
        kill -KILL "${process#/proc/}"
        exit
      fi
    done
    echo "no training process of this job here" >&2
    exit 1'
}

# What AWS's HyperPod workshop does: DCGM reports double-bit errors in a GPU's memory (its field 319), the job fails,
# and HyperPod's health agent finds the cause. The GPU itself is not touched.
break_gpu() {
  srun --jobid="$job" --overlap --nodes=1 --ntasks=1 --nodelist="$node" dcgmi test --inject --gpuid 0 -f 319 -v 4
  kill_process
}

if ! { [ $# = 3 ] || { [ $# = 4 ] && [ "$1 $4" = "gpu --yes" ]; }; }; then
  refuse "usage: fault_drill.sh process|node|gpu JOB_ID OUTPUT_DIR; --yes after gpu does not ask"
fi
fault="$1" job="$2" output="$3"
[ "$(state 2>/dev/null)" = RUNNING ] || refuse "job $job is not running; see squeue"
[ "$(last_step)" -gt 0 ] || refuse "$output: nothing is logged yet: check that it is the job's --output_dir, or wait for the first step"

nodes="$(scontrol show hostnames "$(squeue --noheader --jobs="$job" --format=%N)")"
node="$(tail -n 1 <<<"$nodes")" # not the head, if there are several
step="$(last_step)" before="$(starts)" began="$SECONDS"
case "$fault" in
  process) echo "killing a training process of job $job on $node, after step $step"; kill_process ;;
  node)
    echo "setting $node DOWN under job $job, after step $step"
    scontrol update nodename="$node" state=down reason="fault drill"
    # Slurm refuses to resume a node that has already come back.
    trap 'scontrol update nodename="$node" state=resume 2>/dev/null || true' EXIT
    ;;
  gpu)
    echo "HyperPod will replace $node: 20 to 30 minutes, its local disks are lost, and the new node bills like the old one"
    answer=yes
    if [ "${4:-}" != --yes ]; then read -r -p "Type yes to continue: " answer || true; fi
    [ "$answer" = yes ] || refuse "stopped; nothing was broken"
    echo "reporting a broken GPU of $node to DCGM under job $job, after step $step"
    break_gpu
    ;;
  *) refuse "unknown fault '$fault': use process, node or gpu" ;;
esac

until [ "$(starts)" -gt "$before" ]; do
  case "$(state)" in FAILED | CANCELLED | TIMEOUT | "") refuse "job $job ended instead of resuming: see its log" ;; esac
  sleep 1
done
resumed="$(from_step)"
echo "started again after $((SECONDS - began)) s, from step $resumed"
until [ "$(last_step)" -gt "$step" ] || [ "$(state)" = COMPLETED ]; do sleep 1; done
echo "time lost: $((SECONDS - began)) s until step $(last_step); steps done twice: $((step > resumed ? step - resumed : 0))"
