"""What has passed through step 0, counted on its way."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from esm2_hyperpod.download.fasta import Records


class Tally:
    """What has passed: number of records and residues, the longest, and whether the longest came first."""

    def __init__(self):
        self.records = self.residues = self.longest = self._last = 0
        self._falling = True

    def rows(self, batches: Iterator[Records]) -> Iterator[pa.Array]:
        """The rows of the batches, which are counted as they pass."""
        for batch in batches:
            lengths = batch.lengths
            falling = (np.diff(lengths) <= 0).all() and (not self.records or lengths[0] <= self._last)
            self._falling = self._falling and bool(falling)
            self._last = int(lengths[-1])
            self.records += len(batch)
            self.residues += int(lengths.sum())
            self.longest = max(self.longest, int(lengths.max()))
            yield batch.rows

    def bias(self) -> str:
        """The line that says what records from the start of a source are, and are not."""
        line = f"--max_records over a network: the first {self.records:,} records, not a sample; their mean "
        line += f"length is {self.residues / max(self.records, 1):,.0f} residues"
        if self._falling and self.records > 1:
            line += f", falling from {self.longest:,} to {self._last:,}: the source is sorted longest first"
        return f"{line}. For a sample, fetch the file and give its path to --source"
