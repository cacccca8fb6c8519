#!/usr/bin/env bash
# A real Slurm on this machine, to learn and to test with: virtual nodes, sbatch, requeue.
#
#   bash cluster_setup/local_slurm.sh start [--nodes 3] [--dir FOLDER]
#   bash cluster_setup/local_slurm.sh status [--dir FOLDER]
#   bash cluster_setup/local_slurm.sh stop [--dir FOLDER]
#
# `start` prints the line `export SLURM_CONF=...` that points sbatch, squeue and the rest to it. All its files
# are in FOLDER (default /tmp/local_slurm_$USER). It listens only on 127.0.0.1, changes nothing in /etc, and needs
# root only to install Debian's packages if they are missing. `stop` ends all jobs and leaves nothing running.
set -euo pipefail

refuse() { echo "local_slurm.sh: error: $*" >&2; exit 1; }
say() { echo "$*" >&2; } # stdout is only for the export line

install_slurm() {
  local missing=()
  command -v slurmctld >/dev/null || missing+=(slurmctld)
  command -v slurmd >/dev/null || missing+=(slurmd)
  command -v sbatch >/dev/null || missing+=(slurm-client)
  command -v munged >/dev/null || missing+=(munge)
  command -v python3 >/dev/null || missing+=(python3)
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || refuse "${missing[*]}: not installed, and there is no apt-get; install Slurm and munge"
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || refuse "${missing[*]}: not installed; as root run: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

free_ports() { # COUNT
  python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[server.getsockname()[1] for server in held])
PYTHON
}

write_configuration() {
  local user host cores port ports i
  user="$(id -un)" host="$(uname -n)" cores="$(nproc)"
  read -r -a ports <<<"$(free_ports $((nodes + 1)))"
  cat >"$SLURM_CONF" <<CONF
$mark
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credentials have expired, by default 120 s.
AuthInfo=socket=$dir/munge.socket,cred_expire=10
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdSpoolDir=$dir/%n
SlurmdPidFile=$dir/%n.pid
SlurmdLogFile=$dir/%n.log
SlurmctldParameters=enable_configless
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=20
SchedulerParameters=sched_interval=5
KillWait=30
JobRequeue=1
ReturnToService=2
MpiDefault=none
CONF
  for ((i = 1; i <= nodes; i++)); do
    port="${ports[i]}"
    echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=$((cores > nodes ? cores / nodes : 1))"
  done >>"$SLURM_CONF"
  echo "PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE" >>"$SLURM_CONF"
}

# A pid file alone does not say so: the number may be another process's by now.
is_running() {
  local pid
  pid="$(cat "$dir/slurmctld.pid" 2>/dev/null)" && grep -qsF "$dir" "/proc/$pid/cmdline"
}

is_ours() { grep -qsxF "$mark" "$SLURM_CONF"; } # only then may the folder be removed

start() {
  [[ $nodes =~ ^[1-9][0-9]?$ ]] || refuse "--nodes $nodes: must be a number from 1 to 99"
  if is_running; then refuse "$dir: already started; stop it with: $again stop --dir $dir"; fi
  [ ! -e "$dir" ] || is_ours || refuse "$dir: has other content; choose another folder with --dir"
  install_slurm
  rm -rf "$dir"
  mkdir -p "$dir/state"
  chmod 755 "$dir"
  write_configuration
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  trap kill_all EXIT # until everything runs
  # --force: munged refuses a folder that other users cannot enter; ours is only for this user.
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --num-threads=2 >&2 2>&1
  slurmctld -f "$SLURM_CONF"
  local i
  for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$dir/node$i"
    slurmd -N "node$i" -f "$SLURM_CONF"
  done
  local deadline=$((SECONDS + 30))
  until [ "$(sinfo --noheader --format=%D --states=idle 2>/dev/null)" = "$nodes" ]; do
    [ "$SECONDS" -lt "$deadline" ] || refuse "$dir: the nodes did not start; see $dir/*.log"
    sleep 0.2
  done
  trap - EXIT
  say "$nodes nodes in partition dev; the next line points sbatch and squeue of this shell to them:"
  echo "export SLURM_CONF=$SLURM_CONF"
}

status() {
  is_running || refuse "$dir: no local Slurm runs there; start it with: $again start --dir $dir"
  sinfo --Node --long
  squeue
  echo "export SLURM_CONF=$SLURM_CONF"
}

# Jobs have ten seconds to save and end. Then everything is killed.
stop() {
  is_ours || refuse "$dir: no local Slurm there"
  local deadline=$((SECONDS + 10))
  if is_running; then
    squeue --noheader --format=%A | xargs -r scancel || true
    while [ -n "$(squeue --noheader 2>/dev/null)" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
  fi
  kill_all
  rm -rf "$dir"
  say "$dir: stopped and removed"
}

# Kill every process of this Slurm: daemons, slurmstepd, jobs, and all that they started.
#
# Each of them has our SLURM_CONF in its environment. So have the shells and editors of those who use this Slurm,
# which must live on: only in a job is SLURMD_NODENAME set as well. A second look finds what was forked meanwhile.
kill_all() {
  python3 - "$SLURM_CONF" <<'PYTHON' || refuse "$dir: some of its processes cannot be killed; see: ps -ef"
import os, pathlib, signal, sys, time

def find_ours():
    ours, parents = set(), {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            name, _, state = (folder / "stat").read_text().partition("(")[2].rpartition(") ")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or it belongs to somebody else
        if state.startswith("Z"):
            continue
        pid = int(folder.name)
        parents[pid] = int(state.split()[1])
        of_slurm = name in ("munged", "srun", "salloc") or name.startswith("slurm")
        in_job = any(variable.startswith(b"SLURMD_NODENAME=") for variable in variables)
        if f"SLURM_CONF={sys.argv[1]}".encode() in variables and (of_slurm or in_job):
            ours.add(pid)
    while children := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= children
    return ours

deadline = time.monotonic() + 10
while ours := find_ours():
    for pid in ours:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if time.monotonic() > deadline:
        sys.exit(1)
    time.sleep(0.1)
PYTHON
}

mark="# written by local_slurm.sh"
again="bash cluster_setup/local_slurm.sh"
action="${1:-}"
dir="/tmp/local_slurm_$(id -un)" nodes=3
shift || true
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || refuse "$1: a value is missing"
  case "$1" in
    --nodes) nodes="$2" ;;
    --dir) dir="$(realpath -m "$2")" ;;
    *) refuse "unknown option $1; see the head of cluster_setup/local_slurm.sh" ;;
  esac
  shift 2
done
export SLURM_CONF="$dir/slurm.conf"
export PATH="$PATH:/usr/sbin:/sbin" # where Debian keeps the daemons
case "$action" in
  start | status | stop) "$action" ;;
  *) refuse "usage: local_slurm.sh start|status|stop [--nodes 3] [--dir FOLDER]" ;;
esac
