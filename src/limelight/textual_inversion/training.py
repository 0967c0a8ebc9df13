"""Textual inversion: a word for what some images show.

Rinon Gal, Yuval Alaluf, Yuval Atzmon, Or Patashnik, Amit H. Bermano, Gal Chechik, Daniel Cohen-Or, "An Image is Worth
One Word: Personalizing Text-to-Image Generation using Textual Inversion", 2022, https://arxiv.org/abs/2208.01618

A new word's vectors in the text encoder's table are trained, and nothing else, until the model predicts the noise in
images of the thing from sentences with that word.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.maps import AttentionMaps
from ..attention.probe import Probe
from ..errors import SettingsError
from ..guidance.base import layers_to_read
from ..models.base import Model
from ..models.learned import BoundWord
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt
from ..utils.torch import frozen, recomputing
from .binding import bound
from .config import TrainingConfig, generator
from .dataset import Source, TrainingImages, sentences
from .prior import Prior
from .state import TrainState
from .word import LearnedWord


@dataclass(frozen=True, eq=False)
class TrainStep:
    """One step of a training, done.

    Attributes:
        loss: mean squared error of the prediction; most of its changes are those of the timesteps.
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
    def word(self) -> LearnedWord:
        """The word after this step."""
        return self.state.word


def train_word(
    model: Model, images: Source | TrainingImages, config: TrainingConfig, *, state: TrainState | None = None
) -> Generator[TrainStep, None, None]:
    """Learn a word, step by step; the last step has it.

    While the generator is alive, the model knows the word as it is at that step, so images of it can be generated in
    between, and the model's weights require no gradient. Closing or exhausting the generator restores the model.

    Examples:
        >>> from PIL import Image
        >>> from limelight.textual_inversion.config import TrainingConfig
        >>> model = limelight.load("pocket", device="cpu")
        >>> config = TrainingConfig.suited(model, token="<teal>", init="cat", steps=2, batch=1)
        >>> *_, last = train_word(model, Image.new("RGB", (64, 64), "teal"), config)
        >>> last.index, last.word.token
        (1, '<teal>')

    Args:
        model: its weights stay as they are; the noise levels and the kind of prediction are its scheduler's.
        images: see `limelight.textual_inversion.dataset.Source`; three to six images of one thing are the usual.
        config: its settings, see `TrainingConfig.suited`.
        state: a training to resume: on the same device it gives, to the last bit, what it would have given without the
            break.

    Raises:
        ModelError: words cannot be learned on this family.
        SettingsError: a setting does not fit the model, or `state` is another training's.
        PromptError: the token is a word that the model has already.
    """
    model.require("learn")
    if not isinstance(images, TrainingImages):
        images = encode(model, images, config)
    if state is None:
        state = TrainState.begin(model, images, config)
    state.check(model, images, config)
    scheduler = noising(model)
    if model.dtype == torch.float16:
        raise SettingsError("Gradients are too small for float16; load the model with dtype=torch.bfloat16 or float32.")
    texts = sentences(model, config.templates)
    with state.word.bind(model):  # what cannot be bound is found out here and not at the first step
        _check_sentences(model, config, texts)
    run = _Run(model, images, config, texts, scheduler)
    return _steps(run, replace(state, config=config))


def _check_sentences(model: Model, config: TrainingConfig, texts: Sequence[str]) -> None:
    """Refuse sentences of which the model does not read every word.

    Raises:
        SettingsError: one is too long, with the word's vectors in it.
    """
    for text in texts:
        prompt = model.prompt(config.text(text))
        if prompt.lost:
            raise SettingsError(
                f"The model '{model.name}' reads {len(prompt.ids)} tokens, and '{prompt.text}' has {prompt.size} with "
                f"the {config.vectors} vectors of '{config.token}'; learn fewer vectors or use shorter templates."
            )


def encode(model: Model, source: Source, config: TrainingConfig) -> TrainingImages:
    """Encode images as a training with these settings needs them."""
    size = None if config.size is None else (config.size, config.size)
    return TrainingImages.encode(model, source, size=size, fit=config.fit, mirrored=config.flip > 0)


@dataclass(frozen=True, eq=False)
class _Run:
    """What all steps of a training share.

    Attributes:
        texts: the sentences to learn in.
        scheduler: the noise that the model was trained with.
        prompts: every text that was parsed, with its prompt: parsing costs, and the token stays bound.
    """

    model: Model
    images: TrainingImages
    config: TrainingConfig
    texts: tuple[str, ...]
    scheduler: Any
    prompts: dict[str, Prompt] = field(default_factory=dict)

    def prompt(self, template: str, word: str) -> Prompt:
        """A sentence with a word in its place."""
        return self.parsed(self.config.text(template, word))

    def parsed(self, text: str) -> Prompt:
        """A text, parsed once."""
        if text not in self.prompts:
            self.prompts[text] = self.model.prompt(text)
        return self.prompts[text]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Noisy images of one pass, and what the model shall predict of them."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


@torch.inference_mode(False)
@torch.enable_grad()
def _steps(run: _Run, state: TrainState) -> Generator[TrainStep, None, None]:
    model, config = run.model, run.config
    prior = Prior.draw(model, config) if state.changes and config.prior_images else None
    rows = [nn.Parameter(v.to(model.device, copy=True)) for v in state.vectors]
    changes = {name: nn.Parameter(v.to(model.device, copy=True)) for name, v in state.changes.items()}
    trained = [*rows, *changes.values()]
    begun = [v.to(model.device) for v in state.begun]
    optimizer = _optimizer(rows, trained[len(rows) :], config, state)

    with frozen(model.denoiser), bound(model, config.token, rows, changes) as own:
        for index in range(state.step, config.steps):
            error, drift = _passes(run, prior, own, index)
            if config.anchor_weight:
                (config.anchor_weight * _distance(rows, begun)).backward()
            length = _gradient(rows, changes, config, index)
            _update(optimizer, rows, begun, config, index)

            moments = []
            for parameter in trained:
                kept = optimizer.state[parameter]
                moments.append((_copied(kept["exp_avg"]), _copied(kept["exp_avg_sq"])))
            state = replace(
                state,
                step=index + 1,
                vectors=tuple(map(_copied, rows)),
                moments=tuple(moments),
                changes={name: _copied(change) for name, change in changes.items()},
            )
            yield TrainStep(error, drift, config.rate, length, state)


def _copied(tensor: Tensor) -> Tensor:
    """A copy in the main memory, without a gradient."""
    return tensor.detach().to("cpu", copy=True)


def _optimizer(
    rows: list[nn.Parameter], changes: list[nn.Parameter], config: TrainingConfig, state: TrainState
) -> torch.optim.Optimizer:
    """AdamW where a state left it."""
    groups: list[dict[str, Any]] = [{"params": rows}]
    if changes:
        groups.append({"params": changes, "lr": config.rank_lr})
    optimizer = torch.optim.AdamW(groups, lr=config.rate, weight_decay=config.weight_decay, foreach=False)
    for own, (first, second) in zip((*rows, *changes), state.moments, strict=False):
        kept = {"exp_avg": first.to(own.device, copy=True), "exp_avg_sq": second.to(own.device, copy=True)}
        optimizer.state[own] = {"step": torch.tensor(float(state.step)), **kept}
    return optimizer


def _distance(rows: list[nn.Parameter], begun: list[Tensor]) -> Tensor:
    """The mean squared distance of the vectors to those that they began as, summed over the text encoders."""
    return torch.stack([(row - b).square().sum(dim=1).mean() for row, b in zip(rows, begun, strict=True)]).sum()


def _gradient(
    rows: list[nn.Parameter], changes: Mapping[str, nn.Parameter], config: TrainingConfig, index: int
) -> float:
    """Clear the gradient of vectors that wait for their turn; returns the length of the rest.

    Raises:
        SettingsError: the gradient is not finite.
    """
    trained, length = config.vectors_at(index), 0.0
    for row in rows:
        assert row.grad is not None
        row.grad[trained:] = 0
    for parameter in (*rows, *changes.values()):
        assert parameter.grad is not None
        length += float(parameter.grad.square().sum())

    if not math.isfinite(length):
        raise SettingsError(
            f"The training of '{config.token}' diverged in step {index + 1} (its gradient is not finite). Resume from "
            f"an earlier step with a smaller learning rate than {config.lr}."
        )
    return math.sqrt(length)


def _update(
    optimizer: torch.optim.Optimizer, rows: list[nn.Parameter], begun: list[Tensor], config: TrainingConfig, index: int
) -> None:
    """Move the rows by their gradient."""
    trained = config.vectors_at(index)
    waiting = [row.detach()[trained:].clone() for row in rows]
    optimizer.step()
    optimizer.zero_grad()

    with torch.no_grad():
        for row, kept, b in zip(rows, waiting, begun, strict=True):
            row[trained:] = kept  # without the weight decay
            if config.norm == "keep":
                row.mul_(b.norm(dim=1, keepdim=True) / row.norm(dim=1, keepdim=True))


def _batch(run: _Run, index: int, part: int) -> tuple[_Batch, tuple[str, ...]]:
    """The images and sentences of a pass, which depend on the seed, the step and the part alone."""
    config, images = run.config, run.images
    random = generator(config.seed, "pass", index, part)
    first = (index * config.accumulate + part) * config.batch
    which = [_chosen(len(images), config.seed, n) for n in range(first, first + config.batch)]
    view = (torch.rand(config.batch, generator=random) < config.flip).long().tolist()
    templates = tuple(run.texts[i] for i in torch.randint(len(run.texts), (config.batch,), generator=random).tolist())

    mean, std = images.mean[which, view], images.std[which, view]
    return _noised(run, mean + std * _normal(mean, random), random), templates


def _noised(run: _Run, latents: Tensor, random: torch.Generator) -> _Batch:
    """Latents [images, channels, height, width] with random noise at random timesteps."""
    noise = _normal(latents, random)
    timesteps = torch.randint(run.scheduler.config.num_train_timesteps, (len(latents),), generator=random)
    timesteps = timesteps.to(run.model.device)
    noisy = run.scheduler.add_noise(latents, noise, timesteps)
    return _Batch(noisy, timesteps, _target(run.scheduler, latents, noise, timesteps))


def _predicted(
    run: _Run, batch: _Batch, prompts: Sequence[Prompt], *, gradient: bool = False, until: AttentionSite | None = None
) -> Tensor | None:
    """What the model predicts of noisy images; with `gradient` it reaches the words."""
    encoded = run.model.encode(prompts, size=_size(run.model, batch.noisy), gradient=gradient)
    # Schedulers of inference may scale what the denoiser gets by where they are in their own schedule.
    return run.model.for_one_run(run.scheduler).predict(batch.noisy, batch.timesteps, encoded, until=until)


def _passes(run: _Run, prior: Prior | None, own: BoundWord, index: int) -> tuple[float, float]:
    """All passes of a step, forward and backward: the mean error of the prediction, and the mean attention term."""
    errors, drifts = 0.0, 0.0
    for part in range(run.config.accumulate):
        error, drift = _pass(run, index, part)
        errors, drifts = errors + error, drifts + drift
        if prior is not None:
            _prior_pass(run, prior, own, index, part)
    return errors / run.config.accumulate, drifts / run.config.accumulate


def _pass(run: _Run, index: int, part: int) -> tuple[float, float]:
    """One pass of a step, forward and backward: the error of the prediction, and the attention term."""
    model, config, (batch, templates) = run.model, run.config, _batch(run, index, part)
    size = (batch.noisy.shape[-2], batch.noisy.shape[-1])
    layers = layers_to_read(model, size) if config.attention_weight else ()

    # The attention that the init word gets in the same place.
    usual = None
    if config.init is not None and layers:
        prompts = [run.prompt(template, config.init) for template in templates]
        with torch.no_grad(), Probe(model, layers) as probe:
            _predicted(run, batch, prompts, until=layers[-1])
            usual = _share(probe.take(batch.noisy, prompts), config.init)

    # The backward pass is within the probe: a checkpointed layer runs again there, and must do so as it did before.
    prompts = [run.prompt(template, config.token) for template in templates]
    recompute = recomputing(model.denoiser, on=config.checkpoint)
    with recompute, Probe(model, layers) as probe:
        error = _error(_predicted(run, batch, prompts, gradient=True), batch.target)
        maps = probe.take(batch.noisy, prompts)
        drift = torch.zeros_like(error)
        if usual is not None:
            drift = (_share(maps, config.token) / usual).log().square().mean()
        ((error + config.attention_weight * drift) / config.accumulate).backward()
    return error.item(), drift.item()


def _prior_pass(run: _Run, prior: Prior, own: BoundWord, index: int, part: int) -> None:
    """The forward and backward pass of some of the prior's images, with the word's changes made in them."""
    config, random = run.config, generator(run.config.seed, "prior", index, part)
    which = torch.randint(len(prior.prompts), (config.batch,), generator=random).tolist()
    batch = _noised(run, prior.latents[which], random)
    own.everywhere = True
    try:
        prediction = _predicted(run, batch, [run.parsed(prior.prompts[i]) for i in which])
    finally:
        own.everywhere = False
    (config.prior_weight * _error(prediction, batch.target) / config.accumulate).backward()


def _share(maps: AttentionMaps, word: str) -> Tensor:
    """The share of all attention that a word gets, [images]."""
    return maps.map(word).mean(dim=(1, 2))


def _error(prediction: Tensor | None, target: Tensor) -> Tensor:
    """The mean squared error of a whole pass's prediction."""
    assert prediction is not None  # no `until` was given
    return F.mse_loss(prediction.float(), target.float())


@torch.inference_mode(False)
@torch.no_grad()
def held_loss(model: Model, images: TrainingImages, config: TrainingConfig, count: int = 32) -> float:
    """Measure the error on fixed noise, timesteps and one sentence.

    It shows what is learned; `TrainStep.loss` changes mostly with the timesteps of the step.

    Args:
        model: with the token bound to it, as it is while `train_word` runs.
        count: how many noisy images; their timesteps are spread evenly.
    """
    scheduler, random = noising(model), generator(config.seed, "held")
    which = [k % len(images) for k in range(count)]
    latents = images.mean[which, 0]
    noise, total = _normal(latents, random), 0.0

    every = scheduler.config.num_train_timesteps / count
    timesteps = torch.tensor([int((k + 0.5) * every) for k in range(count)])
    timesteps = timesteps[torch.randperm(count, generator=random)].to(model.device)
    prompt = model.prompt(config.text(sentences(model, config.templates)[0]))
    encoded = model.encode([prompt], size=_size(model, latents))

    for part in torch.arange(count).split(config.batch):
        noisy = scheduler.add_noise(latents[part], noise[part], timesteps[part])
        prediction = model.for_one_run(scheduler).predict(noisy, timesteps[part], encoded.rows([0] * len(part)))
        target = _target(scheduler, latents[part], noise[part], timesteps[part])
        total += _error(prediction, target).item() * len(part)
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


def _size(model: Model, latents: Tensor) -> tuple[int, int]:
    return latents.shape[-2] * model.pixels_per_latent, latents.shape[-1] * model.pixels_per_latent


def _normal(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random).to(like)


def _chosen(images: int, seed: int, n: int) -> int:
    """The n-th image of a training: all of them in turn, each time in another order."""
    turn, place = divmod(n, images)
    return int(torch.randperm(images, generator=generator(seed, "order", turn))[place])
