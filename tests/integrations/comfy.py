"""A small stand-in for ComfyUI, written from the interface that it offers to nodes; nothing of it is ComfyUI's code.

It runs a UNet of diffusers with noise levels (latents = image + sigma * noise), predicts denoised latents, and passes
through the hooks that nodes use: ``model_options``, ``transformer_options`` with patches and replacements by block,
wrappers, and the functions of the module ``comfy.samplers``. Its own attention is not torch's function.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Sampling:
    """``model_sampling`` of a model that predicts noise, for the noise levels of one schedule."""

    def __init__(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)
        self.sigmas, self.timesteps = scheduler.sigmas, scheduler.timesteps

    def timestep(self, sigma: Tensor) -> Tensor:
        return torch.stack([self.timesteps[self.sigmas[:-1] == level][0] for level in sigma])

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma.view(-1, 1, 1, 1) ** 2 + 1) ** 0.5

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return x - output * sigma.view(-1, 1, 1, 1)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor, max_denoise: bool = False) -> Tensor:
        return latents + sigma * noise


class Attention:
    """An attention processor that knows patches."""

    def __init__(self, owner: DiffusionModel, kind: str, block: tuple[str, int], index: int) -> None:
        self.owner, self.kind, self.block, self.index = owner, kind, block, index

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        options = self.owner.options
        extra = {**options, "n_heads": attn.heads, "block": self.block, "block_index": self.index}
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        value = context
        for patch in options.get("patches", {}).get(f"{self.kind}_patch", ()):
            hidden, context, value = patch(hidden, context, value, extra)

        query, key, value = attn.to_q(hidden), attn.to_k(context), attn.to_v(value)
        replaced = options.get("patches_replace", {}).get(self.kind, {})
        own = replaced.get((*self.block, self.index)) or replaced.get(self.block) or self._attend
        return attn.to_out[0](own(query, key, value, extra))

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        query, key, value = (x.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for x in (query, key, value))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)


class DiffusionModel(nn.Module):
    """The denoiser, with ComfyUI's names of its blocks."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet, self.options = unet, {}
        count = dict.fromkeys(("input", "middle", "output"), 0)
        places: dict[str, tuple[str, int]] = {}
        for name, module in unet.named_modules():
            kind = name.rpartition(".")[2]
            if kind in ("attn1", "attn2"):
                owner = name.partition(".transformer_blocks")[0]
                side = {"d": "input", "m": "middle", "u": "output"}[name[0]]
                if owner not in places:
                    places[owner] = (side, count[side])
                    count[side] += 1
                index = int(name.rpartition(".")[0].rpartition(".")[2])
                module.set_processor(Attention(self, kind, places[owner], index))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        self.options = transformer_options
        return self.unet(x, timesteps, context, return_dict=False)[0]


class BaseModel:
    """What ComfyUI's ``MODEL`` holds."""

    def __init__(self, unet: nn.Module, sampling: Sampling, factor: float) -> None:
        self.diffusion_model, self.model_sampling, self.factor = DiffusionModel(unet), sampling, factor

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        given = self.model_sampling.calculate_input(t, x)
        output = self.diffusion_model(given, self.model_sampling.timestep(t), c_crossattn, transformer_options)
        return self.model_sampling.calculate_denoised(t, output, x)


class ModelPatcher:
    """ComfyUI's type ``MODEL``."""

    load_device = torch.device("cpu")

    def __init__(self, model: BaseModel) -> None:
        self.model, self.model_options = model, {"transformer_options": {}}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.model_options = copy.deepcopy(self.model_options, {id(f): f for f in _functions(self.model_options)})
        return other

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def set_model_sampler_calc_cond_batch_function(self, function: Any) -> None:
        self.model_options["sampler_calc_cond_batch_function"] = function

    def set_model_unet_function_wrapper(self, function: Any) -> None:
        self.model_options["model_function_wrapper"] = function

    def set_model_attn2_patch(self, patch: Any) -> None:
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault("attn2_patch", []).append(patch)

    def set_model_attn2_replace(self, patch: Any, block: str, number: int, index: int) -> None:
        replaced = self.model_options["transformer_options"].setdefault("patches_replace", {})
        replaced.setdefault("attn2", {})[block, number, index] = patch

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.model_options["transformer_options"].setdefault("wrappers", {}).setdefault(kind, {})[key] = [wrapper]


def _functions(options: Any) -> list[Any]:
    """What copies of options share: everything but their dicts and lists."""
    if isinstance(options, dict):
        return [found for value in options.values() for found in _functions(value)]
    if isinstance(options, list):
        return [found for value in options for found in _functions(value)]
    return [options]


class Clip:
    """ComfyUI's type ``CLIP``, of one text encoder."""

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        self.tokenizer, self._encoder = SimpleNamespace(clip_l=SimpleNamespace(tokenizer=tokenizer)), encoder

    def tokenize(self, text: str) -> dict[str, list[list[tuple[int, float]]]]:
        """Texts may have weights; every 75 tokens are a chunk."""
        from limelight.integrations.comfyui.model import without_weights

        tokenizer = self.tokenizer.clip_l.tokenizer
        start, *own, end = tokenizer(without_weights(text))["input_ids"]
        chunks = []
        for first in range(0, max(len(own), 1), 75):
            ids = [start, *own[first : first + 75], end]
            chunks.append([(i, 1.0) for i in ids + [end] * (77 - len(ids))])
        return {"l": chunks}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[list[Any]]:
        parts = [self._encoder(torch.tensor([[i for i, _ in chunk]]))[0] for chunk in tokens["l"]]
        return [[torch.cat(parts, dim=1), {}]]


def calc_cond_batch(model: BaseModel, conds: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Both branches in one pass, the unconditional rows first."""
    given = [(which, row) for which, rows in enumerate(conds) if rows is not None for row in rows]
    found = [torch.zeros_like(x) for _ in conds]
    for part in [given] if len({row["c_crossattn"].shape for _, row in given}) == 1 else [[one] for one in given]:
        part = part[::-1]
        states = torch.cat([row["c_crossattn"].expand(len(x), -1, -1) for _, row in part])
        branches = [which for which, _ in part]
        transformer_options = {**options["transformer_options"], "cond_or_uncond": branches, "sigmas": sigma}
        given_options = {"c_crossattn": states, "transformer_options": transformer_options}
        latents, sigmas = torch.cat([x] * len(part)), torch.cat([sigma] * len(part))
        if "model_function_wrapper" in options:
            inputs = {"input": latents, "timestep": sigmas, "c": given_options, "cond_or_uncond": branches}
            output = options["model_function_wrapper"](model.apply_model, inputs)
        else:
            output = model.apply_model(latents, sigmas, **given_options)
        for which, rows in zip(branches, output.chunk(len(part)), strict=True):
            found[which] = rows
    return found


class Guider:
    """One run: classifier-free guidance around a sampler."""

    def __init__(self, patcher: ModelPatcher, positive: Any, negative: Any, cfg: float) -> None:
        self.inner_model, self.options, self.cfg = patcher.model, patcher.model_options, cfg
        self.conds = [[{"c_crossattn": row[0], **row[1]} for row in rows] for rows in (positive, negative)]
        if cfg == 1:
            self.conds[1] = None

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: Any = None) -> Tensor:
        function = model_options.get("sampler_calc_cond_batch_function")
        if function is None:
            cond, uncond = calc_cond_batch(self.inner_model, self.conds, x, sigma, model_options)
        else:
            args = {"conds": self.conds, "input": x, "sigma": sigma}
            cond, uncond = function({**args, "model": self.inner_model, "model_options": model_options})
        return uncond + (cond - uncond) * self.cfg

    def run(self, noise: Any, latents: Any, sampler: Any, sigmas: Tensor, mask: Any, seed: Any) -> Tensor:
        options = {**self.options}
        options["transformer_options"] = {**options["transformer_options"], "sample_sigmas": sigmas}
        extra = {"model_options": options, "seed": seed}
        scaled = latents * self.inner_model.factor
        return sampler.sample(self, sigmas, extra, None, noise, scaled, mask, True) / self.inner_model.factor


def sample(
    patcher: ModelPatcher,
    noise: Tensor,
    positive: Any,
    negative: Any,
    cfg: float,
    device: Any,
    sampler: Any,
    sigmas: Tensor,
    *,
    latent_image: Tensor,
    denoise_mask: Any = None,
    disable_pbar: bool = False,
    seed: Any = None,
) -> Tensor:
    run: Callable[..., Tensor] = Guider(patcher, positive, negative, cfg).run
    for wrappers in patcher.model_options["transformer_options"].get("wrappers", {}).get("outer_sample", {}).values():
        for wrapper in wrappers:
            run = lambda *args, inner=run, outer=wrapper: outer(inner, *args)  # noqa: E731
    return run(noise, latent_image, sampler, sigmas, denoise_mask, seed)


class Sampler:
    """A sampler of a function."""

    def __init__(self, function: Any) -> None:
        self.sampler_function = function

    def sample(
        self, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, latents: Tensor, *_: Any
    ) -> Tensor:
        return self.sampler_function(guider, latents + sigmas[0] * noise, sigmas, extra)


def sample_euler(model: Any, x: Tensor, sigmas: Tensor, extra: dict[str, Any]) -> Tensor:
    for now, then in itertools.pairwise(sigmas):
        denoised = model(x, now.expand(len(x)), **extra)
        x = x + (x - denoised) / now * (then - now)
    return x


def modules(sigmas: Tensor) -> dict[str, ModuleType]:
    """The modules by which nodes reach ComfyUI; its schedules all have the given noise levels."""
    samplers = ModuleType("comfy.samplers")
    samplers.calc_cond_batch, samplers.sample = calc_cond_batch, sample
    samplers.calculate_sigmas = lambda sampling, name, steps: sigmas
    comfy = ModuleType("comfy")
    comfy.samplers = samplers
    return {"comfy": comfy, "comfy.samplers": samplers}
