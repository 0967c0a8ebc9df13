"""The parts of a stored pipeline: each is read by itself, and refused when one of its weights is missing."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..errors import LimelightError, ModelError
from ..utils.reading import cause, from_json

# Name of a part in `model_index.json` -> the package and the class that read it.
Index = Mapping[str, tuple[str, str]]


@contextmanager
def readable(name: str, what: str = "") -> Iterator[None]:
    """Turn whatever a library says about the files of others into one sentence.

    Args:
        name: the model, as it was asked for.
        what: the part that is read.

    Raises:
        ModelError: anything went wrong inside the ``with``.
    """
    try:
        yield
    except LimelightError:
        raise
    except UnpicklingError as error:
        raise ModelError(
            f"'{name}' has a weight file that holds more than weights, which could be a program; get its safetensors."
        ) from error
    except torch.OutOfMemoryError as error:
        raise ModelError(f"'{name}' does not fit into memory; use a smaller model.") from error
    except Exception as error:
        why = ": ".join(filter(None, (what and f"its {what}", cause(error))))
        raise ModelError(f"'{name}' cannot be read as a model: {why}.") from error


def index_of(config: Mapping[str, Any]) -> Index:
    """The parts that a `model_index.json` names; those that are null are left out."""
    found = {}
    for part, value in config.items():
        match value:
            case [str(package), str(cls)] if not part.startswith("_"):
                found[part] = (package, cls)
    return found


def load_part(folder: Path, name: str, part: str, source: tuple[str, str], options: Mapping[str, Any]) -> Any:
    """Read one part of a model's folder.

    Args:
        folder: with the part in a folder of its own.
        name: the model, as it was asked for.
        part: "unet", "text_encoder", "tokenizer", ...
        source: what `model_index.json` says of it: package and class.
        options: `dtype`, `use_safetensors`, and `unused`: beginnings of weights that no image depends on.

    Raises:
        ModelError: it cannot be read, its weight files are not there, or weights are missing in them.
    """
    from transformers import PreTrainedModel

    with readable(name, part):
        cls, kind = class_of(*source), {"torch_dtype": options["dtype"]}
        if not issubclass(cls, torch.nn.Module):
            _configs(folder / part, "*config.json")  # diffusers takes for a hub id what cannot be read
            return cls.from_pretrained(folder, subfolder=part)

        for config in _configs(folder / part, "config.json"):
            check_sizes(config)
        safe = options["use_safetensors"]
        _check_files(folder, name, part, bool(safe))
        if issubclass(cls, PreTrainedModel):  # describes misfits in its log, a class of diffusers in its error
            kind = {"dtype": options["dtype"], "ignore_mismatched_sizes": True}
        module, report = cls.from_pretrained(
            folder, subfolder=part, use_safetensors=safe, output_loading_info=True, **kind
        )
        if report["mismatched_keys"]:
            weight = min(report["mismatched_keys"])[0]
            raise ModelError(f"The {part} of '{name}' does not fit its config.json: {weight} has another shape there.")
        missing = _missing(module, report["missing_keys"], options["unused"])
        if missing:
            raise ModelError(lack(name, part, missing, sorted(report["unexpected_keys"])))
    return module


def _missing(module: torch.nn.Module, reported: Iterable[str], unused: tuple[str, ...]) -> list[str]:
    """The weights that a part did not get: those that the library reports, and those that it left empty in silence."""
    empty = empty_weights(module)
    return sorted(key for key in {*reported, *empty} if not key.startswith(unused))


def empty_weights(module: torch.nn.Module) -> list[str]:
    """The names of the weights without data, in order."""
    return sorted(key for key, value in module.named_parameters() if value.is_meta)


def _configs(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The settings in some files.

    Raises:
        ValueError: a file is not JSON.
    """
    return [from_json(dict[str, Any], path.read_bytes()) for path in filter(Path.is_file, folder.glob(pattern))]


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse numbers that no model has: to build it would take the whole memory, or never end.

    Raises:
        ValueError: there are such.
    """
    for key, value in config.items():
        most = 10_000_000
        if "layers" in key:
            most = 1000
        if not isinstance(value, list):
            value = [value]
        for number in value:
            if isinstance(number, int) and abs(number) > most:
                raise ValueError(f"{key}={number} in its config.json is more than {most}")


def class_of(package: str, name: str) -> Any:
    """A class of diffusers or transformers. Nothing else is imported, whatever an index names."""
    if package in ("diffusers", "transformers"):
        return getattr(importlib.import_module(package), name)

    import diffusers

    return getattr(getattr(diffusers.pipelines, package), name)


def lack(name: str, part: str, missing: Sequence[str], unexpected: Sequence[str] = ()) -> str:
    """Say that weights are missing, and why they may be."""
    if any("lora_" in key for key in unexpected):
        return (
            f"The {part} of '{name}' was saved with a LoRA beside its weights. Load the pipeline and the LoRA with "
            "diffusers, call `fuse_lora()` and `unload_lora_weights()`, and save it again."
        )
    shown = ", ".join(missing[:3])
    if len(missing) > 3:
        shown += f" and {len(missing) - 3} more"
    return (
        f"The {part} of '{name}' lacks weights: {shown}. Its file is incomplete or of another model; get the whole "
        "model again."
    )


# Weight files by diffusers' and transformers' rules: "model.safetensors", "diffusion_pytorch_model.fp16.bin", ...
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?"
    r"\.(?P<kind>safetensors|bin)"
)


def _check_files(folder: Path, name: str, part: str, safe: bool) -> None:
    """Find out which weight files a part has, before a library says less about it.

    Args:
        safe: whether safetensors alone are opened.

    Raises:
        ModelError: there are no weights that can be opened.
    """
    found, opened = [], []
    for path in (folder / part).glob("*"):
        match = _WEIGHTS.fullmatch(path.name)
        if match is None:
            continue
        found.append(match)
        if match["kind"] == "safetensors" or not safe:
            if match["variant"] is None:
                return
            opened.append(match)

    raise ModelError(f"'{name}' cannot be read as a model: its {part} {_what_is_there(folder, part, opened, found)}")


def _what_is_there(folder: Path, part: str, opened: Sequence[re.Match[str]], found: Sequence[re.Match[str]]) -> str:
    """Say which weight files a part has instead, and what to do."""
    if opened:
        variant = opened[0]["variant"]
        return (
            f"is there as the variant '{variant}' alone ({opened[0][0]}). Open it with diffusers, "
            f"`pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, variant={variant!r})`, and give the pipeline: "
            "`limelight.load(pipe)`; or save that pipeline as a folder."
        )
    if found:
        return (
            f"is there as {found[0][0]} alone, a kind of file that can hold a program. If you trust it, convert it "
            f"once with diffusers: `DiffusionPipeline.from_pretrained({str(folder)!r}).save_pretrained(new_folder)`."
        )
    return f"has no weights; there is no model.safetensors or the like in '{folder / part}'."
