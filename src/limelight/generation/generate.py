"""Images from prompts: one plan, one loop, one package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack, overload

from torch import Tensor

from ..attention.edits import BindableEdit, Edit
from ..attention.recording import Recorder, StepMaps
from ..guidance.base import Guidance
from ..models.base import Conditioning, Model
from ..prompts.subjects import Place, SubjectChoice, per_prompt
from ..utils.numbers import check_finite
from .arguments import (
    GenerateOptions,
    audition_of,
    check_model,
    check_scales,
    check_types,
    edits_of,
    guidance_of,
    refuse_unknown,
    texts_of,
)
from .audition import Audition, cast
from .batches import PassResult, decoded, in_passes, limited
from .loop import Record, Step, denoise
from .noise import initial_noise, searched
from .plan import (
    GenerationPlan,
    GenerationSettings,
    beside,
    checked,
    negatives,
    places,
    placing,
    warn_of_prompts,
    warn_of_size,
    warn_without_subjects,
)
from .provenance import provenance
from .result import Result
from .trace import Trace

_OPTIONS = ("subjects", "seeds", *GenerateOptions.__annotations__)


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    model: Model,
    prompt: str,
    *,
    subjects: SubjectChoice = ...,
    seeds: int | str | Sequence[int] = ...,
    **options: Unpack[GenerateOptions],
) -> Result: ...


@overload
def generate(
    model: Model,
    prompt: Sequence[str],
    *,
    subjects: SubjectChoice | Sequence[SubjectChoice] = ...,
    seeds: int | str | Sequence[int] = ...,
    **options: Unpack[GenerateOptions],
) -> list[Result]: ...


def generate(
    model: Model,
    prompt: str | Sequence[str],
    *,
    subjects: SubjectChoice | Sequence[SubjectChoice] = "auto",
    seeds: int | str | Sequence[int] = 0,
    guidance: Guidance | str | None = None,
    place: Place | Sequence[Place | None] | None = None,
    steps: int = 50,
    guidance_scale: float | None = None,
    true_cfg_scale: float = 1.0,
    negative: str | Sequence[str] | None = "",
    height: int | None = None,
    width: int | None = None,
    latents: Tensor | None = None,
    conditioning: Conditioning | None = None,
    clip_skip: int = 0,
    eta: float = 0.0,
    batch: int | None = None,
    memory: float | None = None,
    record: Record = True,
    also: str | Sequence[str] = (),
    edits: Sequence[Edit | BindableEdit] = (),
    audition: int | Audition | None = None,
    on_step: Callable[[Step], None] | None = None,
    **unknown: Any,
) -> Result | list[Result]:
    """Generate one image per prompt and seed, as many at a time as fit.

    Threads may share a model, or models that share a denoiser: one call at a time has the denoiser, the others wait,
    and each gets the images that it would get alone. `on_step` may generate with the same model; it must not wait for
    another thread that does. Other code may use the denoiser meanwhile: its passes are neither recorded nor changed.

    Args:
        model: see `limelight.load`.
        prompt: what to show. Several prompts give a list of results, one per prompt.
        subjects: words ("cat"), phrases ("blue frog"), later occurrences ("dog#2") or token indices for
            `guidance`; of several prompts, one such list each. "auto" takes what the prompt names
            that can be seen, each with the words that describe it; the choice is in `Result.subjects`. Where that finds
            nothing, the prompt is generated without guidance. None and [] are no subjects.
        seeds: one or several, not negative, or as on the command line ("0-3,7"); noise depends on the seed alone, so a
            batch equals its single images.
        guidance: e.g. `AttendAndExcite()`, or the name of a `limelight.preset`; None is the plain model.
        place: where subjects are to be: ``{"cat": (0, 0.4, 0.5, 1)}`` with left, top, right and bottom as fractions of
            the image; of several prompts one such dict for all, or one or None for each. A word that is not in
            `subjects` becomes one. Without `guidance`, the boxes alone are guided to, see
            `limelight.guidance.layout.into_boxes`.
        steps: inference steps, at least 1.
        guidance_scale: strength of classifier-free guidance, by default the model's own (`Model.guidance_scale`); at 1
            or less there is no unconditional branch.
        true_cfg_scale: of FLUX.1, whose guidance scale is an input of the denoiser: strength of classifier-free
            guidance with the negative prompt beside it, which takes a second pass a step; 1 is without.
        negative: the negative prompt, or one for each prompt; None is the empty one.
        height, width: in pixels; by default the model's own.
        latents: unit noise [images, channels, height, width] to start from instead of the seeds' own; the images are
            the first prompt's seeds, then the second's, and so on.
        conditioning: encoded prompts to use instead of encoding `prompt`, one row per image; its words still name the
            subjects. See `Model.encode`.
        clip_skip: how many of the text encoder's last layers are left out.
        eta: share of fresh noise in DDIM's steps, 0..1.
        batch: most images in one pass; by default 8 on a CPU, 64 elsewhere. Where memory runs out, the text encoder
            leaves the device, passes become smaller, and guidance recomputes (`Guidance.checkpoint`), by themselves.
        memory: most gibibytes that the process may take on a CUDA device while it generates.
        record: what attention maps to keep. True or "mean": `Result.maps`, the mean over the run at the resolution that
            guidance reads, in running sums: one map per layer, however many steps. "steps": besides, `Result.steps`,
            the same for every single step. "all": there, every resolution, layer and head. Single steps go to the main
            memory as float16: on Stable Diffusion 1.x at 512 pixels and 50 steps, 10 MB an image for "steps" and 1.7 GB
            for "all". False keeps none.
        also: words that are not in the prompt, to have maps of them as well: ``maps["sky"]``. The images are the same
            to the last bit.
        edits: attention edits, see `limelight.heads.gains` and `limelight.attention.edits.Edit`.
        audition: begin each image with so many seeds and finish the one whose attention promises most, see
            `limelight.Audition`. `Result.seeds` are then the winners; each gives the same image alone.
        on_step: called after every step of every pass, e.g. for a progress bar.
        unknown: refused, with the name that was meant.

    Raises:
        PromptError: a subject is not in the prompt.
        SettingsError: a setting or a box is out of range, a single image or the recorded steps do not fit into memory,
            or settings drive the latents to infinity.
        ModelError: the model overflows, in float16 for example, so that the image would be black.

    Warns:
        UnknownWords: the prompt has words that the model has never seen, where its folder lists those it knows.
        LostWords: the prompt or the negative prompt is longer than the model reads.
        NoSubjects: guidance was asked for, and nothing that can be seen is found in a prompt.
        UnsupportedMarkup: one of them has markup of other programs, for example "(cat:1.3)".

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> result = limelight.generate(model, "a cat and a dog", seeds=[0, 1], steps=2)
        >>> len(result.images), result.subjects, tuple(result.maps["cat"].shape)
        (2, ('cat', 'dog'), (2, 8, 8))
    """
    refuse_unknown("generate", unknown, _OPTIONS)
    check_model(model)
    check_scales(guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale)
    model = model.with_true_cfg(true_cfg_scale)
    check_types(eta=eta, latents=latents, conditioning=conditioning, on_step=on_step)

    texts = texts_of(prompt)
    asked = per_prompt(subjects, len(texts), listed=not isinstance(prompt, str)) if texts else []
    boxes = places(place, len(texts))
    scale = model.scale_or_own(guidance_scale)
    height, width = model.size_or_own(height, width)
    settings = GenerationSettings(
        guidance=placing(guidance_of(guidance, model), model, boxes),
        steps=steps,
        guidance_scale=scale,
        branches=model.branches(scale),
        negative=negatives(negative, len(texts)),
        height=height,
        width=width,
        latents=latents,
        conditioning=conditioning,
        clip_skip=clip_skip,
        eta=eta,
        record=record,
        also=beside(also),
        edits=edits_of(edits),
        place=boxes,
    )
    chosen = audition_of(audition)
    plan = GenerationPlan.of(model, texts, asked, checked(seeds), settings)
    read = [*plan.prompts, *map(model.prompt, settings.also)]
    warn_of_prompts(model, read, settings.encoded_negative or ())
    warn_without_subjects(plan, chosen=chosen is not None)
    warn_of_size(plan)

    check_finite(memory=memory)
    with limited(model.device, memory):
        results = _run_all(plan, chosen, batch, on_step)
    return results[0] if isinstance(prompt, str) else results


def _run_all(
    plan: GenerationPlan, audition: Audition | None, batch: int | None, on_step: Callable[[Step], None] | None
) -> list[Result]:
    """Generate the images of a plan, those without subjects in passes of their own."""
    found = dict[int, Result]()
    for which, part in plan.parts(chosen=audition is not None):
        found.update(zip(which, _run(part, audition, batch, on_step), strict=True))
    return [found[i] for i in range(len(found))]


def _run(
    plan: GenerationPlan, audition: Audition | None, batch: int | None, on_step: Callable[[Step], None] | None
) -> list[Result]:
    """Generate the images of a plan in which all prompts have subjects, or none needs them."""
    settings = plan.settings
    if audition is not None and not plan.without_subjects:
        plan = cast(plan, audition, batch)

    def one_pass(rows: range, lean: bool) -> PassResult:
        return run_pass(plan, rows, lean, on_step)

    # A plain run is as lean as it can be.
    parts = in_passes(plan.model, one_pass, len(plan.images), batch, settings.size, lean=settings.guidance is None)
    return package(plan, PassResult.join(parts))


def run_pass(plan: GenerationPlan, rows: range, lean: bool, on_step: Callable[[Step], None] | None) -> PassResult:
    """Generate some of the images of a plan in one batch.

    Args:
        rows: which of `plan.images`.
        lean: guidance recomputes instead of keeping what the gradient needs.
        on_step: called after every step.
    """
    model, settings, guidance = plan.model, plan.settings, plan.settings.guidance
    generators = plan.generators(rows)
    noise, encoded = initial_noise(plan, rows, generators), plan.encoded(rows)
    if guidance is not None:
        guidance = replace(guidance, checkpoint=guidance.checkpoint or lean)
    searches, found = None, searched(plan, rows, guidance, encoded, noise, generators)
    if found is not None:
        noise, searches = found.noise.to(noise), found.passes

    recorder, moves, final = Recorder(settings.record, plan.averaged), [], noise
    for step in denoise(
        model,
        encoded,
        noise,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        guidance=guidance,
        subjects=plan.subjects_of(rows),
        edits=settings.edits,
        record=settings.record,
        layers=plan.recorded,
        guided_layers=plan.guided,
        generators=generators,
        eta=settings.eta,
        passengers=plan.passengers,
    ):
        final = step.latents
        recorder.add(step.maps)
        if step.move:
            moves.append((step.index, step.timestep, step.move.forget()))
        if on_step:
            on_step(step)

    mean, single = recorder.result(final, encoded.prompts)
    images = decoded(model, final, settings.guidance_scale, guidance, settings.edits)
    return PassResult(images, final, mean, moves, single, searches)


def package(plan: GenerationPlan, done: PassResult) -> list[Result]:
    """The images of a plan as one result per prompt, with all that they depend on."""
    made_by = provenance(plan.model)
    results = []
    for which, (text, names) in enumerate(zip(plan.texts, plan.names, strict=True)):
        own = slice(which * len(plan.seeds), (which + 1) * len(plan.seeds))
        # Read only after the last pass: a look at a number stops the device.
        trace = [{"step": i, "timestep": t, **move.facts(own, len(names))} for i, t, move in done.moves]
        if trace:
            trace[0] |= done.moves[0][2].plain_facts(own, len(names))
        if trace and done.searches is not None:
            trace[0]["searches"] = done.searches[own].tolist()
        results.append(
            Result(
                *done.part(own),
                Trace(trace),
                {"prompt": text, "subjects": list(names), **plan.facts(which), **made_by},
                plan.seeds_of(which),
                names,
                StepMaps(done.steps, own),
            )
        )
    return results
