"""The commands of `limelight evaluate`."""

import json

import pytest
from PIL import Image


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
    assert (code, "8 images generated, 0 were there" in said) == (0, True)
    assert "0 images generated, 8 were there" in limelight(*arguments, "--out", str(out))[1]
    code, _, error = limelight(*arguments, "--out", str(out), "--guidance-scale", "3")
    assert (code, "guidance_scale: 7.5 there, 3.0 now" in error) == (2, True)
    assert "full_text_aggregation" in limelight("score", str(out), "--workers", "1")[1]
    assert limelight("report", str(out))[0] == 0
    assert (out / "report.html").exists()
    with Image.open(next(out.rglob("*.png"))) as image:
        assert json.loads(image.text["limelight"])["prompt"] in ("a cat and a dog", "a red car and a frog")
    for bad in (["--seeds", "x"], ["--every", "9", "--first", "5"], ["--engine", "spark"], ["--suite", "none"]):
        assert limelight(*arguments, "--out", str(tmp_path / "no"), *bad)[0] == 2
