"""Metrics: what starts on a node, what the dashboards ask for, and how they get into Grafana."""

import json
import os
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from helpers.commands import ROOT, run

from esm2_hyperpod.cluster import dashboards
from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.observability import NODE_FILES
from esm2_hyperpod.cluster.request import StackOutputs
from esm2_hyperpod.errors import UserError

SETUP = ROOT / "cluster_setup"
BOARDS = {path.stem: json.loads(path.read_text()) for path in dashboards.FILES}
# What AWS's exporter counts (class_amazon_efa.go in awslabs/awsome-distributed-ai), as far as we show it.
EFA = (
    "rx_bytes tx_bytes rdma_read_bytes rdma_write_bytes retrans_bytes rx_drops retrans_timeout_events "
    "impaired_remote_conn_events unresponsive_remote_events rdma_read_wr_err rdma_write_wr_err"
).split()
NODE = {
    "loadavg": "node_load1",
    "meminfo": "node_memory_MemAvailable_bytes node_memory_MemTotal_bytes",
    "netdev": "node_network_receive_bytes_total node_network_transmit_bytes_total",
}
# CloudWatch's name of each of FSx for Lustre's metrics, with the file system as its one dimension.
FSX = "DataReadBytes DataWriteBytes DataReadOperations DataWriteOperations MetadataOperations".split()
FSX.append("FreeDataStorageCapacity")


@pytest.fixture
def node(tmp_path):
    """Runs observability.sh on a node made of stubs; gives the containers' words and the config."""
    for name in NODE_FILES:
        shutil.copy(SETUP / name, tmp_path)
    conf = "CLUSTER=esm2\nREGION=us-west-2\nREMOTE_WRITE=https://aps.example/workspaces/ws-1/api/v1/remote_write\n"
    (tmp_path / "observability.conf").write_text(conf)
    efa = tmp_path / "infiniband" / "rdmap0" / "device" / "vendor"

    def start(gpu=False, slurmctld=False, with_efa=False, broken="none", code=0):
        stubs = {
            "docker": f'[ "$1" != login ] || cat; [ "$1" = pull ] && [[ "$*" == *{broken}* ]] && exit 1\n'
            f'echo "$@" >>{tmp_path}/docker',
            "aws": "echo password",
            "systemctl": f'echo "$*" >>{tmp_path}/systemctl; [ "$1" != is-active ] || exit {1 - slurmctld}',
            "nvidia-smi": f"exit {1 - gpu}",
        }
        (tmp_path / "bin").mkdir(exist_ok=True)
        for name, text in stubs.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        efa.parent.mkdir(parents=True, exist_ok=True)
        efa.write_text("0x1d0f\n" if with_efa else "0x15b3\n")
        (tmp_path / "docker").write_text("")
        result = run(
            "bash", tmp_path / "observability.sh", check=False, ROOT=tmp_path / "root", RETRY_SECONDS="0",
            INFINIBAND_DIR=tmp_path / "infiniband", PATH=f"{tmp_path}/bin:{os.environ['PATH']}",
        )  # fmt: skip
        assert result.returncode == code, result.stderr
        runs = [line.split() for line in (tmp_path / "docker").read_text().splitlines() if line[:4] == "run "]
        containers = {words[1].removeprefix("--name="): words for words in runs}
        config = yaml.safe_load((tmp_path / "root/etc/otel/config.yaml").read_text())
        return SimpleNamespace(containers=containers, config=config, said=result.stderr, folder=tmp_path)

    return start


def scraped(config):
    """Port by job of the collector's targets."""
    jobs = config["receivers"]["prometheus"]["config"]["scrape_configs"]
    return {job["job_name"]: job["static_configs"][0]["targets"][0].split(":")[1] for job in jobs}


def test_a_worker_sends_machine_gpus_and_efa_signed_and_named(node):
    worker = node(gpu=True, with_efa=True)
    assert list(worker.containers) == ["node-exporter", "dcgm-exporter", "efa-exporter", "otel-collector"]
    assert scraped(worker.config) == {"node": "9100", "dcgm": "9400", "efa": "9109"}
    for name, port in zip(worker.containers, scraped(worker.config).values()):
        assert any(word.endswith(f"=127.0.0.1:{port}") for word in worker.containers[name]), name
    write = worker.config["exporters"]["prometheusremotewrite"]
    assert write["endpoint"] == "https://aps.example/workspaces/ws-1/api/v1/remote_write"
    assert write["external_labels"] == {"cluster": "esm2"}
    assert worker.config["extensions"][write["auth"]["authenticator"]] == {
        "region": "us-west-2",
        "service": "aps",
    }
    assert worker.config["service"]["extensions"] == ["sigv4auth"]
    labels = worker.config["receivers"]["prometheus"]["config"]["scrape_configs"][0]["static_configs"][0][
        "labels"
    ]
    assert labels == {"instance": os.uname().nodename}
    assert not (worker.folder / "root/etc/systemd/system/slurm-metrics.service").exists()


def test_a_controller_sends_machine_and_slurm_and_one_that_fails_stops_no_other(node):
    controller = node(slurmctld=True)
    assert scraped(controller.config) == {"node": "9100"}
    unit = (controller.folder / "root/etc/systemd/system/slurm-metrics.service").read_text()
    assert f"{controller.folder}/root/var/lib/node_exporter/slurm.prom --every 30" in unit
    assert "restart slurm-metrics" in (controller.folder / "systemctl").read_text()
    worker = node(gpu=True, with_efa=True, broken="dcgm", code=1)
    assert "warning: no metrics of GPUs" in worker.said and worker.said.count("warning") == 1
    assert scraped(worker.config) == {"node": "9100", "efa": "9109"} and "otel-collector" in worker.containers


def test_slurm_that_does_not_answer_is_said(tmp_path):
    run(sys.executable, SETUP / "slurm_metrics.py", tmp_path / "slurm.prom", PATH=str(tmp_path))
    assert (tmp_path / "slurm.prom").read_text().endswith("gauge\nslurm_up 0\n")


def test_dashboards_ask_only_for_what_is_sent(node):
    collectors = re.findall(r"--collector\.(\w+)(?= |$)", " ".join(node().containers["node-exporter"]))
    sent = {name for collector, names in NODE.items() if collector in collectors for name in names.split()}
    sent |= {f"node_amazonefa_{name}" for name in EFA}
    sent |= set(re.findall(r"^(DCGM_\w+),", (SETUP / "gpu_metrics.csv").read_text(), re.M))
    sent |= set(re.findall(r'^    "(slurm_\w+)":', (SETUP / "slurm_metrics.py").read_text(), re.M))
    targets = [t for board in BOARDS.values() for panel in board["panels"] for t in panel["targets"]]
    asked = {name for t in targets for name in re.findall(r"\w+(?=\{)", t.get("expr", ""))}
    assert asked == sent, asked ^ sent
    assert {t["metricName"] for t in targets if "metricName" in t} == set(FSX)
    assert {"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "slurm_node_action", "node_load1"} < asked


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_one_that_grafana_takes(name):
    board = BOARDS[name]
    assert board["uid"] == f"esm2-{name}" and not board.get("id")  # an id would be another Grafana's
    variables = {v["name"] for v in board["templating"]["list"]}
    assert variables == {"datasource", "filesystem" if name == "fsx" else "cluster"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) == variables
    places, ids = set(), [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places and place["x"] + place["w"] <= 24
        places |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) and panel["title"]


@pytest.fixture
def grafana():
    """Grafana's HTTP API, as far as it is used here; `refuse` is a path that it does not allow."""
    state = SimpleNamespace(sources={}, boards={}, tokens=set(), refuse=None)

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
            state.tokens.add(self.headers["Authorization"])
            code, said = 200, {}
            if self.path == state.refuse:
                code, said = 403, {"message": "no"}
            elif self.path == "/api/dashboards/db":
                assert body["overwrite"]
                state.boards[body["dashboard"]["uid"]] = body["dashboard"]
                said = {"url": f"/d/{body['dashboard']['uid']}"}
            elif self.command == "POST" and body["uid"] in state.sources:
                code = 409
            elif self.command == "GET" and self.path.rpartition("/")[2] not in state.sources:
                code = 404
            elif self.command != "GET":
                state.sources[body["uid"]] = body
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


class ServiceAccounts:
    """The part of AWS's service Grafana that gives tokens; each call is checked against botocore's model."""

    def __init__(self):
        self.model = botocore.session.get_session().get_service_model("grafana")
        self.accounts = {"1": "esm2-dashboards", "2": "theirs"}  # the first of a run that was interrupted

    def __getattr__(self, name):
        operation = "".join(part.capitalize() for part in name.split("_"))

        def call(**arguments):
            shape = self.model.operation_model(operation).input_shape
            assert not ParamValidator().validate(arguments, shape).has_errors()
            if operation == "ListWorkspaceServiceAccounts":
                return {"serviceAccounts": [{"id": i, "name": n} for i, n in self.accounts.items()]}
            if operation == "CreateWorkspaceServiceAccount":
                assert arguments["name"] not in self.accounts.values()
                self.accounts["3"] = arguments["name"]
                return {"id": "3"}
            if operation == "DeleteWorkspaceServiceAccount":
                del self.accounts[arguments["serviceAccountId"]]
                return {}
            assert operation == "CreateWorkspaceServiceAccountToken" and arguments["secondsToLive"] <= 600
            return {"serviceAccountToken": {"key": "glsa_secret"}}

        return call


@pytest.fixture
def accounts(monkeypatch):
    accounts = ServiceAccounts()
    monkeypatch.setattr(Aws, "client", lambda self, service, region=None: accounts)
    return accounts


def outputs(address):
    return StackOutputs(*["x"] * 8, PrometheusEndpoint="https://aps.example/workspaces/ws-1/",
                        GrafanaEndpoint=address)  # fmt: skip


def test_data_sources_and_dashboards_get_into_grafana_and_the_account_goes(grafana, accounts):
    for _ in range(2):  # the second time replaces
        made = dashboards.import_dashboards(Aws("us-west-2"), outputs(grafana.address), "g-0123456789")
    assert made == [f"{grafana.address}/d/esm2-{name}" for name in ("efa", "fsx", "gpu", "slurm")]
    assert grafana.boards == {f"esm2-{name}": board for name, board in BOARDS.items()}
    prometheus = grafana.sources["prometheus"]
    assert prometheus["url"] == "https://aps.example/workspaces/ws-1"  # Grafana appends /api/v1/query
    assert prometheus["jsonData"]["sigV4Auth"] and prometheus["jsonData"]["sigV4Region"] == "us-west-2"
    assert grafana.sources["cloudwatch"]["jsonData"]["defaultRegion"] == "us-west-2"
    assert grafana.tokens == {"Bearer glsa_secret"} and accounts.accounts == {"2": "theirs"}


@pytest.mark.parametrize("path", ["/api/datasources", "/api/dashboards/db"])
def test_what_grafana_refuses_is_one_line_and_the_account_goes(grafana, accounts, path):
    grafana.refuse = path
    with pytest.raises(UserError) as refusal:
        dashboards.import_dashboards(Aws("us-west-2"), outputs(grafana.address), "g-0123456789")
    assert f'{path}: Grafana answers 403 {{"message": "no"}}; try again' in str(refusal.value)
    assert "\n" not in str(refusal.value) and accounts.accounts == {"2": "theirs"}
    with pytest.raises(UserError, match="no answer from Grafana"):
        dashboards.import_dashboards(Aws("us-west-2"), outputs("http://127.0.0.1:9"), "g-0123456789")
