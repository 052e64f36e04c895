"""Makes ``example.zip``, the finished example of the start page: a run with criteria, checks and a case.

``python sample_models/example.py WORKSPACE`` compresses a shipped network in a workspace of its own, or takes
the run that is there already, and writes its evidence as ``qaf report RUN --out example.zip`` would. With
``--speed`` it also times both networks here: only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qaf_core.cli.entry import main as qaf
from qaf_core.review.decision.criteria import Criterion, keep_criteria
from qaf_core.review.decision.economics import PRESETS, keep_assumptions
from qaf_core.review.report.report import write_evidence
from qaf_core.review.report.review import gather_review
from qaf_core.runs.evidence.robustness import check_run_robustness
from qaf_core.runs.evidence.stability import check_run_stability
from qaf_core.runs.jobs.latency import measure_run
from qaf_core.runs.store.store import Store

EXAMPLE = Path(__file__).with_name("example.zip")
MODEL, RATIO, BITS = "digits/cnn", "2", "4"
CRITERIA = (
    Criterion(kind="largest_drop", limit=0.02),
    Criterion(kind="accuracy_floor", limit=0.97),
    Criterion(kind="file_size", limit=60_000),
)
PICTURES = 18
SOAK_MINUTES = 1.0


def make_example(
    workspace: Path, path: Path = EXAMPLE, minutes: float = SOAK_MINUTES, *, speed: bool = False
) -> None:
    """Write the example.

    Args:
        workspace: Where its run is, or is made.
        path: The zip to write.
        minutes: Length of the soak.
        speed: Whether both networks are timed on this machine.
    """
    with Store(workspace) as store:
        exists = any(run.compressed for run in store.list_runs(MODEL))
    if not exists and qaf(
        ["compress", MODEL, "--ratio", RATIO, "--bits", BITS, "--workspace", str(workspace), "--json"]
    ):
        sys.exit("the run failed")
    with Store(workspace) as store:
        run_id = next(run.id for run in store.list_runs(MODEL) if run.compressed)
        folder = store.run_folder(run_id)
        keep_criteria(folder, CRITERIA)
        keep_assumptions(folder, PRESETS["example_line"])
        check_run_robustness(store, run_id)
        check_run_stability(store, run_id, minutes=minutes)
        if speed and (report := measure_run(store, run_id, threads=1)).is_disturbed:
            sys.exit(f"others used {report.others_share:.0%} of the processors: nothing is written")
        write_evidence(store, gather_review(store, [run_id], pictures=PICTURES), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--speed", action="store_true", help="time both networks here too")
    options = parser.parse_args()
    make_example(options.workspace, speed=options.speed)
