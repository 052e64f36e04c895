"""``qaf doctor``: is this installation fit to work?"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from qaf_core.children import child_environment
from qaf_core.cli.options import Json, Workspace
from qaf_core.cli.text import _, print_json
from qaf_core.errors import QafError
from qaf_core.runs.store.workspace import default_workspace
from qaf_core.text.said import Said, Translate, say, untranslated
from qaf_core.text.units import size_text

LEAST_FREE_BYTES = 1_000_000_000
TORCH_SECONDS = 120
_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "tensorly",
    "safetensors",
    "streamlit",
    "plotly",
    "pandas",
)
_TORCH_PROBE = (
    "import torch, torchvision; a = torch.ones(8, 8); assert float((a @ a).sum()) == 512.0;"
    "gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else '';"
    "print(torch.__version__, torch.get_num_threads(), gpu, sep='|')"
)


def doctor(as_json: Json = False, workspace: Workspace = None) -> int:
    """Check the installation and the workspace; exit code 1 if something is wrong."""
    folder = default_workspace() if workspace is None else workspace
    checks: dict[str, Callable[[], Said]] = {
        "python": _check_python,
        "packages": _check_packages,
        "torch": _check_torch,
        "models": _check_models,
        "dashboard": _check_dashboard,
        "workspace": lambda: _check_workspace(folder),
        "disk": lambda: _check_disk(folder),
        "energy": lambda: _look_for_energy_counters(untranslated if as_json else _),
    }
    rows = []
    for name, check in checks.items():
        found: Said | QafError
        try:
            found, ok = check(), True
        except QafError as error:
            found, ok = error, False
        rows.append({"check": name, "ok": ok, "detail": str(found) if as_json else found.text(_)})
    healthy = all(row["ok"] for row in rows)
    if as_json:
        print_json({"ok": healthy, "checks": rows})
    else:
        for row in rows:
            print(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']!s:<10} {row['detail']}")
    return 0 if healthy else 1


def _check_python() -> Said:
    return say("{version} on {system}", version=platform.python_version(), system=platform.platform())


def _check_packages() -> Said:
    versions, missing = [], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise QafError("packages are missing", got=", ".join(missing), remedy="install them again: make app")
    listed = ", ".join(versions)
    return Said(listed)


def _check_torch() -> Said:
    """In a process of its own: a torch and torchvision that do not fit can take their process down."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise QafError(
            "importing torch takes too long",
            got=say("more than {seconds} s", seconds=TORCH_SECONDS),
        ) from error
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        raise QafError(
            "torch cannot be used", got=last, remedy="install matching builds of torch and torchvision"
        )
    version, threads, gpu = probe.stdout.strip().split("|")
    return say(
        "torch {version} computes on {threads} threads, {gpu}",
        version=version,
        threads=threads,
        gpu=gpu or say("no GPU"),
    )


def _check_models() -> Said:
    from qaf_core.data.models.catalogue import list_models

    shipped = [source for source in list_models() if source.shipped]
    missing = [source.id for source in shipped if source.weights is None or not source.weights.is_file()]
    if missing:
        raise QafError("shipped weights are missing", got=", ".join(missing), remedy="install qaf again")
    names = ", ".join(source.id for source in shipped)
    return say("{count} shipped: {names}", count=len(shipped), names=names)


def _check_dashboard() -> Said:
    from qaf_core.cli.app import find_dashboard

    return Said(str(find_dashboard()))


def _check_workspace(folder: Path) -> Said:
    from qaf_core.runs.store.store import Store

    with Store(folder) as store:
        return say("{folder}, {count} runs", folder=store.workspace, count=len(store.list_runs()))


def _check_disk(folder: Path) -> Said:
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE_BYTES:
        raise QafError(
            "little disk space is left",
            got=size_text(free),
            expected=size_text(LEAST_FREE_BYTES),
        )
    return say("{size} free", size=size_text(free))


def _look_for_energy_counters(translate: Translate) -> Said:
    """Nothing is wrong without them: energy is then only modelled."""
    from qaf_core.deploy.runtime.rapl import find_zones

    try:
        zones = find_zones()
    except QafError as error:
        return say("modelled only: {why}", why=error.text(translate))
    return say("can be measured: {zones}", zones=", ".join(zone.name for zone in zones))
