"""Small models in memory, with random weights that make attention far from flat."""

from __future__ import annotations

import copy
import io
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LDMTextToImagePipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import limelight
from limelight.models import loading
from limelight.models.latent_diffusion import LatentDiffusion
from limelight.models.stable_diffusion import StableDiffusion
from tests.conftest import POCKET

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
}


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    """The pocket model's words at Stable Diffusion's length."""
    return CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=77)


def text_config(tokenizer: CLIPTokenizer, **changes) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    )


def tiny_unet(widths: tuple[int, ...] = (16, 32, 32), groups: int = 8) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=groups,
    )


def attentive(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same with weights that tell words apart: as they are initialized, attention is almost even."""
    for name, parameter in unet.named_parameters():
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.data *= 4
    return unet


class Template:
    """Makes copies of an object as `copy.deepcopy` does, in a quarter of its time: all but the tensors is pickled."""

    def __init__(self, original: Any) -> None:
        content, tensors = io.BytesIO(), []

        class Pickler(pickle.Pickler):
            def persistent_id(self, part: Any) -> int | None:
                if not isinstance(part, torch.Tensor):
                    return None
                tensors.append(part)
                return len(tensors) - 1

        Pickler(content, pickle.HIGHEST_PROTOCOL).dump(original)
        self._pickled, self._tensors = content.getvalue(), copy.deepcopy(tensors)

    def copy(self) -> Any:
        tensors = copy.deepcopy(self._tensors)  # at once, so that tied weights stay tied

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: int) -> torch.Tensor:
                return tensors[number]

        return Unpickler(io.BytesIO(self._pickled)).load()


@pytest.fixture(scope="session")
def tiny_parts(tokenizer: CLIPTokenizer) -> dict:
    torch.manual_seed(0)
    unet = attentive(tiny_unet())
    text = CLIPTextModel(text_config(tokenizer))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    return {"unet": unet, "text_encoder": text, "vae": vae, "tokenizer": tokenizer}


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_parts: dict):
    """Builds a fresh tiny pipeline of class `cls`."""

    @cache
    def template(scheduler: str, dtype: torch.dtype, cls: type) -> Template:
        pipeline = cls(
            **copy.deepcopy(tiny_parts),
            scheduler=SCHEDULERS[scheduler](),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return Template(pipeline.to(dtype))

    def build(scheduler: str = "ddim", dtype: torch.dtype = torch.float64, cls: type = StableDiffusionPipeline):
        with torch.inference_mode(False):  # a template is for all tests
            chosen = template(scheduler, dtype, cls)
        return chosen.copy()

    return build


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipeline, tmp_path_factory) -> Path:
    """The tiny pipeline in float32 as a model folder. Tests copy it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline(dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_template(tokenizer: CLIPTokenizer, tiny_parts: dict) -> Template:
    torch.manual_seed(1)
    second = CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=77, pad_token="!</w>")
    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=64,
        attention_head_dim=(1, 2, 4),
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        use_linear_projection=True,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(tiny_parts["vae"]),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, projection_dim=24)),
        tokenizer=tokenizer,
        tokenizer_2=second,
        unet=unet,
        scheduler=SCHEDULERS["ddim"](),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return Template(pipeline.to(torch.float64))


@pytest.fixture
def tiny_xl(xl_template: Template) -> StableDiffusionXLPipeline:
    return xl_template.copy()


PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a and in the cat dog frog car red blue photo of cafe rose colored ##s zebra ##fish "
    "- '"
)


@pytest.fixture(scope="session")
def tiny_ldm_parts() -> dict:
    torch.manual_seed(2)
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(PIECES.split())})
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(tokenizer),
            encoder_layers=3,
            encoder_ffn_dim=64,
            encoder_attention_heads=2,
            head_dim=16,
            d_model=32,
        )
    )
    unet = tiny_unet()
    for name, parameter in [*unet.named_parameters(), *bert.named_parameters()]:
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.data *= 4
        elif "embed" in name:
            parameter.data *= 50  # of deviation 0.02: words would all look alike
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        norm_num_groups=2,
    )
    return {"vqvae": vae, "bert": bert.eval(), "tokenizer": tokenizer, "unet": unet}


@pytest.fixture(scope="session")
def tiny_ldm_pipeline(tiny_ldm_parts: dict):
    """Builds a fresh tiny pipeline of latent diffusion."""

    template = Template(tiny_ldm_parts)

    def build(scheduler: str = "ddim", dtype: torch.dtype = torch.float64, **parts) -> LDMTextToImagePipeline:
        parts = {**template.copy(), **parts}
        pipeline = LDMTextToImagePipeline(**parts, scheduler=SCHEDULERS[scheduler]())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(dtype)

    return build


@pytest.fixture
def tiny_ldm(tiny_ldm_pipeline) -> LatentDiffusion:
    return limelight.load(tiny_ldm_pipeline())


@pytest.fixture
def tiny(tiny_pipeline) -> StableDiffusion:
    return limelight.load(tiny_pipeline())


@pytest.fixture(scope="session")
def pocket() -> StableDiffusion:
    return limelight.load("pocket", device="cpu")


@pytest.fixture(scope="module")
def models():
    """Every model of the package is opened once in a file; `load` itself comes back for the others."""
    load, kept = loading.load, {}

    def once(source=None, **options):
        key = (source, *sorted(options.items()))
        if source not in (None, "pocket"):
            return load(source, **options)
        if key not in kept:
            kept[key] = load(source, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", once)
        yield
