"""Kills and full disks at every file operation: the same command again ends as if nothing had happened.

By default a few operations of each command, chosen at random; LIMELIGHT_FAILURES=all takes all of them.
"""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter, defaultdict
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from limelight.errors import LimelightError
from limelight.evaluate.runs import run
from limelight.evaluate.suites import Case
from limelight.heads.counting import Counting, compute
from limelight.heads.vocabulary import Concepts
from limelight.textual_inversion.folder import learn, taken
from limelight.textual_inversion.training import held_loss
from tests.textual_inversion.images import TINY, patches

ALL = os.environ.get("LIMELIGHT_FAILURES") == "all"
COMMANDS = ("run", "heads", "learn")
FAULTS = ("kill", "full", "twice")
FORK = multiprocessing.get_context("fork")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that change names or locks, with the place of the path (or the open file) among their arguments.
EVENTS = {
    **dict.fromkeys(("open", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "fcntl.flock"), 0),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 1),
}
FILLING = {"open", "os.mkdir", "os.rename", "write", "fsync"}  # what a full disk refuses


class Disk:
    """Counts what this process does to the files in a folder, and fails at one of these operations.

    Python reports every operation on names and locks to an audit hook; what is written and synchronised comes through
    functions that this class replaces. Both stay: it is for a process of its own.

    Args:
        fault: "kill" ends the process before the operation, and in its middle where it writes; "full" is a disk that
            is full from then on; None does nothing.
        at: the operation, counted from 0.

    Attributes:
        kinds: of the operations so far.
        versions: for each final name, the hashes of what was given this name.
    """

    def __init__(self, folder, fault, at):
        self.folder, self.fault, self.at = os.path.realpath(folder), fault, at
        self.kinds, self.versions = [], defaultdict(list)

    def watch(self):
        disk, opened, write, fsync = self, io.open, os.write, os.fsync

        class Watched(io.FileIO):
            def write(self, content):
                disk.operation("write", lambda: super(Watched, self).write(content[: len(content) // 2]))
                return super().write(content)

        def watched_open(file, mode="r", *args, **options):
            if mode == "wb" and disk.inside(file):
                return io.BufferedWriter(Watched(file, mode))
            return opened(file, mode, *args, **options)

        def watched_write(file, content):
            if disk.inside(file):
                disk.operation("write", lambda: write(file, content[: len(content) // 2]))
            return write(file, content)

        def watched_fsync(file):
            if disk.inside(file):
                disk.operation("fsync")
            return fsync(file)

        io.open, os.write, os.fsync = watched_open, watched_write, watched_fsync
        sys.addaudithook(self.audit)

    def inside(self, file):
        path = os.path.realpath(f"/proc/self/fd/{file}" if isinstance(file, int) else file)
        return f"{path}/".startswith(f"{self.folder}/")

    def audit(self, event, args):
        if event not in EVENTS or (event == "open" and not args[2] & WRITING):
            return
        file = args[EVENTS[event]]
        if not self.inside(file):
            return
        self.operation(event)
        if event == "os.rename":
            self.versions[os.path.relpath(file, self.folder)].append(digest(Path(args[0])))

    def operation(self, kind, half=lambda: None):
        number = len(self.kinds)
        self.kinds.append(kind)
        if self.fault == "kill" and number == self.at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "full" and number >= self.at and kind in FILLING:
            if number == self.at:
                half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def digest(path):
    return sha256(path.read_bytes()).hexdigest()


def attempt(command, folder, fault=None, at=None):
    """Run a command in a process of its own, which ends as the command line does.

    Returns:
        Its exit code, and where that is 0 its `Disk.kinds` and `Disk.versions`.
    """
    seen = folder.with_suffix(".json")

    def child():
        disk = Disk(folder, fault, at)
        disk.watch()
        try:
            command(folder)
        except LimelightError:
            sys.exit(2)
        seen.write_text(json.dumps([disk.kinds, disk.versions]))

    process = FORK.Process(target=child)
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode, *(json.loads(seen.read_text()) if process.exitcode == 0 else (None, None))


def content(folder):
    """The files that a command leaves, but for locks and what depends on the clock."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".lock" and path.name not in (".lock", "seconds.jsonl"):
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return files


class Commands:
    """The commands that can be stopped, on one model; each works in a folder."""

    def __init__(self, model):
        self.model = model

    def run(self, folder):
        case = Case("a dog", "own", source="a cat")  # an edit's source image has a mask beside it
        small = {"steps": 1, "height": 16, "width": 16, "batch": 1, "workers": 1}
        run(folder, [case], ["source", "attend-and-excite"], [0, 1], **small)

    def heads(self, folder):
        concepts = Concepts({"Animals": ("cat", "dog"), "Color": ("red", "blue")})
        counting = Counting(concepts, ("a cat", "a red car", "a dog"), steps=1, batch=1, blocks=2)
        compute(self.model, counting, folder / "vectors.safetensors", every=0)

    def learn(self, folder):
        options = {"save_every": 1, "seeds": (0,), "preview_steps": 1, "resume": taken(folder)}
        learn(self.model, patches(), {**TINY, "batch": 1, "steps": 2}, folder, **options)


def failures(kinds, fault, chance):
    """What can fail where, as attempts one after the other, each a (fault, operation)."""
    every = range(len(kinds))
    if fault == "kill":
        return [[("kill", at)] for at in every]
    if fault == "full":
        return [[("full", at)] for at in every if kinds[at] in FILLING]
    return [[("kill", at), ("kill", chance.choice(every))] for at in every[::4]]


def outcome(command, folder, faults, whole, versions):
    """Let a command fail, and run it again. Returns what came of it."""
    for fault, at in faults:
        code, _, _ = attempt(command, folder, fault, at)
        assert code in ((0, -signal.SIGKILL) if fault == "kill" else (0, 2)), f"ends with {code}"
        for name, found in (content(folder) if folder.exists() else {}).items():
            if name.endswith(".limelight-part"):
                assert fault == "kill", f"{name} is left"
            elif not name.endswith(".jsonl"):
                assert sha256(found).hexdigest() in versions[name], f"{name} is not whole"

    code, _, _ = attempt(command, folder)
    if code:
        return "dead end"
    return "right" if content(folder) == whole else "lost"


def check(name, faults, share, model, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.evaluate.runs.load", lambda *args, **options: model)
    monkeypatch.setattr("limelight.textual_inversion.folder.held_loss", partial(held_loss, count=2))
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: Image.new("L", (len(rows), 1)))
    command, chance = getattr(Commands(model), name), random.Random(name)
    code, kinds, versions = attempt(command, tmp_path / "whole")
    assert code == 0
    assert len(kinds) > 20
    whole, outcomes = content(tmp_path / "whole"), Counter()

    chosen = [trial for fault in faults for trial in failures(kinds, fault, chance)]
    for number, attempts in enumerate(chosen if share is None else chance.sample(chosen, share)):
        came = outcome(command, tmp_path / str(number), attempts, whole, versions)
        outcomes[came] += 1
        if came != "right":
            print(attempts, came)
    print(f"{name}, {'/'.join(faults)}: {len(kinds)} operations, {dict(outcomes)}")
    assert outcomes.keys() == {"right"}


@pytest.mark.parametrize("name", COMMANDS)
def test_some_failures_lose_nothing(name, tiny, tmp_path, monkeypatch):
    check(name, FAULTS, 3, tiny, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="takes a quarter of an hour; set LIMELIGHT_FAILURES=all")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_failure_loses_anything(name, fault, tiny, tmp_path, monkeypatch):
    check(name, [fault], None, tiny, tmp_path, monkeypatch)
