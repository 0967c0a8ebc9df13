"""The commands of `limelight evaluate`."""

import json
import os
import re
import signal
import sys
import time

import pytest
from PIL import Image

from limelight.cli import app
from limelight.evaluate.store import Run
from tests.workers import FORK


def test_the_command_line(tmp_path, monkeypatch, capsys, pocket):
    from limelight.cli import app as cli

    def limelight(*arguments):
        monkeypatch.setattr("sys.argv", ["limelight", "evaluate", *arguments])
        monkeypatch.setattr("limelight.cli.terminal.console.width", 400)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    (tmp_path / "mine.txt").write_text("a cat and a dog\na red car and a frog\n")
    out = tmp_path / "run"
    arguments = ["run", "--suite", str(tmp_path / "mine.txt"), "--seeds", "0-1", "--steps", "1", "--workers", "1"]
    code, said, _ = limelight(*arguments, "--out", str(out))
    assert (code, "8 images generated, 0 there before" in said) == (0, True)
    assert "0 images generated, 8 there before" in limelight(*arguments, "--out", str(out))[1]
    code, _, error = limelight(*arguments, "--out", str(out), "--guidance-scale", "3")
    assert (code, "guidance_scale: 7.5 there, 3.0 now" in error) == (2, True)
    assert "full_text_aggregation" in limelight("score", str(out), "--workers", "1")[1]
    assert limelight("report", str(out))[0] == 0
    assert (out / "report.html").exists()
    with Image.open(next(out.rglob("*.png"))) as image:
        assert json.loads(image.text["limelight"])["prompt"] in ("a cat and a dog", "a red car and a frog")
    for bad in (["--seeds", "x"], ["--every", "9", "--first", "5"], ["--engine", "spark"], ["--suite", "none"]):
        assert limelight(*arguments, "--out", str(tmp_path / "no"), *bad)[0] == 2


def program(arguments, folder):
    """Run a command line, with what it prints in two files. In a child process, which needs no imports."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    sys.argv = ["limelight", *arguments]
    app.main()


def test_ctrl_c_says_what_is_saved_and_the_same_command_goes_on(tmp_path):
    """In a process of its own, as a terminal would stop it. At the start: test_cli.py."""
    (tmp_path / "mine.txt").write_text("a cat\n")
    manifest = tmp_path / "run" / "manifest.jsonl"
    command = ["evaluate", "run", "--suite", str(tmp_path / "mine.txt"), "--out", str(tmp_path / "run")]
    command += ["--methods", "plain", "--seeds", "0-200", "--batch", "1", "--steps", "3", "--workers", "1"]
    process = FORK.Process(target=program, args=(command, tmp_path))
    process.start()
    while process.is_alive() and not (manifest.exists() and manifest.read_bytes()):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=100)

    done, error = len(manifest.read_text().splitlines()), (tmp_path / "stderr").read_text()
    assert (process.exitcode, (tmp_path / "stdout").read_text()) == (130, "")
    (saved,) = re.findall(r"^Stopped: (\d+) of", error, flags=re.M)
    place = tmp_path / "run"
    stopped = f"Stopped: {saved} of 201 images are saved in '{place}'; the same command goes on from there.\n"
    assert error == f"loading pocket ...\n{stopped}"
    assert int(saved) in (done - 1, done)  # the interrupt may come right after an image was saved
    assert 0 < done < 201
    with Run(tmp_path / "run") as there:  # the lock is free, and every row has its image
        assert len(there.done) == done
