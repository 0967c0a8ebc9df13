"""Textual inversion: a word for what some pictures show.

Rinon Gal, Yuval Alaluf, Yuval Atzmon, Or Patashnik, Amit H. Bermano, Gal Chechik, Daniel Cohen-Or, "An Image is Worth
One Word: Personalizing Text-to-Image Generation using Textual Inversion", 2022, https://arxiv.org/abs/2208.01618

A new word's vectors in the text encoder's table are trained, and nothing else, until the model predicts the noise in
pictures of the thing from sentences with that word.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingsError
from ..guidance import frozen, layers_to_read, recomputing
from ..models.base import Layer, Model
from ..probe import Probe
from .binding import bound
from .concept import Concept
from .pictures import Pictures, Source, sentences
from .state import InversionConfig, TrainState, generator

__all__ = ["InversionConfig", "TrainState", "TrainStep", "encode", "held_loss", "invert"]


@dataclass(frozen=True, eq=False)
class TrainStep:
    """One step of a training, done.

    Attributes:
        loss: mean squared error of the prediction; most of its changes are those of the drawn timesteps.
        attention: the attention term before its weight; 0 where it has none.
        lr: learning rate.
        gradient: length of the gradient.
        state: after the step.
    """

    loss: float
    attention: float
    lr: float
    gradient: float
    state: TrainState

    @property
    def index(self) -> int:
        """0 for the first step."""
        return self.state.step - 1

    @property
    def concept(self) -> Concept:
        """The word after this step."""
        return self.state.concept


def invert(
    model: Model, images: Source | Pictures, config: InversionConfig, *, state: TrainState | None = None
) -> Generator[TrainStep, None, None]:
    """Learn a word, step by step; the last step has it.

    While the generator is alive the model knows the word as it is at that step, so it can be drawn in between; and its
    weights ask for no gradient. Closing the generator, or its end, leaves the model as it was.

    Args:
        model: its weights stay as they are; the noise levels and the kind of prediction are its scheduler's.
        images: see `limelight.concepts.pictures.Source`; three to six pictures of one thing are the usual.
        config: its settings, see `InversionConfig.suited`.
        state: a training to go on with: on the same device it gives, to the last bit, what it would have given without
            the break.

    Raises:
        SettingsError: a setting does not fit the model, or `state` is another training's.
        PromptError: the token is a word that the model has already.
    """
    if not isinstance(images, Pictures):
        images = encode(model, images, config)
    if state is None:
        state = TrainState.begin(model, images, config)
    state.check(model, images, config)
    noising(model)
    if model.dtype == torch.float16:
        raise SettingsError("Gradients are too small for float16; load the model with dtype=torch.bfloat16 or float32.")
    with state.concept.bind(model):  # what cannot be bound is found out here and not at the first step
        pass
    return _steps(model, images, config, replace(state, config=config), sentences(model, config.templates))


def encode(model: Model, source: Source, config: InversionConfig) -> Pictures:
    """Pictures as a training with these settings needs them."""
    size = None if config.size is None else (config.size, config.size)
    return Pictures.encode(model, source, size=size, fit=config.fit, mirrored=config.flip > 0)


@torch.inference_mode(False)
@torch.enable_grad()
def _steps(
    model: Model, pictures: Pictures, config: InversionConfig, state: TrainState, texts: tuple[str, ...]
) -> Generator[TrainStep, None, None]:
    rows = [nn.Parameter(v.to(model.device, copy=True)) for v in state.vectors]
    begun = [v.to(model.device) for v in state.begun]
    optimizer = torch.optim.AdamW(rows, lr=config.rate, weight_decay=config.weight_decay, foreach=False)
    for row, (first, second) in zip(rows, state.moments, strict=False):
        kept = {"exp_avg": first.to(row.device, copy=True), "exp_avg_sq": second.to(row.device, copy=True)}
        optimizer.state[row] = {"step": torch.tensor(float(state.step)), **kept}
    with frozen(model.denoiser), bound(model, config.token, rows):
        for index in range(state.step, config.steps):
            errors, drifts = 0.0, 0.0
            for part in range(config.accumulate):
                error, drift = _pass(model, pictures, config, texts, index, part)
                errors, drifts = errors + error, drifts + drift
            length = _update(optimizer, rows, begun, config, index)
            moments = [(optimizer.state[row]["exp_avg"], optimizer.state[row]["exp_avg_sq"]) for row in rows]
            state = replace(
                state,
                step=index + 1,
                vectors=tuple(row.detach().to("cpu", copy=True) for row in rows),
                moments=tuple((m.to("cpu", copy=True), v.to("cpu", copy=True)) for m, v in moments),
            )
            yield TrainStep(errors / config.accumulate, drifts / config.accumulate, config.rate, length, state)


def _update(
    optimizer: torch.optim.Optimizer, rows: list[nn.Parameter], begun: list[Tensor], config: InversionConfig, index: int
) -> float:
    """Move the rows by their gradient; returns its length."""
    if config.anchor_weight:
        distance = torch.stack([(row - b).square().sum(dim=1).mean() for row, b in zip(rows, begun, strict=True)])
        (config.anchor_weight * distance.sum()).backward()
    trained = config.vectors_at(index)
    length = 0.0
    for row in rows:
        assert row.grad is not None
        row.grad[trained:] = 0
        length += float(row.grad.square().sum())
    if not math.isfinite(length):
        raise SettingsError(
            f"The training of '{config.token}' lost its footing in step {index + 1} (the gradient is no number); "
            f"go on from an earlier step with a smaller learning rate than {config.lr}."
        )
    waiting = [row.detach()[trained:].clone() for row in rows]
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for row, kept, b in zip(rows, waiting, begun, strict=True):
            row[trained:] = kept  # without the weight decay
            if config.norm == "keep":
                row.mul_(b.norm(dim=1, keepdim=True) / row.norm(dim=1, keepdim=True))
    return math.sqrt(length)


def _pass(
    model: Model, pictures: Pictures, config: InversionConfig, texts: tuple[str, ...], index: int, part: int
) -> tuple[float, float]:
    """One pass of a step, there and back: the error of what the model predicts, and the attention term."""
    random = generator(config.seed, "pass", index, part)
    first = (index * config.accumulate + part) * config.batch
    which = [_drawn(len(pictures), config.seed, n) for n in range(first, first + config.batch)]
    view = (torch.rand(config.batch, generator=random) < config.flip).long().tolist()
    templates = [texts[i] for i in torch.randint(len(texts), (config.batch,), generator=random).tolist()]
    mean, std = pictures.mean[which, view], pictures.std[which, view]
    spread, noise = _normal(mean, random), _normal(mean, random)
    scheduler = noising(model)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (config.batch,), generator=random)
    timesteps = timesteps.to(model.device)
    latents = mean + std * spread
    noisy = scheduler.add_noise(latents, noise, timesteps)
    layers = layers_to_read(model, (noisy.shape[-2], noisy.shape[-1])) if config.attention_weight else ()

    def passed(probe: Probe, word: str, until: Layer | None = None) -> tuple[Tensor | None, Tensor | None]:
        """What the model predicts, and the share of all attention that a word in the token's place gets, [images]."""
        prompts = [model.prompt(config.text(template, word)) for template in templates]
        encoded = model.encode(prompts, size=_size(model, noisy), gradient=torch.is_grad_enabled())
        with _scheduled(model, scheduler):
            prediction = model.predict(noisy, timesteps, encoded, until=until)
        maps = probe.take(noisy, prompts)
        return prediction, maps.map(word).mean(dim=(1, 2)) if layers else None

    usual = None
    if config.init is not None and layers:
        with torch.no_grad(), Probe(model, layers) as probe:
            _, usual = passed(probe, config.init, layers[-1])
    # The way back is within the probe: a checkpointed layer runs again there, and must do so as it did before.
    recompute = recomputing(model.denoiser) if config.checkpoint else nullcontext()
    with recompute, Probe(model, layers) as probe:
        prediction, share = passed(probe, config.token)
        assert prediction is not None  # no `until` was given
        error = F.mse_loss(prediction.float(), _target(scheduler, latents, noise, timesteps).float())
        drift = torch.zeros_like(error) if share is None or usual is None else (share / usual).log().square().mean()
        ((error + config.attention_weight * drift) / config.accumulate).backward()
    return error.item(), drift.item()


@torch.inference_mode(False)
@torch.no_grad()
def held_loss(model: Model, pictures: Pictures, config: InversionConfig, count: int = 32) -> float:
    """The error on fixed noise, timesteps and one sentence, which shows what is learned where `TrainStep.loss` is ruled
    by the timesteps that were drawn.

    Args:
        model: with the token bound to it, as it is while `invert` runs.
        count: how many noisy pictures; their timesteps are spread evenly.
    """
    scheduler, random = noising(model), generator(config.seed, "held")
    which = [k % len(pictures) for k in range(count)]
    latents = pictures.mean[which, 0]
    noise, total = _normal(latents, random), 0.0
    every = scheduler.config.num_train_timesteps / count
    timesteps = torch.tensor([int((k + 0.5) * every) for k in range(count)])
    timesteps = timesteps[torch.randperm(count, generator=random)].to(model.device)
    prompt = model.prompt(config.text(sentences(model, config.templates)[0]))
    encoded = model.encode([prompt], size=_size(model, latents))
    for part in torch.arange(count).split(config.batch):
        noisy = scheduler.add_noise(latents[part], noise[part], timesteps[part])
        with _scheduled(model, scheduler):
            prediction = model.predict(noisy, timesteps[part], encoded.rows([0] * len(part)))
        assert prediction is not None  # no `until` was given
        target = _target(scheduler, latents[part], noise[part], timesteps[part])
        total += F.mse_loss(prediction.float(), target.float()).item() * len(part)
    return total / count


def _target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the model was trained to predict."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return {"epsilon": noise, "sample": latents}[kind]


def noising(model: Model) -> Any:
    """The noise that the model was trained with, as diffusers' DDPMScheduler.

    Raises:
        SettingsError: the model was trained with another kind of noise.
    """
    from diffusers import DDPMScheduler

    config = model.scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in ("epsilon", "v_prediction", "sample"):
        raise SettingsError(
            f"A word cannot be learned with {type(model.scheduler).__name__}, whose noise ({kind}) is of another kind."
        )
    return DDPMScheduler.from_config(config)


@contextmanager
def _scheduled(model: Model, scheduler: Any) -> Iterator[None]:
    """Schedulers of inference may scale what the denoiser gets by where they are in their own schedule."""
    before, model.scheduler = model.scheduler, scheduler
    try:
        yield
    finally:
        model.scheduler = before


def _size(model: Model, latents: Tensor) -> tuple[int, int]:
    return latents.shape[-2] * model.pixels_per_latent, latents.shape[-1] * model.pixels_per_latent


def _normal(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random).to(like)


def _drawn(pictures: int, seed: int, n: int) -> int:
    """The n-th picture of a training: all of them in turn, each time in another order."""
    turn, place = divmod(n, pictures)
    return int(torch.randperm(pictures, generator=generator(seed, "order", turn))[place])
