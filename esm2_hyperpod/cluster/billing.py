"""What bills, and what it costs an hour, by `prices.yaml` or AWS's price list."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esm2_hyperpod.cluster.aws import Aws
from esm2_hyperpod.cluster.config import ClusterConfig, read_yaml
from esm2_hyperpod.cluster.pricing import current_prices, query
from esm2_hyperpod.errors import UserError

HOURS_IN_MONTH = 730  # what AWS divides a monthly price by


@dataclass(frozen=True)
class Item:
    """`quantity` of what is sold under `price_key`, by the hour or, for storage, by the month."""

    what: str
    price_key: str
    quantity: float

    def usd_per_hour(self, price: float) -> float:
        """The item's cost an hour at `price` USD for one unit."""
        hourly = price / HOURS_IN_MONTH if self.price_key.endswith("_gb_month") else price
        return self.quantity * hourly


@dataclass(frozen=True)
class Prices:
    """USD by price key, and where and when they were read."""

    usd: dict[str, float]
    source: str | None
    read_on: str | None


def billed_items(config: ClusterConfig) -> list[Item]:
    """Everything with a price by the hour or month. Traffic, requests and logs also bill, by use."""
    fsx = config.fsx
    items = [Item("controller", config.controller.instance_type, 1)]
    if config.login:
        items.append(Item("login node", config.login.instance_type, 1))
    for name, group in config.worker_groups.items():
        items.append(Item(name, group.instance_type, group.count))
        if group.local_disk_gb is not None:
            items.append(Item(f"disks of {name}", "ebs_gb_month", group.count * group.local_disk_gb))
    return [
        *items,
        Item("FSx for Lustre", f"fsx_{fsx.throughput}_gb_month", fsx.size_gb),
        Item("NAT gateway", "nat_gateway", 1),
        Item("public address of the NAT gateway", "public_ipv4", 1),
    ]


def items_there(
    config: ClusterConfig, cluster: dict[str, Any] | None, resources: dict[str, str]
) -> list[Item]:
    """What of `billed_items` exists in AWS: the cluster's nodes of now, and the stack's resources."""
    items = []
    for group in cluster["InstanceGroups"] if cluster else []:
        items.append(Item(group["InstanceGroupName"], group["InstanceType"], group["CurrentCount"]))
        for storage in group.get("InstanceStorageConfigs", []):
            if size := storage.get("EbsVolumeConfig", {}).get("VolumeSizeInGB"):
                what = f"disks of {group['InstanceGroupName']}"
                items.append(Item(what, "ebs_gb_month", group["CurrentCount"] * size))
    needs = {"FSx for Lustre": "FileSystem", "NAT gateway": "NatGateway"}
    needs["public address of the NAT gateway"] = "NatAddress"
    return items + [item for item in billed_items(config) if needs.get(item.what) in resources]


def load_prices(path: Path, region: str) -> Prices:
    """The prices in `path`, which may be empty.

    Raises `UserError` for figures that are not prices, have no source, or are for another region.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("usd"), dict):
        raise UserError(
            f"{path}: must have the fields region, source, read_on and usd; restore it from the project"
        )
    usd = {str(key): value for key, value in content["usd"].items() if value is not None}
    for key, value in usd.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{path}: usd.{key} = {value!r}: is not a price; write a number such as 1.25")
    source, read_on = content.get("source"), content.get("read_on")
    if usd and not (source and read_on):
        raise UserError(f"{path}: prices without source and read_on cannot be trusted; fill in both")
    if usd and content.get("region") != region:
        raise UserError(
            f"{path}: the prices are for {content.get('region')}, the cluster is in {region}; "
            f"fill in the prices of {region} and set region: {region}"
        )
    return Prices(usd, source, str(read_on))


def known_prices(aws: Aws, path: Path, config: ClusterConfig, items: list[Item]) -> tuple[Prices, list[str]]:
    """The prices in `path` and, for what it lacks, those of AWS's price list; and why some are missing."""
    written = load_prices(path, config.region)
    missing = [item.price_key for item in items if item.price_key not in written.usd]
    found, read_on, reasons = current_prices(aws, missing)
    sources = [f"{written.source}, read on {written.read_on}"] * bool(written.usd)
    sources += [f"AWS's price list, read on {read_on}"] * bool(found)
    return Prices(found | written.usd, "; ".join(sources), read_on), reasons


def cost_table(aws: Aws, path: Path, config: ClusterConfig, items: list[Item]) -> list[str]:
    """Lines that say what bills, its USD an hour, and the sum; what has no price comes with the question."""
    prices, reasons = known_prices(aws, path, config, items)
    lines, total, questions = [], 0.0, []
    for item in items:
        unit = " GB" if item.price_key.endswith("_gb_month") else " x"
        if item.price_key in prices.usd:
            cost = item.usd_per_hour(prices.usd[item.price_key])
            total += cost
            shown = f"{cost:10.3f}"
        else:
            questions.append(f"{item.price_key}: {query(item.price_key).command(config.region)}")
            shown = f"{'not known':>10}"
        lines.append(f"{shown}  {item.what}: {item.quantity:g}{unit} {item.price_key}")
    more = ", and what is not known" * bool(questions)
    if prices.usd:
        lines.append(f"{total:10.3f}  USD an hour, {24 * total:.2f} a day while all of it exists{more}")
        lines.append(f"prices: {prices.source}")
    lines += reasons
    if questions:
        lines += ["what is not known: write it into prices.yaml, or ask AWS:", *(f"  {q}" for q in questions)]
    return lines
