"""A word's own changes of the denoiser: small, low-rank, and only in images whose prompt has the word.

The factors are those of Edward J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
https://arxiv.org/abs/2106.09685

Vectors choose among the things that a model can draw; they do not say how something is drawn that it never saw. With
changes of rank r each linear layer of the blocks that read the prompt computes W x + B A x, A [r, inputs] and B
[outputs, r]: the makers of keys and values at the word alone, the others at all positions of its images. Images of
prompts without the word stay what they are, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError, SettingsError
from ..models.base import Model
from ..models.learned import BoundWord

DOWN, UP = "lora_A.weight", "lora_B.weight"  # as diffusers names the factors


def first_changes(model: Model, rank: int, random: torch.Generator) -> dict[str, Tensor]:
    """What a training begins with, by name: of every layer A, random, and B, zero. None at rank 0."""
    found = {}
    for name in model.word_layers if rank else ():
        module = model.denoiser.get_submodule(name)
        width = module.in_features
        found[f"{name}.{DOWN}"] = torch.randn(rank, width, generator=random) / width**0.5
        found[f"{name}.{UP}"] = torch.zeros(module.out_features, rank)
    return dict(sorted(found.items()))


def rank_of(changes: Mapping[str, Tensor]) -> int:
    """The rank of a word's changes; 0 where it has none."""
    return max((len(value) for name, value in changes.items() if name.endswith(DOWN) and value.ndim), default=0)


def check_changes(token: str, model: Any, changes: Mapping[str, Tensor]) -> None:
    """Check that a word's changes fit a model.

    Raises:
        ModelError: it is a live pipeline, in whose passes nobody knows the word's images.
        SettingsError: they were learned for other layers.
    """
    if not changes:
        return
    if not isinstance(model, Model):
        raise ModelError(
            f"'{token}' changes the denoiser, and a pipeline does not tell in which images the word is. Bind it to "
            "`limelight.load(pipeline)`; in diffusers, `load_lora_weights` on its folder changes all images a little."
        )
    wanted, rank = {}, rank_of(changes)
    for name in model.word_layers:
        module = model.denoiser.get_submodule(name)
        wanted[f"{name}.{DOWN}"], wanted[f"{name}.{UP}"] = (rank, module.in_features), (module.out_features, rank)
    given = {name: tuple(value.shape) for name, value in changes.items()}
    if given != wanted:
        odd = min(given.items() ^ wanted.items())[0]
        raise SettingsError(
            f"The changes of '{token}' do not fit '{model.name}': they differ in '{odd}'. They were learned for "
            "another model, or by another version."
        )


@contextmanager
def changed(model: Any, own: BoundWord, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the layers of a model compute what a word makes of them, in its images."""
    with ExitStack() as hooks:
        for name, reads_text in model.word_layers.items() if changes else ():
            change = partial(_changed, own, reads_text, changes[f"{name}.{DOWN}"], changes[f"{name}.{UP}"])
            hooks.callback(model.denoiser.get_submodule(name).register_forward_hook(change).remove)
        yield


def _changed(
    own: BoundWord, reads_text: bool, down: Tensor, up: Tensor, module: Any, given: tuple[Tensor], made: Tensor
) -> Tensor:
    """What a layer gives [images, positions, width], changed at the word where it reads text, else in its images."""
    if own.columns is None or own.images is None:
        return made
    (x,) = given
    where = own.columns[..., None] if reads_text else own.images[:, None, None]
    return made + where * F.linear(F.linear(x, down.to(x)), up.to(x))
