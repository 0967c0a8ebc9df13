"""Prompt-to-prompt: change an image by changing its prompt, and keep the rest of it.

Amir Hertz, Ron Mokady, Jay Tenenbaum, Kfir Aberman, Yael Pritch, Daniel Cohen-Or, "Prompt-to-Prompt Image Editing with
Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626

Source and targets are generated in one batch from the same noise. The targets' words take over the attention maps of
the source's words, and the targets' self-attention that of the source. Words may be strengthened by the heads of a
concept, see `limelight.heads`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..attention.edits import Edit
from ..attention.maps import AttentionMaps, none
from ..attention.recording import RunningMean
from ..errors import KeptByLocal, PoorReconstruction, SettingsError
from ..generation.arguments import check_model, check_scales
from ..generation.batches import PassResult, decoded, in_passes
from ..generation.loop import Step, denoise
from ..generation.plan import checked, negatives, warn_of_prompts
from ..generation.result import Result
from ..guidance.base import layers_to_read
from ..heads.relevance import Relevance
from ..models.base import Conditioning, Model
from ..utils.files import png, slug, user_path, write_new
from ..utils.images import ImageSource, grid, psnr
from ..utils.torch import seeded
from .attention_edits import CROSS_STEPS, EditedMaps, LocalBlend, Mode, Window, kept_by_local
from .image_inversion import Inversion
from .plan import EditPlan, EditSettings

GOOD = 20.0
"""The least reconstruction of a real image, in dB (PSNR), without a warning."""


@dataclass(frozen=True, eq=False)
class EditResult:
    """Images and their edits.

    Attributes:
        source: the images of the source prompt, one per seed; for a real image, its reconstruction.
        targets: for each target prompt the same.
        image: the real image, cut to the size; None where the source was generated.
    """

    source: Result
    targets: tuple[Result, ...]
    image: Image.Image | None = None

    @property
    def target(self) -> Result:
        """The first target."""
        return self.targets[0]

    @property
    def reconstruction(self) -> float | None:
        """How well the source gives the real image back: the peak signal-to-noise ratio in dB; None without one."""
        if self.image is None:
            return None
        return psnr(self.image, self.source.images[0])

    def grid(self) -> Image.Image:
        """The source in the first row, each target in a row below, with its prompt above; one column per seed.

        A real image stands in a row above them, and its reconstruction below it.
        """
        rows = [result.images for result in self._results]
        captions = [[f"seed {seed}" for seed in self.source.seeds]]
        if self.image is not None:  # it has no seed
            rows, captions = [[self.image], *rows], []
        return grid(rows, self._rows, captions=captions)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files of every image, as `Result.save` does.

        Args:
            folder: made if absent.

        Returns:
            The images' paths, those of the source first.

        Raises:
            FileError: the folder cannot be written.
        """
        paths = []
        for result in self._results:
            paths += result.save(folder)
        return paths

    def save_grid(self, folder: str | os.PathLike[str]) -> Path:
        """Write the grid as a PNG, with the settings of the first target, the seeds and the prompts of the rows inside.

        Args:
            folder: made if absent.

        Returns:
            Its path, whose name holds the words of the source and of the first target, and a short hash.

        Raises:
            FileError: the folder cannot be written.
        """
        source, target, *_ = self._prompts
        settings = {**self.target.settings, "seeds": list(self.source.seeds), "rows": self._rows}
        return write_new(user_path(folder), slug(f"{source} to {target}", 70), "png", png(settings, self.grid()))

    @property
    def _results(self) -> tuple[Result, ...]:
        return self.source, *self.targets

    @property
    def _rows(self) -> list[str]:
        """The titles of the rows of the grid."""
        if self.image is None:
            return self._prompts
        source, *targets = self._prompts
        return ["given image", f"{source} (reconstructed)", *targets]

    @property
    def _prompts(self) -> list[str]:
        return [result.settings["prompt"] for result in self._results]


def edit(
    model: Model,
    source: str,
    target: str | Sequence[str],
    *,
    seeds: int | Sequence[int] = 0,
    image: ImageSource | Inversion | None = None,
    null_text: bool = False,
    mode: Mode = "auto",
    cross_steps: Window | Mapping[str, Window] = CROSS_STEPS,
    self_steps: Window | None = None,
    strengthen: Mapping[str, str] | None = None,
    head_vectors: Relevance | str | Path | None = None,
    local: str | Sequence[str] | None = None,
    reweight: Mapping[str, float] | None = None,
    published: bool = False,
    steps: int = 50,
    guidance_scale: float | None = None,
    true_cfg_scale: float = 1.0,
    negative: str | None = "",
    height: int | None = None,
    width: int | None = None,
    batch: int | None = None,
    record: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> EditResult:
    """Generate an image of a prompt, and the same image changed by other prompts.

    Args:
        model: see `limelight.load`.
        source: what the image shows.
        target: what it should show instead. Several targets are generated beside each other.
        seeds: one or several, not negative; an image depends on its seed alone.
        image: a real image to edit, which `source` describes: a file, a PIL image, an array or a tensor. It is inverted
            first, see `limelight.invert_image`, and uses the first seed alone.
        null_text: invert the image more exactly, which takes minutes on a GPU for Stable Diffusion.
        mode: "replace" swaps words one for one, "refine" keeps what both prompts share; "auto" replaces where the
            prompts have equally many words.
        cross_steps: share of the steps, 0..1, in which the words have the source's maps; or from which share to which.
            By word, with "*" for all others: ``{"*": 0.8, "red": (0.0, 0.4)}``. Without "*" the others have 0.8. As
            published, a share is of one step more than there are: 0.8 of 50 steps ends before pass int(0.8 * 51).
        self_steps: the same for the self-attention, in the layers from `Model.guided_scale` inwards, as published
            (16 x 16 and smaller at 512 pixels), and of the steps as they are: 0.4 of 50 ends before pass 20. Longer
            keeps more of the shape. By default 0.4, with `strengthen` 0.9.
        strengthen: concepts of the target's words, ``{"red": "Color"}``: such a word keeps its own maps, every head
            times its relevance to the concept, for as long as its window of `cross_steps` lasts (P2P-HRV of Jungwon
            Park et al., "Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in Text-to-Image
            Generative Models", 2024, https://arxiv.org/abs/2412.02237).
        head_vectors: the vectors for that, or their file; None takes those that are shipped for the model.
        local: words; the image changes only where they are.
        reweight: how much more (above 1) or less (below 1) words of the target should show, for as long as their
            windows of `cross_steps` last.
        published: do as the authors' code does. The tokens after a replaced word are shifted where the words differ in
            their number of tokens; `local` looks for its words in the maps after the edits, not before them; and words
            without a window in `cross_steps` have the source's maps in all steps.
        steps, guidance_scale, true_cfg_scale, negative, height, width, batch, on_step: as in `limelight.generate`;
            `batch` counts sources and targets, which have one negative prompt.
        record: keep the mean attention maps of the run, see `Result.maps`.

    Raises:
        PromptError: a word is in none of the prompts, or "replace" got prompts of different numbers of words.
        SettingsError: a setting is out of range, `image` meets a scheduler other than DDIM, or its inversion is of
            another prompt, size or schedule.
        FileError: `image` cannot be read.

    Warns:
        UnknownWords, LostWords, UnsupportedMarkup: as `limelight.generate`.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> result = limelight.edit(model, "a red car", ["a blue car", "a car"], seeds=[0, 1], steps=2)
        >>> [target.settings["prompt"] for target in result.targets]
        ['a blue car', 'a car']
        >>> len(result.source.images), len(result.target.images)
        (2, 2)
        >>> sheet = result.grid()  # three rows of two images
    """
    check_model(model)
    check_scales(guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale)
    model = model.with_true_cfg(true_cfg_scale)
    if isinstance(target, str):
        target = [target]
    if null_text and image is None:
        raise SettingsError("null_text inverts a real image; give one as image.")
    scale = model.scale_or_own(guidance_scale)
    height, width = model.size_or_own(height, width)
    settings = EditSettings(
        null_text=null_text,
        mode=mode,
        cross_steps=cross_steps,
        self_steps=self_steps,
        strengthen=strengthen or {},
        head_vectors=head_vectors,
        local=local,
        reweight=reweight or {},
        published=published,
        steps=steps,
        guidance_scale=scale,
        branches=model.branches(scale),
        negative=negatives(negative, 1)[0],
        height=height,
        width=width,
        record=record,
    )

    plan = EditPlan.of(model, [source, *target], checked(seeds), settings)
    warn_of_prompts(model, plan.prompts, [settings.encoded_negative])
    _warn_of_local(plan)
    if image is not None:
        plan = plan.starting_from(image)

    def one_pass(rows: range, _lean: bool) -> PassResult:
        return _run_pass(plan, rows, on_step)

    parts = in_passes(model, one_pass, len(plan.seeds), batch, settings.size, lean=True, rows=len(plan.texts))
    result = _package(plan, PassResult.join(parts))
    if result.reconstruction is not None and result.reconstruction < GOOD:
        assert plan.inversion is not None
        learned = plan.inversion.unconditional is not None
        warnings.warn(PoorReconstruction.of(result.reconstruction, source, learned), stacklevel=2)
    return result


def _warn_of_local(plan: EditPlan) -> None:
    """Warn the caller's caller of what a local edit keeps although a target lacks it."""
    if not plan.places:
        return
    local = [plan.settings.local] if isinstance(plan.settings.local, str) else list(plan.settings.local or ())
    for prompt in plan.prompts[1:]:
        kept = kept_by_local(plan.prompts[0], prompt, plan.places[0])
        if kept:
            warnings.warn(KeptByLocal.of(kept, prompt.text, local), stacklevel=3)


def _run_pass(plan: EditPlan, rows: range, on_step: Callable[[Step], None] | None) -> PassResult:
    """Generate the source and the targets of some seeds in one batch.

    Args:
        rows: which of `plan.seeds`.
        on_step: called after every step.
    """
    model, settings = plan.model, plan.settings
    generators = list[torch.Generator]()
    for i in rows:
        generators += seeded([plan.seeds[i]] * len(plan.prompts))
    noise = model.noise(generators, *settings.size)

    encoded = model.encode(plan.prompts * len(rows), settings.encoded_negative, settings.size)
    conditioning: Conditioning | list[Conditioning] = encoded
    if plan.inversion is not None:
        noise = plan.inversion.noise.to(noise).expand_as(noise)
        conditioning = plan.inversion.conditioning(encoded, plan.passes)

    edits: tuple[Edit, ...] = plan.edits
    blend = None
    if plan.places:
        edited = None
        if settings.published:
            edited = EditedMaps(layers_to_read(model, (noise.shape[-2], noise.shape[-1])))
            edits = (*edits, edited)
        blend = LocalBlend(plan.places, settings.steps, edited)
    loop = denoise(
        model,
        conditioning,
        noise,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        edits=edits,
        record=settings.record or blend is not None,
        generators=generators,
    )
    final, maps = _run(loop, blend, settings.record, on_step)
    if maps is None:
        maps = none(final, encoded.prompts)
    return PassResult(decoded(model, final, settings.guidance_scale, edits=plan.edits), final, maps, [])


def _run(
    loop: Generator[Step, Tensor | None, None],
    blend: LocalBlend | None,
    record: bool,
    on_step: Callable[[Step], None] | None,
) -> tuple[Tensor, AttentionMaps | None]:
    """Run the loop to its end, with the latents of every step blended if asked: the last latents, and the mean maps."""
    mean, step = RunningMean(), next(loop)
    while True:
        final = step.latents
        if blend:
            final = blend(step)
        if record and step.maps is not None:
            mean.add(step.maps)
        if on_step:
            on_step(step)

        try:
            step = loop.send(final)
        except StopIteration:
            return final, mean.result()


def _package(plan: EditPlan, done: PassResult) -> EditResult:
    """The images of a plan, whose rows alternate between the prompts, with all that they depend on."""
    facts, results = plan.facts(), []
    for i, text in enumerate(plan.texts):
        own, settings = slice(i, None, len(plan.texts)), {"prompt": text, "subjects": [], **facts}
        results.append(Result(*done.part(own), (), settings, plan.seeds, ()))

    image = None if plan.inversion is None else plan.inversion.image
    return EditResult(results[0], tuple(results[1:]), image)
