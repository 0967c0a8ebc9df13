"""The one denoising loop, and pictures from it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import operator
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal, overload

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from .concepts.binding import learned
from .edits import HeadGain, bound, described
from .errors import PromptError, SettingsError, UnknownWords
from .guidance import Guidance, Move, Steering, layers_to_read
from .maps import AttentionMaps, RunningMean, StepMaps, join, none, size_of, spilled, without_heads
from .models.base import Conditioning, Layer, Model
from .objectives import Subjects
from .probe import Edit, Probe
from .prompt import Prompt
from .result import Result
from .subjects import Stage, per_prompt, resolve

Record = bool | Literal["mean", "steps", "all"]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the loop.

    Attributes:
        index: 0, 1, ...
        count: how many steps there will be.
        timestep: the scheduler's.
        latents: after the step, [images, channels, height, width].
        move: what guidance did before it; None where it did nothing.
        maps: the attention of the conditional branch, if recorded.
        seconds: since the step before; on a GPU, whose work is only queued, not the time that it takes there.
    """

    index: int
    count: int
    timestep: float
    latents: Tensor
    move: Move | None
    maps: AttentionMaps | None
    seconds: float


@torch.inference_mode(False)
@torch.no_grad()
def denoise(
    model: Model,
    conditioning: Conditioning | Sequence[Conditioning],
    noise: Tensor,
    *,
    steps: int = 50,
    guidance_scale: float = 7.5,
    guidance: Guidance | None = None,
    subjects: Subjects = (),
    edits: Sequence[Edit | HeadGain] = (),
    record: Record = False,
    generators: Sequence[torch.Generator] = (),
    eta: float = 0.0,
) -> Generator[Step, Tensor | None, None]:
    """Denoise a batch, step by step; the last `Step` holds the finished latents.

    Whoever drives the loop may put other latents in their place: ``loop.send(latents)`` instead of ``next(loop)``.

    Args:
        model: see `limelight.load`.
        conditioning: from `Model.encode`; or one for each step.
        noise: unit noise [images, channels, height, width], from `Model.noise`.
        steps: inference steps.
        guidance_scale: strength of classifier-free guidance; unused without an unconditional branch.
        guidance: moves the latents before each step; None is the plain model.
        subjects: for each image, for each subject, its token positions. Needed with `guidance`.
        edits: attention edits in the conditional branch of every pass that predicts, see `limelight.edits`.
        record: give every step its attention maps, at the resolution that guidance reads; "all" at every resolution.
        generators: one per image, for schedulers that add noise.
        eta: share of fresh noise in DDIM's steps, 0..1.
    """
    timesteps = model.timesteps(steps)
    encoded = [conditioning] * len(timesteps) if isinstance(conditioning, Conditioning) else list(conditioning)
    size = (noise.shape[-2], noise.shape[-1])
    steering = Steering(guidance, model, encoded[0], subjects, steps, timesteps, size) if guidance else None
    recorded = _recorded(model, size, guidance, record)
    acting = bound(edits, model, encoded[0].prompts, len(timesteps))
    latents, before = model.start(noise), perf_counter()
    for index, (timestep, value) in enumerate(zip(timesteps, timesteps.tolist(), strict=True)):
        move = steering.update(index, timestep, latents) if steering else None
        latents = move.latents if move else latents
        with Probe(model, recorded, edits=acting, images=len(latents), step=index) as probe:
            prediction = model.predict(latents, timestep, encoded[index], guidance_scale=guidance_scale)
            maps = probe.take(latents, encoded[index].prompts)
        assert prediction is not None  # no `until` was given
        latents = model.step(prediction, timestep, latents, generators, eta)
        now = perf_counter()
        sent = yield Step(index, len(timesteps), value, latents, move, maps if record else None, now - before)
        latents = latents if sent is None else sent
        before = now


@overload
def generate(
    model: Model, prompt: str, *, subjects: Stage = ..., seeds: int | Sequence[int] = ..., **options: Any
) -> Result: ...
@overload
def generate(
    model: Model,
    prompt: Sequence[str],
    *,
    subjects: Stage | Sequence[Stage] = ...,
    seeds: int | Sequence[int] = ...,
    **options: Any,
) -> list[Result]: ...
def generate(  # type: ignore[misc]  # the other options are spelled out here alone
    model: Model,
    prompt: str | Sequence[str],
    *,
    subjects: Stage | Sequence[Stage] = "auto",
    seeds: int | Sequence[int] = 0,
    guidance: Guidance | None = None,
    steps: int = 50,
    guidance_scale: float = 7.5,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    latents: Tensor | None = None,
    conditioning: Conditioning | None = None,
    clip_skip: int = 0,
    eta: float = 0.0,
    batch: int | None = None,
    memory: float | None = None,
    record: Record = True,
    edits: Sequence[Edit | HeadGain] = (),
    on_step: Callable[[Step], None] | None = None,
) -> Result | list[Result]:
    """Draw one picture per prompt and seed, as many at a time as fit.

    Args:
        model: see `limelight.load`.
        prompt: what to draw. Several prompts give a list of results, one per prompt.
        subjects: words ("cat"), phrases ("blue frog"), later occurrences ("dog#2") or token indices that `guidance`
            puts on stage; of several prompts, one such list each. "auto" takes the prompt's nouns; the choice is in
            `Result.subjects`.
        seeds: one or several, not negative; noise depends on the seed alone, so a batch equals its single pictures.
        guidance: e.g. `AttendAndExcite()`; None is the plain model.
        steps: inference steps, at least 1.
        guidance_scale: strength of classifier-free guidance; at 1 or less there is no unconditional branch.
        negative: the negative prompt.
        height, width: in pixels; by default the model's own.
        latents: unit noise [images, channels, height, width] to start from instead of the seeds' own; the images are
            the first prompt's seeds, then the second's, and so on.
        conditioning: encoded prompts to use instead of encoding `prompt`, one row per image; its words still name the
            subjects. See `Model.encode`.
        clip_skip: how many of the text encoder's last layers are left out.
        eta: share of fresh noise in DDIM's steps, 0..1.
        batch: most pictures in one pass; by default 8 on a CPU, 64 elsewhere. Where memory runs out, the text encoder
            leaves the device, passes become smaller, and guidance recomputes (`Guidance.checkpoint`), by themselves.
        memory: most gibibytes that the process may take on a CUDA device while drawing.
        record: what attention maps to keep. True or "mean": `Result.maps`, the mean over the run at the resolution that
            guidance reads, in running sums: one map per layer, however many steps. "steps": besides, `Result.steps`,
            the same for every single step. "all": there, every resolution, layer and head. Single steps go to the main
            memory as float16: on Stable Diffusion 1.x at 512 pixels and 50 steps, 10 MB an image for "steps" and 1.7 GB
            for "all". False keeps none.
        edits: attention edits, see `limelight.edits` and `limelight.probe.Edit`.
        on_step: called after every step of every pass, e.g. for a progress bar.

    Raises:
        PromptError: a subject is not in the prompt.
        SettingsError: a setting is out of range, or a single picture or the recorded steps do not fit into memory.

    Warns:
        UnknownWords: the prompt has words that the model has never seen, where its folder lists those it knows.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    seeds = checked(seeds)
    if not texts:
        raise PromptError("The list of prompts is empty.")
    asked = per_prompt(subjects, len(texts), listed=not isinstance(prompt, str))
    parsed = [model.prompt(text) for text in texts]
    staged = [resolve(p, s, needed=guidance is not None) for p, s in zip(parsed, asked, strict=True)]
    warn_of_unknown(model, parsed)
    size = (
        model.default_size[0] if height is None else height,
        model.default_size[1] if width is None else width,
    )
    images = [(which, seed) for which in range(len(texts)) for seed in seeds]
    if latents is not None:
        shape = (len(images), *model.noise([torch.Generator()], *size).shape[1:])
        if latents.shape != shape:
            raise SettingsError(
                f"latents of shape {list(latents.shape)} do not fit {len(images)} images at {size[0]}x{size[1]}: "
                f"the shape must be {list(shape)}."
            )
    if record not in (False, True, "mean", "steps", "all"):
        raise SettingsError(f"record={record!r} must be True, False, 'steps' or 'all'.")
    if record in ("steps", "all"):
        _check_room(model, guidance, size, steps, len(images), record)
    if conditioning is not None and len(conditioning.prompts) != len(images):
        raise SettingsError(f"conditioning has {len(conditioning.prompts)} rows for {len(images)} images.")

    def draw(rows: range, lean: bool) -> Drawn:
        generators = [torch.Generator().manual_seed(images[i][1]) for i in rows]
        own = model.noise(generators, *size)  # drawn in any case: later noise must not repeat it
        noise = own if latents is None else latents[rows.start : rows.stop]
        if conditioning is not None:
            encoded = conditioning.rows(rows).to(model.device, model.dtype)
            encoded = encoded if guidance_scale > 1 else encoded.only_conditional()
        else:
            wanted = [parsed[images[i][0]] for i in rows]
            encoded = model.encode(wanted, negative if guidance_scale > 1 else None, size, clip_skip=clip_skip)
        grid = (noise.shape[-2], noise.shape[-1])
        read = set(_recorded(model, grid, guidance, bool(record)))
        mean, single, moves, final = RunningMean(), [], [], noise
        for step in denoise(
            model,
            encoded,
            noise.to(model.device, model.dtype),
            steps=steps,
            guidance_scale=guidance_scale,
            guidance=replace(guidance, checkpoint=guidance.checkpoint or lean) if guidance else None,
            subjects=[staged[images[i][0]][1] for i in rows],
            edits=edits,
            record=record,
            generators=generators,
            eta=eta,
        ):
            final = step.latents
            if step.maps is not None:
                mean.add(step.maps.select(read.__contains__))
                if record in ("steps", "all"):
                    single.append(spilled(step.maps if record == "all" else without_heads(step.maps)))
            if step.move:
                moves.append((step.index, step.timestep, step.move.forget()))
            if on_step:
                on_step(step)
        maps = mean.result()
        return Drawn(
            model.decode(final),
            final,
            none(final, encoded.prompts) if maps is None else maps,
            moves,
            [single] if single else [],
        )

    with _limited(model.device, memory):
        # A plain run is as lean as it can be.
        parts = in_passes(model, draw, len(images), batch, size, lean=guidance is None)
    drawn = Drawn.join(parts)
    settings = {
        "negative": None if conditioning else negative,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "height": size[0],
        "width": size[1],
        "latents": None if latents is None else "given",
        "conditioning": None if conditioning is None else "given",
        "clip_skip": None if conditioning else clip_skip,
        "eta": eta,
        "guidance": guidance.settings() if guidance else None,
        "edits": [described(edit) for edit in edits],
        **provenance(model),
    }
    results = []
    for which, (text, (names, _)) in enumerate(zip(texts, staged, strict=True)):
        own = slice(which * len(seeds), (which + 1) * len(seeds))
        results.append(
            Result(
                drawn.images[own],
                drawn.latents[own],
                drawn.maps.images(own),
                # Read only after the drawing: a look at a number stops the device.
                tuple({"step": i, "timestep": t, **move.facts(own, len(names))} for i, t, move in drawn.moves),
                {"prompt": text, "subjects": list(names), **settings},
                seeds,
                names,
                StepMaps(drawn.steps, own),
            )
        )
    return results[0] if isinstance(prompt, str) else results


def checked(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """One or several seeds.

    Raises:
        SettingsError: there is none, or one is out of range.
    """
    found = tuple(operator.index(s) for s in (seeds if isinstance(seeds, Iterable) else (seeds,)))
    if not found:
        raise SettingsError("seeds is empty; give at least one, for example seeds=[0].")
    if not all(0 <= seed < 2**63 for seed in found):
        raise SettingsError(f"seeds={list(found)} must be whole numbers from 0 to 2**63 - 1.")
    return found


@dataclass(frozen=True, eq=False)
class Drawn:
    """Some images of a call: pictures, finished latents, mean maps, (index, timestep, move) of the guided steps, and
    the single steps' maps of each pass."""

    images: list[Any]
    latents: Tensor
    maps: AttentionMaps
    moves: list[tuple[int, float, Move]]
    steps: list[list[AttentionMaps]] = field(default_factory=list)

    @classmethod
    def join(cls, parts: list[Drawn]) -> Drawn:
        """Several passes as one."""
        if len(parts) == 1:
            return parts[0]
        subjects = max((move.presence.shape[1] for part in parts for _, _, move in part.moves), default=0)
        moves = []
        for same in zip(*(part.moves for part in parts), strict=True):
            wide = [F.pad(m.presence, (0, subjects - m.presence.shape[1]), value=float("nan")) for _, _, m in same]
            move = Move(
                torch.cat([m.latents for _, _, m in same]),
                torch.cat([m.loss for _, _, m in same]),
                torch.cat(wide),
                torch.cat([m.refinements for _, _, m in same]),
            )
            moves.append((*same[0][:2], move))
        images = [image for part in parts for image in part.images]
        latents, maps = torch.cat([part.latents for part in parts]), join([part.maps for part in parts])
        return cls(images, latents, maps, moves, [steps for part in parts for steps in part.steps])


def provenance(model: Model) -> dict[str, Any]:
    """What drew a picture, to be stored with it."""
    return {
        "model": model.name,
        "scheduler": type(model.scheduler).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"learned": words} if (words := learned(model)) else {}),
        "versions": {name: importlib.metadata.version(name) for name in ("limelight", "diffusers", "torch")},
    }


def fingerprint(model: Model) -> str:
    """Sixteen hexadecimal digits that change with a training of the denoiser: of the first values of each weight."""
    found = hashlib.sha256()
    for name, value in model.denoiser.state_dict().items():
        found.update(name.encode() + str(tuple(value.shape)).encode())
        found.update(value.flatten()[:32].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _recorded(model: Model, size: tuple[int, int], guidance: Guidance | None, record: Record) -> tuple[Layer, ...]:
    if record == "all":
        return tuple(layer for layer in model.layers if layer.kind == "cross")
    # Maps weighted by head have a size that no layer need have; what is recorded is then the model's own choice.
    own_size = guidance.resolution if guidance and not getattr(guidance, "concepts", None) else None
    return layers_to_read(model, size, own_size) if record else ()


def _check_room(
    model: Model, guidance: Guidance | None, size: tuple[int, int], steps: int, images: int, record: Record
) -> None:
    """Find out before the drawing that the maps of its single steps will not fit into memory."""
    height, width = model.noise([torch.Generator()], *size).shape[-2:]
    layers = _recorded(model, (height, width), guidance, record)
    tokens = len(model.prompt("").ids)
    needed = images * steps * size_of(layers, (height, width), tokens, record == "all")
    free = psutil.virtual_memory().available
    if needed > free:
        raise SettingsError(
            f"record='{record}' would keep {needed / 1e9:.1f} GB of maps, and {free / 1e9:.1f} GB of memory are free; "
            f"draw fewer images or steps, or use record={True if record == 'steps' else repr('steps')}."
        )


# Where the error has no class of its own: CPU, MPS, cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def in_passes(
    model: Model,
    draw: Callable[[range, bool], Drawn],
    count: int,
    batch: int | None,
    size: tuple[int, int],
    *,
    lean: bool,
    rows: int = 1,
) -> list[Drawn]:
    """Draw `count` images, or groups of `rows` images, in passes of at most `batch` images.

    By default 8 on a CPU, 64 elsewhere. Where memory runs out: first the model makes room, then passes become smaller,
    last `draw` is told to be lean.
    """
    limit = batch if batch is not None else 8 if model.device.type == "cpu" else 64
    if limit < 1:
        raise SettingsError(f"batch={limit} must be at least 1.")
    try:
        return _in_passes(model, draw, count, max(limit // rows, 1), size, lean)
    finally:
        model.stow(away=False)


def _in_passes(
    model: Model, draw: Callable[[range, bool], Drawn], count: int, limit: int, size: tuple[int, int], lean: bool
) -> list[Drawn]:
    done: list[Drawn] = []
    start = 0
    while start < count:
        rows = range(start, min(start + limit, count))
        try:
            done.append(draw(rows, lean))
            start = rows.stop
            continue
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise
        # Only here, where the error and with it the tensors of the failed pass are gone, is there room again.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if model.stow():
            continue
        if len(rows) > 1:
            limit = (len(rows) + 1) // 2
        elif not lean:
            lean = True
        else:
            raise SettingsError(
                f"A picture of {size[0]}x{size[1]} does not fit into memory; draw a smaller one, or load the model as "
                "float16."
            )
    return done


@contextmanager
def _limited(device: torch.device, memory: float | None) -> Iterator[None]:
    """Let the process take at most `memory` gibibytes on a CUDA device."""
    if memory is None:
        yield
        return
    if device.type != "cuda" or memory <= 0:
        raise SettingsError(f"memory={memory} must be positive, and is kept on CUDA alone; elsewhere choose a batch.")
    share = memory * 2**30 / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def warn_of_unknown(model: Model, prompts: Sequence[Prompt]) -> None:
    """Warn the caller's caller of words that the model has never seen."""
    unknown = dict.fromkeys(word for prompt in prompts for word in model.unknown(prompt))
    if unknown:
        cure = "try words of `limelight info`" if model.about.words is not None else ""
        warnings.warn(UnknownWords(model.name, unknown, cure=cure), stacklevel=3)
