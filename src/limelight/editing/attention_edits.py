"""What prompt-to-prompt does to attention: mappers between prompts, and the edits and the blend made of them.

Amir Hertz, Ron Mokady, Jay Tenenbaum, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, "Prompt-to-Prompt Image Editing with
Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626

Rows of a batch are grouped by seed: the source first, then its targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.recording import RunningMean
from ..errors import PromptError, SettingsError
from ..generation.loop import Step
from ..heads.relevance import Relevance, relevance_for
from ..models.base import Model
from ..models.sites import AttentionSite, head_slices
from ..prompts.prompt import Prompt

Window = float | tuple[float, float]
"""Until which share of the steps, 0..1; or from which to which."""
Mode = Literal["auto", "replace", "refine"]


def replacement(source: Prompt, target: Prompt, *, published: bool = False) -> Tensor:
    """Which source token's map each target token takes over when words are swapped one for one.

    Words of different numbers of tokens share their maps: every token of the new word gets an equal part of the sum of
    the old one's. The result's rows sum to 1, so that attention stays a distribution.

    Returns:
        Matrix [tokens, tokens], source to target.

    Raises:
        PromptError: the prompts have different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise PromptError(
            f"'{source.text}' has {len(source.words)} words and '{target.text}' has {len(target.words)}; words can be "
            "swapped one for one only among equally many. Use mode 'refine', which keeps what both prompts share."
        )
    length = len(source.ids)
    matrix = torch.zeros(length, length)
    i = j = 0
    for old, new in zip(source.words, target.words, strict=True):
        if old.key == new.key:
            continue
        for word, prompt in ((old, source), (new, target)):
            if not word.positions:
                raise PromptError(
                    f"'{word.text}' lies beyond the {length} tokens of '{prompt.text}' that this model reads."
                )
        a, b = list(old.positions), list(new.positions)
        between = min(a[0] - i, b[0] - j)
        matrix[range(i, i + between), range(j, j + between)] = 1
        if len(a) == len(b):
            matrix[a, b] = 1
        else:
            matrix[torch.tensor(a)[:, None], b] = 1 / len(b)
        i, j = a[-1] + 1, b[-1] + 1
    rest = min(length - i, length - j)
    matrix[range(j, j + rest) if published else range(i, i + rest), range(j, j + rest)] = 1
    if not published:
        matrix[i + rest :, -1] = 1  # padding that the longer word pushed out
    return matrix


def refinement(source: Prompt, target: Prompt) -> Tensor:
    """Which source token's map each target token takes over when what both prompts share is kept.

    The longest common subsequence of the tokens is aligned; other tokens of the target have a column of zeros.

    Returns:
        Matrix [tokens, tokens], source to target.
    """
    old, new, length = source.ids[: source.end + 1], target.ids[: target.end + 1], len(source.ids)

    # In lists: single elements of a tensor cost microseconds each.
    score = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i, x in enumerate(old, 1):
        for j, y in enumerate(new, 1):
            both = score[i - 1][j - 1] + (1 if x == y else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], both)

    rows, columns = list[int](), list[int]()
    i, j = len(old), len(new)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            rows.append(i)
            columns.append(j)

    matrix = torch.zeros(length, length)
    matrix[rows, columns] = 1
    padding = range(len(new), length)
    matrix[padding, padding] = 1
    return matrix


def changed(source: Prompt, target: Prompt) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of the source that the target lacks, and the other way round, as `Prompt.find` takes them."""
    old, new = ([word.key for word in prompt.words] for prompt in (source, target))
    lost, gained = list[str](), list[str]()
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += [f"{old[i]}#{old[: i + 1].count(old[i])}" for i in range(a, b)]
            gained += [f"{new[i]}#{new[: i + 1].count(new[i])}" for i in range(c, d)]
    return tuple(lost), tuple(gained)


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """The targets' words take over the maps of the source's.

    Attributes:
        mapper: source tokens to target tokens, [targets, tokens, tokens].
        share: of the source's maps, [steps, targets, tokens].
        weights: factors of the target's tokens, [targets, tokens].
        weighted: the steps in which they hold.
        gains: by layer, factors of the heads for words that keep their own maps, [targets, heads, 1, tokens]; NaN for
            tokens that take over.
    """

    mapper: Tensor
    share: Tensor
    weights: Tensor
    weighted: range
    gains: Mapping[AttentionSite, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> CrossAttention:
        gains = {layer: gain.to(device) for layer, gain in self.gains.items()}
        return CrossAttention(
            self.mapper.to(device), self.share.to(device), self.weights.to(device), self.weighted, gains
        )

    def strengthened(
        self,
        model: Model,
        targets: Sequence[Prompt],
        concepts: Mapping[str, str],
        head_vectors: Relevance | str | Path | None,
    ) -> CrossAttention:
        """The same where words keep their own maps, every head times its relevance to the word's concept."""
        vectors, gains = relevance_for(model, head_vectors), {}
        share, at = self.share.clone(), {}
        for word in concepts:
            _in_some(word, targets)
            for i, target in enumerate(targets):
                at[i, word] = own = list(_find(word, target))
                new = [token for token in own if not self.mapper[i, :, token].any()]
                share[self.weighted.start : self.weighted.stop, i, new] = 1
        for layer, heads in head_slices(model.text_sites).items():
            gains[layer] = torch.full((len(targets), layer.heads, 1, share.shape[-1]), torch.nan)
            for (i, word), own in at.items():
                gains[layer][i, ..., own] = vectors[concepts[word]][heads, None, None].float()
        return replace(self, share=share, gains=gains)

    @cached_property
    def _active(self) -> list[bool]:
        heavy = bool((self.weights != 1).any())
        return [bool(share.any()) or (heavy and step in self.weighted) for step, share in enumerate(self.share.cpu())]

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return layer.reads_text and self._active[step]

    def __call__(self, layer: AttentionSite, probabilities: Tensor, step: int) -> Tensor:
        grouped = probabilities.unflatten(0, (-1, 1 + len(self.mapper)))
        source, own = grouped[:, :1], grouped[:, 1:]
        copied = source @ self.mapper.to(source.dtype)[:, None]
        if self.gains:
            gain = self.gains[layer].to(source.dtype)
            copied = torch.where(gain.isnan(), copied, own * gain)
        share = self.share[step].to(source.dtype)[:, None, None]
        changed = share * copied + (1 - share) * own
        if step in self.weighted:
            changed = changed * self.weights.to(source.dtype)[:, None, None]
        return torch.cat([source, changed], dim=1).flatten(0, 1)


class SelfAttention:
    """The targets' pixels look where the source's do."""

    def __init__(self, rows: int, scale: int, window: range) -> None:
        self.rows, self.scale, self.window = rows, scale, window

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return layer.kind == "self" and layer.scale >= self.scale and step in self.window

    def __call__(self, layer: AttentionSite, probabilities: Tensor, step: int) -> Tensor:
        return probabilities[:: self.rows].repeat_interleave(self.rows, dim=0)


class LocalBlend:
    """Outside the place of some words, the targets' latents are the source's."""

    THRESHOLD, START = 0.3, 0.2  # as published: share of the largest value; share of the steps

    def __init__(self, places: Sequence[tuple[int, ...]], passes: int) -> None:
        """places: the words' token positions in the source and in each target."""
        self.places, self.start = places, int(self.START * passes)
        self.mean = RunningMean()

    def __call__(self, step: Step) -> Tensor:
        assert step.maps is not None
        self.mean.add(step.maps)
        if step.index < self.start:
            return step.latents
        mask = self.mask(step.latents.shape[-2:])
        grouped = step.latents.unflatten(0, (-1, len(self.places)))
        return torch.where(mask[:, :, None], grouped, grouped[:, :1]).flatten(0, 1)

    def mask(self, size: Sequence[int]) -> Tensor:
        """Where each row may differ from its source: bool [seeds, rows, height, width]."""
        maps = self.mean.result()
        assert maps is not None
        tokens = maps.mean().unflatten(0, (-1, len(self.places)))
        words = torch.stack([tokens[:, i, ..., list(at)].sum(-1) for i, at in enumerate(self.places)], dim=1)
        near = F.interpolate(F.max_pool2d(words, 3, stride=1, padding=1), size=tuple(size))
        seen = near > self.THRESHOLD * near.amax(dim=(-2, -1), keepdim=True)
        return seen | seen[:, :1]


def cross_attention(
    prompts: Sequence[Prompt],
    passes: int,
    mode: Mode,
    windows: Window | Mapping[str, Window],
    reweight: Mapping[str, float],
    published: bool,
) -> CrossAttention:
    """The edit of a source prompt and its targets for a schedule of `passes`; arguments as in `limelight.edit`.

    Raises:
        PromptError: a word is in none of the targets, or "replace" got prompts of different numbers of words.
        SettingsError: a window or the mode is none.
    """
    source, *targets = prompts
    if mode not in ("auto", "replace", "refine"):
        raise SettingsError(f"mode='{mode}' must be 'auto', 'replace' or 'refine'.")
    chosen = by_word(windows)
    everything = steps_of(chosen.get("*", 0.8), "cross_steps", passes + 1)
    mappers, shares, weights = [], [], []
    for target in targets:
        swapped = mode == "replace" or (mode == "auto" and len(source.words) == len(target.words))
        mapper = replacement(source, target, published=published) if swapped else refinement(source, target)
        share = torch.zeros(passes, len(target.ids))
        share[everything.start : everything.stop] = 1
        for word, window in chosen.items():
            if word != "*" and (found := _find(word, target)):
                own = steps_of(window, f"cross_steps of '{word}'", passes + 1)
                share[:, found] = 0
                share[own.start : own.stop, list(found)] = 1
        if not swapped:
            share *= mapper.any(dim=0)  # a new word has no map to take over
        weight = torch.ones(len(target.ids))
        for word, value in reweight.items():
            weight[list(_find(word, target))] = value
        mappers.append(mapper)
        shares.append(share)
        weights.append(weight)
    for word in (*chosen, *reweight):
        if word != "*":
            _in_some(word, targets)
    return CrossAttention(torch.stack(mappers), torch.stack(shares, 1), torch.stack(weights), everything)


def by_word(windows: Window | Mapping[str, Window]) -> Mapping[str, Window]:
    """One window for all words is that of "*"."""
    return windows if isinstance(windows, Mapping) else {"*": windows}


def steps_of(window: Window, name: str, passes: int) -> range:
    """The steps of a window given in shares of the schedule."""
    start, stop = (0.0, window) if isinstance(window, float | int) else window
    if not 0 <= start <= stop <= 1:
        raise SettingsError(f"{name}={window} must lie between 0 and 1, for example 0.8 or (0.2, 0.8).")
    return range(int(start * passes), int(stop * passes))


def _find(word: str, prompt: Prompt) -> tuple[int, ...]:
    """Positions of a word, none where the prompt lacks it."""
    try:
        return prompt.find(word)
    except PromptError:
        return ()


def _in_some(word: str, prompts: Sequence[Prompt]) -> None:
    """Raises PromptError where no prompt has a word."""
    if not any(_find(word, prompt) for prompt in prompts):
        prompts[0].find(word)  # says what is wrong


def places_of(prompts: Sequence[Prompt], local: str | Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """Positions of the words of a local edit in every prompt; empty for an edit of the whole image."""
    if local is None:
        return ()
    words = [local] if isinstance(local, str) else list(local)
    for word in words:
        _in_some(word, prompts)
    return tuple(tuple(chain.from_iterable(_find(word, prompt) for word in words)) for prompt in prompts)
