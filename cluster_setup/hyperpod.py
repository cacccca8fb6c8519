"""A SageMaker HyperPod Slurm cluster from cluster.yaml, from its plan to its removal.

python cluster_setup/hyperpod.py plan       # check everything and add up the cost; makes nothing
python cluster_setup/hyperpod.py create     # make it; resume if interrupted
python cluster_setup/hyperpod.py delete     # list what bills, and remove it
"""

import argparse
import sys
from pathlib import Path

# The project is not installed; this file runs before anything is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from esm2_hyperpod.cluster import commands
    from esm2_hyperpod.cluster.aws import Aws, readable_errors
    from esm2_hyperpod.cluster.billing import billed_items, known_prices
    from esm2_hyperpod.cluster.checks import checked_config, read_config
    from esm2_hyperpod.cluster.config import ClusterConfig
    from esm2_hyperpod.command_line import Parser, say_what_for
    from esm2_hyperpod.errors import run_script
    from esm2_hyperpod.planner.answer import Question, answer, count, describe
    from esm2_hyperpod.planner.machines import find_machine
    from esm2_hyperpod.planner.models import find_model
    from esm2_hyperpod.sizes import SIZES
except ModuleNotFoundError as error:
    remedy = "python -m pip install -r cluster_setup/requirements.txt"
    sys.exit(f"hyperpod.py: error: {error.name} is not installed; install it with: {remedy}")

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    say_what_for(__doc__)
    parser = Parser(
        prog="python cluster_setup/hyperpod.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, summary: str, changes: bool = False) -> Parser:
        command = subcommands.add_parser(name, help=summary, description=summary)
        command.add_argument(
            "--config", type=Path, default=HERE / "cluster.yaml", help="default: %(default)s"
        )
        command.add_argument("--endpoint_url", help="an address to use instead of AWS's own, for tests")
        if changes:
            command.add_argument(
                "--dry_run", action="store_true", help="print what would be done and change nothing"
            )
        return command

    plan = add("plan", "check cluster.yaml and print what will exist and what it will cost")
    plan.add_argument("--json", action="store_true", help="print the CreateCluster request instead")
    plan.add_argument("--model_size", choices=list(SIZES), help="also plan its training on the workers")
    plan.add_argument("--tokens", type=count, default=count("100B"), help="to train on; default: 100B")
    create = add("create", "make network, storage and cluster; resume if interrupted", True)
    create.set_defaults(template=HERE / "network_and_storage.yaml")
    status = add("status", "print the cluster's state, which workers idle, why any failed, and the cost")
    for command in (plan, create, status):
        command.add_argument("--prices", type=Path, default=HERE / "prices.yaml", help="default: %(default)s")
    connect = add("connect", "open a shell on the login node, else on the controller", True)
    connect.add_argument("--node", help="an instance id or a group (controller, login, workers) instead")
    connect.add_argument(
        "--ssh_config",
        action="store_true",
        help="print an SSH host entry for the node instead",
    )
    connect.add_argument("--key", type=Path, help="with it, the public key (default: the one in ~/.ssh)")
    scaling = add("scale", "change the number of workers", True)
    scaling.add_argument("--group", default="workers", help="which workers (default: %(default)s)")
    scaling.add_argument("--count", type=int, required=True, help="the new number of workers")
    check = add("check", "start AWS's health check, which stresses GPUs and network", True)
    check.add_argument("--group", default="workers", help="which workers (default: %(default)s)")
    check.add_argument("--node", help="an instance id of the group: only this one")
    update = add("update", "give all nodes AWS's latest image; wipes their root disks", True)
    dashboards = add("dashboards", "put data sources and dashboards into the Grafana workspace", True)
    delete = add("delete", "list what still bills and remove it, data included", True)
    delete.add_argument("--keep_stack", action="store_true", help="remove the nodes, keep network and data")
    delete.add_argument(
        "--without_export", action="store_true", help="do not send /fsx/runs to fsx.data_bucket first"
    )
    for command in (create, check, update, dashboards, delete):
        command.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    makes = arguments.command in ("plan", "create", "scale")
    config = checked_config(arguments.config) if makes else read_config(arguments.config)
    aws = Aws(config.region, arguments.endpoint_url)
    with readable_errors():
        getattr(commands, arguments.command)(arguments, config, aws)
        if arguments.command == "plan" and arguments.model_size and not arguments.json:
            print(f"\n{plan_training(arguments, config, aws)}")


def plan_training(arguments: argparse.Namespace, config: ClusterConfig, aws: Aws) -> str:
    """What the planner says of a model on the workers, at their price where that is known."""
    workers, fsx = config.workers, config.fsx
    prices, _ = known_prices(aws, arguments.prices, config, billed_items(config))
    question = Question(
        find_model(arguments.model_size, None, {}),
        find_machine(workers.instance_type, workers.count),
        arguments.tokens,
        dollars_per_node_hour=prices.usd.get(workers.instance_type),
        file_system_mb_s=fsx.size_gb / 1024 * fsx.throughput,
    )
    return describe(answer(question))


if __name__ == "__main__":
    run_script(main)
