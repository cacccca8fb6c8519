#!/bin/bash
# Runs as root on each new node, once AWS's own set-up (Slurm, Docker, Enroot, Pyxis, /fsx) is done.
# cluster.yaml names it under options.on_init_complete. Its output is in the node's CloudWatch log.
#
# A failure here would fail the node, and with it perhaps the cluster, so each step warns and goes on.
set -uo pipefail

: "${ETC:=/etc}"
: "${FSX:=/fsx}"
: "${NODE_USER:=ubuntu}"

warn() { echo "on_init_complete.sh: warning: $*" >&2; }

# By default logind deletes a user's shared memory when the user's last shell closes, and so pulls NCCL's
# buffers and the DataLoader's batches from under a running job.
keep_shared_memory() {
    mkdir -p "$ETC/systemd/logind.conf.d" &&
        printf '[Login]\nRemoveIPC=no\n' > "$ETC/systemd/logind.conf.d/esm2.conf" &&
        systemctl restart systemd-logind
}

# The file system's root belongs to root; FSX_DIR, where all paths of the project start, is /fsx/$USER.
make_user_folder() {
    if ! mountpoint --quiet "$FSX"; then
        warn "$FSX is not mounted"
        return 1
    fi
    install -d -o "$NODE_USER" -g "$(id -gn "$NODE_USER")" "$FSX/$NODE_USER"
}

keep_shared_memory || warn "shared memory of jobs may vanish when a user logs out: set RemoveIPC=no by hand"
make_user_folder || warn "$FSX/$NODE_USER was not made: sudo install -d -o $NODE_USER $FSX/$NODE_USER"
exit 0
