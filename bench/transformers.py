"""Work and memory of guidance on transformers of real configurations, counted on the meta device, without weights.

`python -m bench.transformers` prints the tables of docs/performance.md: what a gradient step costs that reads one block
after a third of them, or the last one, and what a run with the recommended guidance needs; that of UNets, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from limelight.generation.requirements import Passes, Requirements, required
from limelight.guidance.presets import preset
from limelight.models.blueprint import blueprint, built
from limelight.models.pipeline_model import PipelineModel
from limelight.models.sites import AttentionSite
from limelight.utils.counting import Count, counted
from limelight.utils.files import DATA

SIZE = (1024, 1024)
UNETS = {"Stable Diffusion 1.4": "sd-1", "Stable Diffusion 2.1": "sd-2", "Stable Diffusion XL": "sd-xl"}
"""Folders with the configurations of single files."""
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
QWEN2_5_VL = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SD3_5 = {
    "sample_size": 128,
    "num_layers": 38,
    "num_attention_heads": 38,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "caption_projection_dim": 2432,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
FLOW = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
# Name -> class of the pipeline, and of each part its class and settings; where there are none, the class's own.
CONFIGURATIONS: dict[str, tuple[str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "FLUX.1-dev": (
        "FluxPipeline",
        {
            "transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}),
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("T5EncoderModel", T5_XXL),
            "vae": ("AutoencoderKL", VAE),
            "scheduler": FLOW,
        },
    ),
    "Qwen-Image": (
        "QwenImagePipeline",
        {
            "transformer": ("QwenImageTransformer2DModel", {"num_layers": 60}),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
            "vae": ("AutoencoderKLQwenImage", {"z_dim": 16}),
            "scheduler": FLOW,
        },
    ),
    "Z-Image": (
        "ZImagePipeline",
        {
            "transformer": ("ZImageTransformer2DModel", {"n_layers": 30}),
            "text_encoder": ("Qwen3Model", QWEN3_4B),
            "vae": ("AutoencoderKL", VAE),
            "scheduler": FLOW,
        },
    ),
    "SD3.5 large": (
        "StableDiffusion3Pipeline",
        {
            "transformer": ("SD3Transformer2DModel", SD3_5),
            "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
            "text_encoder_3": ("T5EncoderModel", T5_XXL),
            "vae": ("AutoencoderKL", VAE),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        },
    ),
}
BEFORE = {"Z-Image": 4}
"""Blocks that refine the image and the text by themselves, before they meet."""
# What a prototype had measured: F in TFLOP; work in F and GiB, and the same checkpointed, to a third of the blocks and
# to all.
EXPECTED: Mapping[str, tuple[float, tuple[float, ...], tuple[float | None, ...]]] = {
    "FLUX.1-dev": (74.6, (0.76, 7.2, 1.07, 1.06), (2.28, 20.5, 3.26, 2.2)),
    "Qwen-Image": (69.5, (0.75, 7.9, 1.06, 1.10), (2.26, 23.2, 3.24, 2.1)),
    "Z-Image": (55.9, (0.61, 8.2, 0.85, 1.4), (2.20, 28.7, 3.16, 2.1)),
    "SD3.5 large": (31.3, (0.79, 4.3, 1.10, 0.73), (2.32, 12.4, None, 1.2)),
}


def model_of(name: str) -> PipelineModel:
    """A model of a real configuration without weights, in bfloat16."""
    pipeline, parts = CONFIGURATIONS[name]
    index: dict[str, Any] = {"_class_name": pipeline}
    for part, (cls, _) in parts.items():
        index[part] = ["transformers" if part.startswith("text") else "diffusers", cls]
        if part.startswith("text"):
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", "PreTrainedTokenizerFast"]
    configs = {part: {"_class_name": cls, **settings} for part, (cls, settings) in parts.items()}
    return built(name, index, configs, torch.bfloat16)


def to(model: PipelineModel, layer: AttentionSite) -> tuple[Count, Count]:
    """A gradient step that reads one layer, and the same with gradient checkpointing."""
    passes, guidance = Passes(model, SIZE), preset("recommended", model)
    plain, checkpointed = guidance, replace(guidance, checkpoint=True)
    return counted(passes.gradient(plain, [layer])), counted(passes.gradient(checkpointed, [layer]))


def third(model: PipelineModel) -> AttentionSite:
    """The layer after a third of the blocks."""
    before = BEFORE.get(model.name, 0)
    return model.text_sites[round((before + len(model.text_sites)) / 3) - before - 1]


def against(name: str, model: PipelineModel, unit: int) -> str:
    """A row of the first table: what is counted, and in brackets what was expected."""
    flops, *expected = EXPECTED[name]
    cells = [f"{unit / 1e12:.1f} ({flops})"]
    for layer, numbers in zip((third(model), model.text_sites[-1]), expected, strict=True):
        plain, checkpointed = to(model, layer)
        found = (plain.work / unit, plain.peak / 2**30, checkpointed.work / unit, checkpointed.peak / 2**30)
        for value, number in zip(found, numbers, strict=True):
            known = "" if number is None else f" ({number:g})"
            cells.append(f"{value:.2f}{known}")
    return f"| {name} | {' | '.join(cells)} |"


def of_run(name: str, needs: Requirements) -> str:
    """A row of the second table."""
    denoiser, *others = needs.weights.values()
    sizes = (denoiser, sum(others), needs.memory(), needs.memory(needs.guiding), needs.memory(needs.checkpointed))
    cells = [f"{size / 2**30:.1f}" for size in sizes]
    cells += [f"{needs.passes(count):.2f}" for count in (needs.guiding, needs.checkpointed)]
    more = needs.run / needs.plain - 1
    return f"| {name} | {' | '.join(cells)} | {needs.guided} of {needs.steps}: +{more:.0%} |"


def main() -> None:
    print("| | F in TFLOP | to a third: F | GiB | checkpointed: F | GiB | to the last: F | GiB ", end="")
    print("| checkpointed: F | GiB |\n" + "|---" * 10 + "|")
    runs = []
    for name, folder in UNETS.items():
        runs.append(of_run(name, required(blueprint(DATA / "checkpoints" / folder, torch.bfloat16))))
    for name in CONFIGURATIONS:
        model = model_of(name)
        needs = required(model, size=SIZE)
        runs.append(of_run(name, needs))
        print(against(name, model, needs.one.work), flush=True)
    print("\n| | denoiser, GiB | other parts | plain run | guided run | guided, checkpointed ", end="")
    print("| gradient step, F | checkpointed, F | guided steps |\n" + "|---" * 9 + "|")
    print("\n".join(runs))


if __name__ == "__main__":
    main()
