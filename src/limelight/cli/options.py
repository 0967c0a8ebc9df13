"""Options that several commands share, and their parsers. Nothing here imports torch before it is called."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import FileError, SettingsError
from ..evaluate.suites import SUITES
from ..guidance.names import NAMES
from ..models.schedulers import SCHEDULERS
from ..utils.files import user_path
from ..utils.mappings import without_none
from ..utils.reading import reading

if TYPE_CHECKING:
    from ..guidance.base import Guidance
    from ..heads.gains import HeadGain
    from ..heads.relevance import Relevance
    from ..models.base import Model
    from ..models.loading import LoadOptions
    from ..textual_inversion.word import LearnedWord

PromptText = Annotated[
    str, typer.Argument(help="What to generate, e.g. 'a cat and a monkey and a chair'.", show_default=False)
]
ModelName = Annotated[
    str,
    typer.Option(
        help="'pocket', 'pocket-256', 'pocket-dit', a folder in diffusers' layout, a checkpoint (.safetensors, .ckpt), "
        "or a hub id (owner/name)."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cuda, mps or cpu; by default the first that exists.", show_default=False)
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16; by default float16 on CUDA, else float32.", show_default=False),
]
Quantize = Annotated[
    str | None, typer.Option(help="8bit or 4bit: smaller weights, with torchao or bitsandbytes.", show_default=False)
]
Offload = Annotated[
    str | None,
    typer.Option(help="model or sequential: keep what is idle in the main memory.", show_default=False),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help=f"One of {', '.join(SCHEDULERS)}; by default the model's own.", show_default=False),
]
GuidanceName = Annotated[
    str, typer.Option("--guidance", help=f"How to guide: {', '.join(NAMES)}; none generates plainly.")
]
Seeds = Annotated[str, typer.Option(help="Seeds and ranges of seeds, e.g. 0-3,7.")]
Steps = Annotated[int, typer.Option(help="Number of denoising steps.")]
OwnGuidanceScale = Annotated[
    float | None,
    typer.Option(help="Strength of classifier-free guidance; by default the model's own.", show_default=False),
]
TrueCfgScale = Annotated[
    float,
    typer.Option(help="FLUX.1: classifier-free guidance with --negative, beside --guidance-scale; 1 is none."),
]
Negative = Annotated[str, typer.Option(help="Negative prompt: what to avoid.")]
Height = Annotated[int | None, typer.Option(help="Height in pixels; by default the model's own.", show_default=False)]
Width = Annotated[int | None, typer.Option(help="Width in pixels; by default the model's own.", show_default=False)]
Out = Annotated[Path, typer.Option(parser=user_path, metavar="PATH", help="Folder for the images.")]
WordFiles = Annotated[
    list[str] | None,
    typer.Option("--word", help="File or folder of a learned word; '<cat>=FILE' names it; repeat.", show_default=False),
]
HeadVectors = Annotated[
    str | None,
    typer.Option(
        help="Head relevance vectors: a shipped name or a file; by default those shipped for the model.",
        show_default=False,
    ),
]
Suite = Annotated[
    str, typer.Option(help=f"One of {', '.join(SUITES)}, or a file of prompts (.txt, .csv, .tsv, .json, .jsonl).")
]
Every = Annotated[int, typer.Option(help="Take only every n-th prompt.", min=1)]
Engine = Annotated[str, typer.Option(help="Where the workers run: local (this machine) or ray.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Number of workers; by default one per GPU, or per CPU core. Each holds the models.",
        min=1,
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster, e.g. auto; by default start Ray here.", show_default=False),
]
GpusPerWorker = Annotated[float, typer.Option(help="GPUs (or CPU cores) that each Ray worker takes.", min=0.01)]


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, and has not its default alone."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_guidance(model: Model, name: str, **changes: Any) -> Guidance | None:
    """The guidance of --guidance, with the options that were given; none for "none"."""
    given = without_none(changes)
    if name == "none":
        if given:
            raise SettingsError(f"--{next(iter(given))} is a setting of guidance. Leave out --guidance none.")
        return None

    from ..guidance.presets import preset

    return preset(name, model, **given)


def loading(dtype: str | None, quantize: str | None, offload: str | None) -> LoadOptions:
    """The options of `limelight.load` that --dtype, --quantize and --offload are, without those that were not given.

    Raises:
        SettingsError: one is unknown.
    """
    found = without_none({"dtype": dtype, "quantize": quantize, "offload": offload})
    if found:
        from ..models.loading import check_options

        check_options(found)
    return cast("LoadOptions", found)


def parse_subjects(text: str) -> Any:
    """Parse "cat, 5" to ["cat", 5]; "auto" stays."""
    names = parse_names(text.strip("[] "))
    if names == ["auto"]:
        return "auto"
    return [int(name) if re.fullmatch(r"\d{1,9}", name) else name for name in names]


def parse_names(text: str) -> list[str]:
    """Parse "cat, dog" to ["cat", "dog"]."""
    return list(filter(None, map(str.strip, text.split(","))))


def parse_place(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Parse ["cat=0,.4,.5,1"] to {"cat": (0.0, 0.4, 0.5, 1.0)}."""
    place: dict[str, tuple[float, ...]] = {}
    for text in texts:
        word, mark, box = text.rpartition("=")
        word = word.strip()
        try:
            edges = tuple(map(float, box.split(",")))
        except ValueError:
            edges = ()
        if not mark or not word or len(edges) != 4:
            raise SettingsError(f"--place '{text}' must be WORD=LEFT,TOP,RIGHT,BOTTOM, for example cat=0,.4,.5,1.")
        if word in place:
            raise SettingsError(f"--place gives '{word}' two boxes. Give each subject one.")
        place[word] = edges
    return place


def parse_factors(texts: Sequence[str]) -> dict[str, float]:
    """Parse ["red=0.5", "0.8"] to {"red": 0.5, "": 0.8}."""
    factors: dict[str, float] = {}
    for text in texts:
        word, _, number = text.rpartition("=")
        try:
            factors[word.strip()] = float(number)
        except ValueError:
            raise SettingsError(f"'{text}' is not of the form WORD=NUMBER, for example red=0.5.") from None
    return factors


def parse_numbers(text: str, option: str) -> list[int]:
    """Parse "4,8,16" to [4, 8, 16]."""
    numbers = text.split(",")
    for number in numbers:
        if not re.fullmatch(r"\s*\d{1,9}\s*", number):
            raise SettingsError(f"{option}: '{number}' is not a whole number. Write for example 10,20,30.")
    return list(map(int, numbers))


def parse_part(text: str) -> tuple[int, int]:
    """Parse "2/4" to (2, 4)."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None:
        raise SettingsError(f"Cannot read --part {text}. Write for example 2/4.")
    return int(match[1]), int(match[2])


def parse_strengthen(text: str) -> tuple[str, str]:
    """Parse "word=Concept" to its parts."""
    word, mark, concept = text.rpartition("=")
    if not mark or not word.strip() or not concept.strip():
        raise SettingsError(f"--strengthen '{text}' must be word=Concept, for example cat=Animals.")
    return word.strip(), concept.strip()


def parse_adjust(text: str, relevance: Relevance) -> tuple[str, str, str]:
    """Parse "word=Desired-Undesired" to its parts; concepts may have hyphens of their own."""
    word, mark, both = text.rpartition("=")
    pieces = both.split("-")
    known = set(map(str.casefold, relevance.concepts))

    for cut in range(1, len(pieces)):
        pair = "-".join(pieces[:cut]).strip(), "-".join(pieces[cut:]).strip()
        if mark and word.strip() and known.issuperset(map(str.casefold, pair)):
            return word.strip(), *pair

    raise SettingsError(
        f"--adjust '{text}' must be word=Desired-Undesired, for example rose-colored=Color-Plants, of these concepts: "
        f"{', '.join(relevance.concepts)}."
    )


def parse_gains(
    model: Model,
    strengthen: Sequence[str] | None,
    adjust: Sequence[str] | None,
    clamp: float | None,
    head_vectors: str | None,
) -> list[HeadGain]:
    """Parse --strengthen and --adjust to gains with the head relevance vectors of a model."""
    if not strengthen and not adjust:
        if clamp is not None or head_vectors is not None:
            raise SettingsError("--clamp and --head-vectors belong to --strengthen or --adjust. Name a word there.")
        return []

    from ..heads import gains
    from ..heads.relevance import relevance_for

    relevance = relevance_for(model, head_vectors)
    found = [gains.strengthen(*parse_strengthen(text), head_vectors=relevance) for text in strengthen or ()]
    for text in adjust or ():
        found.append(gains.adjust(*parse_adjust(text, relevance), clamp=clamp, head_vectors=relevance))
    return found


def read_words(texts: Sequence[str]) -> list[LearnedWord]:
    """Read the learned words of "cat.safetensors" or "<cat>=embeddings.pt".

    Raises:
        SettingsError: a file cannot be read.
    """
    if not texts:
        return []

    from ..textual_inversion.word import LearnedWord

    found: list[LearnedWord] = []
    for text in texts:
        name, named, path = text.partition("=")
        if named and not user_path(text).exists():
            found.append(LearnedWord.load(path, name))
        else:
            found += LearnedWord.load_all(text)
    return found


def read_lines(path: Path, purpose: str) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises:
        FileError: the file cannot be read.
    """
    with reading(path, purpose, "save it as UTF-8 text"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return list(filter(None, map(str.strip, lines)))


def check_folder(folder: Path) -> None:
    """Check that a folder can be written, before hours of work and not after them.

    Raises:
        FileError: it cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        raise FileError(f"'{folder}' cannot be written: '{there}' is not a folder with write permission.")
