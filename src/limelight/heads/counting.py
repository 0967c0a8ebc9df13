"""Compute head relevance vectors: count which concept every head attends to most, in every step of a generation.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

The generation itself is unchanged and keeps its fused attention: only the queries of its cross-attention layers are
read. They meet the keys of one random word of every concept, and the concept that gets the most attention gets a count.
Nothing is decoded. In transformers the words ride beside the prompt, see `limelight.attention.passengers`: with joint
attention their keys depend on the image. There is no begin token beside them.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.passengers import Passengers
from ..attention.probe import Probe
from ..errors import ModelError, SettingsError, UnknownWords
from ..generation.loop import denoise
from ..generation.provenance import provenance
from ..models.base import Model
from ..models.loading import LoadOptions, check_options, load
from ..models.sites import AttentionSite, head_slices
from ..models.transformer import Transformer
from ..models.unet import projections, text_keys, text_states
from ..prompts.prompt import Prompt
from ..utils.files import lock_file
from ..utils.numbers import MOST_IMAGES, MOST_SIDE, MOST_STEPS, check_finite, check_whole
from ..utils.parallel import device_of, in_this_process, one_thread, open_executor
from .relevance import Relevance, layers_of, vectors_of
from .vocabulary import Concepts


@dataclass(frozen=True)
class Counting:
    """What is counted. Together with a model it fixes every count.

    Noise and sampled words depend on the seed, the prompt's text (and how often it stood in the list before), the step
    and the layer alone. The list is always cut into the same passes, on any number of workers: the last digits of a
    pass depend on how many images are in it.

    Attributes:
        concepts: the concepts and their words.
        prompts: what is generated, at least one.
        seed: of noise and words.
        steps: denoising steps, at least 1 (some schedules add a few passes, and those count too).
        guidance_scale: strength of classifier-free guidance, of which only the conditional branch is counted; None is
            the model's own.
        batch: prompts in one pass, at least 1.
        blocks: how many groups of prompts are also counted apart, for intervals; at least 1.
        height, width: in pixels; None is the model's own size.

    Raises:
        SettingsError: there are no prompts, or a number is below 1.

    Examples:
        >>> concepts = Concepts({"Animals": ("cat", "dog"), "Color": ("red", "blue")})
        >>> counting = Counting(concepts, ("a cat", "a red car", "a dog"), batch=2)
        >>> counting.jobs(), counting.jobs((2, 2))
        ([range(0, 2), range(2, 3)], [range(2, 3)])
    """

    concepts: Concepts
    prompts: tuple[str, ...]
    seed: int = 22
    steps: int = 50
    guidance_scale: float | None = None
    batch: int = 4
    blocks: int = 50
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SettingsError("There are no prompts to count; give at least one.")
        check_finite(guidance_scale=self.guidance_scale)
        check_whole(2**63 - 1, -(2**63), seed=self.seed)
        check_whole(MOST_STEPS, steps=self.steps)
        check_whole(MOST_IMAGES, batch=self.batch, blocks=self.blocks)
        check_whole(MOST_SIDE, height=self.height, width=self.width)

    def jobs(self, part: tuple[int, int] = (1, 1)) -> list[range]:
        """The passes of one part of the work, as ranges of prompts.

        Args:
            part: (which, of how many), from 1.

        Raises:
            SettingsError: there is no such part, or it has no prompts.
        """
        number, parts = part
        if not 1 <= number <= parts:
            raise SettingsError(f"The part {number}/{parts} does not exist; write for example 1/4 to 4/4.")

        starts = range(0, len(self.prompts), self.batch)[number - 1 :: parts]
        if not starts:
            raise SettingsError(f"The part {number}/{parts} has no prompts; there are {len(self.prompts)}.")
        return [range(start, min(start + self.batch, len(self.prompts))) for start in starts]

    @cached_property
    def occurrences(self) -> tuple[int, ...]:
        """How often each prompt stood in the list before."""
        seen: dict[str, int] = {}
        before = []
        for prompt in self.prompts:
            before.append(seen.get(prompt, 0))
            seen[prompt] = before[-1] + 1
        return tuple(before)

    def generator(self, prompt: int, purpose: str) -> torch.Generator:
        """Random numbers of one prompt of the list, for "noise" or "words"."""
        key = f"{purpose}/{self.seed}/{self.occurrences[prompt]}/{self.prompts[prompt]}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)

    def words(self, prompt: int, passes: int, layers: int) -> Tensor:
        """The sampled words of one prompt, int64 [passes, layers, concepts] in 0..words per concept - 1."""
        generator = self.generator(prompt, "words")
        return torch.randint(self.concepts.each, (passes, layers, len(self.concepts.names)), generator=generator)


@dataclass(frozen=True, eq=False)
class Counts:
    """Integer counters, which add.

    Attributes:
        steps: int64 [steps, heads, concepts].
        blocks: int64 [blocks, heads, concepts].
        counted: bool [prompts].
    """

    steps: Tensor
    blocks: Tensor
    counted: Tensor

    def __add__(self, other: Counts) -> Counts:
        if bool((self.counted & other.counted).any()):
            raise SettingsError("Some prompts would be counted twice: the parts overlap. Give every part once.")
        return Counts(self.steps + other.steps, self.blocks + other.blocks, self.counted | other.counted)


@dataclass(frozen=True, eq=False)
class Begun:
    """What a worker finds out before its first job.

    Attributes:
        empty: vectors without a count yet, with all that the counts depend on.
        unknown: words of the concepts that the model has never seen.
    """

    empty: Relevance
    unknown: tuple[str, ...]


class Counter:
    """Counts passes on one model. A worker keeps it: it holds what all jobs have in common.

    Args:
        model: generates; its weights and attention are left as they are.
        counting: what is counted.

    Attributes:
        layers: the cross-attention layers in execution order.
        shape: (heads, concepts) of every counter.
        keys: of each layer [1 + tokens, heads, width]: the begin token's, then those of every token of every word; None
            where the words ride beside the prompt.
        slots: rows of each word's tokens in `keys`, int64 [concepts, words, longest], -1 where a word has fewer.
        lengths: tokens of each word [concepts, words].
        unknown: words that the model has never seen.

    Raises:
        ModelError: words beside a prompt do not work on the model's family.
        SettingsError: the model has no cross-attention, or cannot read a word.
    """

    def __init__(self, model: Model, counting: Counting) -> None:
        model.require("heads")
        self.model, self.counting = model, counting
        self.layers = model.text_sites
        if not self.layers:
            raise SettingsError(f"'{model.name}' has no cross-attention layers to count.")

        concepts = counting.concepts
        self.shape = sum(layer.heads for layer in self.layers), len(concepts.names)
        words = _read_words(model, concepts)
        self.unknown = tuple(dict.fromkeys(chain.from_iterable(map(model.unknown, words))))
        self.slots = _slots(words).unflatten(0, (len(concepts.names), concepts.each))
        self.lengths = (self.slots >= 0).sum(dim=-1)
        self.words = [word.text for word in words]
        self.keys = None if isinstance(model, Transformer) else _keys(model, words)

    def begin(self, job: None = None) -> Begun:
        """What all jobs have in common, as a job without content."""
        counting, concepts = self.counting, self.counting.concepts.names
        steps = torch.zeros(self.model.passes(counting.steps), *self.shape, dtype=torch.int64)
        blocks = torch.zeros(counting.blocks, *self.shape, dtype=torch.int64)
        counted = torch.zeros(len(counting.prompts), dtype=torch.bool)

        vectors, layers = vectors_of(steps.sum(dim=0)), layers_of(self.model)
        return Begun(Relevance(concepts, layers, vectors, steps, blocks, counted, self.facts), self.unknown)

    def count(self, job: range) -> tuple[Counts, str]:
        """Generate and count one pass of prompts.

        Returns:
            The counts, and the hash of the weights that they are of.
        """
        counting = self.counting
        with one_thread(self.model.device):
            watch = self._generate(job)

        blocks = torch.zeros(counting.blocks, *self.shape, dtype=torch.int64)
        blocks.index_add_(0, torch.tensor(list(job)) % counting.blocks, watch.images.cpu())
        counted = torch.zeros(len(counting.prompts), dtype=torch.bool)
        counted[list(job)] = True
        return Counts(watch.steps.cpu(), blocks, counted), self.weights

    def _generate(self, job: range) -> _Watch:
        """One pass of prompts with all its steps, watched."""
        model, counting = self.model, self.counting
        height, width = self.size
        passes = model.passes(counting.steps)
        prompts, noise, words = [], [], []
        for i in job:
            prompts.append(model.prompt(counting.prompts[i]))
            noise.append(counting.generator(i, "noise"))
            words.append(counting.words(i, passes, len(self.layers)))
        negative = model.negative_in_use(self.guidance_scale, "")
        conditioning = model.encode(prompts, negative, (height, width))
        latents = model.noise(noise, height, width)

        riders = Passengers.of(model, self.words, self.layers) if self.keys is None else None
        watch = _Watch(self, torch.stack(words, dim=2), riders)
        with Probe(model, (), images=len(prompts), queries=watch) as probe:
            for step in denoise(
                model,
                conditioning,
                latents,
                steps=counting.steps,
                guidance_scale=self.guidance_scale,
                generators=noise,
                passengers=riders,
            ):
                probe.take(step.latents, conditioning.prompts)  # every layer must have been seen
                watch.step = step.index + 1

        # Only here does the host wait for the device.
        if bool(watch.broken):
            raise ModelError(
                f"'{model.name}' as {str(model.dtype).removeprefix('torch.')} gives attention that is not a number "
                "(NaN), which can choose no concept; load the model as float32."
            )
        return watch

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        height, width = self.model.default_size
        return self.counting.height or height, self.counting.width or width

    @property
    def guidance_scale(self) -> float:
        """The strength of classifier-free guidance that was asked for, or the model's own."""
        return self.model.scale_or_own(self.counting.guidance_scale)

    @cached_property
    def weights(self) -> str:
        """A hash of what makes queries and keys: models of one name may have been trained further."""
        digest = hashlib.blake2b(digest_size=8)
        for layer in self.layers:
            for parameter in self._projections(layer):
                digest.update(parameter.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _projections(self, layer: AttentionSite) -> Iterable[Tensor]:
        """The parameters that make a layer's queries and keys; in transformers all of the layer's."""
        if self.keys is None:
            return self.model.denoiser.get_submodule(layer.name).parameters()
        return projections(self.model.denoiser, layer)

    @property
    def facts(self) -> dict[str, Any]:
        """What the counts depend on, and the versions that made them."""
        counting, (height, width) = self.counting, self.size

        return {
            **provenance(self.model),
            "weights": self.weights,
            "words": {name: list(words) for name, words in counting.concepts.words.items()},
            "prompts": list(counting.prompts),
            "seed": counting.seed,
            "steps": counting.steps,
            "guidance_scale": self.guidance_scale,
            "batch": counting.batch,
            "height": height,
            "width": width,
        }


class _Watch:
    """The counters of one pass; it is called with the queries of one layer after another.

    Args:
        counter: the layers and their keys.
        words: the sampled words [steps, layers, images, concepts].
        riders: the concepts' words, where they ride beside the prompts.

    Attributes:
        step: the step that is being counted.
        steps: int64 [steps, heads, concepts].
        images: int64 [images, heads, concepts].
        broken: whether any attention was not a number.
    """

    def __init__(self, counter: Counter, words: Tensor, riders: Passengers | None = None) -> None:
        device = counter.model.device
        self.keys, self.step, self.concepts, self.riders = counter.keys, 0, words.shape[-1], riders
        self.places = {layer: i for i, layer in enumerate(counter.layers)}
        self.slices = head_slices(counter.layers)

        columns = torch.arange(self.concepts)
        slots = counter.slots[columns, words].flatten(-2)  # [steps, layers, images, concepts * longest]
        first = torch.zeros_like(slots[..., :1])  # the begin token stands once at the front
        self.slots = torch.cat([first, slots], dim=-1).to(device)
        self.lengths = counter.lengths[columns, words].to(device)  # [steps, layers, images, concepts]

        self.steps = torch.zeros(words.shape[0], *counter.shape, dtype=torch.int64, device=device)
        self.images = torch.zeros(words.shape[2], *counter.shape, dtype=torch.int64, device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def __call__(self, layer: AttentionSite, queries: Tensor, scale: float) -> None:
        """Count one layer's queries [images, heads, pixels, width]."""
        if self.riders is not None and self.riders.riding:
            return  # a pass of theirs
        i = self.places[layer]
        slots, lengths = self.slots[self.step, i], self.lengths[self.step, i]
        keys = self._of(layer, slots)
        logits = (queries.to(keys.dtype) * scale) @ keys.transpose(-1, -2)

        # One softmax over the tokens of all the sampled words; slots that a short word leaves free take no part, nor
        # does the begin token where it has no keys.
        least = 0 if self.riders is None else 1
        logits = logits.masked_fill_((slots < least)[:, None, None], float("-inf"))
        attention = logits.softmax(dim=-1).mean(dim=2)[..., 1:]
        mean = attention.unflatten(-1, (self.concepts, -1)).sum(dim=-1) / lengths[:, None]

        self.broken |= ~mean.isfinite().all()
        chosen = F.one_hot(mean.argmax(dim=-1), self.concepts)  # [images, heads, concepts]
        heads = self.slices[layer]
        self.steps[self.step, heads] += chosen.sum(dim=0)
        self.images[:, heads] += chosen

    def _of(self, layer: AttentionSite, slots: Tensor) -> Tensor:
        """The keys of some tokens [images, slots]: [images, heads, slots, width]."""
        if self.keys is not None:
            return self.keys[layer][slots.clamp(min=0)].movedim(1, 2)
        assert self.riders is not None
        keys = self.riders.keys[layer].expand(len(slots), -1, -1, -1)
        index = (slots - 1).clamp(min=0)[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        return keys.gather(2, index).to(torch.promote_types(keys.dtype, torch.float32))


def _read_words(model: Model, concepts: Concepts) -> list[Prompt]:
    """Every word as a prompt of its own, one concept after the other."""
    prompts = list(map(model.prompt, chain.from_iterable(concepts.words.values())))
    for prompt in prompts:
        if prompt.end < 2:
            raise SettingsError(f"The word '{prompt.text}' has no tokens that this model reads; choose another.")
        if any(not word.positions for word in prompt.words):
            raise SettingsError(
                f"The word '{prompt.text}' is longer than the {len(prompt.ids)} tokens this model reads; shorten it."
            )
    return prompts


def _slots(words: Sequence[Prompt]) -> Tensor:
    """The rows of each word's tokens in a table of all their tokens, int64 [words, longest]; row 0 is the begin token.

    Where a word has fewer tokens than the longest, -1.
    """
    slots = torch.full((len(words), max(word.end - 1 for word in words)), -1)
    taken = 1
    for row, word in zip(slots, words, strict=True):
        tokens = word.end - 1
        row[:tokens] = torch.arange(taken, taken + tokens)
        taken += tokens
    return slots


@torch.no_grad()
def _keys(model: Model, words: Sequence[Prompt]) -> dict[AttentionSite, Tensor]:
    """The keys of the begin token and of every token of every word, for each layer [1 + tokens, heads, width]."""
    parts: list[Tensor] = []
    for start in range(0, len(words), 32):  # in parts: of the encoded words only the own tokens stay
        some = words[start : start + 32]
        states = text_states(model.encode(some))
        if not parts:
            parts.append(states[0, :1])
        parts += [state[1 : word.end] for word, state in zip(some, states, strict=True)]

    tokens, keys = torch.cat(parts), {}
    for layer in model.text_sites:
        own = text_keys(model.denoiser, layer, tokens)
        keys[layer] = own.to(torch.promote_types(own.dtype, torch.float32))
    return keys


class _Tally:
    """The counts of a run so far, and the file that keeps them.

    Args:
        empty: the vectors before the first count, with what the counts depend on.
        out: the file; None keeps nothing. If it exists, its counts are continued.
        every: least seconds between two writings.

    Raises:
        FileError: the file cannot be read.
        SettingsError: the file holds the counts of other settings.
    """

    def __init__(self, empty: Relevance, out: Path | None, every: float) -> None:
        self.empty, self.out, self.every = empty, out, every
        self.counts = _counts(empty)
        if out is not None and out.exists():
            earlier = Relevance.load(out)
            _check_same(earlier.facts, empty.facts, f"'{out}'")
            self.counts = _counts(earlier)
        self.written = time.monotonic()

    @property
    def relevance(self) -> Relevance:
        return _with(self.empty, self.counts)

    def left(self, jobs: Sequence[range], part: tuple[int, int]) -> list[range]:
        """The jobs that are still to be done.

        Raises:
            SettingsError: prompts of another part have been counted.
        """
        others = self.counts.counted.clone()
        for job in jobs:
            others[list(job)] = False
        if bool(others.any()):
            raise SettingsError(
                f"'{self.out}' holds prompts of another part than {part[0]}/{part[1]}; choose another file."
            )
        return [job for job in jobs if not bool(self.counts.counted[list(job)].all())]

    def add(self, counts: Counts, weights: str) -> None:
        """Add the counts of one job, and write the file if it is time.

        Raises:
            SettingsError: they are of a model with other weights.
        """
        if weights != self.empty.facts["weights"]:
            raise SettingsError("Two workers would count different models: their weights differ.")
        self.counts = self.counts + counts
        if time.monotonic() - self.written >= self.every:
            self.save()

    def save(self) -> None:
        if self.out is not None:
            self.relevance.save(self.out)
            self.written = time.monotonic()


def compute(
    model: str | Path | Model,
    counting: Counting,
    out: str | Path | None = None,
    *,
    part: tuple[int, int] = (1, 1),
    every: float = 20.0,
    device: str | None = None,
    loading: LoadOptions | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    on_job: Callable[[int, int], None] | None = None,
) -> Relevance:
    """Count, and continue where an earlier run with the same file was stopped. The counts do not depend on the workers.

    Args:
        model: a name that every worker loads, see `limelight.load`; or one that is open, which counts in this process.
        counting: what to count.
        out: the file, written anew from time to time and at the end; None keeps nothing.
        part: (which, of how many) parts of the work to do, from 1; `merge` adds the parts' files.
        every: least seconds between two writings.
        device: of the workers' models, see `limelight.load`; not of an open one.
        loading: how their weights are kept, ``{"dtype": "bfloat16", "quantize": "8bit"}`` for example, see there; not
            of an open one.
        engine, workers, address: see `limelight.utils.parallel.open_executor`.
        on_job: called after every pass with the prompts done and the prompts of this part.

    Raises:
        FileError: the file cannot be read or written, or another program writes it.
        ModelError: the model gives values that are not numbers.
        SettingsError: the file holds other counts; or the workers have different models.
        ExecutorError: a pass failed again and again.

    Examples:
        >>> concepts = Concepts({"Animals": ("cat", "dog"), "Color": ("red", "blue")})
        >>> relevance = compute("pocket", Counting(concepts, ("a cat",), steps=1), workers=1)
        >>> relevance.vectors.shape, int(relevance.counts.sum())
        (torch.Size([2, 24]), 24)
    """
    check_options(loading or {})
    if isinstance(model, Model):
        workers = in_this_process(f"model '{model.name}'", engine, workers, device=device, loading=loading)
    jobs = counting.jobs(part)
    prompts = sum(map(len, jobs))

    start = partial(_start, model, device, loading or {}, counting)
    path = None if out is None else Path(out)
    # Two parts that write one file at the same time would lose the counts of one.
    with (
        open_executor(start, engine=engine, workers=workers, address=address) as executor,
        nullcontext() if path is None else lock_file(path),
    ):
        (_, begun), *_ = executor.map(Counter.begin, [None])
        if begun.unknown:
            so = "counts of them mean nothing"
            warnings.warn(UnknownWords(begun.empty.facts["model"], begun.unknown, so), stacklevel=2)

        tally = _Tally(begun.empty, path, every)
        for _, (counts, weights) in executor.map(Counter.count, tally.left(jobs, part)):
            tally.add(counts, weights)
            if on_job:
                on_job(int(tally.counts.counted.sum()), prompts)
        tally.save()
    return tally.relevance


def _start(
    model: str | Path | Model, device: str | None, loading: LoadOptions, counting: Counting, slot: int
) -> Counter:
    if not isinstance(model, Model):
        model = load(model, device=device_of(slot, device), **cast(Any, loading))
    return Counter(model, counting)


def merge(parts: Sequence[Relevance]) -> Relevance:
    """Add the counts of several parts of one run.

    Raises:
        SettingsError: they are of different runs, or overlap.
    """
    first = parts[0]
    counts = _counts(first)
    for part in parts[1:]:
        _check_same(first.facts, part.facts, "One of the parts")
        counts = counts + _counts(part)
    return _with(first, counts)


def _with(relevance: Relevance, counts: Counts) -> Relevance:
    """The vectors of the same run with other counts."""
    vectors = vectors_of(counts.steps.sum(dim=0))
    return replace(relevance, vectors=vectors, counts=counts.steps, blocks=counts.blocks, counted=counts.counted)


def _counts(relevance: Relevance) -> Counts:
    if relevance.counts is None or relevance.blocks is None or relevance.counted is None:
        raise SettingsError("Imported vectors cannot be continued; choose another file.")
    return Counts(relevance.counts, relevance.blocks, relevance.counted)


_OWN = frozenset({"versions"})  # facts that may differ between runs of one count


def _check_same(known: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    for name in (known.keys() | wanted.keys()) - _OWN:
        if known.get(name) != wanted.get(name):
            shown = "" if name in ("prompts", "words") else f" ({known.get(name)} and {wanted.get(name)})"
            raise SettingsError(
                f"{what} was counted with other {name}{shown}; choose another file, or the settings of its first run."
            )
