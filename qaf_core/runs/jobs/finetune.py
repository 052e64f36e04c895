"""Fine-tuning the network of an earlier run, as a run of its own."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from qaf_core.factorization.structures import STRUCTURES
from qaf_core.pipeline.events import RunStatus
from qaf_core.pipeline.finetune.options import CODES, FinetuneOptions
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import LONGEST_NAME, RunRequest
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.jobs.inputs import Made, Subject
    from qaf_core.runs.store.store import Store

_NOT_COMPRESSED = say("this run has no compressed network to fine-tune")


def finetune_request(
    store: Store,
    parent: RunRecord,
    options: FinetuneOptions,
    *,
    data: str | None = None,
    labels: bool | None = None,
    name: str | None = None,
) -> RunRequest:
    """What is asked for when a run's network is to be fine-tuned.

    Args:
        store: Where the run lies.
        parent: The run.
        options: What is learnt, and for how long.
        data: Images to learn from; None for built-in ones where the run had these, else those it was
            calibrated with.
        labels: Whether their labels are learnt from; None: where there are any.
        name: What the user calls the new run; None to name it after its run and what is learnt.

    Raises:
        WorkspaceError: If the run has no compressed network.
    """
    store.packed_file(parent, _NOT_COMPRESSED)
    return replace(
        parent.request,
        name=name or finetuned_name(parent, options),
        check=False,
        finetune={"run": parent.id, "data": data, "labels": labels, **asdict(options)},
    )


def finetuned_name(parent: RunRecord, options: FinetuneOptions) -> str:
    """What a fine-tuning is called: after its run, what is learnt and for how long at most."""
    limit = options.time_limit_seconds
    text = f"fine-tuned: {options.trains}" + (f", {limit / 60:.3g} min" if limit else "")
    return f"{parent.title[: LONGEST_NAME - len(text) - 2]}, {text}"


def read_finetune_options(data: dict[str, Any]) -> tuple[str, FinetuneOptions]:
    """The run to start from and the options, from ``RunRequest.finetune``."""
    known = {key: data[key] for key in FinetuneOptions.__dataclass_fields__ if key in data}
    return str(data.get("run")), FinetuneOptions(**known)


def finetune_parent(store: Store, record: RunRecord, subject: Subject, progress: Progress) -> Made:
    """Fine-tune the network of the run that the request names.

    Raises:
        WorkspaceError: If that run is gone or has no network.
        WeightsError: If its file is damaged.
    """
    from qaf_core.deploy.packed.read import load_packed
    from qaf_core.network.passes.batchnorm_folding import fold_batchnorm
    from qaf_core.pipeline.finetune.finetune import FinetuneStatus, finetune_network
    from qaf_core.runs.jobs.inputs import Made
    from qaf_core.runs.jobs.training_images import load_training_images

    data = record.request.finetune or {}
    parent_id, options = read_finetune_options(data)
    parent = store.run(parent_id)
    model = load_packed(store.packed_file(parent, _NOT_COMPRESSED), copy.deepcopy(subject.model))
    # As in the packed file, so that what the layers of both put out stands for the same.
    original = fold_batchnorm(subject.model, subject.inventory)
    images = load_training_images(record.request, subject, store.workspace, progress)
    result = finetune_network(
        original, model, images, options, labels=images.labels, progress=progress,
        inventory=subject.inventory,
    )  # fmt: skip
    rows = _keep_layers(store, record, parent, model, changed=options.trains == CODES)
    return Made(
        model=model,
        layers=rows,
        status=RunStatus.CANCELLED if result.status == FinetuneStatus.CANCELLED else RunStatus.COMPLETED,
        seconds={"finetune": result.seconds},
        extra={"finetune": {**data, **asdict(result)}},
        notes=images.notes,
    )


def _keep_layers(
    store: Store, record: RunRecord, parent: RunRecord, model: nn.Module, *, changed: bool
) -> tuple[dict[str, Any], ...]:
    """The layers are the parent's; their codes may have changed."""
    from qaf_core.network.modules.quantized import FactorizedLayer
    from qaf_core.pipeline.compress.histograms import code_histogram

    rows = []
    for position, row in enumerate(map(dict, parent.layer_rows)):
        name = str(row["name"])
        details, chain = store.layer_details(parent.id, name), model.get_submodule(name)
        if changed and isinstance(chain, FactorizedLayer) and "histograms" in details:
            structure = STRUCTURES[chain.structure]
            for form, link in zip(structure.links, chain.chain, strict=True):
                if not link.grid.is_float:
                    details["histograms"][structure.factors[form.factor]] = code_histogram(
                        link.codes, link.bits
                    )
        store.put_layer(record.id, position, row, details)
        rows.append(row)
    return tuple(rows)
