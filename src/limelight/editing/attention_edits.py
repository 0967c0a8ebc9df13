"""The attention edits of prompt-to-prompt: token mappings between prompts, and the edits and the blend built on them.

Amir Hertz, Ron Mokady, Jay Tenenbaum, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, "Prompt-to-Prompt Image Editing with
Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626

Rows of a batch are grouped by seed: the source first, then its targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..attention.recording import RunningMean
from ..errors import PromptError, SettingsError
from ..generation.loop import Step
from ..heads.relevance import Relevance, relevance_for
from ..models.base import Model
from ..models.sites import AttentionSite, head_slices
from ..prompts.prompt import Prompt, Word
from ..prompts.subjects import resolve

Window = float | tuple[float, float]
"""Until which share of the steps, 0..1; or from which share to which."""

CROSS_STEPS = 0.8
"""The window of words without one."""

Mode = Literal["auto", "replace", "refine"]


def replacement(source: Prompt, target: Prompt, *, published: bool = False) -> Tensor:
    """Map source tokens to target tokens where words are swapped one for one.

    Words of different numbers of tokens share their maps: every token of the new word gets an equal part of the sum of
    the old one's. Punctuation between two words that only the target has takes nothing over. The result's rows sum to
    1, so that attention stays a distribution: the maps of punctuation that only the source has, and of padding that a
    longer word pushed out, go to the last position.

    Args:
        published: shift the tokens after a replaced word, as the authors' code does, where the words differ in their
            number of tokens.

    Returns:
        Matrix [source tokens, target tokens]: the share of each source token's map that a target token takes over.

    Raises:
        PromptError: the prompts have different numbers of words.
        SettingsError: several text encoders read them, and it is to be as published.
    """
    if published and len(source.parts) > 1:
        raise SettingsError("published=True is for models with one text encoder, as in the authors' code.")
    if len(source.words) != len(target.words):
        raise PromptError(
            f"'{source.text}' has {len(source.words)} words and '{target.text}' has {len(target.words)}; words can be "
            "swapped one for one only among equally many. Use mode 'refine', which keeps what both prompts share."
        )

    length = len(source.ids)
    matrix = torch.zeros(length, length)
    for old, new in zip(source.parts, target.parts, strict=True):
        i, j = old.start, new.start  # the first tokens that are not mapped yet
        for a, b in _word_pairs(source, target, (old, new), changed_only=published):
            between = min(a[0] - i, b[0] - j)
            if published:
                matrix[range(i, i + between), range(j, j + between)] = 1
            else:
                _map_gap(matrix, source, target, range(i, a[0]), range(j, b[0]))
            if len(a) == len(b):
                matrix[a, b] = 1
            else:
                matrix[torch.tensor(a)[:, None], b] = 1 / len(b)
            i, j = a[-1] + 1, b[-1] + 1

        if published:
            rest = range(j, j + min(length - i, length - j))
            matrix[rest, rest] = 1
            return matrix
        _map_gap(matrix, source, target, range(i, old.stop), range(j, new.stop))

    # From the end tokens on, position by position.
    both = min(length - source.end, length - target.end)
    matrix[range(source.end, source.end + both), range(target.end, target.end + both)] = 1
    matrix[source.end + both :, -1] = 1  # padding that the longer word pushed out
    return matrix


def _word_pairs(
    source: Prompt, target: Prompt, parts: tuple[range, range], changed_only: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """The token positions of every word of the source and of the word in its place, or of those that differ alone.

    Args:
        parts: the positions of a stream in the source and in the target; others are left out.
    """
    for old, new in zip(source.words, target.words, strict=True):
        same = old.key == new.key
        if same and (changed_only or not old.positions or not new.positions):
            continue
        _check_read(old, source)
        _check_read(new, target)
        a, b = _within(old, parts[0]), _within(new, parts[1])
        if a and b:  # another text encoder may read more of the prompts
            yield a, b


def _within(word: Word, part: range) -> list[int]:
    """The token positions of a word in one stream of its prompt."""
    return [position for position in word.positions if position in part]


def _check_read(word: Word, prompt: Prompt) -> None:
    """Refuse a word that the model does not reach."""
    if not word.positions:
        raise PromptError(
            f"'{word.text}' lies beyond the {prompt.length} tokens of '{prompt.text}' that this model reads."
        )


def _map_gap(matrix: Tensor, source: Prompt, target: Prompt, old: range, new: range) -> None:
    """Map the tokens between two words (punctuation): position by position, or those that both prompts have."""
    if len(old) == len(new):
        matrix[list(old), list(new)] = 1
        return

    a, b = source.ids[old.start : old.stop], target.ids[new.start : new.stop]
    left = set(old)
    for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        for k in range(block.size):
            row = old[block.a + k]
            matrix[row, new[block.b + k]] = 1
            left.discard(row)
    matrix[list(left), -1] = 1


def refinement(source: Prompt, target: Prompt) -> Tensor:
    """Map source tokens to target tokens where what both prompts share is kept.

    The longest common subsequence of the tokens is aligned; other tokens of the target have a column of zeros.

    Returns:
        Matrix [source tokens, target tokens]: 1 where the target token takes over the source token's map.
    """
    length = len(source.ids)
    matrix = torch.zeros(length, length)
    for old, new in zip(source.parts, target.parts, strict=True):
        rows, columns = _common(source.ids[old.start : old.stop], target.ids[new.start : new.stop])
        matrix[[old.start + i for i in rows], [new.start + j for j in columns]] = 1
    padding = range(target.end + 1, length)
    matrix[[source.end, *padding], [target.end, *padding]] = 1
    return matrix


def _common(old: Sequence[int], new: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where the longest common subsequence of two lists of tokens lies in each."""
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
    return rows, columns


def changed(source: Prompt, target: Prompt) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the words of the source that the target lacks, and the other way round, as `Prompt.find` takes them."""
    old, new = source.keys, target.keys
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
        windows: in which steps they hold, bool [steps, targets, tokens].
        gains: by layer, factors of the heads for words that keep their own maps, [targets, heads, 1, tokens]; NaN for
            tokens that take over.
    """

    mapper: Tensor
    share: Tensor
    weights: Tensor
    windows: Tensor
    gains: Mapping[AttentionSite, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> CrossAttention:
        """The same edit on a device."""
        gains = {layer: gain.to(device) for layer, gain in self.gains.items()}
        mapper, share, weights = self.mapper.to(device), self.share.to(device), self.weights.to(device)
        return CrossAttention(mapper, share, weights, self.windows.to(device), gains)

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
                share[:, i, new] = self.windows[:, i, new].to(share.dtype)

        gains = {}
        for layer, heads in head_slices(model.text_sites).items():
            gains[layer] = torch.full((len(targets), layer.heads, 1, share.shape[-1]), torch.nan)
            for (i, word), own in positions.items():
                gains[layer][i, ..., own] = vectors[concepts[word]][heads, None, None].float()
        return replace(self, share=share, gains=gains)

    @cached_property
    def _active(self) -> set[int]:
        """The steps that change anything."""
        changed = (self.share != 0) | (self.windows & (self.weights != 1))
        return set(changed.flatten(1).any(dim=1).nonzero().flatten().tolist())

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
        weights = torch.where(self.windows[step], self.weights, 1.0).to(source.dtype)
        changed = changed * weights[:, None, None]
        return torch.cat([source, changed], dim=1).flatten(0, 1)


class SelfAttention:
    """Give the targets the self-attention of the source, by its queries and keys of image positions.

    In joint attention the targets' words keep their own keys, which the source's queries then meet.

    Args:
        rows: prompts of a seed, the source among them.
        scale: the finest layers to edit, as `AttentionSite.scale`.
        window: the steps to edit.
    """

    injects = True

    def __init__(self, rows: int, scale: int, window: range) -> None:
        self.rows, self.scale, self.window = rows, scale, window

    def edits(self, layer: AttentionSite) -> bool:
        """Whether it acts on a layer in the steps of its window."""
        return (layer.kind == "self" or layer.joint) and layer.scale >= self.scale

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return self.edits(layer) and step in self.window

    def __call__(self, layer: AttentionSite, values: Tensor, step: int) -> Tensor:
        return values[:: self.rows].repeat_interleave(self.rows, dim=0)


class EditedMaps:
    """Keep the attention of some layers as the edits before it left them.

    Args:
        layers: which layers.
    """

    def __init__(self, layers: Sequence[AttentionSite]) -> None:
        self.layers = frozenset(layers)
        self.seen: dict[AttentionSite, Tensor] = {}

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return layer in self.layers

    def __call__(self, layer: AttentionSite, probabilities: Tensor, step: int) -> Tensor:
        self.seen[layer] = probabilities
        return probabilities

    def take(self, maps: AttentionMaps) -> AttentionMaps:
        """The maps of one step, which are then forgotten, in place of those that were recorded before the edits."""
        seen, self.seen = self.seen, {}
        return replace(maps, layers={layer: seen[layer] for layer in maps.layers})


class LocalBlend:
    """Keep the source's latents in the targets, except where some words are.

    Args:
        places: the words' token positions in the source and in each target.
        steps: of the schedule.
        edited: whose maps to read, those after the edits, as in the authors' code; None reads those before them.
    """

    THRESHOLD, START = 0.3, 0.2  # as published: share of the largest value; share of the steps

    def __init__(self, places: Sequence[tuple[int, ...]], steps: int, edited: EditedMaps | None = None) -> None:
        self.places, self.start, self.edited = places, int(self.START * steps), edited
        self.mean = RunningMean()

    def __call__(self, step: Step) -> Tensor:
        """The latents of a step, blended."""
        assert step.maps is not None
        self.mean.add(step.maps if self.edited is None else self.edited.take(step.maps))
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
    def of(cls, windows: Mapping[str, Window], steps: int, passes: int) -> _Windows:
        """Turn shares of the schedule into steps.

        As published, of one more than there are, and whatever passes a scheduler adds (PNDM adds one): a share of 0.8
        ends before pass int(0.8 * 51) of 50 steps.

        Args:
            windows: by word, with "*" for all others.

        Raises:
            SettingsError: a window does not lie between 0 and 1.
        """
        words = {}
        for word, window in windows.items():
            name = "cross_steps" if word == "*" else f"cross_steps of '{word}'"
            words[word] = steps_of(window, name, steps + 1)
        others = words.pop("*")
        return cls(passes, others, words)

    def holds(self, target: Prompt) -> Tensor:
        """In which steps each token's window is, bool [steps, tokens]."""
        holds = torch.zeros(self.passes, len(target.ids), dtype=torch.bool)
        holds[self.others.start : self.others.stop] = True
        for word, steps in self.words.items():
            own = list(_find(word, target))
            holds[:, own] = False
            holds[steps.start : steps.stop, own] = True
        return holds


def cross_attention(
    prompts: Sequence[Prompt],
    steps: int,
    passes: int,
    mode: Mode,
    windows: Window | Mapping[str, Window],
    reweight: Mapping[str, float],
    published: bool,
) -> CrossAttention:
    """Build the edit of a source prompt and its targets.

    Args:
        prompts: the source, then the targets.
        steps: of the schedule.
        passes: its denoiser passes.
        mode, windows, reweight, published: as in `limelight.edit`, where `windows` is called `cross_steps`.

    Raises:
        PromptError: a word is in none of the targets, or "replace" got prompts of different numbers of words.
        SettingsError: the mode is unknown, or a window does not lie between 0 and 1.
    """
    if mode not in get_args(Mode):
        raise SettingsError(f"mode='{mode}' must be 'auto', 'replace' or 'refine'.")
    source, *targets = prompts
    chosen = _Windows.of(by_word(windows, published), steps, passes)
    for word in (*chosen.words, *reweight):
        if word != "*":
            _check_in_some(word, targets)

    mappers, taken, weights = [], [], []
    for target in targets:
        if mode == "replace" or (mode == "auto" and len(source.words) == len(target.words)):
            mapper = replacement(source, target, published=published)
            own = target.end if not published else 0
        else:
            mapper = refinement(source, target)
            own = len(target.ids)

        takes = torch.ones(len(target.ids), dtype=torch.bool)
        takes[:own] = mapper[:, :own].any(dim=0)  # a new word, or new punctuation, has no map to take over
        mappers.append(mapper)
        taken.append(takes)
        weights.append(_weights(target, reweight))

    holds = torch.stack([chosen.holds(target) for target in targets], dim=1)
    share = (holds & torch.stack(taken)).float()
    return CrossAttention(torch.stack(mappers), share, torch.stack(weights), holds)


def _weights(target: Prompt, reweight: Mapping[str, float]) -> Tensor:
    """The factor of every token, [tokens]."""
    weights = torch.ones(len(target.ids))
    for word, value in reweight.items():
        weights[list(_find(word, target))] = value
    return weights


def by_word(windows: Window | Mapping[str, Window], published: bool = False) -> Mapping[str, Window]:
    """Windows by word, with "*" for all that have none of their own.

    Without "*" that is 0.8, as if no windows had been given; as published, it is all steps.
    """
    if not isinstance(windows, Mapping):
        return {"*": windows}
    return {"*": 1.0 if published else CROSS_STEPS, **windows}


def steps_of(window: Window, name: str, steps: int) -> range:
    """Turn a window, in shares of so many steps, into steps.

    Args:
        name: of the setting, for the error.

    Raises:
        SettingsError: the window does not lie between 0 and 1.
    """
    try:
        start, stop = (0.0, window) if isinstance(window, float | int) else window
        fits = 0 <= start <= stop <= 1
    except (TypeError, ValueError):  # not two numbers
        fits = False
    if not fits:
        raise SettingsError(f"{name}={window} must lie between 0 and 1, for example 0.8 or (0.2, 0.8).")
    return range(int(start * steps), int(stop * steps))


def places_of(prompts: Sequence[Prompt], local: str | Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """Find the words of a local edit in every prompt.

    Returns:
        Token positions, prompt by prompt; nothing for an edit of the whole image.

    Raises:
        PromptError: a word is in none of the prompts.
    """
    if local is None:
        return ()

    if isinstance(local, str):
        local = [local]
    places: list[tuple[int, ...]] = [()] * len(prompts)
    for word in local:
        _check_in_some(word, prompts)
        for i, prompt in enumerate(prompts):
            places[i] += _find(word, prompt)
    return tuple(places)


def kept_by_local(source: Prompt, target: Prompt, places: Sequence[int]) -> tuple[str, ...]:
    """The subjects of the source that a local edit keeps although the target drops them.

    Args:
        places: token positions of the local words in the source.
    """
    dropped: set[int] = set()
    for kind, a, b, _, _ in SequenceMatcher(None, source.keys, target.keys, autojunk=False).get_opcodes():
        if kind == "delete":
            dropped.update(position for word in source.words[a:b] for position in word.positions)

    names, subjects = resolve(source, "auto", needed=False)
    found = []
    for name, subject in zip(names, subjects, strict=True):
        if dropped.issuperset(subject.positions) and not set(places) & set(subject.positions):
            found.append(str(name))
    return tuple(found)


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
