"""The attention edits of prompt-to-prompt: token mappings between prompts, and the edits and the blend built on them.

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
from typing import Literal, get_args

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
"""Until which share of the steps, 0..1; or from which share to which."""

Mode = Literal["auto", "replace", "refine"]


def replacement(source: Prompt, target: Prompt, *, published: bool = False) -> Tensor:
    """Map source tokens to target tokens where words are swapped one for one.

    Words of different numbers of tokens share their maps: every token of the new word gets an equal part of the sum of
    the old one's. The result's rows sum to 1, so that attention stays a distribution.

    Args:
        published: shift the tokens after a replaced word, as the authors' code does, where the words differ in their
            number of tokens.

    Returns:
        Matrix [source tokens, target tokens]: the share of each source token's map that a target token takes over.

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
    i = j = 0  # the first tokens that are not mapped yet
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
    if published:
        matrix[range(j, j + rest), range(j, j + rest)] = 1
    else:
        matrix[range(i, i + rest), range(j, j + rest)] = 1
        matrix[i + rest :, -1] = 1  # padding that the longer word pushed out
    return matrix


def refinement(source: Prompt, target: Prompt) -> Tensor:
    """Map source tokens to target tokens where what both prompts share is kept.

    The longest common subsequence of the tokens is aligned; other tokens of the target have a column of zeros.

    Returns:
        Matrix [source tokens, target tokens]: 1 where the target token takes over the source token's map.
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
    """Find the words of the source that the target lacks, and the other way round, as `Prompt.find` takes them."""
    old, new = [word.key for word in source.words], [word.key for word in target.words]
    lost, gained = list[str](), list[str]()
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += _numbered(old)[a:b]
            gained += _numbered(new)[c:d]
    return tuple(lost), tuple(gained)


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """Give the targets' words the maps of the source's words.

    Attributes:
        mapper: source tokens to target tokens, [targets, tokens, tokens].
        share: of the source's maps, 0..1, [steps, targets, tokens].
        weights: factors of the targets' tokens, [targets, tokens].
        weighted: the steps in which the weights hold.
        gains: by layer, factors of the heads for words that keep their own maps, [targets, heads, 1, tokens]; NaN for
            tokens that take over.
    """

    mapper: Tensor
    share: Tensor
    weights: Tensor
    weighted: range
    gains: Mapping[AttentionSite, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> CrossAttention:
        """The same edit on a device."""
        gains = {layer: gain.to(device) for layer, gain in self.gains.items()}
        mapper, share, weights = self.mapper.to(device), self.share.to(device), self.weights.to(device)
        return CrossAttention(mapper, share, weights, self.weighted, gains)

    def strengthened(
        self,
        model: Model,
        targets: Sequence[Prompt],
        concepts: Mapping[str, str],
        head_vectors: Relevance | str | Path | None,
    ) -> CrossAttention:
        """Let words keep their own maps, with every head times its relevance to the word's concept.

        Args:
            targets: the target prompts.
            concepts: of each word.
            head_vectors: see `limelight.heads.relevance.relevance_for`.

        Raises:
            PromptError: a word is in none of the targets.
            SettingsError: no vectors fit the model, or they lack a concept.
        """
        vectors = relevance_for(model, head_vectors)
        share, positions = self.share.clone(), {}
        for word in concepts:
            _check_in_some(word, targets)
            for i, target in enumerate(targets):
                positions[i, word] = own = list(_find(word, target))
                new = [token for token in own if not self.mapper[i, :, token].any()]
                share[self.weighted.start : self.weighted.stop, i, new] = 1

        gains = {}
        for layer, heads in head_slices(model.text_sites).items():
            gains[layer] = torch.full((len(targets), layer.heads, 1, share.shape[-1]), torch.nan)
            for (i, word), own in positions.items():
                gains[layer][i, ..., own] = vectors[concepts[word]][heads, None, None].float()
        return replace(self, share=share, gains=gains)

    @cached_property
    def _active(self) -> set[int]:
        """The steps that change anything."""
        active = set(self.share.flatten(1).any(dim=1).nonzero().flatten().tolist())
        if (self.weights != 1).any():
            active.update(self.weighted)
        return active

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return layer.reads_text and step in self._active

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
    """Give the targets the self-attention of the source.

    Args:
        rows: prompts of a seed, the source among them.
        scale: the finest layers to edit, as `AttentionSite.scale`.
        window: the steps to edit.
    """

    def __init__(self, rows: int, scale: int, window: range) -> None:
        self.rows, self.scale, self.window = rows, scale, window

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return layer.kind == "self" and layer.scale >= self.scale and step in self.window

    def __call__(self, layer: AttentionSite, probabilities: Tensor, step: int) -> Tensor:
        return probabilities[:: self.rows].repeat_interleave(self.rows, dim=0)


class LocalBlend:
    """Keep the source's latents in the targets, except where some words are.

    Args:
        places: the words' token positions in the source and in each target.
        passes: denoiser passes of the schedule.
    """

    THRESHOLD, START = 0.3, 0.2  # as published: share of the largest value; share of the steps

    def __init__(self, places: Sequence[tuple[int, ...]], passes: int) -> None:
        self.places, self.start = places, int(self.START * passes)
        self.mean = RunningMean()

    def __call__(self, step: Step) -> Tensor:
        """The latents of a step, blended."""
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


@dataclass(frozen=True)
class _Windows:
    """The steps in which words have the source's maps.

    Attributes:
        passes: denoiser passes of the schedule.
        others: the steps of all words that have no window of their own.
        words: the steps of the words that have one.
    """

    passes: int
    others: range
    words: Mapping[str, range]

    @classmethod
    def of(cls, windows: Window | Mapping[str, Window], passes: int) -> _Windows:
        """Turn shares of the schedule into steps, of one more than there are, as published.

        Raises:
            SettingsError: a window does not lie between 0 and 1.
        """
        words = {}
        for word, window in by_word(windows).items():
            name = "cross_steps" if word == "*" else f"cross_steps of '{word}'"
            words[word] = steps_of(window, name, passes + 1)
        others = words.pop("*", steps_of(0.8, "cross_steps", passes + 1))
        return cls(passes, others, words)

    def share(self, target: Prompt) -> Tensor:
        """The share of the source's maps, 0 or 1, [steps, tokens]."""
        share = torch.zeros(self.passes, len(target.ids))
        share[self.others.start : self.others.stop] = 1
        for word, steps in self.words.items():
            own = list(_find(word, target))
            share[:, own] = 0
            share[steps.start : steps.stop, own] = 1
        return share


def cross_attention(
    prompts: Sequence[Prompt],
    passes: int,
    mode: Mode,
    windows: Window | Mapping[str, Window],
    reweight: Mapping[str, float],
    published: bool,
) -> CrossAttention:
    """Build the edit of a source prompt and its targets.

    Args:
        prompts: the source, then the targets.
        passes: denoiser passes of the schedule.
        mode, windows, reweight, published: as in `limelight.edit`, where `windows` is called `cross_steps`.

    Raises:
        PromptError: a word is in none of the targets, or "replace" got prompts of different numbers of words.
        SettingsError: the mode is unknown, or a window does not lie between 0 and 1.
    """
    if mode not in get_args(Mode):
        raise SettingsError(f"mode='{mode}' must be 'auto', 'replace' or 'refine'.")
    source, *targets = prompts
    chosen = _Windows.of(windows, passes)
    for word in (*chosen.words, *reweight):
        if word != "*":
            _check_in_some(word, targets)

    mappers, shares, weights = [], [], []
    for target in targets:
        share = chosen.share(target)
        if mode == "replace" or (mode == "auto" and len(source.words) == len(target.words)):
            mapper = replacement(source, target, published=published)
        else:
            mapper = refinement(source, target)
            share *= mapper.any(dim=0)  # a new word has no map to take over
        mappers.append(mapper)
        shares.append(share)
        weights.append(_weights(target, reweight))
    return CrossAttention(torch.stack(mappers), torch.stack(shares, 1), torch.stack(weights), chosen.others)


def _weights(target: Prompt, reweight: Mapping[str, float]) -> Tensor:
    """The factor of every token, [tokens]."""
    weights = torch.ones(len(target.ids))
    for word, value in reweight.items():
        weights[list(_find(word, target))] = value
    return weights


def by_word(windows: Window | Mapping[str, Window]) -> Mapping[str, Window]:
    """Windows by word; a single one is that of "*", which stands for all words."""
    return windows if isinstance(windows, Mapping) else {"*": windows}


def steps_of(window: Window, name: str, passes: int) -> range:
    """Turn a window, in shares of the schedule, into steps.

    Args:
        name: of the setting, for the error.

    Raises:
        SettingsError: the window does not lie between 0 and 1.
    """
    start, stop = (0.0, window) if isinstance(window, float | int) else window
    if not 0 <= start <= stop <= 1:
        raise SettingsError(f"{name}={window} must lie between 0 and 1, for example 0.8 or (0.2, 0.8).")
    return range(int(start * passes), int(stop * passes))


def places_of(prompts: Sequence[Prompt], local: str | Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """Find the words of a local edit in every prompt.

    Returns:
        Token positions, prompt by prompt; nothing for an edit of the whole image.

    Raises:
        PromptError: a word is in none of the prompts.
    """
    if local is None:
        return ()

    words = [local] if isinstance(local, str) else list(local)
    for word in words:
        _check_in_some(word, prompts)
    return tuple(tuple(chain.from_iterable(_find(word, prompt) for word in words)) for prompt in prompts)


def _numbered(words: Sequence[str]) -> list[str]:
    """Each word with its occurrence, as in "dog#2"."""
    return [f"{word}#{words[: i + 1].count(word)}" for i, word in enumerate(words)]


def _find(word: str, prompt: Prompt) -> tuple[int, ...]:
    """The token positions of a word; none where the prompt lacks it."""
    try:
        return prompt.find(word)
    except PromptError:
        return ()


def _check_in_some(word: str, prompts: Sequence[Prompt]) -> None:
    """Raise PromptError where none of the prompts has a word."""
    if not any(_find(word, prompt) for prompt in prompts):
        prompts[0].find(word)  # raises, and names the cause
