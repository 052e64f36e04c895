"""``qaf models``: what can be compressed here, and the user's own models among it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.options import Classes, Json, PreprocessingFile, Weights, Workspace, lasting_weights
from qaf_core.cli.text import _, echo, print_json, print_table
from qaf_core.errors import ModelError
from qaf_core.runs.store.workspace import default_workspace
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource


def models(
    add: Annotated[str | None, typer.Option(metavar="ID", help="Register a model under this id.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="ID", help="Take a registered model off.")] = None,
    trust: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Let the code of a registered model, or MODULE:NAME here, run."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --add: the named model it is made like.")
    ] = None,
    factory: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="With --add: your own code that builds it.")
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    data: Annotated[
        str | None, typer.Option(help="With --add: images to measure on when none are named.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="With --add: what people read.")] = None,
    find: Annotated[
        str | None, typer.Option(metavar="TEXT", help="List only names with this text, all of timm's too.")
    ] = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """What can be compressed here; --add and --remove change the models registered in the workspace."""
    folder = default_workspace() if workspace is None else workspace
    if sum(value is not None for value in (add, remove, trust)) > 1:
        raise ModelError("--add, --remove and --trust stand alone", expected="one of them")
    if trust is not None:
        code = _trust(folder, trust)
        _report(as_json, {"trusted": code}, say("Trusted {code}.", code=code))
    elif add is not None:
        from qaf_core.data.models.overrides import read_preprocessing

        fields = {
            "weights": lasting_weights(weights),
            "classes": classes,
            "preprocessing": None if preprocessing is None else read_preprocessing(preprocessing),
            "data": data,
            "title": title,
        }
        added = _add(folder, add, model, factory, fields)
        _report(
            as_json,
            {"added": _model_row(added)},
            say("Registered {model}. Try: qaf check {model}", model=added.id),
        )
    elif remove is not None:
        from qaf_core.runs.store.removal import remove_registered

        deleted = [str(path) for path in remove_registered(folder, remove)]
        line = say("Removed {model}.", model=remove)
        if deleted:
            files = ", ".join(deleted)
            line = say(
                "Removed {model}; deleted, as nothing else uses it: {files}", model=remove, files=files
            )
        _report(as_json, {"removed": remove, "deleted": deleted}, line)
    elif any(value is not None for value in (model, factory, weights, classes, preprocessing, data, title)):
        raise ModelError("nothing says what to register", expected="--add ID beside the other options")
    else:
        _list(folder, find, as_json)


def _add(
    folder: Path, model_id: str, model: str | None, factory: str | None, fields: dict[str, Any]
) -> ModelSource:
    from qaf_core.data.workspace.registry import add_factory, add_model

    if model is not None and factory is None:
        return add_model(folder, model_id=model_id, base=model, **fields)
    if factory is not None and model is None:
        return add_factory(folder, model_id=model_id, factory=factory, **fields)
    raise ModelError(
        "nothing says which network to register" if model is None else "--model and --factory stand alone",
        expected="--model NAME, as in qaf models, or --factory package.module:factory",
    )


def _trust(folder: Path, named: str) -> str:
    from qaf_core.data.models.settings import read_settings
    from qaf_core.data.workspace.trust import trust

    if ":" in named:
        trust(named, None)
        return named
    entry = read_settings(folder).model(named)
    if entry is None or ":" not in entry.base:
        raise ModelError(
            "no code is known under this name", got=named, expected="a registered model of your own code"
        )
    trust(entry.base, entry.code_path)
    return entry.base


def _report(as_json: bool, row: dict[str, Any], line: Said) -> None:
    if as_json:
        print_json(row)
    else:
        print(line.text(_))


def _list(folder: Path, text: str | None, as_json: bool) -> None:
    from qaf_core.data.models.catalogue import list_models, search_models
    from qaf_core.data.models.timm_names import timm_version

    sources = list_models(folder) if text is None else search_models(text, folder)
    rows = [_model_row(source) for source in sources]
    timm = timm_version()
    if as_json:
        print_json({"models": rows, "timm": timm})
        return
    table = [
        (
            row["id"],
            row["title"],
            "yes" if row["shipped"] or row["has_weights"] else "--weights",
            "×".join(map(str, row["input_shape"])),
        )
        for row in rows
    ]
    print_table(("model", "what it is", "weights", "input"), table)
    print()
    if timm:
        echo("timm/NAME: any other by its name, see --find TEXT")
    else:
        echo("timm/NAME: all its networks once it is installed (pip install 'qaf[zoo]')")
    echo("Your own: qaf models --add ID (--model NAME | --factory package.module:factory) --weights FILE …")


def _model_row(source: ModelSource) -> dict[str, Any]:
    return {
        "id": source.id,
        "title": source.title,
        "architecture": source.architecture,
        "task": source.task,
        "input_shape": list(source.input_shape),
        "classes": list(source.classes),
        "default_data": source.default_data,
        "data": source.data,
        "shipped": source.shipped,
        "registered": source.registered,
        "has_weights": source.weights is not None and source.weights.is_file(),
    }
