"""Work and memory of guidance on the real configurations, counted on the meta device: no weights, no machine's noise.

`python -m bench.count` prints the tables of docs/performance.md. F is the work of one denoiser pass for one image.
Memory is of tensors, in float32: what is kept for the gradient, and the most that there is at once above the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    pipeline_stable_diffusion_attend_and_excite as deprecated,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from limelight.guidance.attend_and_excite import AttendAndExcite
from limelight.guidance.base import Steering
from limelight.models.base import Conditioning
from limelight.models.unet import UNet, guided_scale, unet_sites
from limelight.prompts.prompt import Prompt
from limelight.prompts.subjects import Subject
from limelight.utils.counting import Flops, Peak, fused

SD = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.4, 512 px": {"sample_size": 64, **SD},
    "Stable Diffusion 1.4, 768 px": {"sample_size": 96, **SD},
    "Stable Diffusion 2.1 base, 512 px": {
        **SD,
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "Stable Diffusion XL, 1024 px": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


TRIES = (0, 10, 30, 60)


def saved(denoiser: Any, run: Callable[[], Any]) -> int:
    """Bytes that are kept for the gradient while something runs, without the weights."""
    weights = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with fused(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


class Bare(UNet):
    """A denoiser alone, of a real configuration and without weights."""

    def __init__(self, name: str) -> None:
        with torch.device("meta"):
            self.denoiser = UNet2DConditionModel(**CONFIGURATIONS[name])
        config = self.denoiser.config
        self.name, self.sites, self.scheduler = name, unet_sites(self.denoiser), DDIMScheduler()
        self.guided_scale = guided_scale(self.sites, config.sample_size)
        self.size = (config.sample_size, config.sample_size)
        self.latents = torch.empty(1, 4, *self.size, device="meta")
        states = {"encoder_hidden_states": torch.empty(1, 77, config.cross_attention_dim, device="meta")}
        if config.addition_embed_type:
            states |= {"text_embeds": torch.empty(1, 1280, device="meta"), "time_ids": torch.empty(1, 6, device="meta")}
        blank = Prompt("a cat and a dog", tuple(range(77)), ("",) * 77, 6, ())
        self.conditioning = Conditioning((blank,), states, states)

    def _states(self, *_: Any) -> Any:
        raise NotImplementedError

    def forward(self, branches: int = 1) -> None:
        """One ordinary pass, of one or of both branches of classifier-free guidance."""
        both = self.conditioning if branches == 2 else self.conditioning.only_conditional()
        with torch.no_grad():
            self.predict(self.latents, torch.tensor(500, device="meta"), both)

    def gradient(self, **changes: Any) -> None:
        """One gradient step."""
        guidance = AttendAndExcite(thresholds={}, **changes)
        layers = guidance.layers(self, self.size)
        steering = Steering(
            guidance, self, self.conditioning, [[Subject((2,)), Subject((5,))]], 50, torch.arange(50), layers
        )
        steering.update(1, torch.tensor(500, device="meta"), self.latents)

    def theirs(self) -> None:
        """One gradient step as diffusers' pipeline takes it, but for the loss, whose value nobody knows here."""
        guided = next(layer for layer in self.sites if layer.scale == self.guided_scale)
        store = deprecated.AttentionStore(guided.size(self.size))
        processors = {
            name: deprecated.AttendExciteAttnProcessor(store, name.partition("_")[0])
            for name in self.denoiser.attn_processors
        }
        before = dict(self.denoiser.attn_processors)
        store.num_att_layers = len(processors)
        self.denoiser.set_attn_processor(processors)
        try:
            variable = self.latents.clone().requires_grad_()
            added = {k: v for k, v in self.conditioning.conditional.items() if k != "encoder_hidden_states"}
            states = self.conditioning.conditional["encoder_hidden_states"]
            self.denoiser(variable, torch.tensor(500, device="meta"), states, added_cond_kwargs=added or None)
            maps = [x for part in store.attention_store.values() for x in part]
            torch.autograd.grad(sum(x.sum() for x in maps), variable)
        finally:
            self.denoiser.set_attn_processor(before)


def work(run: Callable[[], Any]) -> int:
    with Flops() as counted, sdpa_kernel([SDPBackend.MATH]):
        run()
    return counted.total


def peak(run: Callable[[], Any]) -> int:
    with fused(), Peak() as counted:
        run()
    return counted.most


def main() -> None:
    print(
        "| | F in GFLOP | a gradient step in F: ours | diffusers | kept for the gradient in GiB: ours | diffusers ",
        end="",
    )
    print("| most at once in GiB: a plain pass of two | a gradient step: ours | ours, checkpointed | diffusers |")
    print("|---" * 10 + "|")
    costs = {}
    for name in CONFIGURATIONS:
        model = Bare(name)
        unit = work(model.forward)
        costs[name] = work(model.gradient) / unit
        sizes = [saved(model.denoiser, model.gradient), saved(model.denoiser, model.theirs)]
        passes = (partial(model.forward, 2), model.gradient, partial(model.gradient, checkpoint=True), model.theirs)
        sizes += [peak(run) for run in passes]
        cells = [f"{unit / 1e9:.0f}", f"{costs[name]:.2f}", f"{work(model.theirs) / unit:.2f}"]
        cells += [f"{size / 2**30:.2f}" for size in sizes]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| 50 steps, 25 guided, tries of refinement | " + " | ".join(map(str, TRIES)) + " |\n" + "|---" * 5 + "|")
    for name, cost in costs.items():
        print(f"| {name} | " + " | ".join(f"{100 + (25 + tries) * cost:.1f} F" for tries in TRIES) + " |")


if __name__ == "__main__":
    main()
