"""The untrained parts of the pocket model and their assembly into a diffusers pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

from .scenes import OTHER_WORDS
from .vocabulary import COLORS, SUBJECTS

LENGTH, WIDTH = 32, 128


def tokenizer(extra: Sequence[str] = (), length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's byte-level BPE, with one token for every word of the captions; other words fall into letters."""
    alphabet = sorted(ByteLevel.alphabet())
    single = alphabet + [symbol + "</w>" for symbol in alphabet]
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = Whitespace()
    words = [*OTHER_WORDS, *COLORS, *SUBJECTS, *extra]
    # Named beforehand, or the trainer numbers them in the order of a hash table, which differs from process to process:
    # a training that is resumed would then mistake a cat for a car.
    trainer = BpeTrainer(special_tokens=single, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = list(dict.fromkeys([*single, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=length)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def denoiser() -> UNet2DConditionModel:
    """Cross-attention on 8 x 8 on the way up alone: elsewhere, and on 4 x 4, it learned nothing that counts."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def pipeline(
    vae: AutoencoderKL, words: CLIPTokenizer, text: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def begin_with(folder: Path, words: CLIPTokenizer, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
    """Copy the weights of an earlier pipeline, whose vocabulary may have been smaller."""
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict())
    earlier = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    by_word(earlier, CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"), text, words)


def by_word(
    source: nn.Module, known: PreTrainedTokenizerBase, model: nn.Module, words: PreTrainedTokenizerBase
) -> None:
    """Copy weights to a model whose tokenizer numbers its words in another way, or knows more."""
    ids, fresh = known.get_vocab(), model.state_dict()
    shared = {i: ids[token] for token, i in words.get_vocab().items() if token in ids}
    state = {}
    for name, value in source.state_dict().items():
        has_rows = value.ndim > 0 and (len(value), len(fresh[name])) == (len(known), len(words))  # one for each word
        if has_rows:
            grown = fresh[name].clone()
            grown[list(shared)] = value[list(shared.values())].to(grown)
            value = grown
        state[name] = value
    model.load_state_dict(state)


def load_checkpoint(checkpoint: Path, vae: Path) -> StableDiffusionPipeline:
    """The averaged weights of a checkpoint of `denoiser.py`, as a pipeline in float32."""
    words = tokenizer()
    text, unet = text_encoder(words), denoiser()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    for name, module in (("text", text), ("unet", unet)):
        module.load_state_dict({k.removeprefix(name + "."): v for k, v in state.items() if k.startswith(name + ".")})
    return pipeline(AutoencoderKL.from_pretrained(vae, dtype=torch.float32), words, text, unet)
