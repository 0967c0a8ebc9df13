"""The weights of a pipeline by the names that the authors of Stable Diffusion give them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def renamed(text: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        text = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\1{old}.", text)
    return text


def unet_name(name: str, unet) -> str:
    match = re.match(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name)
    if match is None:
        return renamed(name, ENDS)
    side, block, kind, index = match[1], int(match[2] or 0), match[3], int(match[4])
    rest = name[match.end() :]
    layers = unet.config.layers_per_block + 1

    if kind == "downsamplers":
        return f"input_blocks.{layers * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = hasattr(unet.up_blocks[block], "attentions")
        return f"output_blocks.{layers * block + layers - 1}.{2 if attends else 1}.{rest}"
    if kind == "resnets":
        rest = renamed(rest, RESNET)
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    place = (
        f"input_blocks.{layers * block + index + 1}" if side == "down" else f"output_blocks.{layers * block + index}"
    )
    return f"{place}.{1 if kind == 'attentions' else 0}.{rest}"


def vae_weight(name: str, value: Tensor, levels: int) -> tuple[str, Tensor]:
    name = renamed(name, {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"})
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = renamed(name.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION)
        value = value[:, :, None, None] if value.ndim == 2 else value  # a convolution there
    return name, value


def open_clip(encoder) -> dict[str, Tensor]:
    """The weights of a text encoder by OpenCLIP's names: one matrix for queries, keys and values."""
    state, found = encoder.state_dict(), {}
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    for name, value in state.items():
        if name == "text_projection.weight":
            found["text_projection"] = value.T
        elif name.startswith("embeddings.position"):
            found["positional_embedding"] = value
        elif name.startswith("embeddings.token"):
            found["token_embedding.weight"] = value
        elif name.startswith("final_layer_norm"):
            found[name.replace("final_layer_norm", "ln_final")] = value
        elif ".q_proj." in name:
            three = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            whole = name.replace("encoder.layers", "transformer.resblocks").replace(
                "self_attn.q_proj.", "attn.in_proj_"
            )
            found[whole] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            parts = {"self_attn": "attn", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}
            found[renamed(name.replace("encoder.layers", "transformer.resblocks"), parts)] = value
    return found


def original(pipeline) -> dict[str, Tensor]:
    """All weights of a pipeline in one dictionary, in the layout of a single file."""
    unet, vae, found = pipeline.unet, pipeline.vae, {}
    for name, value in unet.state_dict().items():
        found[f"model.diffusion_model.{unet_name(name, unet)}"] = value
    for name, value in vae.state_dict().items():
        named, shaped = vae_weight(name, value, len(vae.config.block_out_channels))
        found[f"first_stage_model.{named}"] = shaped

    second = getattr(pipeline, "text_encoder_2", None)
    first = "cond_stage_model.transformer" if second is None else "conditioner.embedders.0.transformer"
    for name, value in pipeline.text_encoder.state_dict().items():
        found[f"{first}.text_model.{name.removeprefix('text_model.')}"] = value
    if second is not None:
        found |= {f"conditioner.embedders.1.model.{name}": value for name, value in open_clip(second).items()}
    return {name: value.clone().contiguous() for name, value in found.items()}
