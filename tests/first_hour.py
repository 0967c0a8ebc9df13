"""Every command of README and the docs, as a new user would type it: `python -m tests.first_hour FOLDER`.

Commands that need a download, a cluster or a GPU are named and left out, as is the page that serves until it ends.
Each runs in one folder with a photo and a list of prompts. It must end with code 0, name what it wrote, leave images
that are not of one color, and print nothing that another library says.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
FOREIGN = re.compile(r"Traceback|Warning:|site-packages|it/s\]|Loading pipeline", re.I)
LEFT_OUT = (
    *("--model", "--sd-2-1", "ray", "web", "learned/", "catdog", "embeddings.pt", "python -m", "cluster", "validate"),
    *("runs/ab", "my_methods", "hrv-edit", "--word", "RUN", "0a1b2c3d"),
)
"""What a command needs that is not there in the first hour."""

SHORTER = {
    "evaluate run": ["--every", "138", "--seeds", "0", "--steps", "20"],
    "learn": ["--steps", "20"],
    "heads compute": ["--every", "20", "--steps", "10"],
    "heads weaken": ["--every", "20", "--seeds", "0", "--counts", "4", "--steps", "10"],
}
"""What is put behind commands that take hours as they are; the last of two equal options counts."""


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/guides/*.md"))]


def commands(document: Path) -> list[list[str]]:
    """The lines of a document that begin with `limelight`, as lists of arguments; a backslash continues a line."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"```yaml.*?```", "", text, flags=re.S)
    lines = re.findall(r"^    limelight (.+)$", text, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def runnable(arguments: list[str]) -> bool:
    line = " ".join(arguments)
    return not any(word in line for word in LEFT_OUT)


def _shorter(arguments: list[str]) -> list[str]:
    line = " ".join(arguments)
    return next((more for start, more in SHORTER.items() if line.startswith(start)), [])


def mistakes(done: subprocess.CompletedProcess[str], started: float, folder: Path) -> list[str]:
    """What is wrong with what a command printed and left."""
    found = []
    if done.returncode:
        found.append(f"code {done.returncode}: {done.stderr[-300:]}")
    if FOREIGN.search(done.stderr + done.stdout):
        found.append(f"another library speaks: {done.stderr[-300:]}")
    for path in folder.rglob("*.png"):
        if path.stat().st_mtime >= started and _plain(path):
            found.append(f"{path} has one color")
    return found


def _plain(path: Path) -> bool:
    with Image.open(path) as image:
        return all(low == high for low, high in image.convert("RGB").getextrema())


def main(folder: Path) -> int:
    """Run all commands; return how many went wrong."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    with Image.open(ROOT / "docs/images/demo.png") as sheet:
        photo = sheet.convert("RGB").crop((4, 64, 260, 320))
    for name in ("photos/photo.png", "photo.png", "photo.jpg"):
        photo.save(folder / name)
    (folder / "prompts.txt").write_text("a cat and a dog\na red car\n")

    wrong = 0
    seen: list[list[str]] = []
    for document in documents():
        for arguments in commands(document):
            if arguments in seen:
                continue
            seen.append(arguments)
            if not runnable(arguments):
                print("left out:", shlex.join(arguments), flush=True)
                continue
            before = max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0)
            program = [sys.executable, "-m", "limelight", *arguments, *_shorter(arguments)]
            done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
            found = mistakes(done, before, folder)
            print("wrong:" if found else "right:", shlex.join(arguments), *found, flush=True)
            wrong += bool(found)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
