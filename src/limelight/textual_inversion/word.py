"""A learned word."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileError, SettingsError
from ..models.learned import readers_of
from ..utils.images import ImageSource
from .binding import bound, check_fit, check_token
from .formats import placeholder, read_word_files, write_word_file
from .hub import ConceptKind, fetched, push


@dataclass(frozen=True)
class VectorFacts:
    """One vector of a learned word.

    Attributes:
        lengths: its 2-norm for each text encoder.
        nearest: the words of a model that lie next to it and their cosines, see `LearnedWord.nearest`; or empty.
    """

    lengths: tuple[float, ...]
    nearest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """A learned word: vectors that stand for it in a text encoder's table.

    Rinon Gal, Yuval Alaluf, Yuval Atzmon, Or Patashnik, Amit H. Bermano, Gal Chechik, Daniel Cohen-Or, "An Image is
    Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion", 2022,
    https://arxiv.org/abs/2208.01618

    Examples:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "cat.safetensors"
        >>> limelight.LearnedWord("<my-cat>", (torch.ones(2, 32),)).save(path)
        >>> word = limelight.LearnedWord.load(path)
        >>> word.token, [tuple(vectors.shape) for vectors in word.vectors]
        ('<my-cat>', [(2, 32)])

    Attributes:
        token: how prompts name it: in angle brackets, lower case, without spaces, e.g. ``<my-cat>``.
        vectors: for each text encoder of the model, in its order, [n, width] float32; Stable Diffusion 1.x, 2.x and LDM
            have one, XL two.
        about: what is known of its making; values as JSON has them.
        changes: of the denoiser's layers, by name, see `limelight.textual_inversion.low_rank`.

    Raises:
        SettingsError: the token is not a placeholder, or the vectors are not finite matrices.
    """

    token: str
    vectors: tuple[Tensor, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_token(self.token)
        clean = tuple(vectors.detach().to("cpu", torch.float32, copy=True) for vectors in self.vectors)
        if not _fit_together(clean):
            shapes = ", ".join(str(list(v.shape)) for v in clean) or "none"
            raise SettingsError(
                f"The vectors of '{self.token}' must be [n, width], as many for each text encoder; these are {shapes}."
            )
        changes = {n: v.detach().to("cpu", torch.float32, copy=True) for n, v in sorted(self.changes.items())}
        if not all(v.isfinite().all() for v in (*clean, *changes.values())):
            raise SettingsError(f"The vectors of '{self.token}' are not all finite numbers; it was learned badly.")
        object.__setattr__(self, "vectors", clean)
        object.__setattr__(self, "changes", changes)

    @classmethod
    def load(cls, path: str | os.PathLike[str], token: str | None = None) -> LearnedWord:
        """Read a learned word from a file or folder.

        Formats: the original's ``embeddings.pt``, AUTOMATIC1111's ``.pt``, diffusers' ``learned_embeds.safetensors``
        and ``.bin`` (also their folder), ``emb_params``, and the pair ``clip_l``, ``clip_g`` of Stable Diffusion XL.
        Pickles are read without running what they hold.

        Args:
            token: what to call it; by default what the file says. A name without angle brackets gets them ("cat" is
                ``<cat>``, "*" is ``<star>``). Of a file with several words, which.

        Raises:
            FileError: it cannot be read, or holds several words.
        """
        found = read_word_files(path)
        if len(found) > 1:
            found = [entry for entry in found if entry[0] == token] or found
        if len(found) > 1:
            listed = ", ".join(name for name, *_ in found)
            raise FileError(f"'{path}' holds {len(found)} learned words; choose one as its token: {listed}.")
        (name, vectors, about, changes), *_ = found
        return cls(name if token is None else placeholder(token), vectors, about, changes)

    @classmethod
    def load_all(cls, path: str | os.PathLike[str]) -> tuple[LearnedWord, ...]:
        """Every word of a file, see `load`."""
        return tuple(cls(*found) for found in read_word_files(path))

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Write it: ``.safetensors`` as diffusers reads it, ``.pt`` as the original code and AUTOMATIC1111 do (there it
        is called ``*``); a folder gets ``learned_embeds.safetensors`` and ``token_identifier.txt``, and of a word that
        changes the denoiser ``pytorch_lora_weights.safetensors``, which diffusers' `load_lora_weights` reads.

        Args:
            overwrite: also a file that holds something else.

        Raises:
            SettingsError: the format has no place for it.
            FileError: it cannot be written, or without `overwrite` a file is there that holds something else.
        """
        write_word_file(path, self.token, self.vectors, self.about, self.changes, overwrite)

    @classmethod
    def from_hub(cls, repo: str, token: str | None = None, *, revision: str | None = None) -> LearnedWord:
        """Read a learned word from the Hugging Face Hub, for example ``sd-concepts-library/cat-toy``.

        Args:
            repo: owner and name.
            token: as of `load`.
            revision: a branch, tag or commit; by default the newest.

        Raises:
            FileError: it cannot be read, or holds no word.
        """
        return cls.load(fetched(repo, revision), token)

    def push_to_hub(
        self,
        repo: str,
        *,
        images: Sequence[ImageSource] = (),
        kind: ConceptKind = "object",
        private: bool | None = None,
    ) -> str:
        """Upload it to the Hugging Face Hub in one commit, in the layout of the sd-concepts-library.

        Args:
            repo: owner and name, made if absent. Earlier files stay in its history.
            images: to show and upload with it; nothing else of yours is uploaded.
            kind: what it stands for.
            private: only you may read a new repository.

        Returns:
            The address of the repository.

        Raises:
            SettingsError: an unknown kind.
            FileError: the repository cannot be written, or an image cannot be read.
        """
        return push(self, repo, images, kind, private)

    @contextmanager
    def bind(self, model: Any) -> Iterator[LearnedWord]:
        """Let a model read the word for as long as the ``with`` lasts, see `limelight.textual_inversion.binding.bound`.

            with limelight.LearnedWord.load("cat.safetensors").bind(model) as cat:
                limelight.generate(model, f"a photo of {cat.token} and a dog")

        Args:
            model: a `Model`, or a live diffusers pipeline.

        Raises:
            SettingsError: the vectors do not fit the model, or the word is taken.
        """
        rows = [nn.Parameter(vectors, requires_grad=False) for vectors in self.vectors]
        with bound(model, self.token, rows, self.changes):
            yield self

    def facts(self, model: Any | None = None, count: int = 5) -> tuple[VectorFacts, ...]:
        """Length and neighbors of each vector.

        Args:
            model: whose words are the neighbors; None leaves them out.
            count: how many neighbors.

        Raises:
            SettingsError: the vectors do not fit the model.
        """
        lengths = zip(*(vectors.norm(dim=1).tolist() for vectors in self.vectors), strict=True)
        if model is None:
            return tuple(map(VectorFacts, lengths))
        return tuple(map(VectorFacts, lengths, self.nearest(model, count)))

    def nearest(self, model: Any, count: int = 5) -> tuple[tuple[tuple[str, float], ...], ...]:
        """For each vector, the words of a model's (first) table that lie next to it.

        Returns:
            Words and cosines, 1 at most, the nearest first.

        Raises:
            SettingsError: the vectors do not fit the model.
        """
        readers = readers_of(model)
        check_fit(self.token, self.vectors, readers)
        tokenizer, encoder = readers[0]
        table = encoder.get_input_embeddings().weight.detach().to("cpu", torch.float32)[: tokenizer.vocab_size]
        cosines = F.normalize(self.vectors[0], dim=1) @ F.normalize(table, dim=1).T
        best = cosines.topk(min(count, len(table)), dim=1)
        found = []
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            words = [tokenizer.decode([index]).strip() for index in indices]
            found.append(tuple(zip(words, values, strict=True)))
        return tuple(found)


def _fit_together(vectors: tuple[Tensor, ...]) -> bool:
    """Whether there are matrices, all of the same number of rows."""
    return bool(vectors) and all(v.ndim == 2 and v.numel() and len(v) == len(vectors[0]) for v in vectors)
