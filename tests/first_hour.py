"""Every command of README and docs, as a new user would type it: `python -m tests.first_hour FOLDER [DOCUMENT ...]`.

Each runs in FOLDER/work, with a photo and a list of prompts. It must end with code 0, name what it wrote, leave images
that are not of one color, and print nothing that another library says. The embedded model stands for those of the hub.
What a command printed is kept in FOLDER/printed. Called again, it runs what was not right, of all documents or of those
that are named (`steer.md`); what was right is in FOLDER/right.txt.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from limelight.utils.files import slug

ROOT = Path(__file__).parents[1]
FOREIGN = re.compile(
    r"Traceback|[A-Z]\w+Warning:|site-packages|it/s\]|Loading (?:pipeline|weights)"
    r"|requires torchvision|INFO worker|raylet"
)
LEFT_OUT = {"--ray-address": "needs a Ray cluster", "--browser": "opens a window"}
STAND_INS = {
    "CompVis/stable-diffusion-v1-4",
    "CompVis/ldm-text2im-large-256",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
}

SHORTER = {
    "generate": "--steps 15",
    "edit": "--steps 15",
    "explain": "--steps 15",
    "evaluate run": "--every 138 --seeds 0 --steps 20",
    "evaluate run --suite prompts.txt": "--every 1 --steps 10",
    "learn": "--steps 20",
    "heads compute": "--limit 8 --steps 10",
    "heads compute --model": "--limit 2 --steps 10",
    "heads weaken": "--every 20 --seeds 0 --counts 4 --steps 10",
    "calibrate": "--steps 10",
    "validate compare": "",
    "validate": "--budget 1m --steps 10",
    "validate my-model/": "--stages load,calibrate --budget 1m --steps 10",
    "evaluate run --out RUN --": "--seeds 1",
}
"""What is put behind commands that begin so, to end in minutes; the last of two lines, and of two options, counts."""

COPIES = {
    "my.safetensors": "pocket.safetensors",
    "a/validation.json": "validation/validation.json",
    "b/validation.json": "validation/validation.json",
}
"""What a user has by then, as copies of what earlier commands wrote."""

METHOD = """
import limelight
from limelight.guidance.divergence import divergence

mine = limelight.Guidance(objective=divergence, scale=5.0)
"""


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/guides/*.md"))]


def commands(document: Path) -> list[list[str]]:
    """The lines of a document that begin with `limelight`, as arguments; a backslash continues a line."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"```yaml.*?```", "", text, flags=re.S)
    lines = re.findall(r"^    limelight (.+)$", text, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def runnable(arguments: list[str]) -> bool:
    return not LEFT_OUT.keys() & set(arguments)


def typed(arguments: list[str], work: Path) -> list[str]:
    """The command as it can run here: with the embedded model, a file that exists, and fewer steps."""
    line = shlex.join(arguments)
    more = ""
    for start, options in SHORTER.items():
        if line.startswith(start):
            more = options

    found = []
    for argument in arguments:
        if argument in STAND_INS:
            argument = "pocket"
        if "0a1b2c3d" in argument:
            argument = next(
                (str(path.relative_to(work)) for path in work.glob(argument.replace("0a1b2c3d", "*"))), argument
            )
        found.append(argument)
    return found + shlex.split(more)


def mistakes(done: subprocess.CompletedProcess[str], before: float, work: Path) -> list[str]:
    """What is wrong with what a command printed and left in files newer than `before`."""
    found = []
    if done.returncode:
        found.append(f"code {done.returncode}: {done.stderr[-300:]}")
    if FOREIGN.search(done.stderr + done.stdout):
        found.append(f"another library speaks: {FOREIGN.findall(done.stderr + done.stdout)}")

    new = written(before, work)
    printed = re.sub(r"\s", "", done.stdout + done.stderr)
    if new and not any(str(name) in printed for path in new for name in (path, *path.parents[:-1])):
        found.append(f"'{new[0]}' is written and not named")
    found += [f"'{path}' has one color" for path in new if path.suffix == ".png" and _plain(work / path)]
    return found


def written(since: float, work: Path) -> list[Path]:
    """The files of a folder that are newer."""
    found = []
    for path in work.rglob("*"):
        if path.is_file() and path.stat().st_mtime > since and path.suffix != ".pyc" and not path.name.startswith("."):
            found.append(path.relative_to(work))
    return found


def _plain(path: Path) -> bool:
    with Image.open(path) as image:
        return all(low == high for low, high in image.convert("RGB").getextrema())


def prepare(work: Path) -> None:
    """Lay out what the documents' user has: a photo, prompts, a method, a model's folder, and the guide's words."""
    (work / "photos").mkdir(parents=True, exist_ok=True)
    with Image.open(ROOT / "docs/images/demo.png") as sheet:
        photo = sheet.convert("RGB").crop((4, 64, 260, 320))
    for name in ("photos/photo.png", "photo.png", "photo.jpg"):
        photo.save(work / name)
    (work / "prompts.txt").write_text("a cat and a dog\na red car\n")
    (work / "my_methods.py").write_text(METHOD)
    shutil.copytree(ROOT / "src/limelight/pocket", work / "my-model", dirs_exist_ok=True)

    words = (ROOT / "docs/guides/words.md").read_text(encoding="utf-8")
    made = "\n".join(re.findall(r"```python\n(.*?)```", words, flags=re.S))
    program = f"{made}\nword.save('embeddings.pt')"
    subprocess.run([sys.executable, "-c", program], cwd=work, check=True, capture_output=True)


def program() -> str:
    """The command `limelight` of this environment."""
    return str(Path(sys.executable).with_name("limelight"))


def run(arguments: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; of a page that is served, fetch it and stop the command with Ctrl-C."""
    command = [program(), *arguments]
    if arguments[0] != "web":
        return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)

    served = subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
    )
    assert served.stdout is not None
    line = served.stdout.readline()
    address = re.search(r"http\S+", line)
    page = urlopen(address[0]).read() if address else b""
    served.send_signal(signal.SIGINT)
    rest, errors = served.communicate(timeout=60)
    code = served.returncode if b"gradio" in page else 1
    return subprocess.CompletedProcess(command, code, line + rest, errors)


def _heed_interrupts() -> None:
    """In the background a shell lets its jobs ignore Ctrl-C, and they let theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def plan(names: list[str]) -> Iterator[list[str]]:
    """All commands once, in the order of the documents, or those of the named ones."""
    seen: list[list[str]] = []
    for document in documents():
        for arguments in commands(document):
            if arguments not in seen and (not names or document.name in names):
                seen.append(arguments)
                yield arguments


def main(folder: Path, names: list[str]) -> int:
    """Run the commands that were not right yet; return how many went wrong."""
    work, kept = folder / "work", folder / "right.txt"
    (folder / "printed").mkdir(parents=True, exist_ok=True)
    if not work.exists():
        prepare(work)
    right = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []

    wrong = 0
    for arguments in plan(names):
        line = shlex.join(arguments)
        if not runnable(arguments):
            print("left out:", line, flush=True)
        elif line not in right:
            found = tried(arguments, work, folder / "printed" / f"{slug(line)}.txt")
            print("wrong:" if found else "right:", line, *found, flush=True)
            wrong += bool(found)
            with kept.open("a", encoding="utf-8") as file:
                file.write("" if found else line + "\n")
    return wrong


def tried(arguments: list[str], work: Path, printed: Path) -> list[str]:
    """Run a command, keep what it printed, and return what is wrong."""
    for target, source in COPIES.items():
        if (work / source).exists() and not (work / target).exists():
            (work / target).parent.mkdir(exist_ok=True)
            shutil.copy(work / source, work / target)

    before = max((path.stat().st_mtime for path in work.rglob("*")), default=0.0)
    done = run(typed(arguments, work), work)
    printed.write_text(f"{done.stdout}\n----- stderr\n{done.stderr}", encoding="utf-8")
    return mistakes(done, before, work)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), sys.argv[2:]), 1))
