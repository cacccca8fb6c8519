"""What ESM-2's own training would take: each size on rented clusters, by the planner's recommendation.

python benchmarks/planner_table.py       prints Markdown, writes benchmarks/planner.png
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from esm2_hyperpod.figures import new_figure, save_figure  # noqa: E402
from esm2_hyperpod.planner.answer import GLOBAL_TOKENS  # noqa: E402
from esm2_hyperpod.planner.machines import find_machine  # noqa: E402
from esm2_hyperpod.planner.ways import Way, all_ways, best_way  # noqa: E402
from esm2_hyperpod.sizes import SIZES  # noqa: E402

TOKENS = 500_000 * GLOBAL_TOKENS  # Lin et al. 2023: updates, and tokens of each
NODES = 1, 2, 8, 32
USD_PER_HOUR = {
    "g5.12xlarge": 5.672, "g5.24xlarge": 8.144, "g6e.48xlarge": 30.131, "p4d.24xlarge": 21.958,
    "p4de.24xlarge": 27.447, "p5.48xlarge": 55.04, "p5en.48xlarge": 63.296,
}  # fmt: skip
"""EC2's on-demand list prices, Linux, us-east-1, 2026. HyperPod's are higher; `hyperpod.py plan` asks AWS."""


def main() -> None:
    names = list(SIZES)[1:]  # without tiny
    found = {(name, instance): row(name, instance) for name in names for instance in USD_PER_HOUR}
    print("| size | instance |" + "".join(f" {nodes} node(s) |" for nodes in NODES))
    print("|---" * (2 + len(NODES)) + "|")
    for (name, instance), ways in found.items():
        cells = [cell(way, nodes, instance) for nodes, way in zip(NODES, ways)]
        print(f"| {name} | {instance} | {' | '.join(cells)} |")
    print("\nwaiting for the network, where it is a tenth of a step or more:")
    for (name, instance), ways in found.items():
        shares = [(nodes, way.step.network / way.step.seconds) for nodes, way in zip(NODES, ways) if way]
        waits = ", ".join(f"{nodes}: {share:.0%}" for nodes, share in shares if share >= 0.1)
        if waits:
            print(f"{name} on {instance}, nodes {waits}")
    draw(names, found)


def row(name: str, instance: str) -> list[Way | None]:
    """The recommendation on each number of nodes."""
    machines = [find_machine(instance, nodes) for nodes in NODES]
    return [best_way(all_ways(SIZES[name], machine, GLOBAL_TOKENS), machine) for machine in machines]


def cell(way: Way | None, nodes: int, instance: str) -> str:
    """Way, residues/s, hours, dollars."""
    if way is None:
        return "does not fit"
    hours = hours_of(way)
    dollars = amount(cost(hours, nodes, instance))
    return f"{short(way)} {amount(way.residues_per_second)}/s {hours:,.0f} h ${dollars}"


def short(way: Way) -> str:
    """`H2c`: HSDP, ZeRO-2, checkpointing."""
    strategy = way.strategy
    letter = "D" if strategy.name == "ddp" else "H" if strategy.replicas > 1 else "F"
    parts = f"T{strategy.tp}" if strategy.tp > 1 else ""
    return letter + ("" if strategy.reshard else "2") + parts + ("c" if strategy.checkpointing else "")


def amount(number: float) -> str:
    """Three figures: 1.23M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def hours_of(way: Way) -> float:
    """Of all of ESM-2's tokens."""
    return TOKENS / way.tokens_per_second / 3600


def cost(hours: float, nodes: int, instance: str) -> float:
    """USD of the workers."""
    return hours * nodes * USD_PER_HOUR[instance]


def draw(names: list[str], found: dict[tuple[str, str], list[Way | None]]) -> None:
    """Hours and dollars, a panel a size, a line an instance type from one node to 32."""
    figure, panels = new_figure(13, 7.5, rows=2, columns=3)
    for panel, name in zip(panels, names):
        for instance in USD_PER_HOUR:
            ways = [(nodes, hours_of(way)) for nodes, way in zip(NODES, found[name, instance]) if way]
            costs = [cost(hours, nodes, instance) for nodes, hours in ways]
            panel.plot([hours / 24 for _, hours in ways], costs, marker="o", markersize=4, label=instance)
            for (nodes, hours), dollars in zip(ways, costs):
                panel.annotate(
                    nodes, (hours / 24, dollars), fontsize=6, xytext=(2, 3), textcoords="offset points"
                )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"{name}: 500,000 updates of 2,097,152 tokens, by formula", fontsize=9)
        panel.set_xlabel("days")
        panel.set_ylabel("USD")
    panels[0].legend(fontsize=7)
    save_figure(figure, HERE / "planner.png")


if __name__ == "__main__":
    main()
