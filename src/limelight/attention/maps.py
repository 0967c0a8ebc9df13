"""Attention maps, by word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import ProbeError, PromptError, SettingsError
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt
from ..utils.files import png
from ..utils.images import grid

_ENLARGED = 8  # pixels along an axis that notebooks show for one of a map


@dataclass(frozen=True, eq=False)
class AttentionMaps(Mapping[str, Tensor]):
    """Cross-attention probabilities of one pass, or their mean over several.

    A mapping from words to maps: ``maps["cat"]`` is a tensor [images, height, width], the probability with which each
    map pixel attends to the word, averaged over the layers and heads that were recorded; the pieces of a word that the
    tokenizer split are added. Its keys are the words of the (first) prompt.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> maps = limelight.generate(model, "a cat and a dog", steps=2, record=True).maps
        >>> list(maps), tuple(maps.box("cat").shape)
        (['a', 'cat', 'and', 'dog'], (1, 4))

    Attributes:
        layers: probabilities by layer, each [images, heads, pixels, tokens], row by row; sums over tokens to 1, or
            to less where they are the prompt's own alone (transformers).
        latent_size: height and width of the latents, from which each layer's map size follows.
        prompts: one per image.
        before: the mean cross-attention of the last guided step, for objectives that remember.
        also: words that are not in the prompt -> their columns, counted from the last, which is -1.
    """

    layers: Mapping[AttentionSite, Tensor]
    latent_size: tuple[int, int]
    prompts: tuple[Prompt, ...]
    before: AttentionMaps | None = None
    also: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def cross(self) -> AttentionMaps:
        """Only the layers in which image positions attend to the prompt."""
        return self.select(lambda site: site.reads_text)

    @property
    def joint(self) -> bool:
        """Whether words share the probabilities with image positions, see `AttentionSite.joint`."""
        return any(site.joint for site in self.layers)

    @property
    def between_pixels(self) -> AttentionMaps:
        """Only the layers in which image positions attend to each other: [images, heads, pixels, pixels]."""
        return self.select(lambda site: not site.reads_text)

    def select(self, keep: Callable[[AttentionSite], bool]) -> AttentionMaps:
        """Only the layers for which `keep(layer)` is true, e.g. ``maps.select(lambda l: l.group == "up")``."""
        return replace(self, layers={k: v for k, v in self.layers.items() if keep(k)}, before=None)

    def each(self, change: Callable[[Tensor], Tensor]) -> AttentionMaps:
        """The same maps with `change` applied to the probabilities of every layer."""
        return replace(self, layers={layer: change(p) for layer, p in self.layers.items()})

    def images(self, index: slice) -> AttentionMaps:
        """Only some of the images."""
        layers = {k: v[index] for k, v in self.layers.items()}
        return replace(self, layers=layers, prompts=self.prompts[index], before=None)

    def head(self, index: int) -> AttentionMaps:
        """Only one head of every layer, counted from 0. To look at one layer's, `select` it first.

        Raises:
            ProbeError: heads were averaged while recording.
            SettingsError: a layer has no such head.
        """
        for layer, p in self.layers.items():
            if p.shape[1] < layer.heads:
                raise ProbeError("The heads of these maps were averaged; call generate() with record='all'.")
            if not 0 <= index < layer.heads:
                raise SettingsError(f"The layer '{layer.name}' has no head {index}; it has 0 to {layer.heads - 1}.")
        return self.each(lambda p: p[:, index : index + 1])

    def groups(self) -> dict[str, AttentionMaps]:
        """The layers by their group and map size, in execution order: "down 8x8", "mid 4x4", "up 8x8"."""
        groups: dict[str, dict[AttentionSite, Tensor]] = {}
        for layer, p in self.layers.items():
            height, width = layer.size(self.latent_size)
            groups.setdefault(f"{layer.group} {height}x{width}", {})[layer] = p
        return {name: replace(self, layers=layers) for name, layers in groups.items()}

    def mean(self, size: tuple[int, int] | None = None) -> Tensor:
        """Average over layers and heads. Returns [images, height, width, tokens].

        Args:
            size: height and width to resize every layer to (bilinear). Without it all layers must have one size.

        Raises:
            ProbeError: nothing was recorded.
            SettingsError: the size is none, or is needed.
        """
        if not self.layers:
            raise ProbeError("No attention maps were recorded; call generate() with record=True.")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise SettingsError(f"The size {size} must be a height and a width of at least 1, for example (64, 64).")
        if size is None:
            height_and_width = self._one_size()
            stacked = torch.cat(list(map(at_least_float32, self.layers.values())), dim=1)
            return stacked.mean(dim=1).unflatten(1, height_and_width)

        sums, heads = [], 0
        for layer, p in self.layers.items():
            summed = at_least_float32(p).sum(dim=1)
            sums.append(_resize(summed, layer.size(self.latent_size), size))
            heads += p.shape[1]
        return torch.stack(sums).sum(dim=0) / heads

    def _one_size(self) -> tuple[int, int]:
        """Height and width of every layer's maps."""
        sizes = {layer.size(self.latent_size) for layer in self.layers}
        if len(sizes) > 1:
            listed = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
            raise SettingsError(
                f"The maps have several sizes ({listed}); choose one with select() or give mean() a size."
            )
        return sizes.pop()

    def map(self, subject: str | int, size: tuple[int, int] | None = None) -> Tensor:
        """The map of a word, phrase or token index: [images, height, width], in 0..1. See `Prompt.find`.

        Words of `also` are found as they were asked for.
        """
        mean = self.mean(size)
        return torch.stack(
            [row[..., self._columns(p, subject)].sum(-1) for row, p in zip(mean, self.prompts, strict=True)]
        )

    def _columns(self, prompt: Prompt, subject: str | int) -> list[int]:
        """The columns of a subject."""
        if isinstance(subject, str) and subject in self.also:
            return list(self.also[subject])
        return list(prompt.find(subject))

    def to_numpy(self, size: tuple[int, int] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """The map of every word as a NumPy array [images, height, width].

        Args:
            size: height and width, see `mean`.
        """
        return {word: self.map(word, size).detach().cpu().numpy() for word in self}

    def mask(self, subject: str | int, threshold: float = 0.2, size: tuple[int, int] | None = None) -> Tensor:
        """Where a subject is, cut out of its map: bool [images, height, width].

        Args:
            threshold: share of the way from the map's smallest to its largest value, 0..1. The default suits the
                embedded model; where attention spreads wider than the object, take more.
            size: height and width of the mask, for example the image's; by default the latents'.

        Raises:
            SettingsError: the threshold is out of its range.
        """
        if not 0 <= threshold <= 1:
            raise SettingsError(f"threshold={threshold} must lie between 0 and 1.")
        heat = self.map(subject, size or self.latent_size)
        low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
        return (heat >= low + threshold * (high - low)) & (high > low)

    def box(self, subject: str | int, threshold: float = 0.2) -> Tensor:
        """The box around a subject: [images, 4], its left, top, right and bottom as fractions of the image, 0..1.

        It encloses that part of the `mask` which holds the map's largest value: a stray spot elsewhere does not count.
        A map without any contrast has the empty box 0, 0, 0, 0.
        """
        mask = self.mask(subject, threshold)
        heat = self.map(subject, self.latent_size)
        part = connected(heat == heat.amax(dim=(1, 2), keepdim=True), mask, corners=True)
        top, bottom = _extent(part.any(dim=2))
        left, right = _extent(part.any(dim=1))
        return torch.stack([left, top, right, bottom], dim=1)

    def iou(self, one: str | int, other: str | int, threshold: float = 0.2) -> Tensor:
        """How much the masks of two words have in common: intersection over union, [images], 0..1; NaN of no mask.

        High values of two nouns say that they share a place, as in Raphael Tang et al., "What the DAAM: Interpreting
        Stable Diffusion Using Cross Attention", 2022, https://arxiv.org/abs/2210.04885
        """
        shared, both = self._shared(one, other, threshold)
        return shared / (both.sum(dim=0).sum(dim=(1, 2)) - shared)

    def ioa(self, one: str | int, other: str | int, threshold: float = 0.2) -> Tensor:
        """Which share of the first word's mask lies in the other's: intersection over area, [images], 0..1."""
        shared, both = self._shared(one, other, threshold)
        return shared / both[0].sum(dim=(1, 2))

    def _shared(self, one: str | int, other: str | int, threshold: float) -> tuple[Tensor, Tensor]:
        """The cells that two masks share, [images], and both masks [2, images, height, width], as numbers."""
        both = torch.stack([self.mask(one, threshold), self.mask(other, threshold)]).float()
        return both.prod(dim=0).sum(dim=(1, 2)), both

    def __getitem__(self, subject: str | int) -> Tensor:
        return self.map(subject)

    def get(self, subject: str | int, default: Any = None) -> Any:
        # Mapping's own waits for a KeyError; an unknown word is a PromptError here.
        return self[subject] if subject in self else default  # noqa: SIM401

    def _repr_png_(self) -> bytes | None:
        """A row for each word and a column for each image, as notebooks show maps: white is the highest attention."""
        if not self.layers:
            return None
        size = max(layer.size(self.latent_size) for layer in self.layers)
        heats = torch.stack([self.map(word, size) for word in self])
        grey = (heats / heats.amax().clamp(min=1e-12) * 255).round().byte().cpu().numpy()
        shown = (size[1] * _ENLARGED, size[0] * _ENLARGED)
        rows = []
        for row in grey:
            rows.append([Image.fromarray(tile).resize(shown, Image.Resampling.NEAREST).convert("RGB") for tile in row])
        return png({}, grid(rows, list(self)))

    def __contains__(self, subject: object) -> bool:
        try:
            return all(self._columns(prompt, subject) for prompt in self.prompts)  # type: ignore[arg-type]
        except PromptError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.prompts[0].read, *self.also)))

    def __len__(self) -> int:
        return len({*self.prompts[0].read, *self.also})


def _resize(p: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """[images, pixels, tokens] of map size `old` to [images, height, width, tokens] of map size `new`."""
    image = p.unflatten(1, old).movedim(-1, 1)
    return F.interpolate(image, size=new, mode="bilinear", antialias=True).movedim(1, -1)


def at_least_float32(p: Tensor) -> Tensor:
    """At least float32: single steps are stored in less."""
    return p.to(torch.promote_types(p.dtype, torch.float32))


def connected(seed: Tensor, mask: Tensor, *, corners: bool) -> Tensor:
    """The part of a mask that hangs together with a seed.

    Args:
        seed, mask: bool [images, height, width], or with one axis more.
        corners: whether cells that touch at a corner hang together, too.
    """
    part = seed & mask
    while True:  # the seed spreads over its neighbors inside the mask
        cells = part.float()
        if corners:
            near = F.max_pool2d(cells, 3, stride=1, padding=1)
        else:
            down = F.max_pool2d(cells, (3, 1), stride=1, padding=(1, 0))
            across = F.max_pool2d(cells, (1, 3), stride=1, padding=(0, 1))
            near = torch.maximum(down, across)
        grown = (near > 0) & mask
        if torch.equal(grown, part):
            return part
        part = grown


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """Where the true cells of each row of [images, cells] begin and end, as fractions of the row."""
    cells = line.shape[1]
    number = torch.arange(cells, device=line.device)
    first = torch.where(line, number, cells).amin(dim=1) * line.any(dim=1)
    return first / cells, torch.where(line, number + 1, 0).amax(dim=1) / cells


def none(latents: Tensor, prompts: Sequence[Prompt]) -> AttentionMaps:
    """Maps of no layer, which say what to do when they are asked for a word."""
    return AttentionMaps({}, (latents.shape[-2], latents.shape[-1]), tuple(prompts))


def join(parts: Sequence[AttentionMaps]) -> AttentionMaps:
    """The maps of several batches as those of one."""
    layers, prompts = {}, list[Prompt]()
    for layer in parts[0].layers:
        layers[layer] = torch.cat([part.layers[layer] for part in parts])
    for part in parts:
        prompts += part.prompts
    return replace(parts[0], layers=layers, prompts=tuple(prompts), before=None)


def add(one: AttentionMaps, other: AttentionMaps) -> AttentionMaps:
    """The sum of two passes' maps, layer by layer."""
    return replace(one, layers={layer: p + at_least_float32(other.layers[layer]) for layer, p in one.layers.items()})


def scaled(maps: AttentionMaps, factor: float) -> AttentionMaps:
    """Every probability times a factor."""
    return maps.each(lambda p: p * factor)


def without_heads(maps: AttentionMaps) -> AttentionMaps:
    """Averaged over heads, which leaves one map per layer."""
    return maps.each(lambda p: p.mean(dim=1, keepdim=True))
