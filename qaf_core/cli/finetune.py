"""``qaf finetune``: a run's network learns from its original, as a run of its own."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qaf_core.cli.interrupt import EXIT_CANCELLED, EXIT_DONE, execute, stop_on_interrupt
from qaf_core.cli.options import Json, Run, Workspace
from qaf_core.cli.runs import print_progress, print_result
from qaf_core.cli.text import echo, print_json
from qaf_core.pipeline.events import RunStatus
from qaf_core.pipeline.finetune.options import MOST_EPOCHS, FinetuneOptions
from qaf_core.text.said import say


def finetune(
    run: Run,
    train: Annotated[
        str, typer.Option(help="scales (with biases and normalisations), or codes (these too).")
    ] = FinetuneOptions.trains,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = FinetuneOptions.epochs,
    time_limit: Annotated[
        float, typer.Option(help="Seconds of learning, at most; the best state so far is kept.")
    ] = 240.0,
    minutes: Annotated[
        float | None, typer.Option(help="The same in minutes; the learning rate falls to end in time.")
    ] = None,
    train_data: Annotated[
        str | None,
        typer.Option(
            help="Images to learn from, as for --data, with or without labels [default: built-in ones where "
            "the run had these, else its calibration images]"
        ),
    ] = None,
    labels: Annotated[
        bool | None, typer.Option(help="Learn from the labels too [default: where there are any]")
    ] = None,
    flips: Annotated[
        bool | None,
        typer.Option(help="Mirror half of the images [default: if the original's answers stay the same]"),
    ] = None,
    crops: Annotated[
        bool | None,
        typer.Option(help="Move images by an eighth at most [default: if its answers stay the same]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 0,
    name: Annotated[str | None, typer.Option(help="What to call the new run.")] = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> int:
    """Let a run's network learn from its original, and from labels; a new run holds the result."""
    from qaf_core.data.formats.sources import absolute_data
    from qaf_core.runs.jobs.finetune import finetune_request
    from qaf_core.runs.store.store import Store

    options = FinetuneOptions(
        trains=train,
        epochs=epochs if minutes is None else MOST_EPOCHS,
        time_limit_seconds=time_limit if minutes is None else 60.0 * minutes,
        seed=seed,
        flips=flips,
        crops=crops,
    )
    with (
        Store(workspace) as store,
        stop_on_interrupt("the best state so far is kept", print_progress) as progress,
    ):
        request = finetune_request(
            store,
            store.find(run),
            options,
            data=None if train_data is None else absolute_data(train_data),
            labels=labels,
            name=name,
        )
        result = execute(store, request, progress)
    if as_json:
        print_json(result)
    else:
        _print_gain(result)
        print_result(result)
    return EXIT_CANCELLED if result["status"] == RunStatus.CANCELLED else EXIT_DONE


def _print_gain(result: dict[str, Any]) -> None:
    finetuning = result.get("finetune")
    if finetuning is None:
        return
    if finetuning["best_epoch"] == 0:
        echo("Nothing was gained on the held-back images: the network is as it was.")
        return
    changed = {
        (False, False): say("neither mirrored nor moved"),
        (True, False): say("mirrored"),
        (False, True): say("moved"),
        (True, True): say("mirrored and moved"),
    }[bool(finetuning["flips"]), bool(finetuning["crops"])]
    echo(
        "learnt from {count:,} images {labels}, {changed}",
        count=finetuning["images"],
        labels=say("with labels") if finetuning["labelled"] else say("without labels"),
        changed=changed,
    )
    echo(
        "loss on held-back images {before:.4f} → {after:.4f} (pass {best} of {count})",
        before=finetuning["before"],
        after=finetuning["after"],
        best=finetuning["best_epoch"],
        count=finetuning["epochs"],
    )
