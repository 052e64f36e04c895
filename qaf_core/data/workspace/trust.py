"""Which code that a workspace names may run: only what this user has named or trusted, on this machine.

A workspace may come from a stranger: its settings and its runs name modules and folders. What is trusted is
kept in the user's own configuration, never in the workspace.
"""

from __future__ import annotations

import os
from pathlib import Path

from qaf_core.errors import ModelError, WorkspaceError
from qaf_core.files import read_json, write_json
from qaf_core.text.said import say

_granted: set[tuple[str, str]] = set()  # where the configuration cannot be written


class UntrustedCode(ModelError):
    """Code that a workspace names and nobody has trusted yet.

    Args:
        factory: ``package.module:factory``.
        code_path: Where the package is looked for; None for the working directory.
        model: How the user names the model.
    """

    def __init__(self, factory: str, code_path: str | None, model: str) -> None:
        self.factory, self.code_path, self.folder = factory, code_path, _folder(code_path)
        super().__init__(
            "this workspace names code that has not been trusted on this machine",
            got=say("{factory} in {folder}", factory=factory, folder=self.folder),
            expected="code that you know",
            remedy=say("look at it; to run it: qaf models --trust {model}", model=model),
        )


def trust(factory: str, code_path: str | None) -> None:
    """Let a factory run from now on, for this user.

    Args:
        factory: ``package.module:factory``.
        code_path: Where its package lies; None for the working directory.
    """
    entry = (factory, _folder(code_path))
    if entry not in _trusted():
        _granted.add(entry)
        try:
            write_json(_file(), [list(one) for one in sorted(_trusted())], for_people=True)
        except WorkspaceError:
            return


def check_trusted(factory: str, code_path: str | None, model: str) -> None:
    """Refuse a factory that the user has not trusted; arguments as of `UntrustedCode`.

    Raises:
        UntrustedCode: If so.
    """
    if (factory, _folder(code_path)) not in _trusted():
        raise UntrustedCode(factory, code_path, model)


def _trusted() -> set[tuple[str, str]]:
    kept = read_json(_file())
    rows = kept if isinstance(kept, list) else []
    return _granted | {tuple(row) for row in rows if isinstance(row, list) and len(row) == 2}


def _folder(code_path: str | None) -> str:
    return str(Path(code_path or os.getcwd()).resolve())


def _file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "qaf" / "trusted.json"
