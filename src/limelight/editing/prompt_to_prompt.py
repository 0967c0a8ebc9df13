"""Prompt-to-prompt: change a picture by changing its prompt, and keep the rest of it.

Amir Hertz, Ron Mokady, Jay Tenenbaum, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, "Prompt-to-Prompt Image Editing with
Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626

Source and targets are drawn in one batch from the same noise. While they are, the targets' words take over the maps of
the source's words, and the targets' self-attention that of the source. Words may be strengthened by the heads of a
concept, see `limelight.heads`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..attention.edits import Edit
from ..attention.maps import AttentionMaps, none
from ..attention.recording import RunningMean
from ..errors import SettingsError
from ..generation.batches import PassResult, in_passes
from ..generation.loop import Step, denoise
from ..generation.plan import checked, warn_of_unknown
from ..generation.provenance import provenance
from ..generation.result import Result
from ..heads.relevance import Relevance
from ..models.base import Conditioning, Model
from .attention_edits import LocalBlend, Mode, SelfAttention, Window, by_word, cross_attention, places_of, steps_of
from .image_inversion import Inversion, invert_image


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
    head_vectors: Relevance | str | Path | None = None,
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
        image: a real picture to edit, which `source` describes; it is inverted first, see `limelight.invert_image`.
        null_text: invert it exactly, which takes minutes on a GPU for Stable Diffusion.
        mode: "replace" swaps words one for one, "refine" keeps what both prompts share; "auto" replaces where the
            prompts have equally many words.
        cross_steps: how long the words' maps are the source's. By word, with "*" for all others:
            ``{"*": 0.8, "red": (0.0, 0.4)}``.
        self_steps: how long the self-attention is the source's, in the layers from `Model.guided_scale` inwards, as
            published (16 x 16 and smaller at 512 pixels); longer keeps more of the shape.
        strengthen: concepts of the target's words, ``{"red": "Color"}``: such a word keeps its own maps, every head
            times its relevance to the concept, for as long as `cross_steps` lasts (P2P-HRV of Jungwon Park et al.,
            "Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in Text-to-Image Generative
            Models", 2024, https://arxiv.org/abs/2412.02237).
        head_vectors: the vectors for that, or their file; None takes those that are shipped for the model.
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

    Warns:
        UnknownWords: as `limelight.generate`.
    """
    targets = [target] if isinstance(target, str) else list(target)
    seeds = checked(seeds)
    if not targets:
        raise SettingsError("An edit needs at least one target prompt.")
    texts = [source, *targets]
    prompts = [model.prompt(text) for text in texts]
    warn_of_unknown(model, prompts)
    size = (height or model.default_size[0], width or model.default_size[1])
    if null_text and image is None:
        raise SettingsError("null_text inverts a real picture; give one as image.")
    if isinstance(image, Image.Image):
        image = invert_image(
            model, image, source, steps=steps, guidance_scale=guidance_scale, negative=negative, null_text=null_text,
            size=size,
        )  # fmt: skip
    if image is not None:
        image.check(model, source, steps, size)
        seeds = seeds[:1]
    passes, rows = len(model.timesteps(steps)), len(texts)
    cross = cross_attention(prompts, passes, mode, cross_steps, reweight or {}, published)
    if strengthen:
        cross = cross.strengthened(model, prompts[1:], strengthen, head_vectors)
    if self_steps is None:
        self_steps = 0.9 if strengthen else 0.4
    edits: list[Edit] = [
        cross.to(model.device),
        SelfAttention(rows, model.guided_scale, steps_of(self_steps, "self_steps", passes)),
    ]
    places = places_of(prompts, local)

    def draw(which: range, _lean: bool) -> PassResult:
        generators = [torch.Generator().manual_seed(seeds[i]) for i in which for _ in range(rows)]
        noise = model.noise(generators, *size)
        encoded = model.encode(prompts * len(which), negative if guidance_scale > 1 else None, size)
        conditioning: Conditioning | list[Conditioning] = encoded
        if image is not None:
            noise = image.noise.to(noise).expand_as(noise)
            conditioning = image.conditioning(encoded, passes)
        blend = LocalBlend(places, passes) if places else None
        loop = denoise(
            model, conditioning, noise, steps=steps, guidance_scale=guidance_scale, edits=edits,
            record=record or blend is not None, generators=generators,
        )  # fmt: skip
        final, maps = _run(loop, blend, record, on_step)
        return PassResult(model.decode(final), final, none(final, encoded.prompts) if maps is None else maps, [])

    drawn = PassResult.join(in_passes(model, draw, len(seeds), batch, size, lean=True, rows=rows))
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
        "cross_steps": cross_steps if isinstance(cross_steps, float | int) else dict(by_word(cross_steps)),
        "self_steps": self_steps,
        "strengthen": dict(strengthen or {}),
        "head_vectors": (
            Path(head_vectors).name if isinstance(head_vectors, str | Path) else "given" if head_vectors else None
        ),
        "local": local,
        "reweight": dict(reweight or {}),
        "published": published,
        **provenance(model),
    }
    return EditResult(*_split(drawn, texts, seeds, settings))


def _named(head_vectors: Relevance | str | Path | None) -> str | None:
    """The vectors of an edit as its settings name them."""
    if isinstance(head_vectors, str | Path):
        return Path(head_vectors).name
    return None if head_vectors is None else "given"


def _run(
    loop: Generator[Step, Tensor | None, None],
    blend: LocalBlend | None,
    record: bool,
    on_step: Callable[[Step], None] | None,
) -> tuple[Tensor, AttentionMaps | None]:
    """Draw to the end, blending every step's latents if asked to: the finished ones, and the mean maps."""
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
            return final, mean.result()


def _split(
    drawn: PassResult, texts: Sequence[str], seeds: tuple[int, ...], settings: dict[str, Any]
) -> tuple[Result, tuple[Result, ...]]:
    """The source's and the targets' pictures, of rows that alternate between them."""
    results = []
    for i, text in enumerate(texts):
        own, facts = slice(i, None, len(texts)), {"prompt": text, "subjects": [], **settings}
        results.append(Result(drawn.images[own], drawn.latents[own], drawn.maps.images(own), (), facts, seeds, ()))
    return results[0], tuple(results[1:])
