"""Files of learned words, as six programs write them."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import FileError, SettingsError, quoted
from ..models.single_file import LORA
from ..utils.files import check_free, json_text, user_path
from ..utils.files import write as write_file
from ..utils.mappings import without_none
from ..utils.reading import Record, from_json, reading
from ..utils.tensors import read_tensors, tensor_file

Found = tuple[str, tuple[Tensor, ...], dict[str, Any], dict[str, Tensor]]
"""A learned word's token, its vectors by text encoder, what is known about it, its changes of the denoiser by name."""
_Entry = tuple[str, list[Any], dict[str, Any]]
_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")
_SECOND = {"learned_embeds.safetensors": "learned_embeds_2.safetensors", "learned_embeds.bin": "learned_embeds_2.bin"}
_STAR = {1280: 1008}  # the id of "*": BERT's, whose width in LDM this is; else CLIP's
_CLIP_STAR = 265


_CHANGES = "pytorch_lora_weights.safetensors"  # diffusers' names: of the file, and of what is the UNet's in it
_OF_UNET = "unet."
_OF_WORD = "limelight.word"  # tells it from a LoRA that is trained beside a word and meant for all words


class _Vectors(Record):
    TORCHTENSOR: list[list[float]]


class _InImage(Record):
    """What AUTOMATIC1111 writes into a PNG."""

    string_to_param: dict[str, _Vectors]


def read_word_files(path: str | os.PathLike[str]) -> list[Found]:
    """The learned words of a file or folder.

    Raises:
        FileError: it is not there, or holds none.
    """
    file, second, named, changes = user_path(path), None, None, {}
    if file.is_dir():
        folder, file = file, _inside(file)
        second = folder / _SECOND.get(file.name, "")
        changes = _changes(folder / _CHANGES)
        identifier = folder / "token_identifier.txt"
        if identifier.is_file():
            with reading(identifier, "the name of a word", "write it as UTF-8 text"):
                named = identifier.read_text(encoding="utf-8").strip()
    content, metadata = _content(file)
    found = _entries(content, metadata, file)
    if second is not None and second.is_file():
        found = _joined(found, second)
    if named and len(found) == 1:
        found = [(named, *found[0][1:])]
    return [
        (placeholder(token), _vectors(vectors, token, file), {**_about(metadata, token), **about}, changes)
        for token, vectors, about in found
    ]


def _changes(file: Path) -> dict[str, Tensor]:
    """A word's changes of the denoiser, by name; none where there is no file of them.

    Raises:
        FileError: it cannot be read, or is a LoRA for all words.
    """
    if not file.is_file():
        return {}
    with reading(file, "a word's changes of the denoiser", "get the folder again"):
        tensors, metadata = read_tensors(file)
        if _OF_WORD not in metadata:
            raise FileError(
                f"'{file}' is a LoRA for all words, and a learned word brings along only what concerns itself. Load it "
                "into the pipeline with `load_lora_weights` of diffusers, give that pipeline to `limelight.load`, and "
                "the word's file, not its folder, to `LearnedWord.load`."
            )
        return {name.removeprefix(_OF_UNET): value for name, value in tensors.items()}


def _joined(found: list[_Entry], second: Path) -> list[_Entry]:
    """The words of a folder with those of its second file, which diffusers' trainer writes for XL's other encoder.

    Raises:
        FileError: the two files hold different words.
    """
    content, metadata = _content(second)
    others = {name: vectors for name, vectors, _ in _entries(content, metadata, second)}
    if others.keys() != set(map(itemgetter(0), found)):
        raise FileError(
            f"'{second}' holds {quoted(others)}, and the file beside it other words; they are not one training's."
        )
    return [(name, [*vectors, *others[name]], about) for name, vectors, about in found]


def placeholder(name: str) -> str:
    """What a prompt calls a learned word whose file calls it `name`: "cat" is <cat>, "*" is <star>."""
    if re.fullmatch(r"<[^<>\s]+>", name):
        return name
    if name.strip() == "*":
        return "<star>"
    plain = re.sub(r"[<>\s]+", "-", name.strip().lower()).strip("-")
    return f"<{plain or 'word'}>"


def write_word_file(
    path: str | os.PathLike[str],
    token: str,
    vectors: Sequence[Tensor],
    about: Mapping[str, Any],
    changes: Mapping[str, Tensor],
    overwrite: bool = True,
) -> None:
    """Write one learned word in the format that the path's suffix names; a path without a suffix is a folder.

    Raises:
        FileError: it cannot be written, or without `overwrite` a file is there that holds something else.
    """
    files = _contents(user_path(path), token, vectors, about, changes)
    if not overwrite:
        for file, content in files.items():
            check_free(file, content)
    for file, content in files.items():
        write_file(file, content)


def _contents(
    path: Path, token: str, vectors: Sequence[Tensor], about: Mapping[str, Any], changes: Mapping[str, Tensor]
) -> dict[Path, bytes]:
    """The files of a learned word, in the format that the path's suffix names."""
    if path.is_dir() or not path.suffix:
        files = {
            **_contents(path / _NAMES[0], token, vectors, about, {}),
            path / "token_identifier.txt": token.encode(),
        }
        if changes:
            named = {_OF_UNET + name: value for name, value in changes.items()}
            files[path / _CHANGES] = _sorted_header(tensor_file(named, {"format": "pt", _OF_WORD: token}))
        return files
    if changes:
        raise SettingsError(f"'{path}' has no place for what '{token}' changes in the denoiser; name a folder.")
    if path.suffix == ".safetensors":
        metadata = {
            "format": "pt",  # which tensors these are: a convention of the format
            "token": token,
            "about": json_text(dict(about)),
            "limelight": importlib.metadata.version("limelight"),
        }
        tensors = {token: vectors[0]}
        if len(vectors) > 1:
            tensors = dict(zip(("clip_l", "clip_g"), vectors, strict=True))
        return {path: _sorted_header(tensor_file(tensors, metadata))}
    if path.suffix == ".pt":
        if len(vectors) > 1:
            raise SettingsError(f"'{path}': a .pt file is for one text encoder, '{token}' has {len(vectors)}.")
        return {path: _original(token, vectors[0], about.get("step"))}
    raise SettingsError(f"'{path}' has no suffix of a known format. End it with .safetensors or .pt, or name a folder.")


def _original(token: str, vectors: Tensor, step: Any) -> bytes:
    """A file of the original code, and of AUTOMATIC1111."""
    held = io.BytesIO()
    star = _STAR.get(vectors.shape[1], _CLIP_STAR)
    # Its readers know the word "*" alone; `name` is AUTOMATIC1111's.
    content = {
        "string_to_token": {"*": torch.tensor(star)},
        "string_to_param": nn.ParameterDict({"*": nn.Parameter(vectors)}),
        "name": token,
        "step": step,
    }
    torch.save(content, held)
    return held.getvalue()


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its metadata in order, which the library writes in one that changes from run to run."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _inside(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    others = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".pt", ".bin")]
    if len(others) != 1:
        listed = ", ".join(file.name for file in others) or "nothing of the kind"
        raise FileError(f"The folder '{folder}' has no {_NAMES[0]} but {listed}; name the file.")
    return others[0]


def _content(file: Path) -> tuple[Any, Mapping[str, str]]:
    """What is in a file, and the metadata of a safetensors file.

    Raises:
        FileError: it cannot be read.
    """
    with reading(file, "a learned word", "get it as .safetensors"):
        try:
            return _read(file)
        except pickle.UnpicklingError as error:
            raise FileError(_refusal(file, str(error))) from None


def _read(file: Path) -> tuple[Any, Mapping[str, str]]:
    """The content of a file by its suffix; nothing in it is run."""
    if file.suffix == ".safetensors":
        return read_tensors(file)
    if file.suffix.lower() == ".png":
        return _in_image(file), {}

    with warnings.catch_warnings(), torch.serialization.safe_globals([nn.ParameterDict]):
        warnings.simplefilter("ignore")
        if not zipfile.is_zipfile(file) and not tarfile.is_tarfile(file):
            # torch's format from before 1.6, of which its reader of tensors does not read dictionaries of parameters
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_OnlyTensors), {}
        _check_stored(file)
        return torch.load(file, map_location="cpu", weights_only=True), {}


class _OnlyTensors:
    """Takes the place of the module `pickle` in `torch.load`: tensors and dictionaries of them, and nothing else."""

    class Unpickler(pickle.Unpickler):
        """Finds a few names, none of which runs a program."""

        def find_class(self, module: str, name: str) -> Any:
            """The object of a name, if it is one of these; torch finds its kinds of storage before."""
            if f"{module}.{name}" not in _PLAIN:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
            return super().find_class(module, name)

    @classmethod
    def load(cls, file: Any, **options: Any) -> Any:
        """Read one object."""
        return cls.Unpickler(file, **options).load()


_PLAIN = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.modules.container.ParameterDict",
    "__builtin__.set",  # Python 2's name, which the format has
)


def _refusal(file: Path, reason: str) -> str:
    """Why a pickle is not read, from what torch's reader says."""
    code = re.search(r"GLOBAL ([\w.]+)", reason)
    if code is None:
        return f"'{file}' cannot be read as a learned word: torch did not write this file."
    return f"'{file}' is refused: it asks to run '{code[1]}', and tensors do not; get it as .safetensors."


def _check_stored(file: Path) -> None:
    """Refuse an archive whose files are compressed, which torch never does: they may be of any size.

    Raises:
        FileError: one is.
    """
    with zipfile.ZipFile(file) as archive:
        if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
            raise FileError(f"'{file}' is refused: its parts are compressed, and torch does not write such files.")


def _in_image(file: Path) -> dict[str, Any]:
    """The word that AUTOMATIC1111 writes into a PNG, as its .pt files have it.

    Raises:
        FileError: there is none.
    """
    with Image.open(file, formats=["PNG"]) as image:
        image.load()  # what follows the pixels, too
        text = getattr(image, "text", {}).get("sd-ti-embedding")
    if text is None:
        raise FileError(
            f"'{file}' is an image without a learned word in its text, which websites remove. Get the .pt or "
            ".safetensors file."
        )

    content = from_json(_InImage, base64.b64decode(text))
    held = {name: torch.tensor(value["TORCHTENSOR"]) for name, value in content["string_to_param"].items()}
    return {**content, "string_to_param": held}


def _entries(content: Any, metadata: Mapping[str, str], file: Path) -> list[_Entry]:
    """Name, vectors and facts of each word in a file, of whichever format."""
    facts = cast(Mapping[str, Any], content) if isinstance(content, Mapping) else {}
    if "string_to_param" in facts:
        return _original_entries(facts, file)

    _check_lora(facts, file)
    keys = _keys_without_name(facts)
    if keys:
        name = metadata.get("token") or metadata.get("name") or file.stem
        return [(name, list(map(facts.__getitem__, keys)), {})]
    if not facts or not all(map(_is_vectors, facts.values())):
        raise FileError(f"'{file}' does not hold a learned word{_listed(facts)}.")
    return _plain_entries(facts)


def _plain_entries(held: Mapping[str, Any]) -> list[_Entry]:
    """The words of a dictionary of names and vectors."""
    return [(str(name), [vectors], {}) for name, vectors in held.items()]


def _check_lora(facts: Mapping[str, Any], file: Path) -> None:
    """Refuse the files of another kind that users take for learned words most often.

    Raises:
        FileError: it is one.
    """
    if any(LORA.search(str(key)) for key in facts):
        raise FileError(
            f"'{file}' is a LoRA, which changes a model's weights, not a learned word. Load it into the pipeline with "
            "`load_lora_weights` of diffusers, and give that pipeline to `limelight.load`."
        )


def _listed(facts: Mapping[str, Any]) -> str:
    """What a file holds instead of a word, as the end of a sentence."""
    if not facts:
        return ""
    return f", but {quoted(list(facts)[:3])}"


def _keys_without_name(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a file whose one word has no name in it: of Stable Diffusion XL's pair, or of `emb_params`."""
    if facts.keys() == {"clip_l", "clip_g"}:
        return ("clip_l", "clip_g")
    if "emb_params" in facts:
        return ("emb_params",)
    return ()


def _original_entries(facts: Mapping[str, Any], file: Path) -> list[_Entry]:
    """The words of a file of the original code, or the one of a file of AUTOMATIC1111, which has a name of its own."""
    held = facts["string_to_param"]
    # A dictionary of parameters from before torch 1.12 lacks what its own methods ask for.
    if isinstance(held, nn.ParameterDict):
        held = held._parameters
    if "name" not in facts:
        return _plain_entries(held)

    base = facts.get("sd_checkpoint_name") or facts.get("sd_checkpoint")
    known = without_none({"step": facts.get("step"), "base_model": base})
    name = str(facts["name"] or file.stem)
    return [(name, [vectors], known) for vectors in islice(held.values(), 1)]


def _is_vectors(value: Any) -> bool:
    usual = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return usual and value.ndim in (1, 2) and value.is_floating_point()


def _vectors(vectors: Sequence[Any], token: str, file: Path) -> tuple[Tensor, ...]:
    """The vectors of a word as matrices.

    Raises:
        FileError: they are something else, or a file of a few bytes says that they are many.
    """
    if not all(map(_is_vectors, vectors)):
        raise FileError(f"'{file}' does not hold vectors for '{token}'.")
    for v in vectors:
        if v.numel() * v.element_size() > v.untyped_storage().nbytes():
            raise FileError(
                f"'{file}' is refused: it holds {v.untyped_storage().nbytes()} bytes for vectors of '{token}' of shape "
                f"{list(v.shape)}."
            )
    return tuple(torch.atleast_2d(v.detach()) for v in vectors)


def _about(metadata: Mapping[str, str], token: str) -> dict[str, Any]:
    """What is known about a learned word: what we wrote, or the metadata of other programs and the name they use."""
    with suppress(ValueError):
        written: dict[str, Any] = from_json(dict[str, Any], metadata.get("about", ""))
        return written
    known: dict[str, Any] = {key: value for key, value in metadata.items() if key not in ("format", "token", "name")}
    if placeholder(token) != token:
        known["called"] = token
    return known
