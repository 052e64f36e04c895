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
from qaf_core.text.said import say
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
    "gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU';"
    "print(f'torch {torch.__version__} computes on {torch.get_num_threads()} threads, {gpu}')"
)


def doctor(as_json: Json = False, workspace: Workspace = None) -> int:
    """Check the installation and the workspace; exit code 1 if something is wrong."""
    folder = default_workspace() if workspace is None else workspace
    checks: dict[str, Callable[[], str]] = {
        "python": _check_python,
        "packages": _check_packages,
        "torch": _check_torch,
        "models": _check_models,
        "dashboard": _check_dashboard,
        "workspace": lambda: _check_workspace(folder),
        "disk": lambda: _check_disk(folder),
        "energy": _look_for_energy_counters,
    }
    rows = []
    for name, check in checks.items():
        try:
            rows.append({"check": name, "ok": True, "detail": check()})
        except QafError as error:
            rows.append({"check": name, "ok": False, "detail": str(error) if as_json else error.text(_)})
    healthy = all(row["ok"] for row in rows)
    if as_json:
        print_json({"ok": healthy, "checks": rows})
    else:
        for row in rows:
            print(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']!s:<10} {row['detail']}")
    return 0 if healthy else 1


def _check_python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def _check_packages() -> str:
    versions, missing = [], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise QafError("packages are missing", got=", ".join(missing), remedy="install them again: make app")
    return ", ".join(versions)


def _check_torch() -> str:
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
    return probe.stdout.strip()


def _check_models() -> str:
    from qaf_core.data.models.catalogue import list_models

    shipped = [source for source in list_models() if source.shipped]
    missing = [source.id for source in shipped if source.weights is None or not source.weights.is_file()]
    if missing:
        raise QafError("shipped weights are missing", got=", ".join(missing), remedy="install qaf again")
    return f"{len(shipped)} shipped: {', '.join(source.id for source in shipped)}"


def _check_dashboard() -> str:
    from qaf_core.cli.app import find_dashboard

    return str(find_dashboard())


def _check_workspace(folder: Path) -> str:
    from qaf_core.runs.store.store import Store

    with Store(folder) as store:
        return f"{store.workspace}, {len(store.list_runs())} runs"


def _check_disk(folder: Path) -> str:
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE_BYTES:
        raise QafError(
            "little disk space is left",
            got=size_text(free),
            expected=size_text(LEAST_FREE_BYTES),
        )
    return f"{size_text(free)} free"


def _look_for_energy_counters() -> str:
    """Nothing is wrong without them: energy is then only modelled."""
    from qaf_core.deploy.runtime.rapl import find_zones

    try:
        zones = find_zones()
    except QafError as error:
        return f"modelled only: {error}"
    return f"can be measured: {', '.join(zone.name for zone in zones)}"
