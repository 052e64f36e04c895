"""``qaf runs``: the list, and the words behind it that name, tag, put away, delete and bring back runs."""

from __future__ import annotations

from typing import Annotated

import typer

from qaf_core.cli.history.listed import runs
from qaf_core.cli.options import Json, Run, Workspace
from qaf_core.cli.text import _, print_json
from qaf_core.text.said import Said, say

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or their beginnings.")]
Tags = Annotated[list[str] | None, typer.Option(metavar="TAG", help="May be given several times.")]
program = typer.Typer(invoke_without_command=True, no_args_is_help=False)
program.callback()(runs)


@program.command()
def rename(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An empty one takes the name away.")],
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Give a run another name."""
    from qaf_core.runs import management
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        run_id = store.find(run).id
        management.rename(store, run_id, name)
        title = store.run(run_id).title
    _report([run_id], say("now called {title}", title=title), as_json)


@program.command()
def note(
    run: Run,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="An empty one takes the note away.")],
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Keep a note with a run."""
    from qaf_core.runs import management
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        run_id = store.find(run).id
        management.set_note(store, run_id, text)
    _report([run_id], say("noted") if text.strip() else say("note taken away"), as_json)


@program.command()
def tag(
    run: Runs,
    add: Tags = None,
    remove: Tags = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Add tags to runs, and take others off."""
    from qaf_core.runs import management
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        ids = [store.find(beginning).id for beginning in run]
        management.tag(store, ids, add=add or (), remove=remove or ())
    _report(ids, say("tagged"), as_json)


@program.command()
def archive(
    run: Runs,
    undo: Annotated[bool, typer.Option("--undo", help="Take them out again.")] = False,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Put runs away: lists leave them out, unless asked with --archived."""
    from qaf_core.runs import management
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        ids = [store.find(beginning).id for beginning in run]
        management.archive(store, ids, not undo)
    _report(ids, say("taken out again") if undo else say("archived"), as_json)


@program.command()
def delete(run: Runs, as_json: Json = False, workspace: Workspace = None) -> None:
    """Delete runs; for 30 days they can be restored."""
    from qaf_core.runs import management
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        store.mark_interrupted()
        ids = [store.find(beginning).id for beginning in run]
        management.delete(store, ids)
    message = say("deleted; for 30 days back with: qaf runs restore {runs}", runs=" ".join(ids))
    _report(ids, message, as_json)


@program.command()
def restore(run: Runs, as_json: Json = False, workspace: Workspace = None) -> None:
    """Bring deleted runs back."""
    from qaf_core.runs import management
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        ids = [management.find_deleted(store, beginning) for beginning in run]
        management.restore(store, ids)
    _report(ids, say("restored"), as_json)


def _report(ids: list[str], what: Said, as_json: bool) -> None:
    if as_json:
        print_json({"runs": ids})
    else:
        print(f"{', '.join(ids)}: {what.text(_)}")
