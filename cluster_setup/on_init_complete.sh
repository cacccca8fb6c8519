#!/bin/bash
# Runs as root on each new node, once AWS's own set-up (Slurm, Docker, Enroot, Pyxis, /fsx) is done.
# It is options.on_init_complete in cluster.yaml. Its output is in the node's CloudWatch log.
#
# If this script failed, the node and perhaps the cluster would fail, so each step only warns.
set -uo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${ETC:=/etc}"
: "${FSX:=/fsx}"
: "${NODE_USER:=ubuntu}"

warn() { echo "on_init_complete.sh: warning: $*" >&2; }

# By default logind deletes a user's shared memory when the user's last shell closes, and with it NCCL's
# buffers and the DataLoader's batches of a running job.
keep_shared_memory() {
    mkdir -p "$ETC/systemd/logind.conf.d" &&
        printf '[Login]\nRemoveIPC=no\n' > "$ETC/systemd/logind.conf.d/esm2.conf" &&
        systemctl restart systemd-logind
}

# Every node is also in HyperPod's partition dev, which is the default, a login node too. Jobs that ask for no
# partition shall go to the workers.
prefer_training_partition() {
    mkdir -p "$ETC/profile.d" && cat > "$ETC/profile.d/esm2.sh" << 'PROFILE'
if [ -z "${SBATCH_PARTITION:-}" ] && timeout 3 sinfo --noheader --partition=train --format=%R 2>/dev/null | grep -qx train; then
    export SBATCH_PARTITION=train SALLOC_PARTITION=train SLURM_PARTITION=train
fi
PROFILE
}

# The file system's root belongs to root; FSX_DIR, where all paths of the project start, is /fsx/$USER. Where the
# image has made the folder already, it stays as it is.
make_user_folder() {
    if ! mountpoint --quiet "$FSX"; then
        warn "$FSX is not mounted"
        return 1
    fi
    local folder
    for folder in data runs; do # FSx makes them where the bucket's folders appear (fsx.data_bucket)
        [ ! -d "$FSX/$folder" ] || chown "$NODE_USER" "$FSX/$folder"
    done
    [ -d "$FSX/$NODE_USER" ] || install -d -o "$NODE_USER" -g "$(id -gn "$NODE_USER")" "$FSX/$NODE_USER"
}

# users.txt lies beside this script in S3, so HyperPod puts it beside it here, as AWS's own extensions expect of theirs.
# It has a name, a number and a key on each line (`users` in cluster.yaml). Homes
# are on the shared file system, so a replaced node needs the accounts only; with the same numbers, or files change
# hands.
make_users() {
    local name uid key home
    [ -f "$HERE/users.txt" ] || return 0
    while read -r name uid key; do
        if ! id "$name" > /dev/null 2>&1; then
            useradd --uid "$uid" --home-dir "$FSX/$name" --no-create-home --shell /bin/bash "$name" || return 1
        elif [ "$(id -u "$name")" != "$uid" ]; then
            warn "$name has the number $(id -u "$name") here, not $uid"
            return 1
        fi
        mountpoint --quiet "$FSX" || continue
        home="$FSX/$name"
        [ -d "$home" ] || install -d -m 700 -o "$uid" "$home"
        [ -d "$home/.ssh" ] || install -d -m 700 -o "$uid" "$home/.ssh"
        if ! grep -qxF "$key" "$home/.ssh/authorized_keys" 2> /dev/null; then
            echo "$key" >> "$home/.ssh/authorized_keys"
            chown "$uid" "$home/.ssh/authorized_keys" && chmod 600 "$home/.ssh/authorized_keys"
        fi
    done < "$HERE/users.txt"
}

# `observability` in cluster.yaml: hyperpod.py puts the file here, which is empty where there is no workspace.
start_exporters() {
    [ ! -s "$HERE/observability.conf" ] || bash "$HERE/observability.sh"
}

keep_shared_memory || warn "jobs may lose shared memory when a user logs out: set RemoveIPC=no by hand"
prefer_training_partition || warn "jobs may land on a login node: submit them with sbatch --partition=train"
make_user_folder || warn "$FSX/$NODE_USER was not made; make it with: sudo install -d -o $NODE_USER $FSX/$NODE_USER"
make_users || warn "not all users of cluster.yaml have an account here; see users.txt"
start_exporters || warn "not all metrics leave this node; try again with: sudo bash $HERE/observability.sh"
exit 0
