"""What objectives share: maps of words, pairs of words, sharpened maps, the blur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from operator import attrgetter
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject
from ..prompts.tagging import FUNCTION_WORDS
from .base import Score, Subjects

Words = Literal["subjects", "content", "all"]


def weakest_score(of_subjects: Tensor, absent: Tensor) -> Score:
    """The score of sharpened maps [images, subjects, height, width]; `absent` [images, subjects] do not count."""
    presence = of_subjects.amax(dim=(2, 3))
    lacking = (1 - presence).clamp(min=0).masked_fill(absent, -1)
    loss = lacking.max(dim=1).values
    return Score(loss, presence.detach().masked_fill(absent, float("nan")), {"neglect": loss.detach()})


def scored(maps: AttentionMaps, subjects: Subjects, loss: Tensor, **parts: Tensor) -> Score:
    """The score of an objective that has a loss and parts of its own; presence and neglect are Attend-and-Excite's.

    Args:
        loss: [images].
        parts: by name, each [images]; cut to 0..1.
    """
    with torch.no_grad():
        sharp, absent = sharpened(maps.cross, subjects)
        own = weakest_score(blur(sharp), absent)
    return own.of(loss, **parts)


def sharpened(
    maps: AttentionMaps, subjects: Subjects, temperature: float = 100.0, own_tokens: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Maps in which words compete for each place: a softmax over the words, as in Attend-and-Excite.

    The probabilities of all tokens but the first (which draws most of the attention) and the last are sharpened by a
    softmax with the given temperature; in models that pad with other tokens, those of the prompt's own tokens alone.
    Words that share the probabilities with image positions (joint attention) get little of them, and are first divided
    by their sum. The tokens of one subject are added into one before the softmax: it is exponential, so adding after it
    would make a word that is split in two lose against its neighbors.

    Args:
        maps: of one size; averaged over layers and heads.
        temperature: factor before the softmax.
        own_tokens: whether the softmax is over the prompt's own tokens alone; None asks `Prompt.padded`.

    Returns:
        The subjects' maps [images, subjects, height, width], and which subjects an image does not have
        [images, subjects].
    """
    mean = maps.mean()
    if maps.joint:
        mean = mean / mean.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    pooling, padding, absent = pooling_of(maps, subjects, mean.shape[-1] - 1, own_tokens)
    logits = torch.einsum("bhwt,btu->bhwu", mean, pooling.to(mean.dtype)) * temperature
    sharp = logits.masked_fill(padding[:, None, None], float("-inf")).softmax(dim=-1)
    return sharp[..., : absent.shape[1]].movedim(-1, 1), absent


def pooling_of(
    maps: AttentionMaps, subjects: Subjects, last: int, own_tokens: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `pool_tokens` says of maps, on their device.

    Args:
        last: the token before which those end that compete.
        own_tokens: whether they end with the prompt's own; None asks `Prompt.padded`.
    """
    stops = []
    for prompt in maps.prompts:
        if own_tokens or (own_tokens is None and prompt.padded):
            stops.append(prompt.end)
        else:
            stops.append(last)
    spans = tuple(tuple(map(attrgetter("positions"), own)) for own in subjects)
    first = next(iter(maps.layers.values()))
    pooling, padding, absent = pool_tokens(spans, tuple(stops), first.shape[-1])
    return pooling.to(first.device), padding.to(first.device), absent.to(first.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tensors must serve later backward passes
def pool_tokens(
    subjects: tuple[tuple[tuple[int, ...], ...], ...], stops: tuple[int, ...], tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which token goes into which column of the sharpened maps: a product with 0/1 matrices pools all images at once.

    An image's columns are its subjects and then every other token between the first and its stop. Returns the matrices
    [images, tokens, columns], the columns that an image does not have [images, columns] and the subjects that it does
    not have [images, subjects].
    """
    images = list(map(_columns, subjects, stops))
    widest, most = max(map(len, images)), max(map(len, subjects))
    pooling = torch.zeros(len(images), tokens, widest)
    padding = torch.ones(len(images), widest, dtype=torch.bool)
    absent = torch.ones(len(images), most, dtype=torch.bool)

    for image, columns in enumerate(images):
        padding[image, : len(columns)] = False
        absent[image, : len(subjects[image])] = False
        for column, positions in enumerate(columns):
            pooling[image, list(positions), column] = 1
    return pooling, padding, absent


def _columns(spans: Sequence[tuple[int, ...]], stop: int) -> list[tuple[int, ...]]:
    """The token positions of each column of one image."""
    taken = set(chain.from_iterable(spans))
    others = [(position,) for position in range(1, stop) if position not in taken]
    return [*spans, *others]


@dataclass(frozen=True, eq=False)
class WordMaps:
    """The maps of the words that a pairwise objective compares.

    Attributes:
        maps: [images, words, height, width], raw probabilities; the pieces of a word are added. First the subjects'
            nouns, then their modifiers, then other words if they were asked for. Zero where an image has fewer.
        owner: which subject a word belongs to [images, words], int64; -1: none, -2: the image has fewer words.
        noun: which words are nouns of subjects, bool [images, words].
    """

    maps: Tensor
    owner: Tensor
    noun: Tensor

    @property
    def flat(self) -> Tensor:
        """[images, words, pixels]."""
        return self.maps.flatten(2)

    @property
    def together(self) -> Tensor:
        """Which pairs of different words belong to one subject, bool [images, words, words]."""
        same = self.owner[:, :, None] == self.owner[:, None, :]
        itself = torch.eye(self.owner.shape[1], dtype=torch.bool, device=self.owner.device)
        return same & (self.owner >= 0)[:, :, None] & ~itself

    @property
    def apart(self) -> Tensor:
        """Which pairs are a word of a subject, and a word that does not belong to that subject."""
        other = self.owner[:, :, None] != self.owner[:, None, :]
        return other & (self.owner >= 0)[:, :, None] & (self.owner >= -1)[:, None, :]

    @property
    def described(self) -> Tensor:
        """Which pairs are a noun and a modifier of its own."""
        return self.together & self.noun[:, :, None] & ~self.noun[:, None, :]


def word_maps(maps: AttentionMaps, subjects: Subjects, words: Words = "subjects") -> WordMaps:
    """The raw maps of words, averaged over layers and heads.

    Args:
        maps: of one size.
        words: "subjects" are their nouns and modifiers; "content" are besides the other words but articles,
            prepositions and their like; "all" are all words of the prompt.
    """
    mean = maps.cross.mean()
    key = tuple(map(tuple, subjects)), tuple(maps.prompts), mean.shape[-1], words
    pooling, owner, noun = (x.to(mean.device) for x in _word_columns(*key))
    return WordMaps(torch.einsum("bhwt,btn->bnhw", mean, pooling.to(mean.dtype)), owner, noun)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tensors must serve later backward passes
def _word_columns(
    subjects: tuple[tuple[Subject, ...], ...], prompts: tuple[Prompt, ...], tokens: int, words: Words
) -> tuple[Tensor, Tensor, Tensor]:
    """Which token goes into which word [images, tokens, words], and `WordMaps.owner` and `noun`."""
    rows = [_row(own, prompt, words) for own, prompt in zip(subjects, prompts, strict=True)]
    longest = max(map(len, rows))
    pooling = torch.zeros(len(rows), tokens, longest)
    owner = torch.full((len(rows), longest), -2)
    noun = torch.zeros(len(rows), longest, dtype=torch.bool)
    for image, row in enumerate(rows):
        for column, (positions, belongs, is_noun) in enumerate(row):
            pooling[image, list(positions), column] = 1
            owner[image, column], noun[image, column] = belongs, is_noun
    return pooling, owner, noun


_Column = tuple[tuple[int, ...], int, bool]
"""A word's token positions, its owner, and whether it is a noun."""


def _row(subjects: Sequence[Subject], prompt: Prompt, words: Words) -> list[_Column]:
    """The words of one image."""
    nouns, others = list[_Column](), list[_Column]()
    for k, subject in enumerate(subjects):
        nouns.append((subject.positions, k, True))
        others += product(subject.modifiers, [k], [False])
    if words != "subjects":
        others += product(_other_words(subjects, prompt, words), [-1], [False])
    return nouns + others


def _other_words(subjects: Sequence[Subject], prompt: Prompt, words: Words) -> list[tuple[int, ...]]:
    """The token positions of the words that belong to no subject."""
    taken = set(chain.from_iterable(map(attrgetter("all_positions"), subjects)))
    found = []
    for word in prompt.words:
        counts = words == "all" or word.key not in FUNCTION_WORDS
        if word.positions and counts and not taken & set(word.positions):
            found.append(word.positions)
    return found


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values [images, ...] that a mask of the same shape takes, [images]; 0 where it takes none."""
    taken = mask.flatten(1)
    return (values.flatten(1) * taken).sum(dim=1) / taken.sum(dim=1).clamp(min=1)


def distributions(maps: Tensor, power: float = 1.0) -> Tensor:
    """Maps [..., pixels] as distributions over pixels: to a power, and divided by their sum."""
    raised = (maps / maps.detach().amax(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(min=1e-9) ** power
    return raised / raised.sum(dim=-1, keepdim=True)


def blur(maps: Tensor, sigma: float = 0.5) -> Tensor:
    """Blur [images, subjects, height, width] with the reference's 3 x 3 kernel and reflected borders.

    The kernel's weights along an axis go with exp(-(d / (2 sigma))^2), as in the released code of Attend-and-Excite: a
    Gaussian of standard deviation sigma * sqrt(2). Built in float32 first, as there, so that results agree to the
    last digits.
    """
    rows = torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 3)
    down = 1 / (sigma * (2 * torch.pi) ** 0.5) * torch.exp(-((rows / (2 * sigma)) ** 2))
    kernel = down * down.T
    kernel = (kernel / kernel.sum()).to(maps)
    # Reflected borders by slicing: padding's own backward is not deterministic on CUDA.
    padded = torch.cat([maps[:, :, 1:2], maps, maps[:, :, -2:-1]], dim=2)
    padded = torch.cat([padded[..., 1:2], padded, padded[..., -2:-1]], dim=3)
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, maps.shape[:2])[:, :, 0]
