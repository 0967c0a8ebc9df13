"""Tiny transformer pipelines with random weights, and tokenizers of the classes that they use, without any download."""

from __future__ import annotations

import json
from functools import cache

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImageControlNetModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.conftest import POCKET
from tests.tiny import text_config

WORDS = "a an the of on in and with black white red green blue cat dog frog horse tree house hello world photo".split()


@cache
def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=77)


@cache
def t5_tokenizer() -> T5Tokenizer:
    """Whole words, and pieces of others."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator([" ".join(WORDS), "abcdefghijklmnopqrstuvwxyz"] * 20, trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    known = {piece for piece, _ in pieces}
    pieces += [(f"\u2581{word}", -6.0) for word in WORDS if f"\u2581{word}" not in known]
    return T5Tokenizer(vocab=pieces, model_max_length=512, extra_ids=0)


CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_pieces() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s|."), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@cache
def qwen_tokenizer() -> Qwen2Tokenizer:
    """Pieces of bytes, with a chat template."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_pieces()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=special)
    tokenizer.chat_template = CHAT
    return tokenizer


SYSTEM = (
    "<s>{% for m in messages %}{% set text = m['content'][0]['text'] %}{% if m['role'] == 'system' %}"
    "[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)


class TextProcessor(ProcessorMixin):
    """PixtralProcessor without its images, for which it needs torchvision."""

    def __init__(self, tokenizer, chat_template=None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


@cache
def text_processor() -> TextProcessor:
    """Pieces of bytes behind a begin token, padded on the left, with a chat template that has the begin token, too."""
    model = json.loads(qwen_tokenizer()._tokenizer.to_str())["model"]
    vocab = dict(model["vocab"])
    marks = ["<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]"]
    marks += ["[IMG_BREAK]", "[IMG_END]"]
    vocab.update({mark: len(vocab) + i for i, mark in enumerate(marks)})
    pieces = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], unk_token="<unk>"))
    pieces.pre_tokenizer = byte_pieces()
    begin = [("<s>", vocab["<s>"])]
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, additional_special_tokens=marks[4:], padding_side="left", **named
    )
    return TextProcessor(tokenizer, chat_template=SYSTEM)


@cache
def gemma_tokenizer() -> GemmaTokenizer:
    """Pieces of words behind a begin token."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    letters = [*map(chr, range(33, 127)), "\n"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    trained.train_from_iterator([f" {word}" for word in WORDS] * 20, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=300, padding_side="right")
    begin = [("<bos>", tokenizer.bos_token_id)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=begin)
    return tokenizer


def clip_encoder(cls: type = CLIPTextModelWithProjection):
    tokenizer = clip_tokenizer()
    config: CLIPTextConfig = text_config(tokenizer, projection_dim=32)
    return cls(config)


def t5_encoder(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=4,
            is_encoder_decoder=False,
            dropout_rate=0.0,
        )
    )


def gemma_encoder() -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(gemma_tokenizer()),
            head_dim=8,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=2,
            attn_implementation="eager",
        )
    )


def autoencoder(blocks: int = 2, channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.06,
    )


def flow(**settings) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**settings)


def flux(guidance: bool = True, channels: int = 16) -> FluxPipeline:
    """With more than 16 channels, as FLUX.1 Fill and the control models, which read other things beside the latents."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    )
    return ready(
        FluxPipeline(
            scheduler=flow(use_dynamic_shifting=guidance),
            vae=autoencoder(),
            text_encoder=clip_encoder(CLIPTextModel),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_encoder(32),
            tokenizer_2=t5_tokenizer(),
            transformer=transformer,
        )
    )


def chroma() -> ChromaPipeline:
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ready(
        ChromaPipeline(
            scheduler=flow(use_dynamic_shifting=True),
            vae=autoencoder(),
            text_encoder=t5_encoder(32),
            tokenizer=t5_tokenizer(),
            transformer=transformer,
        )
    )


def flux2_parts(guidance: bool) -> dict:
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guidance,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {"transformer": transformer, "vae": vae, "scheduler": flow(use_dynamic_shifting=True)}


def flux2() -> Flux2Pipeline:
    parts, tokenizer = flux2_parts(True), text_processor().tokenizer
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 30, "num_key_value_heads": 1}
    text |= {"head_dim": 8, "sliding_window": None, **small}
    vision = {"model_type": "pixtral", "num_hidden_layers": 1, "image_size": 30, "patch_size": 6, **small}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=len(tokenizer) - 3)
    encoder = Mistral3ForConditionalGeneration(config)
    return ready(Flux2Pipeline(text_encoder=encoder, tokenizer=text_processor(), **parts))


def flux2_klein(distilled: bool = False) -> Flux2KleinPipeline:
    parts = flux2_parts(False)
    config = Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    encoder = Qwen3ForCausalLM(config)
    return ready(Flux2KleinPipeline(text_encoder=encoder, tokenizer=qwen_tokenizer(), is_distilled=distilled, **parts))


def lumina2() -> Lumina2Pipeline:
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    return ready(
        Lumina2Pipeline(
            transformer=transformer,
            scheduler=flow(use_dynamic_shifting=True),
            vae=autoencoder(blocks=4),
            text_encoder=gemma_encoder(),
            tokenizer=gemma_tokenizer(),
        )
    )


def krea2(distilled: bool = False) -> Krea2Pipeline:
    torch.manual_seed(0)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True}
    text = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(qwen_tokenizer()), "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen3VLConfig(text_config={**layers, **text}, vision_config={**vision, "deepstack_visual_indexes": [0]})
    return ready(
        Krea2Pipeline(
            scheduler=flow(use_dynamic_shifting=True, max_image_seq_len=6400),
            vae=qwen_autoencoder(),
            text_encoder=Qwen3VLModel(config),
            tokenizer=qwen_tokenizer(),
            transformer=transformer,
            text_encoder_select_layers=(0, 1, 2),
            is_distilled=distilled,
        )
    )


def qwen_autoencoder() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[2.0] * 4,
    )


def qwen_image() -> QwenImagePipeline:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = qwen_autoencoder()
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(
        text_config={**layers, "num_key_value_heads": 2, "vocab_size": len(qwen_tokenizer()), "rope_parameters": rope},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )
    return ready(
        QwenImagePipeline(
            scheduler=flow(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=Qwen2_5_VLForConditionalGeneration(config),
            tokenizer=qwen_tokenizer(),
            transformer=transformer,
        )
    )


def z_image() -> ZImagePipeline:
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    config = Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return ready(
        ZImagePipeline(
            scheduler=flow(use_dynamic_shifting=True),
            vae=autoencoder(),
            text_encoder=Qwen3Model(config),
            tokenizer=qwen_tokenizer(),
            transformer=transformer,
        )
    )


def pixart() -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        cross_attention_dim=24,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    return ready(
        PixArtSigmaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_encoder(32),
            vae=autoencoder(),
            transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(),
        )
    )


def sana() -> SanaPipeline:
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    return ready(
        SanaPipeline(
            tokenizer=gemma_tokenizer(),
            text_encoder=gemma_encoder(),
            vae=vae,
            transformer=transformer,
            scheduler=flow(shift=3.0),
        )
    )


def flux_controlnet() -> FluxControlNetModel:
    torch.manual_seed(2)
    return nonzero(
        FluxControlNetModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
        )
    )


def sd3(
    t5: bool = True, dual: tuple[int, ...] = (), dynamic: bool = False, channels: int = 4
) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        qk_norm="rms_norm" if dual else None,
        dual_attention_layers=dual,
    )
    return ready(
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=flow(use_dynamic_shifting=True) if dynamic else flow(shift=3.0),
            vae=autoencoder(channels=channels),
            text_encoder=clip_encoder(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_encoder(),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_encoder(64) if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    )


def sd3_controlnet() -> SD3ControlNetModel:
    torch.manual_seed(2)
    return nonzero(
        SD3ControlNetModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
        )
    )


def qwen_controlnet() -> QwenImageControlNetModel:
    torch.manual_seed(2)
    return nonzero(
        QwenImageControlNetModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        )
    )


def nonzero(model):
    """A model in float64 without zero weights, with which a new ControlNet adds nothing."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if not bool(weight.detach().any()):
            torch.nn.init.normal_(weight, std=0.05)
    return model.to(torch.float64).eval()


def ready(pipeline):
    """A quiet pipeline in float64, no weight of whose denoiser is zero."""
    nonzero(pipeline.transformer)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float64)
