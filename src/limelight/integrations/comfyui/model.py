"""ComfyUI's model as limelight reads and steers it.

ComfyUI has a denoiser of its own and documents where it can be patched. Its attention layers are found by patches of
the kinds ``attn1_patch`` and ``attn2_patch``. In passes that are watched each of them is replaced
(``patches_replace``) by a module that computes the same by torch's function, which `limelight.attention.probe.Probe`
watches. The inputs of those passes are what ComfyUI gives to a ``model_function_wrapper`` for the positive prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...errors import ModelError, PromptError
from ...models.base import About, Conditioning
from ...models.pipeline_model import PipelineModel, stop_after
from ...models.sites import AttentionSite
from ...models.unet import UNet, guided_scale
from ...prompts.prompt import Prompt, parse
from ...utils.torch import undone
from ..attach import pick

_KINDS = {"attn1": "self", "attn2": "cross"}
_GROUPS = {"input": "down", "middle": "mid", "output": "up"}
_TOKENIZERS = {"clip_l": "l", "clip_h": "h", "clip_g": "g"}
_WEIGHT = re.compile(r"(?<!\\)\(([^()]*?)(?::[\d.]+)?(?<!\\)\)")


@dataclass(frozen=True)
class Pass:
    """A pass of the denoiser for the positive prompt, as ComfyUI is about to run it.

    Attributes:
        apply: ``apply(latents, sigma, **inputs)`` runs it, and gives the denoised latents.
        latents: [images, channels, height, width].
        sigma: the noise level, [images].
        inputs: what else the denoiser is given, ``c_crossattn`` [images, tokens, width] among it.
    """

    apply: Callable[..., Tensor]
    latents: Tensor
    sigma: Tensor
    inputs: dict[str, Any]


def positive_pass(args: dict[str, Any], work: Callable[[Pass], None]) -> None:
    """Do some work with the pass for the positive prompt.

    Args:
        args: of a ``sampler_calc_cond_batch_function``.

    Raises:
        ModelError: there are several positive prompts, or one for a part of the image.
    """
    from comfy.samplers import calc_cond_batch  # ComfyUI's

    latents, options = args["input"], args["model_options"]
    outer, seen = options.get("model_function_wrapper"), list[bool]()

    def wrapper(apply: Any, given: dict[str, Any]) -> Tensor:
        if seen or given["input"].shape != latents.shape:
            raise ModelError(
                "limelight guides and reads one prompt for the whole image, and this conditioning has several prompts "
                "or an area. Leave out nodes that combine prompts or set areas."
            )
        seen.append(True)
        run = apply
        if outer is not None:
            run = partial(_through, outer, apply, given["cond_or_uncond"])
        work(Pass(run, given["input"], given["timestep"], given["c"]))
        return torch.zeros_like(given["input"])

    calc_cond_batch(
        args["model"], [args["conds"][0], None], latents, args["sigma"], {**options, "model_function_wrapper": wrapper}
    )


def _through(outer: Any, apply: Any, branches: Any, latents: Tensor, sigma: Tensor, **inputs: Any) -> Tensor:
    """Run a pass through the wrapper of another node."""
    return outer(apply, {"input": latents, "timestep": sigma, "c": inputs, "cond_or_uncond": branches})


class ComfyModel(UNet):
    """A MODEL of ComfyUI: Stable Diffusion 1.x, 2.x and XL.

    Args:
        patcher: ComfyUI's object for the model.
    """

    def __init__(self, patcher: Any) -> None:
        # Of a pipeline there is only what follows: schedules, texts and the autoencoder are ComfyUI's own.
        parts = SimpleNamespace(
            unet=_Denoiser(patcher.model.diffusion_model), scheduler=SimpleNamespace(order=1), vae_scale_factor=8
        )
        PipelineModel.__init__(self, parts, type(patcher.model).__name__)
        self.sites = ()
        if self.name.startswith("SDXL"):
            self.about = About.family("StableDiffusionXL")
        self._pass: Pass | None = None

    def begin(self, given: Pass) -> Conditioning:
        """Take a pass, whose inputs all passes have until the next one is taken; find the layers if they are unknown.

        Raises:
            ModelError: the denoiser has no cross-attention that can be patched, or another node has replaced it.
        """
        # Weights and inputs are inference tensors in ComfyUI, of which nothing could be kept for a backward pass.
        inputs = tree_map_only(Tensor, Tensor.clone, given.inputs)
        self._pass = replace(given, sigma=given.sigma.clone(), inputs=inputs)
        if not self.sites:
            self._find_sites(given.latents.clone())

        taken = given.inputs["transformer_options"].get("patches_replace", {})
        for kind in _KINDS:
            blocks = {block[:2] for block in self.denoiser.places[kind]}
            if blocks & {block[:2] for block in taken.get(kind, {})}:
                raise ModelError(
                    "Another node has replaced the model's attention (an IP-Adapter, for example); limelight cannot "
                    "read it there. Leave that node out."
                )
        return Conditioning((), {"rows": torch.arange(len(given.latents))})

    def _find_sites(self, latents: Tensor) -> None:
        """Find the attention layers, in execution order, in one pass."""
        height, width = latents.shape[-2:]
        found: list[AttentionSite] = []

        def see(kind: str, n: Tensor, context: Any, value: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
            scale = next((s for s in (1, 2, 4, 8, 16) if -(-height // s) * -(-width // s) == n.shape[1]), None)
            if scale is not None and options["block"][0] in _GROUPS:
                block = (*options["block"], options.get("block_index", 0))
                name = self.denoiser.add(kind, block)
                group = _GROUPS[block[0]]
                found.append(AttentionSite(name, _KINDS[kind], group, options["n_heads"], scale))  # type: ignore[arg-type]
            return n, context, value

        assert self._pass is not None
        patches = {name: list(own) for name, own in self._options.get("patches", {}).items()}
        for kind in _KINDS:
            patches[f"{kind}_patch"] = [*patches.get(f"{kind}_patch", ()), partial(see, kind)]
        options = {**self._options, "patches": patches}
        self._pass.apply(latents, self._pass.sigma, **{**self._pass.inputs, "transformer_options": options})

        self.sites = tuple(found)
        if not self.text_sites:
            raise ModelError(
                f"'{self.name}' has no cross-attention that nodes can patch; limelight's nodes work with Stable "
                "Diffusion 1.x, 2.x and XL."
            )
        self.guided_scale = guided_scale(self.sites, min(height, width))

    @property
    def _options(self) -> dict[str, Any]:
        assert self._pass is not None
        options: dict[str, Any] = self._pass.inputs["transformer_options"]
        return options

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: AttentionSite | None = None,
    ) -> Tensor | None:
        assert self._pass is not None
        rows, images = conditioning.conditional["rows"].to(latents.device), len(self._pass.sigma)
        inputs = pick(self._pass.inputs, images, rows)
        replaced = {**self._options.get("patches_replace", {})}
        for kind, places in self.denoiser.places.items():
            replaced[kind] = {**replaced.get(kind, {}), **places}
        inputs["transformer_options"] = {**inputs["transformer_options"], "patches_replace": replaced}

        with stop_after(self.denoiser, until):
            return self._pass.apply(latents, self._pass.sigma[rows], **inputs)
        return None

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        raise ModelError("ComfyUI encodes its prompts itself.")


class _Denoiser(nn.Module):
    """ComfyUI's denoiser, and beside it a module for each of its attention layers.

    Attributes:
        places: the modules by kind and by block: ("input", 4, 0) is the first transformer block there.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet, self.sites = unet, nn.ModuleDict()
        self.places: dict[str, dict[tuple[str, int, int], nn.Module]] = {kind: {} for kind in _KINDS}

    def add(self, kind: str, block: tuple[str, int, int]) -> str:
        """Make the module of a layer; returns its path."""
        name = "_".join(map(str, (*block, kind)))
        self.sites[name] = self.places[kind][block] = _Attention()
        return f"sites.{name}"


class _Attention(nn.Module):
    """What a layer computes of its queries, keys and values [images, positions, heads * width], by torch's function."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        split = [x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (query, key, value)]
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


@contextmanager
def ordinary_weights(module: nn.Module) -> Iterator[None]:
    """Let a gradient pass through weights that were loaded inside `torch.inference_mode`, for the time of a `with`.

    Each is replaced by an ordinary tensor of the same memory.
    """
    found = []
    for part in module.modules():
        for name, own in part._parameters.items():
            if own is not None and own.is_inference():
                found.append((part, name, own))

    def put_back() -> None:
        for part, name, own in found:
            part._parameters[name] = own

    with undone(put_back):
        for part, name, own in found:
            memory = own.untyped_storage(), own.storage_offset(), own.size(), own.stride()
            part._parameters[name] = nn.Parameter(own.new_empty(0).set_(*memory), requires_grad=False)
        yield


def read_prompt(clip: Any, text: str) -> Prompt:
    """Parse a prompt, and check that ComfyUI reads the same tokens.

    Weights are left out: in "a (cat:1.2)" the words are "a" and "cat".

    Args:
        clip: ComfyUI's CLIP.

    Raises:
        PromptError: it reads others: the prompt is too long, or has embeddings in it.
        ModelError: there is no CLIP among its text encoders.
    """
    name = next((name for name in _TOKENIZERS if hasattr(clip.tokenizer, name)), None)
    if name is None:
        raise ModelError("limelight's nodes work with Stable Diffusion 1.x, 2.x and XL; this CLIP is of another model.")

    chunks: Sequence[Sequence[Any]] = clip.tokenize(text)[_TOKENIZERS[name]]
    ids = [entry[0] for entry in chunks[0]]
    prompt = parse(without_weights(text), getattr(clip.tokenizer, name).tokenizer, len(ids))
    stop = prompt.end + 1
    if len(chunks) > 1 or not all(isinstance(i, int) for i in ids[:stop]) or tuple(ids[:stop]) != prompt.ids[:stop]:
        raise PromptError(
            f"ComfyUI reads other tokens in '{text}' than limelight. Write a prompt of at most {len(ids) - 2} tokens, "
            "without embeddings; weights such as (cat:1.2) may be in it."
        )
    return replace(prompt, ids=tuple(ids), padded=ids[-1] != ids[prompt.end])


def without_weights(text: str) -> str:
    """A prompt without ComfyUI's weights and the parentheses around them: "a (cat:1.2)" gives "a cat"."""
    plain = _WEIGHT.sub(r"\1", text)
    while plain != text:
        text, plain = plain, _WEIGHT.sub(r"\1", plain)
    return plain.replace(r"\(", "(").replace(r"\)", ")")
