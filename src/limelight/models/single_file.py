"""A checkpoint in a single file, in the layout of Stable Diffusion's authors: `open_checkpoint`."""

from __future__ import annotations

import gzip
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from ..errors import ModelError, quoted
from .parts import empty_weights, lack, readable

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import CLIPTokenizer

SUFFIXES = (".safetensors", ".ckpt")
LORA = re.compile(r"(^|[._])(lora|lokr|loha|hada)_|[._]lora[._]|[._]lora_[AB]\b")
"""A name of a weight in the file of a LoRA."""
_DATA = Path(str(importlib.resources.files("limelight") / "data" / "checkpoints"))


@dataclass(frozen=True)
class _Kind:
    """What a checkpoint turns into.

    Attributes:
        folder: of its settings in `data/checkpoints`.
        pipeline: the class in diffusers.
        padding: for each tokenizer the token after the end of a prompt.
    """

    folder: str
    pipeline: str
    padding: Mapping[str, str]


# By the names that diffusers gives to checkpoints.
_KINDS = {
    "v1": _Kind("sd-1", "StableDiffusionPipeline", {"tokenizer": "<|endoftext|>"}),
    "v2": _Kind("sd-2", "StableDiffusionPipeline", {"tokenizer": "!"}),
    "xl_base": _Kind("sd-xl", "StableDiffusionXLPipeline", {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}),
}
_DENOISER = "model.diffusion_model."


def open_checkpoint(
    file: Path, name: str, dtype: torch.dtype, config: Path | None = None
) -> tuple[DiffusionPipeline, str]:
    """The pipeline of a checkpoint, and the name of its class.

    The family is read from the names of the weights, as diffusers does. Nothing is downloaded.

    Args:
        file: .safetensors, or a .ckpt, of which tensors alone are read.
        name: the model, as it was asked for.
        dtype: of the weights.
        config: a folder in diffusers' layout with the settings and tokenizers of such a model; by default this
            package's own of Stable Diffusion 1.x, 2.x and XL.

    Raises:
        ModelError: it cannot be read, lacks weights, or is of another kind.
    """
    with readable(name), _only_tensors():
        state = _without_data(file)
        kind = _kind(state, name)
        with _fitting(name, config or kind.pipeline):
            pipeline = _converted(file, kind, dtype, config)
        _check_weights(pipeline, state, name)
        if not config:
            _set_scheduler(pipeline, file, state)
    pipeline.register_to_config(_name_or_path=str(file))
    return pipeline, kind.pipeline


# Reading


class _Ignored:
    """Stands for an object of the program that trained a checkpoint: it does nothing."""

    def __new__(cls, *_given: Any) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


# What Stable Diffusion's own .ckpt files hold besides tensors.
_TRAINERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Let torch's reader of tensors pass over what trainers leave in a checkpoint, without running any of it."""
    with torch.serialization.safe_globals([(_Ignored, name) for name in _TRAINERS]):
        yield


def _without_data(file: Path) -> dict[str, Tensor]:
    """The names and shapes of the weights in a file, as tensors without data.

    Raises:
        ModelError: the file holds something else.
    """
    if file.suffix.lower() == ".safetensors":
        with safe_open(file, "pt") as opened:
            empty = {}
            for name in opened.keys():  # noqa: SIM118
                empty[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
            return empty

    state = torch.load(file, map_location="meta", weights_only=True)
    while isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ModelError(f"'{file}' holds no weights by name, but a {type(state).__name__}.")
    return state


# What it is


def _kind(state: Mapping[str, Any], name: str) -> _Kind:
    """The family of a checkpoint.

    Raises:
        ModelError: it is no whole model, or none of the families.
    """
    other = _other(state)
    if other is not None:
        raise ModelError(f"'{name}' is {other}.")

    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    found = infer_diffusers_model_type(state)
    if found not in _KINDS:
        raise ModelError(
            f"'{name}' is a checkpoint of another kind, which diffusers calls '{found}'; from a single file Stable "
            "Diffusion 1.x, 2.x and XL are opened."
        )

    missing = [what for what, beginnings in _PARTS.items() if not _any(state, *beginnings)]
    if len(missing) == len(_PARTS):
        names = quoted(list(state)[:3]) or "nothing"
        raise ModelError(f"'{name}' is no checkpoint of Stable Diffusion: it holds {names}.")
    if missing:
        raise ModelError(
            f"'{name}' has no {' and no '.join(missing)}, which a model needs. Open it with diffusers, "
            "`from_single_file` with the missing parts, and give the pipeline: `limelight.load(pipe)`."
        )
    return _KINDS[found]


_PARTS = {
    "denoiser": (_DENOISER,),
    "text encoder": ("cond_stage_model.", "conditioner."),
    "autoencoder": ("first_stage_model.",),
}


def _any(state: Mapping[str, Any], *beginnings: str) -> bool:
    return any(key.startswith(beginnings) for key in state)


def _other(state: Mapping[str, Any]) -> str | None:
    """What a file is that users take for a model; None if it may be one."""
    if any(LORA.search(key) for key in state):
        return (
            "a LoRA, which changes the weights of a model; load it into its pipeline with `load_lora_weights` of "
            "diffusers, and give the pipeline: `limelight.load(pipe)`"
        )
    if _is_word(state):
        return "a learned word (an embedding); load a model and give the file as a word: `--word`, `LearnedWord.load`"
    for what, beginnings in _SINGLE.items():
        if all(_any(state, beginning) for beginning in beginnings) and not _any(state, _DENOISER):
            return f"{what} alone, one part of a model; give the whole model"
    return None


def _is_word(state: Mapping[str, Any]) -> bool:
    if {"string_to_param", "emb_params"} & state.keys() or state.keys() == {"clip_l", "clip_g"}:
        return True
    return len(state) == 1 and all(isinstance(value, Tensor) and value.ndim <= 2 for value in state.values())


# Part -> beginnings of the names of its weights, all of which it has.
_SINGLE = {
    "a ControlNet": ("control_model.",),
    "a ControlNet in diffusers' layout": ("controlnet_cond_embedding.",),
    "an IP-Adapter": ("image_proj", "ip_adapter"),
    "a denoiser in diffusers' layout": ("down_blocks.", "up_blocks.", "time_embedding."),
    "a denoiser": ("input_blocks.", "output_blocks."),
    "an autoencoder (VAE)": ("encoder.", "decoder."),
    "a text encoder": ("text_model.",),
}


# Its weights


def _converted(file: Path, kind: _Kind, dtype: torch.dtype, config: Path | None) -> Any:
    """The pipeline that diffusers makes of a checkpoint."""
    import diffusers

    options: dict[str, Any] = {}
    if config is None:
        options = _tokenizers(kind)
    return getattr(diffusers, kind.pipeline).from_single_file(
        str(file), config=str(config or _DATA / kind.folder), torch_dtype=dtype, local_files_only=True, **options
    )


@contextmanager
def _fitting(name: str, settings: str | Path) -> Iterator[None]:
    """Say in one sentence that weights do not fit the settings of a model, or that some are missing.

    Raises:
        ModelError: they do not, or are.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        yield
    except (NotImplementedError, SingleFileComponentError) as error:  # the first: a weight without data is moved
        raise ModelError(
            f"'{name}' lacks weights. It is incomplete or of another model than '{settings}'; get the whole file again."
        ) from error
    except ValueError as error:
        misfit = re.search(r"because (\S+) expected shape .*?(\[.*?\]).*?(\[.*?\])", str(error))
        if misfit is None:
            raise
        raise ModelError(
            f"'{name}' does not fit the settings of '{settings}': {misfit[1]} has the shape {misfit[3]}, not "
            f"{misfit[2]}. Name a folder with its own: `limelight.load({name!r}, config=folder)`."
        ) from error


def _check_weights(pipeline: Any, state: Mapping[str, Any], name: str) -> None:
    """Check that each weight of the model came from the file, and each of the file's denoiser is in the model.

    Raises:
        ModelError: one did not.
    """
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and (missing := empty_weights(module)):
            raise ModelError(lack(name, part, missing))

    held = sum(key.startswith(_DENOISER) for key in state)
    known = len(pipeline.unet.state_dict())
    if held != known:
        raise ModelError(
            f"The denoiser of '{name}' has {held} weights, and that of {type(pipeline).__name__} {known}: it reads "
            "something else, too. Open it with diffusers, and give the pipeline: `limelight.load(pipe)`."
        )


# Its settings


def _tokenizers(kind: _Kind) -> dict[str, CLIPTokenizer]:
    """The tokenizers of CLIP, which all these families share."""
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_pieces()
    return {
        part: CLIPTokenizer(vocabulary, merges, pad_token=padding, model_max_length=77)
        for part, padding in kind.padding.items()
    }


def clip_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of CLIP's tokenizer, piece to id, and the pairs of pieces that it joins, the first ones first.

    Alec Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://github.com/openai/CLIP: each byte, each byte at the end of a word, each joined pair, two marks.
    """
    content = gzip.decompress((_DATA / "clip_merges.txt.gz").read_bytes()).decode()
    merges = [(first, second) for first, second in map(str.split, content.splitlines()[1:])]
    # Bytes that are no visible characters are written as those from 256 on, after all others.
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = list(map(chr, [*visible, *range(256, 512 - len(visible))]))
    ends = map("{}</w>".format, letters)
    pieces = [*letters, *ends, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def _set_scheduler(pipeline: Any, file: Path, state: Mapping[str, Any]) -> None:
    """Set up the scheduler for what the denoiser predicts, and the size of 2.x, whose models of the noise have 512
    pixels."""
    before = pipeline.scheduler.config
    changes: dict[str, Any] = {"prediction_type": _prediction(pipeline, file, state)}
    if "ztsnr" in state:  # trained without a rest of the image at the last step
        changes["rescale_betas_zero_snr"] = True
    if changes["prediction_type"] == "epsilon" != before.prediction_type:
        pipeline.unet.register_to_config(sample_size=64)
    pipeline.scheduler = type(pipeline.scheduler).from_config(before, **changes)


def _prediction(pipeline: Any, file: Path, state: Mapping[str, Any]) -> str:
    """What the denoiser was trained to predict: "epsilon" (the noise) or "v_prediction".

    Nothing in most files says it. In this order: a configuration of the original code beside the file (the same name
    with .yaml), as web UIs read it; a mark that trainers of XL leave among the weights; for 2.x, of which there are
    both, a trial.
    """
    own: str = pipeline.scheduler.config.prediction_type
    settings = file.with_suffix(".yaml")
    if settings.is_file():
        found = yaml.safe_load(settings.read_text("utf-8"))["model"]["params"].get("parameterization", "eps")
        return {"v": "v_prediction"}.get(found, "epsilon")
    if "v_pred" in state:
        return "v_prediction"
    if own == "v_prediction" and _predicts_noise(pipeline):
        return "epsilon"
    return own


@torch.no_grad()
def _predicts_noise(pipeline: Any) -> bool:
    """Whether the prediction for latents that are nearly all noise is that noise.

    At the last of 1000 steps latents are 0.068 image + 0.998 noise. The noise is nearly the input then, and
    v = 0.068 noise - 0.998 image is nearly free of it: the correlation with the input is nearly 1, or nearly 0.
    """
    unet, tokenizer = pipeline.unet, pipeline.tokenizer
    noise = torch.randn(1, unet.config.in_channels, 32, 32, generator=torch.Generator().manual_seed(0)).to(unet.dtype)
    ids = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    last = pipeline.scheduler.config.num_train_timesteps - 1
    found = unet(noise, last, pipeline.text_encoder(ids)[0]).sample
    return bool(torch.corrcoef(torch.stack([noise.flatten(), found.flatten()]).float())[0, 1] > 0.5)
