"""A split of step 1, opened for training: its sequences, its packs and the maker of its micro-batches."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esm2_hyperpod.artifacts import CLUSTER_OF_ROW
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.batches import BatchMaker
from esm2_hyperpod.pretraining.epochs import EpochPlans, PackStream, SharedPlans
from esm2_hyperpod.pretraining.packing import Layout, packed_layout, padded_layout
from esm2_hyperpod.pretraining.sequence_store import SequenceStore

# Below so many sequences each process plans by itself in less than the time it takes to wait for another.
SHARED_FROM = 1_000_000


@dataclass(frozen=True)
class Split:
    """Sequences, the packs an epoch visits, and the maker of their micro-batches."""

    store: SequenceStore
    packs: PackStream
    batches: BatchMaker


def open_split(
    folder: Path, args: PretrainingArguments, seed: int, plans_folder: Path | None
) -> Split | None:
    """Open a split of step 1, or None if there is nothing in it.

    With a `cluster_of_row.npy` beside it, an epoch takes one member of each cluster.

    Args:
        seed: of packs, crops and masks.
        plans_folder: where plans are kept and shared, if at all; its name must tell runs with other
            options apart.
    """
    if not folder.is_dir():  # step 1 makes no folder for a split of size 0
        return None
    store = SequenceStore(folder)
    if not len(store):
        return None

    def lengths() -> np.ndarray:
        return np.minimum(store.lengths(), args.max_seq_length)

    def layout(lengths: np.ndarray) -> Layout:
        if args.packing:
            return packed_layout(lengths, args.tokens_per_device, seed)
        return padded_layout(lengths, args.tokens_per_device)

    clusters = folder / CLUSTER_OF_ROW
    cluster_of_row = np.load(clusters, mmap_mode="r") if clusters.exists() else None
    is_main = args.process_index == 0
    shared = plans_folder is not None and args.world_size > 1 and len(store) >= SHARED_FROM
    kept_in = plans_folder / folder.name if plans_folder and (shared or is_main) else None  # one writer
    plans = EpochPlans(lengths, layout, seed, cluster_of_row, kept_in)
    if shared:
        plans = SharedPlans(plans, maker=is_main)
    packs = PackStream(plans)
    tails = math.ceil(
        args.tokens_per_device / args.max_seq_length
    )  # an empty end is so many sequences at most
    batches = BatchMaker(
        store=store,
        tokens=args.tokens_per_device,
        longest=args.max_seq_length,
        most_sequences=packs.most_sequences() + tails,
        seed=seed,
        mask_probability=args.mlm_probability,
        mask_replace=args.mask_replace,
        packing=args.packing,
        part=args.process_index % args.parts,
        parts=args.parts,
    )
    return Split(store, packs, batches)
