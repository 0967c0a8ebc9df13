"""Computing head relevance vectors: while a model draws, every head says in every step which concept it likes best.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

The drawing itself is untouched and keeps its fused attention: only the queries of its cross-attention layers are read.
They are held against the keys of one random word of every concept, and the concept that gets the most attention gets a
count. Nothing is decoded.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.probe import Probe
from ..errors import SettingsError, UnknownWords
from ..generation.loop import denoise
from ..generation.provenance import provenance
from ..models.base import Model
from ..models.loading import load
from ..models.sites import AttentionSite, head_slices
from ..utils.parallel import device_of, one_thread, open_executor
from .relevance import Relevance, vectors_of
from .vocabulary import Concepts


@dataclass(frozen=True)
class Counting:
    """What is counted. Together with a model it fixes every count.

    Noise and drawn words depend on the seed, the prompt's text (and how often it stood in the list before), the step
    and the layer alone. The list is always cut into the same passes, whoever draws them: the last digits of a pass
    depend on how many pictures are in it.

    Attributes:
        concepts: the concepts and their words.
        prompts: what is drawn.
        seed: of noise and words.
        steps: inference steps (some schedules add a few passes, and those count too).
        guidance_scale: strength of classifier-free guidance; only the conditional branch is counted.
        batch: prompts a pass.
        blocks: how many groups of prompts are also counted apart, for intervals.
        height, width: in pixels; None is the model's own size.
    """

    concepts: Concepts
    prompts: tuple[str, ...]
    seed: int = 22
    steps: int = 50
    guidance_scale: float = 7.5
    batch: int = 4
    blocks: int = 50
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SettingsError("There are no prompts to draw.")
        for name in ("steps", "batch", "blocks"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)} must be at least 1.")

    def jobs(self, share: tuple[int, int] = (1, 1)) -> list[range]:
        """The passes of one share of the work, as ranges of prompts.

        Args:
            share: (which, of how many), from 1.
        """
        part, parts = share
        if not 1 <= part <= parts:
            raise SettingsError(f"The share {part}/{parts} does not exist; write for example 1/4 to 4/4.")
        starts = range(0, len(self.prompts), self.batch)
        return [range(s, min(s + self.batch, len(self.prompts))) for s in starts[part - 1 :: parts]]

    @cached_property
    def occurrences(self) -> tuple[int, ...]:
        """How often each prompt stood in the list before."""
        seen: dict[str, int] = {}
        return tuple(seen.update({p: seen.get(p, -1) + 1}) or seen[p] for p in self.prompts)

    def generator(self, prompt: int, purpose: str) -> torch.Generator:
        """Random numbers of one prompt of the list, for "noise" or "words"."""
        key = f"{purpose}/{self.seed}/{self.occurrences[prompt]}/{self.prompts[prompt]}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)

    def words(self, prompt: int, passes: int, layers: int) -> Tensor:
        """The drawn words of one prompt, int64 [passes, layers, concepts] in 0..words per concept - 1."""
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
            raise SettingsError("Some prompts would be counted twice; the shares overlap.")
        return Counts(self.steps + other.steps, self.blocks + other.blocks, self.counted | other.counted)


@dataclass(frozen=True, eq=False)
class Begun:
    """What a worker says before its first job.

    Attributes:
        empty: vectors that nothing has been counted for yet, with all that the counts depend on.
        unknown: words of the concepts that the model has never seen.
    """

    empty: Relevance
    unknown: tuple[str, ...]


class Counter:
    """Counts passes on one model: a function of a job alone, with what all jobs share at hand. What a worker keeps.

    Args:
        model: draws; its weights and attention are left as they are.
        counting: what is counted.
    """

    def __init__(self, model: Model, counting: Counting) -> None:
        self.model, self.counting = model, counting
        self.layers = model.text_sites
        if not self.layers:
            raise SettingsError(f"'{model.name}' has no cross-attention layers to count.")
        self.keys, self.slots, self.unknown = _tables(model, counting.concepts, self.layers)
        self.lengths = (self.slots >= 0).sum(dim=-1)  # tokens of each word [concepts, words]

    def begin(self, job: None = None) -> Begun:
        """What all jobs share; the job of finding it out has no content of its own."""
        counting, concepts = self.counting, self.counting.concepts.names
        layers = tuple((layer.group, layer.heads) for layer in self.layers)
        shape = sum(layer.heads for layer in self.layers), len(concepts)
        steps = torch.zeros(len(self.model.timesteps(counting.steps)), *shape, dtype=torch.int64)
        blocks = torch.zeros(counting.blocks, *shape, dtype=torch.int64)
        counted = torch.zeros(len(counting.prompts), dtype=torch.bool)
        vectors = vectors_of(steps.sum(dim=0))
        return Begun(Relevance(concepts, layers, vectors, steps, blocks, counted, self.facts), self.unknown)

    def count(self, job: range) -> tuple[Counts, str]:
        """Draw and count one pass of prompts.

        Returns:
            The counts, and the hash of the weights that they are of.
        """
        model, counting = self.model, self.counting
        height, width = counting.height or model.default_size[0], counting.width or model.default_size[1]
        prompts = [model.prompt(counting.prompts[i]) for i in job]
        noise = [counting.generator(i, "noise") for i in job]
        negative = "" if counting.guidance_scale > 1 else None
        with one_thread(model.device):
            conditioning = model.encode(prompts, negative, (height, width))
            latents = model.noise(noise, height, width)
            passes = len(model.timesteps(counting.steps))
            drawn = torch.stack([counting.words(i, passes, len(self.layers)) for i in job], dim=2)
            watch = _Watch(self, drawn)
            with Probe(model, (), images=len(prompts), queries=watch) as probe:
                for step in denoise(
                    model,
                    conditioning,
                    latents,
                    steps=counting.steps,
                    guidance_scale=counting.guidance_scale,
                    generators=noise,
                ):
                    probe.take(step.latents, conditioning.prompts)  # every layer must have been seen
                    watch.step = step.index + 1
        blocks = torch.zeros(counting.blocks, *watch.images.shape[1:], dtype=torch.int64)
        blocks.index_add_(0, torch.tensor([i % counting.blocks for i in job]), watch.images.cpu())
        counted = torch.zeros(len(counting.prompts), dtype=torch.bool)
        counted[list(job)] = True
        return Counts(watch.steps.cpu(), blocks, counted), self.weights

    @cached_property
    def weights(self) -> str:
        """A hash of what makes queries and keys: models of one name may have been trained further."""
        digest = hashlib.blake2b(digest_size=8)
        for layer in self.layers:
            module = self.model.denoiser.get_submodule(layer.name)
            for part in (module.to_q, module.to_k):
                for parameter in part.parameters():
                    digest.update(parameter.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What the counts depend on, and the versions that made them."""
        model, counting = self.model, self.counting
        return {
            **provenance(model),
            "weights": self.weights,
            "words": {name: list(words) for name, words in counting.concepts.words.items()},
            "prompts": list(counting.prompts),
            **{name: getattr(counting, name) for name in ("seed", "steps", "guidance_scale", "batch")},
            "height": counting.height or model.default_size[0],
            "width": counting.width or model.default_size[1],
        }


class _Watch:
    """The counters of one pass: sees the queries of one layer after another."""

    def __init__(self, counter: Counter, drawn: Tensor) -> None:
        """Args: drawn: words [steps, layers, images, concepts]."""
        device = counter.model.device
        concepts = len(counter.counting.concepts.names)
        heads = sum(layer.heads for layer in counter.layers)
        columns = torch.arange(concepts)
        slots = counter.slots[columns, drawn].flatten(-2)  # [steps, layers, images, concepts * longest]
        first = torch.zeros_like(slots[..., :1])  # the begin token stands once at the front
        self.slots = torch.cat([first, slots], dim=-1).to(device)
        self.lengths = counter.lengths[columns, drawn].to(device)  # [steps, layers, images, concepts]
        self.places = {layer: i for i, layer in enumerate(counter.layers)}
        self.keys, self.step, self.concepts = counter.keys, 0, concepts
        self.slices = head_slices(counter.layers)
        self.steps = torch.zeros(drawn.shape[0], heads, concepts, dtype=torch.int64, device=device)
        self.images = torch.zeros(drawn.shape[2], heads, concepts, dtype=torch.int64, device=device)

    @torch.no_grad()
    def __call__(self, layer: AttentionSite, queries: Tensor, scale: float) -> None:
        """Count one layer's queries [images, heads, pixels, width]."""
        i = self.places[layer]
        slots, lengths = self.slots[self.step, i], self.lengths[self.step, i]
        keys = self.keys[layer][slots.clamp(min=0)].movedim(1, 2)  # [images, heads, slots, width]
        logits = (queries.to(keys.dtype) * scale) @ keys.transpose(-1, -2)
        # One softmax over the tokens of all the drawn words; slots that a short word leaves free take no part.
        logits = logits.masked_fill_((slots < 0)[:, None, None], float("-inf"))
        attention = logits.softmax(dim=-1).mean(dim=2)[..., 1:]
        mean = attention.unflatten(-1, (self.concepts, -1)).sum(dim=-1) / lengths[:, None]
        chosen = F.one_hot(mean.argmax(dim=-1), self.concepts)  # [images, heads, concepts]
        heads = self.slices[layer]
        self.steps[self.step, heads] += chosen.sum(dim=0)
        self.images[:, heads] += chosen


@torch.no_grad()
def _tables(
    model: Model, concepts: Concepts, layers: Sequence[AttentionSite]
) -> tuple[dict[AttentionSite, Tensor], Tensor, tuple[str, ...]]:
    """The keys of every token of every word, and where each word has its own.

    Returns:
        For each layer [1 + tokens, heads, width], the begin token first; and int64 [concepts, words, longest], the rows
        of each word's tokens, -1 where it has fewer; and the words that the model has never seen.
    """
    prompts = [model.prompt(word) for words in concepts.words.values() for word in words]
    for prompt in prompts:
        if prompt.end < 2:
            raise SettingsError(f"The word '{prompt.text}' has no tokens that this model reads; choose another.")
        if any(not word.positions for word in prompt.words):
            raise SettingsError(
                f"The word '{prompt.text}' is longer than the {len(prompt.ids)} tokens this model reads; shorten it."
            )
    unknown = tuple(dict.fromkeys(word for prompt in prompts for word in model.unknown(prompt)))
    longest = max(prompt.end - 1 for prompt in prompts)
    slots = torch.full((len(prompts), longest), -1)
    parts: list[Tensor] = []
    taken = 1
    for start in range(0, len(prompts), 32):
        some = prompts[start : start + 32]
        states = model.encode(some).conditional["encoder_hidden_states"]
        if not parts:
            parts.append(states[0, :1])
        for offset, (prompt, state) in enumerate(zip(some, states, strict=True)):
            parts.append(state[1 : prompt.end])
            slots[start + offset, : prompt.end - 1] = torch.arange(taken, taken + prompt.end - 1)
            taken += prompt.end - 1
    tokens = torch.cat(parts)
    keys = {}
    for layer in layers:
        module = model.denoiser.get_submodule(layer.name)
        states = module.norm_encoder_hidden_states(tokens[None])[0] if module.norm_cross else tokens
        key = module.to_k(states).unflatten(-1, (layer.heads, -1))
        if module.norm_k is not None:
            key = module.norm_k(key)
        keys[layer] = key.to(torch.promote_types(key.dtype, torch.float32))
    return keys, slots.unflatten(0, (len(concepts.names), concepts.each)), unknown


_OWN = frozenset({"versions"})  # facts that may differ between runs of one count


def compute(
    model: str | Path | Model,
    counting: Counting,
    out: str | Path | None = None,
    *,
    share: tuple[int, int] = (1, 1),
    every: float = 20.0,
    device: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    on_job: Callable[[int, int], None] | None = None,
) -> Relevance:
    """Count, and go on where an earlier run with the same file was stopped. The counts are the same whoever does them.

    Args:
        model: a name that every worker loads, see `limelight.load`; or one that is open, which counts in this process.
        counting: what to count.
        out: the file, written anew from time to time and at the end; None keeps nothing.
        share: (which, of how many) parts of the work to do, from 1; `merge` adds the parts' files.
        every: least seconds between two writings.
        device: of the workers' models, see `limelight.load`.
        engine, workers, address: see `limelight.evaluate.executor.open_executor`.
        on_job: called after every pass with the prompts done and the prompts of this share.

    Raises:
        SettingsError: the file holds other counts, or cannot be written; or the workers have different models.
        ExecutorError: a pass failed again and again.
    """
    if isinstance(model, Model):
        if engine != "local" or (workers or 1) > 1:
            raise SettingsError(f"The open model '{model.name}' cannot go to other workers; give its name instead.")
        workers = 1
    jobs = counting.jobs(share)
    prompts = sum(map(len, jobs))
    if not jobs:
        raise SettingsError(f"The share {share[0]}/{share[1]} holds no prompts; there are {len(counting.prompts)}.")
    start = partial(_start, model, device, counting)
    with open_executor(start, engine=engine, workers=workers, address=address) as executor:
        (_, begun), *_ = executor.map(Counter.begin, [None])
        if begun.unknown:
            so = "counts of them mean nothing"
            warnings.warn(UnknownWords(begun.empty.facts["model"], begun.unknown, so), stacklevel=2)
        total = _resumed(Path(out), begun.empty) if out is not None and Path(out).exists() else _counts(begun.empty)
        mine = {i for job in jobs for i in job}
        if any(i not in mine for i in total.counted.nonzero().flatten().tolist()):
            raise SettingsError(
                f"'{out}' holds prompts of another share than {share[0]}/{share[1]}; choose another file."
            )
        written = time.monotonic()
        left = [job for job in jobs if not bool(total.counted[list(job)].all())]
        for _, (counts, weights) in executor.map(Counter.count, left):
            if weights != begun.empty.facts["weights"]:
                raise SettingsError("Two workers would count different models: their weights differ.")
            total = total + counts
            if out is not None and time.monotonic() - written >= every:
                _with(begun.empty, total).save(out)
                written = time.monotonic()
            if on_job:
                on_job(int(total.counted.sum()), prompts)
    relevance = _with(begun.empty, total)
    if out is not None:
        relevance.save(out)
    return relevance


def _start(model: str | Path | Model, device: str | None, counting: Counting, slot: int) -> Counter:
    return Counter(model if isinstance(model, Model) else load(model, device=device_of(slot, device)), counting)


def merge(parts: Sequence[Relevance]) -> Relevance:
    """Add the counts of several shares of one run.

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


def _resumed(path: Path, empty: Relevance) -> Counts:
    """What an earlier run left in its file."""
    relevance = Relevance.load(path)
    _check_same(relevance.facts, empty.facts, f"'{path}'")
    return _counts(relevance)


def _counts(relevance: Relevance) -> Counts:
    if relevance.counts is None or relevance.blocks is None or relevance.counted is None:
        raise SettingsError("Imported vectors cannot be counted on; choose another file.")
    return Counts(relevance.counts, relevance.blocks, relevance.counted)


def _check_same(known: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    for name in (known.keys() | wanted.keys()) - _OWN:
        if known.get(name) != wanted.get(name):
            shown = "" if name in ("prompts", "words") else f" ({known.get(name)} and {wanted.get(name)})"
            raise SettingsError(
                f"{what} was counted with other {name}{shown}; choose another file, or the settings that it was begun "
                "with."
            )
