"""A sample of records that come in some order, as UniRef50's do, longest first: one of each so many in a row.

Of N records cut into k runs of equal length, one is drawn from each run: exactly k, of all lengths in
proportion where the file is sorted, and a pure function of (seed, N, k). N must be known beforehand.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from esm2_hyperpod.download.fasta import Records
from esm2_hyperpod.hashing import key64, mix64


def chosen(first: int, count: int, total: int, sample: int, seed: int) -> np.ndarray:
    """int64: which of the records first, first + 1, ..., first + count - 1 are in the sample, from 0."""
    runs = np.arange(first * sample // total - 1, (first + count) * sample // total + 2)
    runs = runs[(runs >= 0) & (runs < sample)]
    starts, ends = (-(-(runs + more) * total // sample) for more in (0, 1))
    draws = mix64(runs.astype(np.uint64) ^ key64(seed)) % (ends - starts).astype(np.uint64)
    records = starts + draws.astype(np.int64)
    return records[(records >= first) & (records < first + count)] - first


def sampled(batches: Iterable[Records], total: int, sample: int, seed: int) -> Iterator[Records]:
    """`sample` of the `total` records of all batches; all of them where there are no more."""
    if sample >= total:
        yield from batches
        return
    first = 0
    for batch in batches:
        kept = chosen(first, len(batch), total, sample, seed)
        first += len(batch)
        if len(kept):
            yield batch.take(kept)


def count_fasta(chunks: Iterable[bytes]) -> int:
    """The number of records in FASTA bytes: lines that begin with `>`."""
    count, last = 0, b"\n"
    for chunk in chunks:
        if chunk:
            text = last + chunk
            count += text.count(b"\n>")
            last = text[-1:]
    return count
