"""How many inspection images a second the built-in set draws; prints one JSON object.

python benchmarks/inspection_throughput.py [--count 8192] [--workers N] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

import numpy as np

from qaf_core.data.inspection.dataset import render


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    render(256, seed=0, workers=options.workers)
    seconds, processor_seconds = [], []
    for repeat in range(options.repeats):
        started, busy = time.perf_counter(), time.process_time()
        render(options.count, seed=repeat, workers=options.workers)
        seconds.append(time.perf_counter() - started)
        processor_seconds.append(time.process_time() - busy)
    rates = sorted(options.count / value for value in seconds)
    print(
        json.dumps(
            {
                "benchmark": "inspection_throughput",
                "images": options.count,
                "images_per_second_median": round(float(np.median(rates)), 1),
                "images_per_second_range": [round(rates[0], 1), round(rates[-1], 1)],
                "images_per_processor_second": round(options.count / float(np.median(processor_seconds)), 1),
                "workers": options.workers or min(len(os.sched_getaffinity(0)), 8),
                "target_images_per_second": 2000,
                "load_average": round(os.getloadavg()[0], 2),
                "numpy": np.__version__,
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
