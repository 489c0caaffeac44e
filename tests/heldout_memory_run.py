"""Reads and uses a held-out set much larger than its budget, in a process of its own: see test_evaluate_heldout_store.

``python heldout_memory_run.py MEMORY`` (``none``: no limit) prints a JSON object: the most anonymous memory in bytes,
above that before, while reading, in passes and while reordering; the size of the set and the places of both. To be run
with MALLOC_MMAP_THRESHOLD_ set, so that what is freed is gone at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from pysoup.evaluate import HeldOut
from pysoup.evaluate.batch_file import BatchFile, Slot

BATCHES, ROWS, COLUMNS = 32, 16, 1 << 16  # 4 MiB a batch, 128 MiB in all


class Peak:
    def __init__(self) -> None:
        self.before = anonymous()
        self.most = 0

    def look(self) -> None:
        self.most = max(self.most, anonymous() - self.before)

    def taken(self) -> int:
        most, self.most = self.most, 0
        return most


def anonymous() -> int:
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024


def stream(peak: Peak) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(BATCHES):
        yield torch.full((ROWS, COLUMNS), float(number)), torch.arange(ROWS)
        peak.look()


def use(held: HeldOut, peak: Peak) -> None:
    """As a model would, with a result of its own for each batch."""
    for number, (x, _) in enumerate(held.batches()):
        doubled = x * 2
        peak.look()
        assert float(doubled.mean()) >= 0.0, number


def looking_at_writes(peak: Peak) -> None:
    """What is alive while batches are put into a file counts too."""
    write = BatchFile.write

    def looking(self: BatchFile, tensor: Tensor) -> Slot:
        peak.look()
        return write(self, tensor)

    BatchFile.write = looking  # type: ignore[method-assign]


def main() -> None:
    memory = None if sys.argv[1] == "none" else sys.argv[1]
    torch.set_num_threads(1)
    use(HeldOut(stream(Peak()), memory="4MiB"), Peak())  # what the first use of anything allocates is no batch
    peak = Peak()
    looking_at_writes(peak)
    held = HeldOut(stream(peak), memory=memory)
    found: dict[str, object] = {"places": [held.place], "reading": peak.taken()}
    use(held, peak)
    use(held, peak)
    found["passes"] = peak.taken()
    other = held.reordered(torch.randperm(BATCHES * ROWS), ROWS)
    use(other, peak)
    found["reordered"] = peak.taken()
    print(json.dumps({**found, "nbytes": held.nbytes, "places": [held.place, other.place]}))


if __name__ == "__main__":
    main()
