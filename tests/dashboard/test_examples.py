"""The lines on the Export page run as printed, beside the files under the names they are downloaded as."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from packed_networks import pack_at_random
from PIL import Image

from dashboard.views.export.export import Kind
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.onnx_export.report import Precision
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.runs.jobs.export import export_run
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

from .conftest import Draw, shown


def packed_run(store: Store) -> str:
    """A finished run of digits/cnn, its codes at random; its id."""
    source = find_model("digits/cnn")
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    plan = plan_for_ratio(inventory, model=source.id, ratio=2.0, bits=4)
    run_id = store.create_run(RunRequest(model=source.id, plan=plan.to_dict(), images=40))
    steps = source.preprocessing
    card = {"model": source.id, "architecture": source.architecture, "input_shape": source.input_shape,
            "mean": steps.mean, "std": steps.std, "classes": source.classes, "method": "joint",
            "activation_bits": 8}  # fmt: skip
    rows = {row.name: (row.structure, row.rank, row.bits) for row in plan.layers}
    path = store.run_folder(run_id) / PACKED_NAME
    pack_at_random(path, model, rows, input_shape=source.input_shape, quantize_activations=True, card=card)
    measured = {"metric": "top1", "value": 0.1, "n": 40, "ci95": [0.0, 0.2]}
    for position, row in enumerate(plan.layers):
        store.put_layer(run_id, position, row.to_dict(), {})
    store.finish(run_id, "completed", {"compressed": measured})
    return run_id


def test_the_lines_on_the_page_run_as_printed(
    draw: Draw, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = packed_run(store)
    run = store.run(run_id)
    kinds = (
        Kind(key="packed", title="", lead=""),
        Kind(key="int8", title="", lead="", precision=Precision.INT8),
    )
    export_run(store, run_id, kinds[1].path(run), format="onnx", precision=Precision.INT8)
    test = draw("export", run=run_id)
    shown(test)
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / kinds[0].download_name(run)).write_bytes((store.run_folder(run_id) / PACKED_NAME).read_bytes())
    (folder / kinds[1].download_name(run)).write_bytes(kinds[1].path(run).read_bytes())
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 8), np.uint8)).save(folder / "picture.png")
    monkeypatch.chdir(folder)
    told = []
    for block in [block for block in test.code if "import" in block.value]:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block.value, {})
        told.append(out.getvalue().strip())
    assert len(told) == 2
    assert told[0] == told[1]
    assert told[0] in find_model("digits/cnn").classes
