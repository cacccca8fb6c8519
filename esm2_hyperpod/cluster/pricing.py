"""Today's prices from AWS's price list, kept for a week; `prices.yaml` stands above them.

Which product is meant is told by its usage type, without the region's prefix: HyperPod's nodes are sold as
`Cluster:ml.g5.24xlarge` of AmazonSageMaker, not as EC2 instances. A price is taken only where all products
found have the same.
"""

import datetime
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from esm2_hyperpod.artifacts import whole_file
from esm2_hyperpod.cluster.aws import Aws

PRICING_REGION = "us-east-1"  # one of the few with the price list's API, for the prices of all regions
DAYS = 7
_OTHER_QUERIES = {
    "ebs_gb_month": ("AmazonSageMaker", {"usagetype": "Cluster:VolumeUsage"}, r"Cluster:VolumeUsage\.gp[23]"),
    "nat_gateway": ("AmazonEC2", {"usagetype": "NatGateway-Hours"}, "NatGateway-Hours"),
    "public_ipv4": ("AmazonVPC", {"usagetype": "PublicIPv4:InUseAddress"}, "PublicIPv4:InUseAddress"),
}


@dataclass(frozen=True)
class Query:
    """A question to the price list: which service, attributes that contain a text, and the usage type."""

    service: str
    contains: dict[str, str]
    usage_type: str | None

    def filters(self, region: str) -> list[dict[str, str]]:
        """GetProducts' filters for one region."""
        contained = [{"Type": "CONTAINS", "Field": k, "Value": v} for k, v in self.contains.items()]
        return [{"Type": "TERM_MATCH", "Field": "regionCode", "Value": region}, *contained]

    def command(self, region: str) -> str:
        """The AWS CLI's command that asks the same."""
        filters = " ".join(
            ",".join(f"{name}={value}" for name, value in one.items()) for one in self.filters(region)
        )
        return (
            f"aws pricing get-products --region {PRICING_REGION} --service-code {self.service} "
            f"--filters {filters}"
        )

    def matches(self, product: dict[str, Any]) -> bool:
        """Whether a product of the price list is the one that is meant."""
        attributes = product["product"]["attributes"]
        if self.usage_type is None:
            return all(attributes.get(name) == value for name, value in self.contains.items())
        # The prefix is a region's short name, as USW2-, and absent in us-east-1 for some services.
        return re.fullmatch(f"([A-Z0-9]+-)?{self.usage_type}", attributes.get("usagetype", "")) is not None


def query(price_key: str) -> Query:
    """The question whose answer is the price of `price_key` (see `billing.billed_items`)."""
    if price_key.startswith("ml."):
        usage_type = f"Cluster:{price_key}"
        return Query("AmazonSageMaker", {"usagetype": usage_type}, re.escape(usage_type))
    if match := re.fullmatch(r"fsx_(\d+)_gb_month", price_key):
        attributes = {"fileSystemType": "Lustre", "storageType": "SSD", "throughputCapacity": match[1]}
        return Query("AmazonFSx", attributes, None)
    return Query(*_OTHER_QUERIES[price_key])


def current_prices(aws: Aws, price_keys: list[str]) -> tuple[dict[str, float], str, list[str]]:
    """USD by price key, the date of the oldest of them, and a line for each reason why some are missing.

    Asks AWS only for what the cache lacks. No failure is an error: without prices there is still a plan.
    """
    today = datetime.date.today()
    cache = _read_cache(aws.region)
    kept = {
        key: entry
        for key, entry in cache.items()
        if (today - datetime.date.fromisoformat(entry["read_on"])).days < DAYS
    }
    reasons: list[str] = []
    for key in [key for key in price_keys if key not in kept]:
        try:
            price = _ask(aws, query(key))
        except (NoCredentialsError, ClientError, BotoCoreError) as error:
            reasons.append(f"prices not read: {_why(error)}")
            break  # the others would fail, too
        if price is not None:
            kept[key] = {"usd": price, "read_on": today.isoformat()}
    if kept != cache:
        _write_cache(aws.region, kept)
    found = {key: kept[key] for key in price_keys if key in kept}
    oldest = min((entry["read_on"] for entry in found.values()), default=today.isoformat())
    return {key: entry["usd"] for key, entry in found.items()}, oldest, reasons


def _ask(aws: Aws, question: Query) -> float | None:
    """The on-demand price for one unit; None where the list has no such product, or several prices."""
    pages = (
        aws.client("pricing", PRICING_REGION)
        .get_paginator("get_products")
        .paginate(ServiceCode=question.service, Filters=question.filters(aws.region))
    )
    prices = set()
    for page in pages:
        for text in page["PriceList"]:
            product = json.loads(text)
            if question.matches(product):
                prices |= set(_on_demand(product))
    return prices.pop() if len(prices) == 1 else None


def _on_demand(product: dict[str, Any]) -> list[float]:
    terms = product.get("terms", {}).get("OnDemand", {}).values()
    dimensions = [dimension for term in terms for dimension in term["priceDimensions"].values()]
    prices = [float(dimension["pricePerUnit"].get("USD", 0)) for dimension in dimensions]
    return [price for price in prices if price > 0]  # free tiers are not what a month costs


def _why(error: Exception) -> str:
    if isinstance(error, NoCredentialsError):
        return "no AWS credentials on this machine"
    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        return f"{code}; the login needs the permission pricing:GetProducts"
    return "AWS's price list cannot be reached"


def _cache_file(region: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "esm2_hyperpod" / f"prices-{region}.json"


def _read_cache(region: str) -> dict[str, dict[str, Any]]:
    try:
        cache = json.loads(_cache_file(region).read_text(encoding="utf-8"))
        for entry in cache.values():
            datetime.date.fromisoformat(entry["read_on"])
            float(entry["usd"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # it is only a cache
    return cache


def _write_cache(region: str, cache: dict[str, dict[str, Any]]) -> None:
    path = _cache_file(region)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(cache, indent=1), encoding="utf-8")
    except OSError:
        return  # a home that cannot be written costs a question the next time
