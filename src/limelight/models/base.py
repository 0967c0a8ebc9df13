"""What every model family offers to the rest of the library."""

from __future__ import annotations

import copy
import importlib.resources
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import yaml
from PIL import Image
from torch import Tensor

from ..errors import ModelError, SettingsError
from ..prompts.prompt import Prompt
from .learned import learned
from .sites import WHOLE, AttentionSite, Layout


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Encoded prompts, one row per image.

    Attributes:
        prompts: the parsed prompts, one per image.
        conditional: keyword tensors of the denoiser, first axis images, e.g. ``encoder_hidden_states``
            [images, tokens, width].
        unconditional: the same for the negative prompt, or None when there is no second branch.
    """

    prompts: tuple[Prompt, ...]
    conditional: Mapping[str, Tensor]
    unconditional: Mapping[str, Tensor] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """On a device, in a dtype."""
        return self._changed(self.prompts, lambda value: value.to(device, dtype))

    def only_conditional(self) -> Conditioning:
        """All images, conditional branch only."""
        return Conditioning(self.prompts, self.conditional)

    def with_states(self, **states: Tensor) -> Conditioning:
        """Both branches with further states, the same in each."""
        unconditional = None if self.unconditional is None else {**self.unconditional, **states}
        return Conditioning(self.prompts, {**self.conditional, **states}, unconditional)

    def rows(self, index: Sequence[int]) -> Conditioning:
        """Some of the images, in the given order."""
        return self._changed(tuple(map(self.prompts.__getitem__, index)), lambda value: value[list(index)])

    def carrying(self, tokens: Tensor) -> Conditioning:
        """The conditional branch with further encoded tokens [tokens, width] behind every text."""
        conditional = dict(self.conditional)
        states = conditional["encoder_hidden_states"]
        images = len(states)
        conditional["encoder_hidden_states"] = torch.cat([states, tokens.to(states).expand(images, -1, -1)], dim=1)
        for name, value in self.conditional.items():
            if "mask" in name:
                conditional[name] = torch.cat([value, value.new_ones(images, len(tokens))], dim=1)
        return Conditioning(self.prompts, conditional)

    def alone(self, row: int) -> Conditioning:
        """The conditional branch of one image, its text as long as its mask says."""
        own = self.rows([row]).conditional
        length = int((own["mask"] > 0).sum())
        cut = {name: value[:, :length] for name, value in own.items() if name in ("mask", "encoder_hidden_states")}
        return Conditioning((self.prompts[row],), {**own, **cut})

    def _changed(self, prompts: tuple[Prompt, ...], change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same change made to every tensor of both branches."""

        def changed(branch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: change(value) for name, value in branch.items()}

        if self.unconditional is None:
            return Conditioning(prompts, changed(self.conditional))
        return Conditioning(prompts, changed(self.conditional), changed(self.unconditional))

    @cached_property
    def joined(self) -> Mapping[str, Tensor]:
        """Both branches as one batch, unconditional rows first."""
        if self.unconditional is None:
            return self.conditional
        return {name: torch.cat([self.unconditional[name], value]) for name, value in self.conditional.items()}


@dataclass(frozen=True)
class About:
    """What is known about a model: by its family, or by the file `limelight.json` of its folder, which comes first.

    Attributes:
        words: every word that it was trained with, in lower case; None if unknown.
        presets: method -> settings that suit it better than the paper's: "attend_and_excite" of `AttendAndExcite`,
            "textual_inversion" of `limelight.textual_inversion.config.TrainingConfig`, "generate" the
            `guidance_scale` of `limelight.generate`, "maps" the names of the `layers` that guidance reads.
    """

    words: frozenset[str] | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def family(cls, name: str) -> About:
        """What `presets.yaml` says about a family."""
        return cls(presets=_family_presets()[name])

    def preset(self, method: str) -> dict[str, Any]:
        """The settings of one method; none where nothing is known."""
        return dict(self.presets.get(method, {}))


@cache
def _family_presets() -> dict[str, dict[str, dict[str, Any]]]:
    text = (importlib.resources.files("limelight.models") / "presets.yaml").read_text("utf-8")
    presets: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text)
    return presets


Feature = Literal["read", "also", "steer", "edit", "prompt-to-prompt", "heads", "learn", "attach"]
"""Maps by word; maps of words that are not in the prompt; guidance; edits of attention by word; `limelight.edit`;
counting head relevance vectors; learning and binding words; `limelight.attach`."""
FEATURES: tuple[Feature, ...] = get_args(Feature)


class Model(ABC):
    """A text-to-image diffusion model: one subclass per family, wrapping a diffusers pipeline and never copying it.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> [word.text for word in model.prompt("a black cat").words]
        ['a', 'black', 'cat']

    Attributes:
        name: how the model was asked for (a hub id, a folder, "pocket").
        denoiser: the module (a torch.nn.Module) whose attention is watched.
        sites: every attention layer in execution order.
        guided_scale: the `AttentionSite.scale` at which this family's maps carry semantics.
        pixels_per_latent: image pixels per latent pixel along an axis.
        scheduler: a diffusers scheduler, this model's own copy. Its settings are those of every run, and each run
            copies it, see `for_one_run`.
        about: what its family or its folder says about it.
        quantize: how `limelight.load` made its weights smaller; None: not.
        vectors: names of the shipped head relevance vectors that are of its family; None: whichever fit its layers.
    """

    name: str
    denoiser: Any
    sites: tuple[AttentionSite, ...]
    guided_scale: int
    pixels_per_latent: int
    scheduler: Any
    about: About = About()
    quantize: str | None = None
    vectors: tuple[str, ...] | None = None
    ragged: ClassVar[bool] = False
    """Whether its texts have no common length: those of a batch are filled up to the longest, with a mask."""
    can: ClassVar[frozenset[Feature]] = frozenset(FEATURES)
    """What works on this family."""
    loading: ClassVar[dict[str, Any]] = {}
    """Arguments of `from_pretrained` for this family, besides the common ones."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Beginnings of weights on which no image depends: a model may lack them."""

    @property
    def text_sites(self) -> tuple[AttentionSite, ...]:
        """The attention layers in which image positions attend to the prompt, in execution order."""
        return tuple(site for site in self.sites if site.reads_text)

    @property
    def word_layers(self) -> dict[str, bool]:
        """The linear layers of the denoiser that a learned word may change, by their path, and whether each reads the
        prompt instead of the image; none on families that learn no words."""
        return {}

    @property
    def guided_sites(self) -> tuple[AttentionSite, ...]:
        """Those of them, of one map size, whose maps carry semantics: what guidance reads and a run records."""
        names = self.about.preset("maps").get("layers")
        if not names:
            return self._family_sites
        found = tuple(site for site in self.text_sites if site.name in names and site.scale == self.guided_scale)
        if len(found) < len(set(names)):
            lacking = sorted(set(names) - {site.name for site in found})
            raise ModelError(
                f"The limelight.json of '{self.name}' names the layer '{lacking[0]}', which has no maps of words of "
                "the size that guidance reads."
            )
        return found

    @property
    def _family_sites(self) -> tuple[AttentionSite, ...]:
        """The `guided_sites` of the family, where the model's folder names no others."""
        return tuple(site for site in self.text_sites if site.scale == self.guided_scale)

    def require(self, feature: Feature) -> None:
        """Refuse what does not work on this family.

        Raises:
            ModelError: it does not.
        """
        if feature not in self.can:
            works, family = ", ".join(filter(self.can.__contains__, FEATURES)), type(self).__name__
            raise ModelError(f"'{self.name}' is a {family}, on which '{feature}' does not work yet; it has: {works}.")

    def layout(self, site: AttentionSite) -> Layout | None:
        """Where a layer has the image and the prompt in the pass that runs, or ran last; None: that pass is not of the
        conditional branch and is left alone.
        """
        return WHOLE

    @property
    def embeds_guidance(self) -> bool:
        """Whether the denoiser reads the guidance scale as a number and has no unconditional branch."""
        return False

    @property
    def flows(self) -> bool:
        """Whether it generates by flow matching."""
        return "FlowMatch" in type(self.scheduler).__name__

    true_cfg_scale: float = 1.0
    """Strength of classifier-free guidance with a negative prompt, beside a guidance scale that the denoiser reads."""

    def with_true_cfg(self, scale: float) -> Self:
        """The same model with classifier-free guidance beside the guidance scale that its denoiser reads; at 1 without.

        Raises:
            SettingsError: it has none.
        """
        if scale == 1:
            return self
        raise SettingsError(
            f"true_cfg_scale={scale} is for models whose denoiser reads the guidance scale as a number (FLUX.1), and "
            f"'{self.name}' is not such a model. Set guidance_scale instead."
        )

    @property
    def reads_negative(self) -> bool:
        """Whether a negative prompt is read at some guidance scale."""
        return not self.embeds_guidance

    def branches(self, guidance_scale: float) -> int:
        """How many branches a run of this strength of classifier-free guidance has: 2, or 1 without the unconditional
        one.
        """
        if guidance_scale > 1 and not self.embeds_guidance:
            return 2
        return 1

    def scales_in_use(self, guidance_scale: float, branches: int) -> dict[str, float]:
        """The strengths of classifier-free guidance that a run of so many branches has, as settings of `generate`: 1
        where nothing reads it.
        """
        scales = {"guidance_scale": guidance_scale if branches == 2 or self.embeds_guidance else 1.0}
        if self.true_cfg_scale != 1:
            scales["true_cfg_scale"] = self.true_cfg_scale
        return scales

    def negative_in_use(self, guidance_scale: float, negative: str) -> str | None:
        """The negative prompt, where a run of this strength of classifier-free guidance reads one; else None."""
        if self.branches(guidance_scale) == 2:
            return negative
        return None

    def check_negative(self, texts: Iterable[str]) -> None:
        """Refuse negative prompts where nothing reads them.

        Raises:
            SettingsError: one is not empty, and there is no unconditional branch at any scale.
        """
        refused = next(filter(None, texts), None)
        if refused is not None and not self.reads_negative:
            raise SettingsError(
                f"'{self.name}' reads the guidance scale as a number and has no negative prompt; leave out "
                f"negative={refused!r}."
            )

    @property
    def learned(self) -> dict[str, str]:
        """The learned words that are bound to it now, each with a hash of its vectors."""
        return learned(self)

    @property
    def parts(self) -> Mapping[str, torch.nn.Module]:
        """The modules whose weights shape an image, by name."""
        return {"denoiser": self.denoiser}

    @property
    def guidance_scale(self) -> float:
        """The strength of classifier-free guidance where the user names none: the folder's or the family's own."""
        return float(self.about.preset("generate").get("guidance_scale", 7.5))

    def scale_or_own(self, wanted: float | None) -> float:
        """The wanted strength of classifier-free guidance, or the model's own where that is None."""
        if wanted is None:
            return self.guidance_scale
        return wanted

    def size_or_own(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The wanted height and width in pixels, or the model's own where one is None."""
        own = self.default_size
        if height is None:
            height = own[0]
        if width is None:
            width = own[1]
        return height, width

    def unknown(self, prompt: Prompt) -> tuple[str, ...]:
        """Words that the model has never seen, where its folder says which ones it knows."""
        if self.about.words is None:
            return ()
        known = self.about.words
        return tuple(dict.fromkeys(word.text for word in prompt.words if not word.learned and word.key not in known))

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    def noise_dtype(self) -> torch.dtype:
        """The numbers in which noise is sampled, as the pipeline does it."""
        return self.dtype

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model was trained on."""

    def least_memory(self, size: tuple[int, int]) -> int:
        """Bytes that an image of a size, height and width in pixels, takes at the very least; 0 if unknown."""
        return 0

    @abstractmethod
    def prompt(self, text: str) -> Prompt:
        """Tokenize a prompt."""

    @abstractmethod
    def encode(
        self,
        prompts: Sequence[Prompt],
        negative: str | Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        *,
        clip_skip: int = 0,
        gradient: bool = False,
    ) -> Conditioning:
        """Encode one prompt per image.

        Args:
            negative: the prompt of the unconditional branch, may be "", or one for each image; None leaves that branch
                out.
            size: height and width of the images in pixels, which some families encode, too; by default `default_size`.
            clip_skip: how many of the text encoder's last layers are left out.
            gradient: keep the gradient with respect to whatever of the text encoder asks for one.
        """

    def stow(self, away: bool = True) -> bool:
        """Take off the device what only `encode` needs, which then brings it there for as long as it runs; or bring it
        back for good. Returns whether that made room.
        """
        return False

    def for_one_run(self, scheduler: Any = None) -> Self:
        """The same model with a scheduler of its own (by default a copy), everything else shared.

        Schedulers remember where they are. With one of its own, a run is not disturbed by what else is generated with
        this model in the meantime: by a preview in `on_step`, by another loop, or by another thread.
        """
        own = copy.copy(self)
        if scheduler is None:
            scheduler = copy.deepcopy(self.scheduler)
        own.scheduler = scheduler
        return own

    def check_inputs(self) -> None:  # noqa: B027 - most families take no other inputs
        """Check that the denoiser asks for nothing that cannot be given to it.

        Raises:
            ModelError: it does.
        """

    def passes(self, steps: int) -> int:
        """How many passes a schedule of `steps` inference steps has (some schedules add a few)."""
        return len(self.for_one_run().timesteps(steps))

    def prepare(self, conditioning: Conditioning, guidance_scale: float) -> Conditioning:
        """The conditioning of a run, with what else the denoiser reads in all of its passes.

        Raises:
            ModelError: the denoiser reads something that cannot be given to it.
        """
        return conditioning

    @abstractmethod
    def timesteps(self, steps: int, size: tuple[int, int] | None = None) -> Tensor:
        """Start a new schedule of `steps` inference steps and return its timesteps, see `for_one_run` and `passes`.

        Args:
            size: height and width of the images in pixels, by which some families shift their noise levels; by default
                `default_size`.
        """

    @abstractmethod
    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Initial latents [images, channels, height / pixels_per_latent, width / pixels_per_latent], unit variance."""

    @abstractmethod
    def start(self, noise: Tensor) -> Tensor:
        """Scale unit noise to the first timestep of the current schedule."""

    @abstractmethod
    def noised(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Finished latents with as much unit noise as there is at a timestep of the current schedule.

        `predict` takes them as they are, at that timestep alone: some schedulers remember the first one that they see,
        so that every further timestep needs a scheduler of its own, see `for_one_run`.

        Args:
            latents, noise: [images, channels, height, width].
            timestep: one of `timesteps`.
        """

    @abstractmethod
    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: AttentionSite | None = None,
    ) -> Tensor | None:
        """One denoiser pass over [images, channels, h, w].

        With an unconditional branch both branches run, as one batch (unconditional rows first) or one after the other,
        and are combined by classifier-free guidance. With `until`, the pass stops after that layer and returns None.
        """

    @abstractmethod
    def step(
        self,
        prediction: Tensor,
        timestep: Tensor,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        eta: float = 0.0,
    ) -> Tensor:
        """One scheduler step; `eta` is DDIM's share of fresh noise."""

    @abstractmethod
    def posterior(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """What the autoencoder makes of images of one size: the mean and the standard deviation of their latents,
        [images, channels, h, w] each."""

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of one size to latents [images, channels, h, w]: the middle of the autoencoder's distribution."""
        return self.posterior(images)[0]

    @abstractmethod
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Latents to images."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Facts for `limelight info` and for the settings of a result."""
