"""Learned words on the Hugging Face Hub, in the layout of the sd-concepts-library.

https://huggingface.co/sd-concepts-library: ``learned_embeds`` as diffusers reads it, ``token_identifier.txt``,
``type_of_concept.txt`` ("object" or "style"), a card, and the images that the word was learned from.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import FileError, SettingsError
from ..utils.images import ImageSource, open_image
from ..utils.reading import cause

if TYPE_CHECKING:
    from .word import LearnedWord

ConceptKind = Literal["object", "style"]
_FILES = ("learned_embeds*.safetensors", "learned_embeds*.bin", "token_identifier.txt")

_CARD = """---
{base_model}tags:
- textual_inversion
- limelight
---

# {token}

A word for text-to-image models ({kind}), learned by [textual inversion](https://arxiv.org/abs/2208.01618).

```python
import limelight

model = limelight.load("{model}")
with limelight.LearnedWord.from_hub("{repo}").bind(model) as word:
    limelight.generate(model, f"a photo of {{word.token}}").save("out")
```

    pipe.load_textual_inversion("{repo}")

{images}
"""


def push(word: LearnedWord, repo: str, images: Sequence[ImageSource], kind: ConceptKind, private: bool | None) -> str:
    """Upload a word, see `LearnedWord.push_to_hub`."""
    if kind not in ("object", "style"):
        raise SettingsError(f"kind='{kind}' must be 'object' or 'style'.")
    from huggingface_hub import CommitOperationAdd

    operations = []
    for name, content in _contents(word, repo, images, kind).items():
        operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
    with _reached(repo, "written"):
        api = _api()
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(made.repo_id, operations, commit_message=f"Upload {word.token}")
    return str(made)


def fetched(repo: str, revision: str | None) -> Path:
    """The folder of a word on the Hub, in the Hub's cache."""
    with _reached(repo, "read"):
        folder = _api().snapshot_download(repo, revision=revision, allow_patterns=list(_FILES))
    if not any(Path(folder).glob("learned_embeds*")):
        raise FileError(f"'{repo}' holds no learned word: it has no file learned_embeds.safetensors or .bin.")
    return Path(folder)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _reached(repo: str, done: str) -> Iterator[None]:
    """Say in a sentence why a repository cannot be read or written.

    Raises:
        FileError: it cannot.
    """
    try:
        yield
    except Exception as error:  # the client's versions have errors of several libraries
        raise FileError(
            f"'{repo}' cannot be {done} on the Hub: {cause(error)}. Check the name (owner/name) and the connection, "
            "and log in with `hf auth login`."
        ) from error


def _contents(word: LearnedWord, repo: str, images: Sequence[ImageSource], kind: ConceptKind) -> Mapping[str, bytes]:
    """The files of a repository by their names."""
    files = {"type_of_concept.txt": kind.encode()}
    with tempfile.TemporaryDirectory() as folder:
        word.save(folder)
        for path in sorted(Path(folder).iterdir()):
            files[path.name] = path.read_bytes()

    shown = []
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        open_image(image).save(buffer, "JPEG", quality=95)
        name = f"concept_images/{i}.jpeg"
        files[name] = buffer.getvalue()
        shown.append(f"![{word.token} {i}]({name})")

    model = str(word.about.get("model", ""))
    card = _CARD.format(
        base_model=f"base_model: {model}\n" if model.count("/") == 1 else "",
        token=word.token,
        kind=kind,
        model=model or "MODEL",
        repo=repo,
        images="\n".join(shown),
    )
    return {**files, "README.md": card.encode()}
