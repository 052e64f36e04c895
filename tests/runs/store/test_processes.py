import os
import subprocess
import sys

from qaf_core.runs.store.processes import is_alive, process_token


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    own = process_token(os.getpid())
    assert is_alive(os.getpid(), own)
    assert not is_alive(os.getpid(), "1")
    assert not is_alive(None, own)
    assert not is_alive(os.getpid(), None)


def test_a_dead_process_whose_remains_nobody_collected_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    token = process_token(process.pid)
    assert is_alive(process.pid, token)
    process.kill()
    while process_token(process.pid) is not None:
        pass
    assert not is_alive(process.pid, token)
    process.communicate()
