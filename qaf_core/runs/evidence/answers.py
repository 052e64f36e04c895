"""Which images each run gets right, a bit an image, kept in the store: one query compares many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import WorkspaceError
from qaf_core.runs.evidence.predictions import read_predictions
from qaf_core.runs.store.store import Store

AT_ONCE = 60  # files read at a look: those of an older workspace come in by and by


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of one classifier.

    Attributes:
        data: SHA-256 of the images and targets: only the same can be compared.
        n: Number of images.
        right: ``(n / 8,)``, a bit for each image that is answered right.
    """

    data: str
    n: int
    right: NDArray[np.uint8]


def read_answers(store: Store, model: str, run_ids: Sequence[str]) -> Mapping[str, Answers]:
    """The answers of some runs of a model, by run; of those with other outputs than classes there are none.

    Runs that are not in the store's table yet are put there, ``AT_ONCE`` at a look.
    """
    rows = store.rows(
        "SELECT run_id, data, n, right_bits FROM answers"
        " WHERE run_id IN (SELECT id FROM runs WHERE model = ?)",
        (model,),
    )
    known: dict[str, tuple[Any, ...]] = {row[0]: row for row in rows}
    lacking = [run_id for run_id in run_ids if run_id not in known][:AT_ONCE]
    fresh = [(run_id, *_read(store, run_id)) for run_id in lacking]
    if fresh and not store.read_only:
        with store.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO answers VALUES (?,?,?,?)", fresh)
    known |= {row[0]: row for row in fresh}
    return {
        run_id: Answers(data=data, n=n, right=np.frombuffer(bits, np.uint8))
        for run_id in run_ids
        if run_id in known
        for _, data, n, bits in (known[run_id],)
        if n and len(bits) == -(-n // 8)
    }


def forget_answers(store: Store, run_id: str) -> None:
    """Have a run's answers read anew: its predictions have been made since."""
    with store.transaction() as connection:
        connection.execute("DELETE FROM answers WHERE run_id = ?", (run_id,))


def _read(store: Store, run_id: str) -> tuple[str, int, bytes]:
    try:
        paired = read_predictions(store.run_folder(run_id))
    except WorkspaceError:
        paired = None
    if paired is None or "ranked" not in paired.compressed or "labels" not in paired.targets:
        return "", 0, b""
    right = paired.compressed["ranked"][:, 0] == paired.targets["labels"]
    return paired.data_sha256, len(right), np.packbits(right).tobytes()
