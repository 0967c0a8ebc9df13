"""A Ray cluster of three nodes on this machine, of which nodes and the driver are killed: the files are those
of one process, and nothing is left behind. This takes minutes: 11 on two busy cores.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.learn import Trial, rates
from limelight.evaluate.runs import run
from limelight.heads.counting import compute
from tests.evaluate.conftest import CASES, IMAGES, METHODS, SMALL, content
from tests.heads.test_counting import SMALL as COUNTING
from tests.workers import alive

ROOT = Path(__file__).parents[1]
TRIALS = [Trial("lighthouse", rate, 4) for rate in (0.002, 0.005, 0.02)]
# `ray start`; but 127.0.0.1 stays what it is, where Ray would take this machine's address on the network, and the node
# ends where the test is killed.
RAY = """
import os, signal, sys, threading, time
from ray._private import services
services.get_node_ip_address = lambda *_: "127.0.0.1"
def leave(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=leave, args=[os.getppid()], daemon=True).start()
from ray.scripts.scripts import main
sys.exit(main())
"""
NODE = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=80000000", "--block"]
NODE += ["--disable-usage-stats", "--include-log-monitor=false"]


def evaluate(folder, show, **workers):
    options = {"batch": 2, "device": "cpu", "on_progress": show, **SMALL, **workers}
    return run(folder / "run", CASES, METHODS, range(3), **options)


def count(folder, show, **workers):
    return compute("pocket", COUNTING, folder / "heads.safetensors", device="cpu", every=0, on_job=show, **workers)


def sweep(folder, show, **workers):
    rates(folder / "rates", TRIALS, **workers)


WORKS = {"evaluate": evaluate, "count": count, "sweep": sweep}


def drive(folder, address, names):
    """Do some of the works in a process of its own; it waits for an answer after each piece."""

    def show(done, total):
        print(f"progress {name} {done}", flush=True)
        sys.stdin.readline()

    for name in names.split(","):
        WORKS[name](Path(folder), show, engine="ray", address=address)
        print(f"end {name}", flush=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Cluster:
    """A head and two more nodes, each a tree of processes with one CPU."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path, as sockets need
        self.address = f"127.0.0.1:{free_port()}"
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(24),
        }
        self.env.pop("RAY_ADDRESS", None)
        self.nodes, self.seen = [], {}

    def start(self):
        port = self.address.partition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        self._start(head)
        self._start([f"--address={self.address}"], [f"--address={self.address}"])

    def join(self):
        """Start one more node, and return its number."""
        self._start([f"--address={self.address}"])
        return len(self.nodes) - 1

    def _start(self, *nodes):
        """Start nodes at once. Ray gives a node 30 seconds, which a busy machine may not have: those come again."""
        for _ in range(5):
            begun = [self._begin(arguments) for arguments in nodes]
            nodes = [arguments for arguments, node in zip(nodes, begun, strict=True) if not self._is_up(node)]
        assert not nodes

    def _begin(self, arguments):
        command = [sys.executable, "-c", RAY, "start", *arguments, *NODE]
        node = self._run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.nodes.append(node)
        return node

    def _is_up(self, node):
        for line in node.stdout:
            print(line, end="")  # shown where the test fails
            if "Ray runtime started" in line:
                return True
        node.wait()
        self.nodes.remove(node)
        return False

    def _run(self, command, **options):
        env = {**self.env, **options.pop("env", {})}
        return subprocess.Popen(command, env=env, cwd=ROOT, text=True, start_new_session=True, **options)

    def processes(self):
        """All processes that ever were below a node, and are still there."""
        for node in self.nodes:
            if node.poll() is None:
                own = psutil.Process(node.pid)
                self.seen |= {process.pid: process for process in [own, *own.children(recursive=True)]}
        return [process for number, process in self.seen.items() if process.is_running() and alive(number)]

    def actors(self, number=None):
        """The workers, of one node if it is given."""
        found = self.processes()
        if number is not None:
            below = psutil.Process(self.nodes[number].pid).children(recursive=True)
            found = [process for process in found if process in below]
        return [process for process in found if is_actor(process)]

    def kill(self, number):
        """Kill a node with all that belongs to it."""
        own = psutil.Process(self.nodes[number].pid)
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes[number].wait()

    def driver(self, folder, *names):
        command = [sys.executable, "-c", "import sys; from tests.test_cluster import drive; drive(*sys.argv[1:])"]
        command += [str(folder), self.address, ",".join(names)]
        env = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as above: 127.0.0.1 stays what it is
        driver = self._run(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.nodes.append(driver)  # ended with them
        return driver

    def close(self):
        for process in self.processes():
            process.kill()
        for node in self.nodes:
            node.wait()
        wait_for(lambda: not self.processes(), 30)
        if self.folder.exists():
            shutil.rmtree(self.folder)


def is_actor(process):
    """Whether it is a worker; one that ends just now is none."""
    with suppress(psutil.NoSuchProcess):
        return "ray::_Actor" in " ".join(process.cmdline())
    return False


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def follow(driver, line, then=lambda: None):
    """Let a driver go on until it says a line; then do something, and let it go on."""
    for said in driver.stdout:
        if said.strip() == line:
            then()
            if line.startswith("progress"):
                answer(driver)
            return
        if said.startswith("progress"):
            answer(driver)
    raise AssertionError(f"the driver ended before '{line}' with {driver.wait()}")


def answer(driver):
    if driver.poll() is None:
        driver.stdin.write("\n")
        driver.stdin.flush()


def files(folder):
    """The bytes of each file; of a log the rows, which come in any order."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found[path.name] = sorted(content.splitlines()) if path.suffix == ".jsonl" else content
    return found


@pytest.fixture
def cluster():
    pytest.importorskip("ray")
    found = Cluster()
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.mark.slow
@pytest.mark.cluster
def test_killed_nodes_and_drivers_change_nothing(cluster, tmp_path, monkeypatch, pocket):
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()

    def killed(driver):
        driver.send_signal(signal.SIGKILL)
        driver.wait()

    # The driver is killed in the middle of a run, when two of the first images are there.
    driver = cluster.driver(tmp_path, "evaluate")
    follow(driver, "progress evaluate 2", lambda: killed(driver))
    wait_for(lambda: not cluster.actors(), 60)

    # The second goes on while a node is killed, and is killed itself in the middle of a sweep.
    driver = cluster.driver(tmp_path, "evaluate", "sweep")
    follow(driver, "progress evaluate 4", lambda: cluster.kill(1))
    follow(driver, "end evaluate")
    rows = tmp_path / "rates" / "rates.jsonl"
    wait_for(lambda: rows.exists() and rows.read_text(), 300)
    killed(driver)
    wait_for(lambda: not cluster.actors(), 60)
    assert len(rows.read_text().splitlines()) < len(TRIALS)

    # The third ends the sweep, while the node of one of its workers is killed.
    driver = cluster.driver(tmp_path, "sweep")
    wait_for(lambda: cluster.actors(2), 300)
    cluster.kill(2)
    assert len(rows.read_text().splitlines()) < len(TRIALS)
    follow(driver, "end sweep")
    assert driver.wait(60) == 0
    wait_for(lambda: not cluster.actors(), 60)

    # The fourth counts on a new node, and is killed after the first prompt.
    joined = cluster.join()
    driver = cluster.driver(tmp_path, "count")
    follow(driver, "progress count 1", lambda: killed(driver))
    wait_for(lambda: not cluster.actors(), 60)

    # The fifth counts the others, while the new node is killed.
    driver = cluster.driver(tmp_path, "count")
    follow(driver, "progress count 2", lambda: cluster.kill(joined))
    follow(driver, "end count")
    assert driver.wait(60) == 0
    wait_for(lambda: not cluster.actors(), 60)

    # One process alone.
    alone = tmp_path / "alone"
    assert evaluate(alone, lambda *_: None, workers=1) == IMAGES
    counted = count(alone, lambda *_: None, workers=1)
    sweep(alone, lambda *_: None, workers=1)
    assert content(tmp_path / "run") == content(alone / "run")
    assert files(tmp_path / "rates") == files(alone / "rates")
    assert (tmp_path / "heads.safetensors").read_bytes() == (alone / "heads.safetensors").read_bytes()
    assert counted.counted.all()

    # Nothing is left: what lies in the folders is what one process leaves, and their locks are free.
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {path.name for path in alone.rglob("*") if path.is_file()}
    assert evaluate(tmp_path, lambda *_: None, workers=1) == 0
    cluster.close()
    if shared:
        assert set(os.listdir("/dev/shm")) <= shared
