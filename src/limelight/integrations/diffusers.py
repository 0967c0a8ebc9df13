"""Names that other libraries' scripts use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..errors import PromptError, SettingsError
from ..generation.loop import denoise
from ..guidance.attend_and_excite import AttendAndExcite
from ..models.base import Conditioning
from ..models.stable_diffusion import StableDiffusion


class StableDiffusionAttendAndExcitePipeline(StableDiffusionPipeline):  # type: ignore[misc]  # untyped
    """Takes the place of diffusers' deprecated pipeline of that name: old scripts change one import.

        from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline

    Same arguments and, with DDIM and PNDM, the same pictures. Besides, `scale_model_input` is honoured (Euler, LMS),
    several images per prompt work, maps need not be square, `thresholds` may be empty, `max_iter_to_alter` may be None
    (guide to the end), and it is faster. New code uses `limelight.generate`, which takes words.
    """

    def _oriented(self, attn_res: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Height and width: scripts that know diffusers' order give the longer side of a wide picture first."""
        short, long = sorted(attn_res)
        return (short, long) if size[0] <= size[1] else (long, short)

    def get_indices(self, prompt: str) -> dict[int, str]:
        """Every token of a prompt by its index."""
        return dict(enumerate(self.tokenizer.convert_ids_to_tokens(self.tokenizer(prompt).input_ids)))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        token_indices: Sequence[int] | Sequence[Sequence[int]] = (),
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        max_iter_to_alter: int | None = 25,
        thresholds: Mapping[float | int, float] | None = None,
        scale_factor: float = 20,
        attn_res: tuple[int, int] | None = (16, 16),
        clip_skip: int | None = None,
    ) -> Any:
        """Draw; every entry of `token_indices` is a subject that is put on stage. See diffusers for the arguments.

        Raises:
            ValueError: an argument is out of range.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise PromptError("Give either prompt or prompt_embeds.")
        if cross_attention_kwargs:
            raise SettingsError(
                "cross_attention_kwargs are not passed on; load LoRA weights into the pipeline instead."
            )
        texts = [prompt] if isinstance(prompt, str) else prompt or [""] * len(prompt_embeds)  # type: ignore[arg-type]
        listed: list[Any] = list(token_indices)
        if listed and isinstance(listed[0], Integral):
            listed = [listed]
        if len(listed) != len(texts) or not all(listed):
            raise PromptError(f"token_indices must hold a list of indices for each of {len(texts)} prompts.")
        model = StableDiffusion(self, "pipeline")
        parsed = [model.prompt(text) for text in texts for _ in range(num_images_per_prompt)]
        subjects = [tuple((int(i),) for i in indices) for indices in listed for _ in range(num_images_per_prompt)]
        size = (height or model.default_size[0], width or model.default_size[1])
        last = len(parsed[0].ids) - 1
        for index in (i for subject in subjects for (i,) in subject):
            if not 1 <= index < last:
                raise PromptError(f"Token index {index} is not between 1 and {last - 1}.")
        branches = guidance_scale > 1
        if clip_skip:  # diffusers' own way does not work with current transformers
            if prompt is None or not isinstance(negative_prompt, str | None):
                raise SettingsError("clip_skip needs a prompt and at most one negative prompt.")
            conditioning = model.encode(parsed, None, size, clip_skip=clip_skip)
            if branches:  # as there, the negative prompt skips nothing
                empty = model.encode([model.prompt(negative_prompt or "")] * len(parsed), None, size)
                conditioning = replace(conditioning, unconditional=empty.conditional)
        else:
            positive, negative = self.encode_prompt(
                prompt,
                model.device,
                num_images_per_prompt,
                branches,
                negative_prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
            )
            conditioning = Conditioning(
                tuple(parsed),
                {"encoder_hidden_states": positive},
                {"encoder_hidden_states": negative} if branches else None,
            )
        if latents is None:
            shape = model.noise([torch.Generator()], *size).shape[1:]  # says what is wrong with a size
            latents = randn_tensor((len(parsed), *shape), generator=generator, device=model.device, dtype=model.dtype)
        guidance = AttendAndExcite(
            until=num_inference_steps + 1 if max_iter_to_alter is None else int(max_iter_to_alter),
            thresholds={0: 0.05, 10: 0.5, 20: 0.8} if thresholds is None else dict(thresholds),
            scale=scale_factor,
            resolution=attn_res if attn_res is None else self._oriented(attn_res, size),
            own_tokens=False,
        )
        generators = generator if isinstance(generator, list) else [generator] * len(parsed) if generator else []
        final = latents
        for step in denoise(
            model,
            conditioning,
            latents.to(model.device, model.dtype),
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance=guidance,
            subjects=subjects,
            generators=generators,
            eta=eta if "eta" in inspect.signature(self.scheduler.step).parameters else 0.0,
        ):
            final = step.latents
            # As there: not after the warm-up steps that some schedulers add.
            counted = step.index + 1 > step.count - num_inference_steps
            if callback is not None and counted and step.index % callback_steps == 0:
                callback(step.index, model.scheduler.timesteps[step.index], step.latents)
        images: Any = final
        flagged = None
        if output_type != "latent":
            pixels = self.vae.decode(final / self.vae.config.scaling_factor, return_dict=False)[0]
            pixels, flagged = self.run_safety_checker(pixels, model.device, model.dtype)
            shown = [not hidden for hidden in flagged or [False] * len(pixels)]
            images = self.image_processor.postprocess(pixels, output_type=output_type, do_denormalize=shown)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)
