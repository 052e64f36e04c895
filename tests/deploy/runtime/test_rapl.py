"""Energy counters, read from a folder laid out as the system's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qaf_core.deploy.runtime.rapl import energy_between, energy_per_run, find_zones, measure_energy
from qaf_core.deploy.runtime.speed_report import Energy
from qaf_core.errors import QafError
from qaf_core.records import from_plain
from qaf_core.text.catalogue import translator

RANGE = 262_143_328_850


def add_zone(powercap: Path, folder: str, name: str, microjoules: int) -> Path:
    zone = powercap / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return zone / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    (tmp_path / "intel-rapl").mkdir()
    add_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    add_zone(tmp_path, "intel-rapl:0:0", "core", 500)
    add_zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000)
    add_zone(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    return tmp_path


def test_each_part_of_the_machine_counts_once(powercap: Path) -> None:
    names = [zone.name for zone in find_zones(powercap)]
    assert names == ["intel-rapl:0 package-0", "intel-rapl:0:1 dram"]


def test_energy_of_the_work(powercap: Path) -> None:
    with measure_energy(powercap) as reading:
        (powercap / "intel-rapl:0" / "energy_uj").write_text("3500000\n")
        (powercap / "intel-rapl:0:1" / "energy_uj").write_text("2250000\n")
    assert reading.joules == pytest.approx(2.75)
    assert reading.zones == {
        "intel-rapl:0 package-0": pytest.approx(2.5),
        "intel-rapl:0:1 dram": pytest.approx(0.25),
    }
    assert reading.seconds > 0
    assert reading.fault is None


def test_energy_of_one_run_of_each(powercap: Path, tmp_path: Path) -> None:
    counter = powercap / "intel-rapl:0" / "energy_uj"

    def spend(microjoules: int) -> None:
        counter.write_text(f"{int(counter.read_text()) + microjoules}\n")

    runs = {"small": lambda: spend(1000), "large": lambda: spend(3000)}
    found = energy_per_run(runs, seconds=0.02, powercap=powercap)
    assert found["joules"] == {"small": pytest.approx(1e-3), "large": pytest.approx(3e-3)}
    assert "RAPL" in found["source"]
    nothing = energy_per_run(runs, powercap=tmp_path / "nowhere")
    assert nothing["joules"] == {}
    assert "no energy counters" in nothing["reason"]
    kept = from_plain(Energy, json.loads(json.dumps(nothing)))
    assert kept.why_not() == nothing["reason"]
    assert kept.why_not(translator("ja")).startswith("この計算機では")
    assert Energy(reason="of an earlier version").why_not(translator("ja")) == "of an earlier version."
    assert Energy().why_not() == ""


def test_a_counter_that_begins_anew(powercap: Path) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{RANGE - 1_000_000}\n")
    with measure_energy(powercap) as reading:
        (powercap / "intel-rapl:0" / "energy_uj").write_text("500000\n")
    assert reading.joules == pytest.approx(1.5)
    zone = find_zones(powercap)[0]
    assert energy_between(7, 7, zone) == 0.0


def test_no_counters_is_a_reason_and_not_a_fault(tmp_path: Path) -> None:
    with measure_energy(tmp_path / "nothing") as reading:
        worked = True
    assert worked
    assert reading.joules is None
    assert "shows no energy counters" in str(reading.fault)
    with pytest.raises(QafError, match="shows no energy counters"):
        find_zones(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_counters_that_may_not_be_read(powercap: Path) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").chmod(0)
    with measure_energy(powercap) as reading:
        pass
    assert reading.joules is None
    assert "may not be read" in str(reading.fault)


def test_a_damaged_counter_is_a_reason(powercap: Path) -> None:
    with measure_energy(powercap) as reading:
        (powercap / "intel-rapl:0" / "energy_uj").unlink()
    assert reading.joules is None
    assert "cannot be read" in str(reading.fault)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("no number\n")
    with pytest.raises(QafError, match="is no number"):
        find_zones(powercap)


def test_a_fault_of_the_work_is_not_swallowed(powercap: Path) -> None:
    with pytest.raises(ZeroDivisionError), measure_energy(powercap) as reading:
        raise ZeroDivisionError
    assert reading.joules == 0.0
