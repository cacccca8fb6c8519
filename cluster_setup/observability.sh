#!/bin/bash
# This node's metrics to Amazon Managed Prometheus: exporters, and a collector that signs with the node's role.
#
# on_init_complete.sh runs it as root on each new node where `observability` of cluster.yaml is set; hyperpod.py
# puts observability.conf, with the workspace's address, beside it. Run again, it starts everything anew.
#
# The images are those of AWS's own HyperPod extension (awslabs/awsome-distributed-ai, Extensions/observability,
# read in July 2026), from AWS's registry of the region. Everything listens on this node alone.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${ROOT:=}" # another root for the files, for tests
: "${INFINIBAND_DIR:=/sys/class/infiniband}"
export PATH="$PATH:/opt/slurm/bin"
# shellcheck disable=SC1091 # CLUSTER, REGION and REMOTE_WRITE
source "$HERE/observability.conf"

REGISTRY="602401143452.dkr.ecr.$REGION.amazonaws.com"
TEXTFILES="$ROOT/var/lib/node_exporter"
targets=""

run_container() { # NAME IMAGE [DOCKER OPTION]... -- [ARGUMENT]...
    local name="$1" image="$REGISTRY/hyperpod/$2" options=(--detach --restart=always --net=host) try
    shift 2
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    for try in 1 2 3 4 5; do
        docker pull --quiet "$image" && break
        [ "$try" -lt 5 ] || return 1
        sleep $((try * ${RETRY_SECONDS:-5}))
    done
    docker rm --force "$name" > /dev/null 2>&1 || true
    docker run --name="$name" "${options[@]}" "$image" "$@"
}

add_target() { # JOB PORT
    targets+="
        - job_name: $1
          static_configs: [{targets: ['localhost:$2'], labels: {instance: '$(uname -n)'}}]"
}

# The machine and, on the controller, Slurm. Few collectors, because AWS bills by the sample.
start_node_exporter() {
    run_container node-exporter node_exporter:v1.9.1 --pid=host --volume=/:/host:ro,rslave \
        --volume="$TEXTFILES:/textfiles:ro" -- --path.rootfs=/host --web.listen-address=127.0.0.1:9100 \
        --web.disable-exporter-metrics --collector.disable-defaults --collector.loadavg --collector.meminfo \
        --collector.netdev "--collector.netdev.device-exclude=^(lo|docker|veth|br-).*" \
        --collector.textfile --collector.textfile.directory=/textfiles &&
        add_target node 9100
}

start_slurm_metrics() {
    install -D -m 755 "$HERE/slurm_metrics.py" "$ROOT/usr/local/lib/esm2/slurm_metrics.py" || return 1
    mkdir -p "$ROOT/etc/systemd/system"
    cat > "$ROOT/etc/systemd/system/slurm-metrics.service" << UNIT
[Unit]
Description=What Slurm does, for node_exporter
[Service]
Environment=PATH=/opt/slurm/bin:/usr/bin:/bin
ExecStart=/usr/bin/python3 /usr/local/lib/esm2/slurm_metrics.py $TEXTFILES/slurm.prom --every 30
Restart=always
RestartSec=30
[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload && systemctl enable slurm-metrics && systemctl restart slurm-metrics
}

# The image has Slurm write each GPU's job into a folder (prolog.d), from which the label hpc_job comes.
start_dcgm_exporter() {
    install -D -m 644 "$HERE/gpu_metrics.csv" "$ROOT/etc/dcgm-exporter/gpu_metrics.csv" || return 1
    mkdir -p "$ROOT/run/slurm/dcgm-job-mapping"
    run_container dcgm-exporter dcgm_exporter:4.1.1-4.0.4-ubi9 --gpus=all --cap-add=SYS_ADMIN \
        --volume="$ROOT/etc/dcgm-exporter/gpu_metrics.csv:/gpu_metrics.csv:ro" \
        --volume="$ROOT/run/slurm/dcgm-job-mapping:/jobs" -- \
        --collectors=/gpu_metrics.csv --address=127.0.0.1:9400 --hpc-job-mapping-dir=/jobs &&
        add_target dcgm 9400
}

start_efa_exporter() {
    run_container efa-exporter efa_exporter:1.0.0 --pid=host --volume=/:/host:ro,rslave -- \
        --path.rootfs=/host --web.listen-address=127.0.0.1:9109 --web.disable-exporter-metrics \
        --collector.disable-defaults --collector.amazonefa &&
        add_target efa 9109
}

start_collector() {
    mkdir -p "$ROOT/etc/otel"
    cat > "$ROOT/etc/otel/config.yaml" << YAML
receivers:
  prometheus:
    config:
      global: {scrape_interval: 30s}
      scrape_configs:$targets
processors:
  batch: {timeout: 10s}
extensions:
  sigv4auth: {region: $REGION, service: aps}
exporters:
  prometheusremotewrite:
    endpoint: $REMOTE_WRITE
    auth: {authenticator: sigv4auth}
    external_labels: {cluster: $CLUSTER}
service:
  extensions: [sigv4auth]
  pipelines:
    metrics: {receivers: [prometheus], processors: [batch], exporters: [prometheusremotewrite]}
YAML
    run_container otel-collector otel_collector:v1754424030352 --volume="$ROOT/etc/otel:/etc/otel:ro" -- \
        --config=/etc/otel/config.yaml
}

aws ecr get-login-password --region "$REGION" | docker login --username AWS --password-stdin "$REGISTRY"
mkdir -p "$TEXTFILES"
failed=0
warn() { echo "observability.sh: warning: $*" >&2; failed=1; } # the others shall run all the same
if systemctl is-active --quiet slurmctld; then start_slurm_metrics || warn "no metrics of Slurm"; fi
start_node_exporter || warn "no metrics of the machine"
if nvidia-smi > /dev/null 2>&1; then start_dcgm_exporter || warn "no metrics of GPUs"; fi
if grep -qsi 0x1d0f "$INFINIBAND_DIR"/*/device/vendor; then start_efa_exporter || warn "no metrics of EFA"; fi
start_collector || warn "no metrics leave this node"
exit "$failed"
