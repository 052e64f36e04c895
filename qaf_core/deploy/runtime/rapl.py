"""Energy measured by the processor's own counters (RAPL), where the machine shows them. Free of torch.

Linux lists the counters as power zones below ``/sys/class/powercap`` (kernel documentation, "Power Capping
Framework"), on Intel and AMD processors alike: ``intel-rapl:0`` is a package, and among the zones inside it
``dram`` is the only one whose energy the package does not count already. They count everything the processor
does, not one process, and are renewed about a thousand times a second: measure on a quiet machine and for a
second or longer. Virtual machines mostly hide them, and since 2020 kernels let only the administrator read
them (CVE-2020-8694).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaf_core.errors import QafError
from qaf_core.text.said import say

POWERCAP = Path("/sys/class/powercap")
MICROJOULE = 1e-6
LEAST_SECONDS = 1.5  # of work per model: the counters step about a thousand times a second
MEASURED = "measured by the processor's energy counters (RAPL): everything the processor and its memory did"


@dataclass(frozen=True, kw_only=True)
class Zone:
    """One energy counter.

    Attributes:
        name: Its name in the system and in words: ``intel-rapl:0 package-0``.
        folder: Where its files lie.
        range_microjoules: At this value the counter begins again from 0.
    """

    name: str
    folder: Path
    range_microjoules: int


@dataclass(kw_only=True)
class EnergyReading:
    """What was measured around a piece of work; filled in when the work has ended.

    Attributes:
        joules: Energy of all zones together, or None if it could not be measured.
        seconds: Duration of the work.
        zones: Energy by zone, in joules.
        fault: Why there is no measurement; None if there is.
    """

    joules: float | None = None
    seconds: float = 0.0
    zones: dict[str, float]
    fault: QafError | None = None


def find_zones(powercap: Path = POWERCAP) -> tuple[Zone, ...]:
    """The counters that together hold a machine's energy, each part of it once.

    Args:
        powercap: The folder in which the system lists its power zones.

    Raises:
        QafError: If the machine shows no counters, or they may not be read.
    """
    zones = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        name = _read_text(folder / "name")
        is_package = folder.name.count(":") == 1 and name.startswith("package")
        if is_package or name == "dram":
            limit = _read_number(folder / "max_energy_range_uj")
            zone = Zone(name=f"{folder.name} {name}", folder=folder, range_microjoules=limit)
            read_counter(zone)
            zones.append(zone)
    if not zones:
        raise QafError(
            "this machine shows no energy counters",
            got=say("no package below {powercap}", powercap=powercap),
            expected="Linux on a processor of its own, not a virtual machine",
        )
    return tuple(zones)


def read_counter(zone: Zone) -> int:
    """A counter's value now, in microjoules.

    Raises:
        QafError: If it may not be read.
    """
    return _read_number(zone.folder / "energy_uj")


def energy_between(before: int, after: int, zone: Zone) -> float:
    """Joules between two values of a counter that began anew at most once in between."""
    spent = after - before if after >= before else after - before + zone.range_microjoules
    return spent * MICROJOULE


@contextmanager
def measure_energy(powercap: Path = POWERCAP) -> Iterator[EnergyReading]:
    """Measure the energy of the work inside ``with``; where that is impossible, say why and carry on.

    Args:
        powercap: The folder in which the system lists its power zones.

    Yields:
        A reading, filled in at the end.
    """
    reading = EnergyReading(zones={})
    zones: tuple[Zone, ...] = ()
    try:
        zones = find_zones(powercap)
        before = [read_counter(zone) for zone in zones]
    except QafError as error:
        reading.fault = error
    began = time.perf_counter()
    try:
        yield reading
    finally:
        reading.seconds = time.perf_counter() - began
        if reading.fault is None:
            _fill(reading, zones, before)


def energy_per_run(
    runs: Mapping[str, Callable[[], object]], *, seconds: float = LEAST_SECONDS, powercap: Path = POWERCAP
) -> dict[str, Any]:
    """Energy of one run of each of several things, by the processor's counters.

    Args:
        runs: What to measure, by name; each is run again and again.
        seconds: How long each is run.
        powercap: The folder in which the system lists its power zones.

    Returns:
        ``joules`` by name, ``source`` in words, and why there is no measurement: ``reason`` in a line, else
        empty, and its parts as ``fault``.
    """
    joules: dict[str, float] = {}
    for name, run in runs.items():
        count = 0
        with measure_energy(powercap) as reading:
            until = time.perf_counter() + seconds
            while reading.fault is None and (count == 0 or time.perf_counter() < until):
                run()
                count += 1
        if reading.joules is None:
            fault = reading.fault
            return {
                "joules": {},
                "source": None,
                "reason": str(fault or ""),
                "fault": fault.to_plain() if fault else {},
            }
        joules[name] = reading.joules / count
    return {"joules": joules, "source": MEASURED, "reason": ""}


def _fill(reading: EnergyReading, zones: tuple[Zone, ...], before: list[int]) -> None:
    try:
        after = [read_counter(zone) for zone in zones]
    except QafError as error:
        reading.fault = error
        return
    for zone, first, last in zip(zones, before, after, strict=True):
        reading.zones[zone.name] = energy_between(first, last, zone)
    reading.joules = sum(reading.zones.values())


def _read_number(path: Path) -> int:
    text = _read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise QafError(
            "what an energy counter shows is no number",
            got=say("{text} in {path}", text=repr(text), path=path),
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except PermissionError as error:
        raise QafError(
            "the energy counters may not be read",
            got=str(path),
            remedy="let an administrator allow it: chmod a+r on the energy_uj files",
        ) from error
    except OSError as error:
        raise QafError("an energy counter cannot be read", got=f"{path} ({error})") from error
