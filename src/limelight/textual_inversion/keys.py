"""A word's own keys and values: a small low-rank change of cross-attention, at the word's columns alone.

The factors are those of Edward J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
https://arxiv.org/abs/2106.09685; changing keys and values for a learned word is from Nupur Kumari, Bingliang Zhang,
Richard Zhang, Eli Shechtman, Jun-Yan Zhu, "Multi-Concept Customization of Text-to-Image Diffusion", 2022,
https://arxiv.org/abs/2212.04488, and leaving those of all other words alone from Yoad Tewel, Rinon Gal, Gal Chechik,
Yuval Atzmon, "Key-Locked Rank One Editing for Text-to-Image Personalization", 2023, https://arxiv.org/abs/2305.01644

Every layer reads a vector through the same text encoder. With changes of rank r a layer reads the word's state h as
W h + B A h, A [r, width] and B [width of the keys, r], so that each may see something else in it. In a negative prompt
the word is its vectors alone.
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

PARTS = ("to_k", "to_v")
DOWN, UP = "lora_A.weight", "lora_B.weight"  # as diffusers names the factors


def first_changes(model: Model, rank: int, random: torch.Generator) -> dict[str, Tensor]:
    """What a training begins with, by name: of every layer's keys and values A, random, and B, zero. None at rank 0."""
    found = {}
    for name, module in _layers(model).items() if rank else ():
        width = module.in_features
        found[f"{name}.{DOWN}"] = torch.randn(rank, width, generator=random) / width**0.5
        found[f"{name}.{UP}"] = torch.zeros(module.out_features, rank)
    return dict(sorted(found.items()))


def rank_of(changes: Mapping[str, Tensor]) -> int:
    """The rank of a word's keys and values; 0 where it has none of its own."""
    return max((len(value) for name, value in changes.items() if name.endswith(DOWN) and value.ndim), default=0)


def check_changes(token: str, model: Any, changes: Mapping[str, Tensor]) -> None:
    """Check that a word's changes fit a model.

    Raises:
        ModelError: it is a live pipeline, in whose passes nobody knows the word's columns.
        SettingsError: they were learned for other layers.
    """
    if not changes:
        return
    if not isinstance(model, Model):
        raise ModelError(
            f"'{token}' has keys and values of its own, and a pipeline does not tell where the word is. Bind it to "
            "`limelight.load(pipeline)`; in diffusers, `load_lora_weights` on its folder changes all words a little."
        )
    wanted, rank = {}, rank_of(changes)
    for name, module in _layers(model).items():
        wanted[f"{name}.{DOWN}"], wanted[f"{name}.{UP}"] = (rank, module.in_features), (module.out_features, rank)
    given = {name: tuple(value.shape) for name, value in changes.items()}
    if given != wanted:
        odd = min(given.items() ^ wanted.items())[0]
        raise SettingsError(
            f"The keys and values of '{token}' do not fit '{model.name}': they differ in '{odd}'. They were learned "
            "for another model."
        )


@contextmanager
def changed(model: Any, own: BoundWord, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the layers of a model's cross-attention read a word in its own way."""
    with ExitStack() as hooks:
        for name, module in _layers(model).items() if changes else ():
            handle = module.register_forward_hook(
                partial(_read, own, changes[f"{name}.{DOWN}"], changes[f"{name}.{UP}"])
            )
            hooks.callback(handle.remove)
        yield


def _read(own: BoundWord, down: Tensor, up: Tensor, module: Any, given: tuple[Tensor], made: Tensor) -> Tensor:
    """Keys or values [images, tokens, width], changed where the word is."""
    (states,) = given
    if own.columns is None or own.columns.shape != states.shape[:2]:
        return made
    change = F.linear(F.linear(states, down.to(states)), up.to(states))
    return made + own.columns[..., None].to(change) * change


def _layers(model: Model) -> dict[str, Any]:
    """What makes keys and values of the prompt, by its path in the denoiser."""
    found = {}
    for site in model.text_sites:
        for part in PARTS:
            found[f"{site.name}.{part}"] = model.denoiser.get_submodule(f"{site.name}.{part}")
    return found
