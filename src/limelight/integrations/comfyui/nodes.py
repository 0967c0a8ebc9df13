"""The nodes: guidance of a model, and the maps of a prompt's words in a latent image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...attention.maps import AttentionMaps
from ...attention.probe import Probe
from ...attention.recording import RunningMean
from ...errors import PromptError, SettingsError
from ...guidance.base import Guidance, Steering, layers_to_read
from ...guidance.names import NAMES, RECOMMENDED
from ...guidance.presets import PRESETS, preset
from ...prompts.prompt import Prompt
from ...prompts.subjects import Subject, described_nouns, resolve
from ...utils.torch import seeded
from .model import ComfyModel, Pass, ordinary_weights, positive_pass, read_prompt

METHODS = tuple(
    name for name in NAMES if name not in PRESETS or not {"look", "noise_search"} & PRESETS[name].settings.keys()
)
"""Those that need no run ahead, which a node cannot make."""
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm")
"""Samplers that evaluate the model once a step, at the latents from which the step goes on ("ddim" is "euler")."""
_KEY = "limelight"
_TEXT = ("STRING", {"multiline": True, "default": "a cat and a dog"})
_WORDS = (
    "STRING",
    {"default": "", "tooltip": "Words of the prompt, with commas between them; empty: the nouns of the prompt."},
)


class LimelightGuidance:
    """Guide a model so that every word of a prompt gets its place in the image."""

    CATEGORY = "limelight"
    FUNCTION = "guide"
    RETURN_TYPES = ("MODEL", "CONDITIONING")
    RETURN_NAMES = ("model", "positive")
    DESCRIPTION = "Guides the attention of the model while it samples. Connect both outputs to the sampler."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        methods = (list(METHODS), {"default": RECOMMENDED})
        return {
            "required": {"model": ("MODEL",), "clip": ("CLIP",), "prompt": _TEXT, "words": _WORDS, "method": methods}
        }

    def guide(self, model: Any, clip: Any, prompt: str, words: str, method: str) -> tuple[Any, Any]:
        """Patch a copy of the model.

        Returns:
            The copy, and the encoded prompt as the positive conditioning.

        Raises:
            LimelightError: see `read_prompt` and `limelight.prompts.subjects.resolve`.
        """
        if method not in METHODS:
            raise SettingsError(f"'{method}' does not work in ComfyUI. Choose one of: {', '.join(METHODS)}.")
        parsed, positive = read_prompt(clip, prompt), _encoded(clip, prompt)
        _, subjects = resolve(parsed, _listed(words) or "auto")
        adapter = ComfyModel(model)
        guiding = Guiding(adapter, parsed, subjects, preset(method, adapter), positive)

        patched = model.clone()
        guiding.before = patched.model_options.get("sampler_calc_cond_batch_function")
        patched.set_model_sampler_calc_cond_batch_function(guiding.predict)
        patched.add_wrapper_with_key("outer_sample", _KEY, guiding.sample)
        return patched, positive


class Guiding:
    """A guidance at work in the runs of a patched model, one after the other.

    Attributes:
        before: the ``sampler_calc_cond_batch_function`` of another node, or None.
        trace: what guidance did in the last run, as `limelight.Result.trace`.
    """

    def __init__(
        self, model: ComfyModel, prompt: Prompt, subjects: tuple[Subject, ...], guidance: Guidance, positive: Any
    ) -> None:
        self.model, self.prompt, self.subjects, self.guidance = model, prompt, subjects, guidance
        self.before: Any = None
        self.trace: list[dict[str, Any]] = []
        self._encoded = positive[0][0]
        self._steering: Steering | None = None
        self._sigmas = torch.empty(0)

    def sample(
        self, run: Any, noise: Any, latents: Any, sampler: Any, sigmas: Tensor, *args: Any, **options: Any
    ) -> Any:
        """Begin a run; a wrapper of ComfyUI's ``outer_sample``.

        Raises:
            SettingsError: what guidance moves would be lost with this sampler, or with a mask.
        """
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
        if name.removeprefix("sample_").removesuffix("_gpu") not in SAMPLERS:
            raise SettingsError(
                f"limelight cannot guide the sampler '{name}', which would lose what guidance moves. Choose one of: "
                f"ddim, {', '.join(SAMPLERS)}."
            )
        masks = [*args[:1], options.get("denoise_mask")]
        if any(mask is not None for mask in masks):
            raise SettingsError("limelight cannot guide a latent image with a noise mask. Leave out the mask.")

        self.trace, self._sigmas, self._steering, self.model.sites = [], sigmas, None, ()
        return run(noise, latents, sampler, sigmas, *args, **options)

    def predict(self, args: dict[str, Any]) -> Any:
        """Move the sampler's latents, and predict with them; a ``sampler_calc_cond_batch_function`` of ComfyUI."""
        index = self._index(args["sigma"])
        if self._steering is None or index < self._steering.until or index in self._steering.thresholds:
            moved: list[Tensor] = []
            positive_pass(args, lambda given: moved.append(self._moved(given, index)))
            # The sampler goes on from the very tensor that it has given.
            args["input"].copy_(moved[0])

        if self.before is not None:
            return self.before(args)
        from comfy.samplers import calc_cond_batch  # ComfyUI's

        return calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])

    def _index(self, sigma: Tensor) -> int:
        """Which step has this noise level."""
        steps = self._sigmas[:-1].tolist()
        level = float(sigma.flatten()[0])
        if level not in steps:
            raise SettingsError(f"The sampler runs the model at a noise level, {level:g}, that is not in its schedule.")
        return steps.index(level)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _moved(self, given: Pass, index: int) -> Tensor:
        """The latents of a step, moved."""
        _check_prompt(given, self._encoded, self.prompt.text)
        latents = given.latents.clone()
        with ordinary_weights(self.model.denoiser):
            conditioning = self.model.begin(given)
            if self._steering is None:
                self._steering = self._begin(latents, conditioning)
            move = self._steering.update(index, given.sigma, latents)

        if move is None:
            return latents
        self.trace.append({"step": index, "timestep": float(given.sigma[0]), **move.facts()})
        return move.latents

    def _begin(self, latents: Tensor, conditioning: Any) -> Steering:
        """Prepare the steering in the first pass of a run."""
        images, sigmas = len(latents), self._sigmas[:-1]
        layers = self.guidance.layers(self.model, (latents.shape[-2], latents.shape[-1]))
        conditioning = type(conditioning)((self.prompt,) * images, conditioning.conditional)
        return Steering(self.guidance, self.model, conditioning, [self.subjects] * images, len(sigmas), sigmas, layers)


class LimelightMaps:
    """Where the words of a prompt are in a latent image."""

    CATEGORY = "limelight"
    FUNCTION = "read"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("maps", "masks")
    DESCRIPTION = "Finds each word in a latent image: a map and a mask of each image, word by word."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "latent": ("LATENT",),
                "prompt": _TEXT,
                "words": _WORDS,
                "steps": ("INT", {"default": 10, "min": 1, "max": 100, "tooltip": "Strengths of noise that are read."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
                "threshold": ("FLOAT", {"default": 0.4, "min": 0.0, "max": 1.0, "step": 0.05}),
            }
        }

    def read(
        self, model: Any, clip: Any, latent: Any, prompt: str, words: str, steps: int, seed: int, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Give the image noise of several strengths, and read what each word attends to, as `limelight.read_image`.

        Args:
            steps: how many strengths of noise are read.
            threshold: of the masks, see `limelight.attention.maps.AttentionMaps.mask`.

        Returns:
            Maps [words * images, height, width, 3], white the highest attention of all words in an image, and masks
            [words * images, height, width].

        Raises:
            LimelightError: see `read_prompt`, or a word is not in the prompt.
        """
        parsed = read_prompt(clip, prompt)
        names = _listed(words) or list(described_nouns(parsed))
        if not names:
            raise PromptError(f"No noun can be found in '{prompt}'. Write in words which of them to show.")
        for name in names:
            parsed.find(name)

        reading = _Reading(ComfyModel(model), parsed, seed)
        maps = reading.run(model, latent["samples"], _encoded(clip, prompt), steps)
        size = (maps.latent_size[0] * 8, maps.latent_size[1] * 8)
        heats = torch.stack([maps.map(name, size) for name in names]).float().cpu()
        heats = heats / heats.amax(dim=(0, 2, 3), keepdim=True).clamp(min=1e-12)
        masks = torch.stack([maps.mask(name, threshold, size) for name in names]).float().cpu()
        return heats.flatten(0, 1)[..., None].expand(-1, -1, -1, 3), masks.flatten(0, 1)


class _Reading:
    """Reads maps where ComfyUI expects a sampler."""

    def __init__(self, model: ComfyModel, prompt: Prompt, seed: int) -> None:
        self.model, self.prompt, self.mean = model, prompt, RunningMean()
        (self._generator,) = seeded([seed])

    def run(self, model: Any, latents: Tensor, positive: Any, steps: int) -> AttentionMaps:
        """The mean of the maps over so many strengths of noise."""
        from comfy.samplers import calculate_sigmas, sample  # ComfyUI's

        sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        patched = model.clone()
        patched.set_model_sampler_calc_cond_batch_function(self.predict)
        noise, device = torch.zeros_like(latents), model.load_device
        sample(patched, noise, positive, positive, 1.0, device, self, sigmas, latent_image=latents, disable_pbar=True)

        mean = self.mean.result()
        assert mean is not None  # there is at least one strength of noise
        return mean

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: Any, _callback: Any, _noise: Any, latents: Tensor, *_: Any
    ) -> Tensor:
        """Run the model once at each noise level of a schedule."""
        for sigma in sigmas[sigmas > 0]:
            noise = torch.randn(latents.shape, generator=self._generator, dtype=latents.dtype).to(latents)
            noisy = guider.inner_model.model_sampling.noise_scaling(sigma, noise, latents)
            guider(noisy, sigma.expand(len(latents)), **extra_args)
        return latents

    def predict(self, args: dict[str, Any]) -> list[Tensor]:
        """Read a pass; a ``sampler_calc_cond_batch_function`` of ComfyUI, whose result nothing reads."""
        positive_pass(args, self._read)
        return [torch.zeros_like(args["input"])] * 2

    @torch.no_grad()
    def _read(self, given: Pass) -> None:
        latents, conditioning = given.latents, self.model.begin(given)
        layers = layers_to_read(self.model, (latents.shape[-2], latents.shape[-1]))
        with Probe(self.model, layers) as probe:
            self.model.predict(latents, given.sigma, conditioning, until=layers[-1])
            self.mean.add(probe.take(latents, [self.prompt] * len(latents)))


def _listed(words: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def _encoded(clip: Any, prompt: str) -> Any:
    """The CONDITIONING of a prompt."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def _check_prompt(given: Pass, encoded: Tensor, text: str) -> None:
    """Refuse to guide another prompt than the one whose words are known.

    Raises:
        PromptError: the sampler's positive conditioning is not this prompt's.
    """
    own, wanted = given.inputs["c_crossattn"].float(), encoded.to(given.latents.device).float()
    same = own.shape[1:] == wanted.shape[1:] and bool((own - wanted).abs().mean() < 0.01 * wanted.abs().mean())
    if not same:
        raise PromptError(
            f"The sampler's positive conditioning is not that of '{text}', whose words limelight would guide. Connect "
            "the output 'positive' of Limelight Guidance to the sampler."
        )


NODE_CLASS_MAPPINGS = {"LimelightGuidance": LimelightGuidance, "LimelightMaps": LimelightMaps}
NODE_DISPLAY_NAME_MAPPINGS = {"LimelightGuidance": "Limelight Guidance", "LimelightMaps": "Limelight Maps"}
