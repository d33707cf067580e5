"Warm starts: children are the server's, die with whoever asked, and old code is never served."
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

import au_study.study.warm as warm
from au_study.study.kernels import WarmProvisioner  # noqa: F401  (what the entry point names)

SLEEP = [sys.executable, "-m", "timeit", "-n", "1", "import time; time.sleep(60)"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "One server for all tests here; its address is in the environment."
    with warm.warm_server(tmp_path_factory.mktemp("log"), modules=warm.NEEDED) as added, pytest.MonkeyPatch.context() as patch:
        assert added, "the package's entry points are not installed: pip install -e ."
        for name, value in added.items(): patch.setenv(name, value)
        yield added


def gone(pid, seconds=10):
    "Whether a process ends in time."
    limit = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > limit: return False
        time.sleep(0.05)
    return True


def test_papermill_and_kernel_are_children_of_the_server(server, tmp_path):
    cell = nbformat.v4.new_code_cell("import json, os, sys; from ipykernel.connect import get_connection_file\n"
                                     "print(os.getppid(), 'torch' in sys.modules, json.load(open(get_connection_file()))['transport'])")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), tmp_path / "a.ipynb")
    process = warm.start([sys.executable, "-m", "papermill", "a.ipynb", "b.ipynb"], cwd=tmp_path)
    parents = {psutil.Process(process.pid).ppid()}
    assert process.wait(60) == 0
    parent, imported, transport = nbformat.read(tmp_path / "b.ipynb", 4).cells[0].outputs[0]["text"].split()
    assert {int(parent)} == parents and "au_study.study.warm" in psutil.Process(int(parent)).cmdline() and imported == "True"
    assert transport == "ipc" and os.listdir(Path(server["AU_STUDY_WARM"]).parent) == ["door"], "sockets are files, which go with their kernel; two kernels can't be given the same port"


def test_whoever_looks_for_modules_elsewhere_is_not_served(server):
    assert warm.start([sys.executable, "-m", "platform"], env={**os.environ, "PYTHONPATH": "elsewhere"}) is None


def test_a_server_that_is_there_is_used(server, tmp_path):
    with warm.warm_server(tmp_path, env=dict(os.environ)) as added: assert added == {} and not any(tmp_path.iterdir())
    with warm.warm_server(tmp_path, env={**os.environ, "AU_STUDY_WARM": str(tmp_path / "nobody")}, modules=["json"]) as added: assert added["AU_STUDY_WARM"] != server["AU_STUDY_WARM"]


def test_child_ends_with_whoever_asked(server):
    asker = subprocess.Popen([sys.executable, "-c", f"import time; from au_study.study.warm import start; child = start({SLEEP!r}); print(child.pid, flush=True); time.sleep(60)"],
                             stdout=subprocess.PIPE, text=True)
    child = int(asker.stdout.readline())
    assert psutil.pid_exists(child)
    asker.kill()
    asker.wait()
    assert gone(child)


def test_exit_codes_signals_and_timeouts(server, tmp_path):
    (tmp_path / "seven.py").write_text("raise SystemExit(7)")
    assert warm.start([sys.executable, "-m", "seven"], cwd=tmp_path).wait(60) == 7
    sleeper = warm.start(SLEEP)
    with pytest.raises(subprocess.TimeoutExpired): sleeper.wait(0.2)
    assert sleeper.poll() is None
    sleeper.kill()
    assert sleeper.wait(10) == -signal.SIGKILL and sleeper.poll() == -signal.SIGKILL


def test_a_client_that_says_nothing_or_nonsense_hurts_nobody(server):
    for words in (b"", b"\x00\x00\x00\x05hello"):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(server["AU_STUDY_WARM"])
            s.sendall(words)
    assert warm.start([sys.executable, "-m", "platform"], open(os.devnull, "w")).wait(60) == 0


def test_old_code_is_not_served(tmp_path, monkeypatch):
    "A server of another copy of the package: after an edit there it serves nobody."
    door = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)     # a short address
    door.bind("door")
    door.listen()
    (tmp_path / "package").mkdir()
    source = tmp_path / "package/a.py"
    source.write_text("")
    code = ("import socket; from pathlib import Path; import au_study.study.warm as w\n"
            f"w._PACKAGE = Path({str(tmp_path / 'package')!r})\n"
            f"w._become(w.Server(socket.socket(fileno={door.fileno()})).run())")
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[door.fileno()])
    try:
        monkeypatch.setenv("AU_STUDY_WARM", "door")
        assert warm.start([sys.executable, "-m", "platform"], open(os.devnull, "w")).wait(60) == 0
        os.utime(source, (time.time() - 3600,) * 2)     # older is other, too
        assert warm.start([sys.executable, "-m", "platform"]) is None
    finally:
        process.kill()
        process.wait()
        door.close()


def test_a_dead_server_is_noticed(tmp_path, monkeypatch):
    with warm.warm_server(tmp_path, modules=warm.NEEDED) as added:
        monkeypatch.setenv("AU_STUDY_WARM", added["AU_STUDY_WARM"])
        child = warm.start(SLEEP)
    assert gone(child.pid) and child.wait(10) == -signal.SIGKILL
    assert warm.start(SLEEP) is None and Path(tmp_path, "warm.log").exists()
