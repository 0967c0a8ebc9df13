"""Prompt-to-prompt: change a picture by changing its prompt, and keep the rest of it.

Amir Hertz, Ron Mokady, Jay Tenenbaum, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, "Prompt-to-Prompt Image Editing with
Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626

Source and targets are drawn in one batch from the same noise. While they are, the targets' words take over the maps of
the source's words, and the targets' self-attention that of the source. Words may be strengthened by the heads of a
concept, see `limelight.heads`.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import PromptError, SettingsError
from .generate import Drawn, Step, denoise, in_passes, provenance
from .heads.relevance import Relevance, relevance_for
from .inversion import Inversion, invert
from .maps import RunningMean, none
from .models.base import Conditioning, Layer, Model
from .probe import Edit
from .prompt import Prompt
from .result import Result

Window = float | tuple[float, float]
"""Until which share of the steps, 0..1; or from which to which."""
Mode = Literal["auto", "replace", "refine"]


@dataclass(frozen=True, eq=False)
class EditResult:
    """A picture and what was made of it.

    Attributes:
        source: the pictures of the source prompt, one per seed; of a real picture, its reconstruction.
        targets: the same of each target prompt.
    """

    source: Result
    targets: tuple[Result, ...]

    @property
    def target(self) -> Result:
        """The first target."""
        return self.targets[0]

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write everything as `Result.save` does; returns the pictures' paths, the source's first."""
        return [path for result in (self.source, *self.targets) for path in result.save(folder)]


def edit(
    model: Model,
    source: str,
    target: str | Sequence[str],
    *,
    seeds: int | Sequence[int] = 0,
    image: Image.Image | Inversion | None = None,
    null_text: bool = False,
    mode: Mode = "auto",
    cross_steps: Window | Mapping[str, Window] = 0.8,
    self_steps: Window | None = None,
    strengthen: Mapping[str, str] | None = None,
    relevance: Relevance | str | Path | None = None,
    local: str | Sequence[str] | None = None,
    reweight: Mapping[str, float] | None = None,
    published: bool = False,
    steps: int = 50,
    guidance_scale: float = 7.5,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    batch: int | None = None,
    record: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> EditResult:
    """Draw a prompt, and the same picture as other prompts would have it.

    Args:
        model: see `limelight.load`.
        source: what the picture shows.
        target: what it should show instead; several targets are drawn beside each other.
        seeds: one or several; a picture depends on its seed alone.
        image: a real picture to edit, which `source` describes; it is inverted first, see `limelight.invert`.
        null_text: invert it exactly, which takes minutes on a GPU for Stable Diffusion.
        mode: "replace" swaps words one for one, "refine" keeps what both prompts share; "auto" replaces where the
            prompts have equally many words.
        cross_steps: how long the words' maps are the source's. By word, with "*" for all others:
            ``{"*": 0.8, "red": (0.0, 0.4)}``.
        self_steps: how long the self-attention is the source's, in the layers from `Model.guided_scale` inwards, as
            published (16 x 16 and smaller at 512 pixels); longer keeps more of the shape.
        strengthen: concepts of the target's words, ``{"red": "Colours"}``: such a word keeps its own maps, every head
            times its relevance to the concept, for as long as `cross_steps` lasts (P2P-HRV of Jungwon Park et al.,
            "Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in Text-to-Image Generative
            Models", 2024, https://arxiv.org/abs/2412.02237).
        relevance: the vectors for that, or their file; None takes those that are shipped for the model.
        local: words outside whose place the picture stays as it is.
        reweight: how much more (above 1) or less (below 1) words of the target should show, for as long as
            `cross_steps` lasts.
        published: place the tokens after a replaced word as the authors' code does, which shifts them where the words
            differ in their number of tokens.
        steps, guidance_scale, negative, height, width, batch, record, on_step: as in `limelight.generate`; `batch`
            counts sources and targets.

    Raises:
        PromptError: a word is in none of the prompts, or "replace" got prompts of different numbers of words.
        SettingsError: a setting is out of range.
    """
    targets = [target] if isinstance(target, str) else list(target)
    seeds = tuple(operator.index(s) for s in (seeds if isinstance(seeds, Iterable) else (seeds,)))
    if not targets or not seeds:
        raise SettingsError("An edit needs at least one target prompt and one seed.")
    texts = [source, *targets]
    prompts = [model.prompt(text) for text in texts]
    size = (height or model.default_size[0], width or model.default_size[1])
    if null_text and image is None:
        raise SettingsError("null_text inverts a real picture; give one as image.")
    if isinstance(image, Image.Image):
        image = invert(
            model, image, source, steps=steps, guidance_scale=guidance_scale, negative=negative, null_text=null_text,
            size=size,
        )  # fmt: skip
    if image is not None:
        image.check(model, source, steps, size)
        seeds = seeds[:1]
    passes, rows = len(model.timesteps(steps)), len(texts)
    cross = _cross(prompts, passes, mode, cross_steps, reweight or {}, published)
    if strengthen:
        cross = cross.strengthened(model, prompts[1:], strengthen, relevance)
    if self_steps is None:
        self_steps = 0.9 if strengthen else 0.4
    edits: list[Edit] = [
        cross.to(model.device),
        _SelfAttention(rows, model.guided_scale, _window(self_steps, "self_steps", passes)),
    ]
    places = _places(prompts, local)

    def draw(which: range, _lean: bool) -> Drawn:
        generators = [torch.Generator().manual_seed(seeds[i]) for i in which for _ in range(rows)]
        noise = model.noise(generators, *size)
        encoded = model.encode(prompts * len(which), negative if guidance_scale > 1 else None, size)
        conditioning: Conditioning | list[Conditioning] = encoded
        if image is not None:
            noise = image.noise.to(noise).expand_as(noise)
            conditioning = image.conditioning(encoded, passes)
        blend = _LocalBlend(places, passes) if places else None
        loop = denoise(
            model, conditioning, noise, steps=steps, guidance_scale=guidance_scale, edits=edits,
            record=record or blend is not None, generators=generators,
        )  # fmt: skip
        mean, step = RunningMean(), next(loop)
        while True:
            final = blend(step) if blend else step.latents
            if record and step.maps is not None:
                mean.add(step.maps)
            if on_step:
                on_step(step)
            try:
                step = loop.send(final)
            except StopIteration:
                maps = mean.result()
                return Drawn(model.decode(final), final, none(final, encoded.prompts) if maps is None else maps, [])

    limit = batch if batch is not None else 8 if model.device.type == "cpu" else 64
    drawn = Drawn.join(in_passes(model, draw, len(seeds), limit, size, lean=True, rows=rows))
    settings = {
        "negative": negative,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "height": size[0],
        "width": size[1],
        "source": source,
        "image": None if image is None else "given",
        "null_text": image is not None and image.unconditional is not None,
        "mode": mode,
        "cross_steps": cross_steps if isinstance(cross_steps, float | int) else dict(_by_word(cross_steps)),
        "self_steps": self_steps,
        "strengthen": dict(strengthen or {}),
        "local": local,
        "reweight": dict(reweight or {}),
        "published": published,
        **provenance(model),
    }
    results = []
    for i, text in enumerate(texts):
        own = slice(i, None, rows)
        results.append(
            Result(
                drawn.images[own],
                drawn.latents[own],
                drawn.maps.images(own),
                (),
                {"prompt": text, "subjects": [], **settings},
                seeds,
                (),
            )
        )
    return EditResult(results[0], tuple(results[1:]))


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
    score = torch.zeros(len(old) + 1, len(new) + 1, dtype=torch.int64)
    for i, x in enumerate(old, 1):
        for j, y in enumerate(new, 1):
            score[i, j] = max(score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + (1 if x == y else -1))
    matrix = torch.zeros(length, length)
    i, j = len(old), len(new)
    while i and j:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            matrix[i, j] = 1
    padding = range(len(new), length)
    matrix[padding, padding] = 1
    return matrix


@dataclass(frozen=True, eq=False)
class _CrossAttention:
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
    gains: Mapping[Layer, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> _CrossAttention:
        gains = {layer: gain.to(device) for layer, gain in self.gains.items()}
        return _CrossAttention(
            self.mapper.to(device), self.share.to(device), self.weights.to(device), self.weighted, gains
        )

    def strengthened(
        self,
        model: Model,
        targets: Sequence[Prompt],
        concepts: Mapping[str, str],
        relevance: Relevance | str | Path | None,
    ) -> _CrossAttention:
        """The same where words keep their own maps, every head times its relevance to the word's concept."""
        vectors, gains = relevance_for(model, relevance), {}
        share, at = self.share.clone(), {}
        for word, concept in concepts.items():
            _in_some(word, targets)
            for i, target in enumerate(targets):
                at[i, concept] = own = list(_find(word, target))
                new = [token for token in own if not self.mapper[i, :, token].any()]
                share[self.weighted.start : self.weighted.stop, i, new] = 1
        first = 0
        for layer in model.layers:
            if layer.kind == "cross":
                gains[layer] = torch.full((len(targets), layer.heads, 1, share.shape[-1]), torch.nan)
                for (i, concept), own in at.items():
                    gains[layer][i, ..., own] = vectors[concept][first : first + layer.heads, None, None].float()
                first += layer.heads
        return replace(self, share=share, gains=gains)

    @cached_property
    def _active(self) -> list[bool]:
        heavy = bool((self.weights != 1).any())
        return [bool(share.any()) or (heavy and step in self.weighted) for step, share in enumerate(self.share.cpu())]

    def touches(self, layer: Layer, step: int) -> bool:
        return layer.kind == "cross" and self._active[step]

    def __call__(self, layer: Layer, probabilities: Tensor, step: int) -> Tensor:
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


class _SelfAttention:
    """The targets' pixels look where the source's do."""

    def __init__(self, rows: int, scale: int, window: range) -> None:
        self.rows, self.scale, self.window = rows, scale, window

    def touches(self, layer: Layer, step: int) -> bool:
        return layer.kind == "self" and layer.scale >= self.scale and step in self.window

    def __call__(self, layer: Layer, probabilities: Tensor, step: int) -> Tensor:
        return probabilities[:: self.rows].repeat_interleave(self.rows, dim=0)


class _LocalBlend:
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


def _cross(
    prompts: Sequence[Prompt],
    passes: int,
    mode: Mode,
    windows: Window | Mapping[str, Window],
    reweight: Mapping[str, float],
    published: bool,
) -> _CrossAttention:
    source, *targets = prompts
    if mode not in ("auto", "replace", "refine"):
        raise SettingsError(f"mode='{mode}' must be 'auto', 'replace' or 'refine'.")
    by_word = _by_word(windows)
    everything = _window(by_word.get("*", 0.8), "cross_steps", passes + 1)
    mappers, shares, weights = [], [], []
    for target in targets:
        swapped = mode == "replace" or (mode == "auto" and len(source.words) == len(target.words))
        mapper = replacement(source, target, published=published) if swapped else refinement(source, target)
        share = torch.zeros(passes, len(target.ids))
        share[everything.start : everything.stop] = 1
        for word, window in by_word.items():
            if word != "*" and (found := _find(word, target)):
                own = _window(window, f"cross_steps of '{word}'", passes + 1)
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
    for word in (*by_word, *reweight):
        if word != "*":
            _in_some(word, targets)
    return _CrossAttention(torch.stack(mappers), torch.stack(shares, 1), torch.stack(weights), everything)


def _by_word(windows: Window | Mapping[str, Window]) -> Mapping[str, Window]:
    return windows if isinstance(windows, Mapping) else {"*": windows}


def _window(window: Window, name: str, passes: int) -> range:
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


def _places(prompts: Sequence[Prompt], local: str | Sequence[str] | None) -> list[tuple[int, ...]]:
    """Positions of the words of a local edit in every prompt; empty for an edit of the whole picture."""
    if local is None:
        return []
    words = [local] if isinstance(local, str) else list(local)
    for word in words:
        _in_some(word, prompts)
    return [tuple(position for word in words for position in _find(word, prompt)) for prompt in prompts]
