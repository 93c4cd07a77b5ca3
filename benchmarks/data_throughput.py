"""How fast batches are read from a prepared cache by one core: python benchmarks/data_throughput.py [length]

Packs Python's standard library as bytes (once; kept in .cache/data), and then reads shuffled batches of it. Pin it to a
core where the system can: taskset -c 0 python benchmarks/data_throughput.py
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxstab.data import Batches, DataConfig, Prepared, prepare, read_ahead

SECONDS = 1.0
ROUNDS = 5


def tokens_per_second(batches: Callable[[], Iterator], tokens: int) -> float:
    """The median over rounds of how fast an iterator of batches with so many tokens each goes."""
    rates = []
    for _ in range(ROUNDS):
        count, start = 0, time.perf_counter()
        for _batch in batches():
            count += 1
            if (taken := time.perf_counter() - start) > SECONDS:
                break
        rates.append(count * tokens / taken)
    return statistics.median(rates)


def measure(prepared: Prepared, batch: int) -> tuple[float, float]:
    """Tokens per second of plain reads and of reading ahead, at a batch of so many records."""
    source, tokens = Batches(prepared.train, seed=0), batch * prepared.train.length
    positions = range(0, 10**12, batch)

    def make(position: int):
        return source.records(position, batch)

    plain = tokens_per_second(lambda: map(make, positions), tokens)
    return plain, tokens_per_second(lambda: read_ahead(make, positions), tokens)


def main() -> None:
    config = DataConfig(length=int(sys.argv[1]) if len(sys.argv) > 1 else 256)
    prepared = prepare(config)
    start = time.perf_counter()
    prepare(config)
    print(f"opening the cache: {time.perf_counter() - start:.2f} s; T={config.length}, {len(prepared.train):,} records")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"| batch | tokens/s, {cores} core(s) | reading ahead |\n|---|---|---|")
    for batch in (8, 32, 128, 512):
        plain, ahead = measure(prepared, batch)
        print(f"| {batch} | {plain / 1e6:.1f}M | {ahead / 1e6:.1f}M |")


if __name__ == "__main__":
    main()
