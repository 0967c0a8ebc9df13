"""Attention maps, by word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ProbeError, PromptError, SettingsError
from .models.base import Layer
from .prompt import Prompt


@dataclass(frozen=True, eq=False)
class AttentionMaps(Mapping[str, Tensor]):
    """Cross-attention probabilities of one pass, or their mean over several.

    A mapping from words to maps: ``maps["cat"]`` is a tensor [images, height, width], the probability with which each
    map pixel attends to the word, averaged over the layers and heads that were recorded; the pieces of a word that the
    tokenizer split are added. Its keys are the words of the (first) prompt.

    Attributes:
        layers: probabilities by layer, each [images, heads, pixels, tokens], row by row;
            sums over tokens to 1.
        latent_size: height and width of the latents, from which each layer's map size follows.
        prompts: one per image.
    """

    layers: Mapping[Layer, Tensor]
    latent_size: tuple[int, int]
    prompts: tuple[Prompt, ...]

    def select(self, keep: Callable[[Layer], bool]) -> AttentionMaps:
        """Only the layers for which `keep(layer)` is true, e.g. ``maps.select(lambda l: l.place == "up")``."""
        return AttentionMaps({k: v for k, v in self.layers.items() if keep(k)}, self.latent_size, self.prompts)

    def images(self, index: slice) -> AttentionMaps:
        """Only some of the images."""
        return AttentionMaps({k: v[index] for k, v in self.layers.items()}, self.latent_size, self.prompts[index])

    def mean(self, size: tuple[int, int] | None = None) -> Tensor:
        """Average over layers and heads. Returns [images, height, width, tokens].

        Args:
            size: height and width to resize every layer to (bilinear). Without it all layers must have one size.
        """
        if not self.layers:
            raise ProbeError("No attention maps were recorded; call generate() with record=True.")
        sizes = {layer.size(self.latent_size) for layer in self.layers}
        if size is None and len(sizes) > 1:
            listed = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
            raise SettingsError(
                f"The maps have several sizes ({listed}); choose one with select() or give mean() a size."
            )
        if size is None:
            (height, width), stacked = sizes.pop(), torch.cat(list(self.layers.values()), dim=1)
            return stacked.mean(dim=1).unflatten(1, (height, width))
        sums = [_resize(p.sum(dim=1), layer.size(self.latent_size), size) for layer, p in self.layers.items()]
        return torch.stack(sums).sum(dim=0) / sum(p.shape[1] for p in self.layers.values())

    def map(self, subject: str | int, size: tuple[int, int] | None = None) -> Tensor:
        """The map of a word, phrase or token index: [images, height, width], in 0..1. See `Prompt.find`."""
        mean = self.mean(size)
        return torch.stack([row[..., list(p.find(subject))].sum(-1) for row, p in zip(mean, self.prompts, strict=True)])

    def __getitem__(self, subject: str | int) -> Tensor:
        return self.map(subject)

    def get(self, subject: str | int, default: Any = None) -> Any:
        # Mapping's own waits for a KeyError; an unknown word is a PromptError here.
        return self[subject] if subject in self else default  # noqa: SIM401

    def __contains__(self, subject: object) -> bool:
        try:
            return all(prompt.find(subject) for prompt in self.prompts)  # type: ignore[arg-type]
        except PromptError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(word.text for word in self.prompts[0].words if word.positions))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _resize(p: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """[images, pixels, tokens] of map size `old` to [images, height, width, tokens] of map size `new`."""
    picture = p.unflatten(1, old).movedim(-1, 1)
    return F.interpolate(picture, size=new, mode="bilinear", antialias=True).movedim(1, -1)


def join(parts: Sequence[AttentionMaps]) -> AttentionMaps:
    """The maps of several batches as those of one."""
    layers = {layer: torch.cat([part.layers[layer] for part in parts]) for layer in parts[0].layers}
    return AttentionMaps(layers, parts[0].latent_size, tuple(prompt for part in parts for prompt in part.prompts))


class RunningMean:
    """The mean of the maps of many passes, in the memory of one."""

    def __init__(self) -> None:
        self.count = 0
        self.total: AttentionMaps | None = None

    def add(self, maps: AttentionMaps) -> None:
        self.count += 1
        # Heads are averaged away: a whole run then costs one map per layer.
        layers = {layer: p.mean(dim=1, keepdim=True) for layer, p in maps.layers.items()}
        if self.total is not None:
            layers = {layer: self.total.layers[layer] + p for layer, p in layers.items()}
        self.total = AttentionMaps(layers, maps.latent_size, maps.prompts)

    def result(self) -> AttentionMaps | None:
        if self.total is None:
            return None
        layers = {layer: p / self.count for layer, p in self.total.layers.items()}
        return AttentionMaps(layers, self.total.latent_size, self.total.prompts)
