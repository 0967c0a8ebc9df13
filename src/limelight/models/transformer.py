"""Families whose denoiser is a diffusion transformer: what they share.

Most of them let image and text attend to each other as one sequence (joint attention), and generate by flow matching,
with noise levels that are shifted by the size of the image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingsError
from ..prompts.prompt import Prompt, Stream, parse_streams
from ..utils.progress import quiet_loading
from ..utils.torch import exclusive
from .base import Conditioning, Feature
from .pipeline_model import PipelineModel, stop_after
from .sites import WHOLE, AttentionSite, Group, Layout

States = Mapping[str, Tensor]
"""What the denoiser reads of one branch: keyword tensors, first axis images."""


USUAL_LENGTH = 64
"""How many tokens a prompt is taken to have where texts are as long as they are."""


@dataclass
class _Pass:
    """The pass that runs, or ran last. Copies of a model share it, as they share the denoiser, which has one at a time.

    Attributes:
        layout: of the layers that read text; None in passes of the unconditional branch.
    """

    layout: Layout | None = None


class Transformer(PipelineModel):
    """A family with a diffusion transformer. Its latents are always [images, channels, height, width].

    A family says how its text encoders read a prompt (`streams`), how they encode it (`_states`), how the denoiser is
    called (`_call`), and where image and text lie in its sequence (`_places`).
    """

    denoised_by = "transformer"
    can: ClassVar[frozenset[Feature]] = frozenset({"read", "also", "steer", "edit", "prompt-to-prompt", "heads"})
    vectors = ()
    patch: ClassVar[int] = 2
    stacks: ClassVar[Mapping[str, Group]] = {"transformer_blocks": "double", "single_transformer_blocks": "single"}
    """The lists of blocks of the denoiser, in execution order."""
    attention: ClassVar[Mapping[str, Literal["cross", "self"]]] = {"attn": "cross"}
    """The attention layers of a block that torch's scaled_dot_product_attention computes."""
    joint: ClassVar[bool] = True
    """Whether image and text attend to each other in one softmax."""
    guided: ClassVar[tuple[float, float]] = (1 / 3, 2 / 3)
    """From which share of the layers to which the maps carry semantics."""
    mask: ClassVar[str | None] = None
    """Which of the states of a prompt says which tokens are its own, if one does."""
    together: ClassVar[bool] = False
    """Whether both branches run as one batch, as in the family's pipeline."""
    even_sigmas: ClassVar[bool] = True
    """Whether the pipeline names the noise levels itself: evenly from 1 to 1 / steps, before they are shifted."""
    shifts: ClassVar[tuple[float, float]] = (0.5, 1.15)
    """The shift for 256 and for 4096 image tokens, where the scheduler names none."""

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)
        self.sites = tuple(self._sites())
        self.guided_scale = self.patch
        self._pass = _Pass()

    def _sites(self) -> Iterator[AttentionSite]:
        for stack, group in self.stacks.items():
            for i, block in enumerate(getattr(self.denoiser, stack, ())):
                for name, kind in self.attention.items():
                    module = getattr(block, name, None)
                    if module is not None:
                        heads = getattr(module, "heads", None) or module.num_heads
                        joint = self.joint and kind == "cross"
                        yield AttentionSite(f"{stack}.{i}.{name}", kind, group, heads, self.patch, joint)

    @property
    def _family_sites(self) -> tuple[AttentionSite, ...]:
        sites = self.text_sites
        first, last = (round(share * len(sites)) for share in self.guided)
        return sites[first : max(last, first + 1)]

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.pixels_per_latent
        return side, side

    # Text

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """How the text encoders whose tokens the denoiser reads one by one read a prompt."""

    def prompt(self, text: str) -> Prompt:
        streams = self.streams
        with ExitStack() as stack:
            for stream in streams:
                stack.enter_context(exclusive(stream.tokenizer))  # tokenizers remember how they were last called
            return parse_streams(text, streams)

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, ...]:
        """The shape of an encoded prompt: tokens, and what each of them is; a usual length where there is no common
        one.
        """

    def blank(self) -> dict[str, Tensor]:
        states = {"encoder_hidden_states": self._empty(*self.text_shape)}
        if self.mask is not None:
            states[self.mask] = torch.ones(1, self.text_shape[0])  # with values: passes ask how long a text is
        pooled = self.denoiser.config.get("pooled_projection_dim")
        if pooled is not None:
            states["pooled_projections"] = self._empty(pooled)
        return states

    def _check_clip_skip(self, clip_skip: int) -> None:
        if clip_skip:
            raise SettingsError(f"clip_skip={clip_skip} is for models of Stable Diffusion; leave it out.")

    @property
    def _context(self) -> str:
        streams = self.streams
        return f"{' + '.join(str(stream.length) for stream in streams)} tokens"

    # The schedule

    def _schedule(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        if not self.flows:
            return {"num_inference_steps": steps}
        config = self.scheduler.config
        options: dict[str, Any] = {"num_inference_steps": steps}
        if self.even_sigmas and not config.get("use_flow_sigmas"):
            options = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        if config.get("use_dynamic_shifting"):
            options["mu"] = self._shift(size, steps)
        return options

    def _tokens(self, size: tuple[int, int]) -> int:
        """How many tokens an image of a size has."""
        side = self.pixels_per_latent * self.patch
        return (size[0] // side) * (size[1] // side)

    def _shift(self, size: tuple[int, int], steps: int) -> float:
        """How far the noise levels are shifted: linear in the number of image tokens."""
        return self._linear_shift(self._tokens(size))

    def _linear_shift(self, tokens: int) -> float:
        config = self.scheduler.config
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", self.shifts[0]), config.get("max_shift", self.shifts[1])
        slope = (high - low) / (many - few)
        return tokens * slope + (low - slope * few)

    # The denoiser

    @abstractmethod
    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        """One pass of the denoiser: its prediction, as the scheduler takes it.

        Args:
            latents: [rows, channels, height, width].
            timestep: [rows], the scheduler's.
            states: of as many rows; "guidance" [rows] is the scale of classifier-free guidance where the denoiser reads
                it.
        """

    @abstractmethod
    def _places(self, pixels: int, states: States) -> tuple[slice | Tensor, int]:
        """Which rows of the queries are the `pixels` image tokens, see `Layout`, and which key is the text's first
        token.
        """

    def _combined(self, unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        """Both branches' predictions, combined by classifier-free guidance."""
        return unconditional + guidance_scale * (conditional - unconditional)

    def layout(self, site: AttentionSite) -> Layout | None:
        return self._pass.layout if site.reads_text or self._pass.layout is None else WHOLE

    def prepare(self, conditioning: Conditioning, guidance_scale: float) -> Conditioning:
        if not self.embeds_guidance:
            return conditioning
        scale = torch.full((len(conditioning.prompts),), guidance_scale, dtype=torch.float32, device=self.device)
        return conditioning.with_states(guidance=scale)

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: AttentionSite | None = None,
    ) -> Tensor | None:
        if self.embeds_guidance and "guidance" not in conditioning.conditional:
            conditioning = self.prepare(conditioning, guidance_scale)
        conditional, unconditional = conditioning.conditional, conditioning.unconditional
        pixels = (latents.shape[-2] // self.patch) * (latents.shape[-1] // self.patch)
        with exclusive(self.denoiser), stop_after(self.denoiser, until):
            self._pass.layout = layout_of(conditioning.prompts, *self._places(pixels, conditional), latents.device)
            times = timestep.expand(len(latents))
            if unconditional is None:
                return self._call(latents, times, conditional)
            if self.together:
                both = self._call(torch.cat([latents] * 2), timestep.expand(2 * len(latents)), conditioning.joined)
                other, prediction = both.chunk(2)
                return self._combined(other, prediction, guidance_scale)

            prediction = self._call(latents, times, conditional)
            with self._unwatched():
                other = self._call(latents, times, unconditional)
            return self._combined(other, prediction, guidance_scale)
        return None

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Passes of the unconditional branch."""
        own, self._pass.layout = self._pass.layout, None
        try:
            yield
        finally:
            self._pass.layout = own


def layout_of(prompts: Sequence[Prompt], pixels: slice | Tensor, first: int, device: torch.device) -> Layout:
    """The layout of the layers that read prompts.

    Args:
        prompts: one per image, see `limelight.prompts.prompt.aligned`.
        pixels: which rows of the queries are image positions, see `Layout`.
        first: which key is the text's first token.
    """
    places = torch.tensor([prompt.places for prompt in prompts])
    return Layout(pixels, torch.where(places < 0, places, places + first).to(device), text=first)


def packed(latents: Tensor) -> Tensor:
    """Latents [images, channels, height, width] as tokens of 2 x 2 pixels [images, tokens, 4 channels]."""
    images, channels, height, width = latents.shape
    cells = latents.view(images, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(images, height * width // 4, 4 * channels)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The opposite of `packed`."""
    cells = tokens.view(len(tokens), height // 2, width // 2, tokens.shape[-1] // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), tokens.shape[-1] // 4, height, width)


def encoded_by(pipeline: Any, *texts: Any, **options: Any) -> Any:
    """What the pipeline's own encoding of prompts gives; limelight itself warns of prompts that are too long."""
    with quiet_loading():
        return pipeline.encode_prompt(*texts, **options)
