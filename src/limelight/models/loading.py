"""Open a text-to-image model: `load`."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch

from ..errors import ModelError, SettingsError, meant
from ..utils.files import user_path
from ..utils.progress import quiet_loading
from ..utils.reading import Record, from_json, reading, record
from ..utils.torch import dtype_of
from .base import About, Model
from .embedded import folder_of, home_of
from .families import FAMILIES, why_not
from .memory import Offload, Quantize, check_known, check_memory, place
from .parts import Index, index_of, load_part, readable
from .pipeline_model import PipelineModel
from .schedulers import SCHEDULERS
from .single_file import SUFFIXES, open_checkpoint
from .unet import ATTACH

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

METHODS = ("attend_and_excite", "guidance", "recommended", "textual_inversion", "generate", "maps")
"""What `limelight.json` has settings of."""


class LoadOptions(TypedDict, total=False):
    """Options of `load` about how weights are kept, as names, which workers can be given."""

    dtype: str
    quantize: str
    offload: str


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `LoadOptions` that do not exist, before a model is opened.

    Raises:
        SettingsError: one is unknown.
    """
    check_known(options.get("quantize"), options.get("offload"))
    if "dtype" in options:
        dtype_of(options["dtype"])


def load(
    source: str | Path | DiffusionPipeline | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    scheduler: str | None = None,
    config: str | Path | None = None,
    quantize: Quantize | None = None,
    offload: Offload | None = None,
) -> Model:
    """Open a text-to-image model.

    Threads may share the model: see `limelight.generate`. A learned word that one thread binds is there for all.

    Args:
        source: None or "pocket" is the small model inside this package, which needs no download, "pocket-256" the same
            model with images twice as wide and high, "pocket-dit" a small Stable Diffusion 3 inside it; otherwise a
            folder in diffusers' layout, a hub id such as "CompVis/stable-diffusion-v1-4", a checkpoint of Stable
            Diffusion 1.x, 2.x or XL in a single file (.safetensors or .ckpt), or a live diffusers pipeline.
        device: by default CUDA, MPS or CPU, whichever is there first; a live pipeline stays where it is.
        dtype: or its name, e.g. "bfloat16"; by default float16 on CUDA and float32 elsewhere; a live pipeline keeps its
            own.
        scheduler: one of `SCHEDULERS`, set up for this model's noise levels; by default the model's own.
        config: for a single file a folder in diffusers' layout with the settings and tokenizers of its model; by
            default those of Stable Diffusion 1.x, 2.x or XL, which are in this package.
        quantize: "8bit" keeps the weights of the denoiser and the text encoders in half of the memory that float16
            takes, and needs torchao; "4bit" in a quarter, and needs bitsandbytes. Images differ a little, with "4bit"
            more.
        offload: keep in the main memory what a graphics card does not need just now: "model" leaves one part at a time
            on it, "sequential" one layer, which is slow.

    Raises:
        ModelError: nothing is there, it cannot be reached, or its family is not supported.
        SettingsError: the device does not exist here, the scheduler or the dtype is unknown, `config` is given for
            something else than a single file, or a way to save memory does not work here.
        MissingDependency: `quantize` needs torchao or bitsandbytes.

    Examples:
        >>> model = limelight.load("pocket", device="cpu", scheduler="ddim")
        >>> model.name, model.default_size
        ('pocket', (128, 128))
    """
    if scheduler is not None and scheduler not in SCHEDULERS:
        also = meant(str(scheduler), SCHEDULERS)
        raise SettingsError(f"Unknown scheduler '{scheduler}'. Choose one of: {', '.join(SCHEDULERS)}.{also}")
    folder = None if config is None else _config_folder(config, source)
    dtype = None if dtype is None else dtype_of(dtype)
    with quiet_loading():
        if _is_pipeline(source):
            _check_live(quantize, offload)
            model = _live(source, device, dtype)
        else:
            model = _stored(source, device, dtype, folder, (quantize, offload))
    return model if scheduler is None else with_scheduler(model, scheduler)


def with_scheduler(model: Model, name: str) -> Model:
    """The same model with another scheduler, set up for its noise levels.

    Args:
        name: one of `SCHEDULERS`.

    Raises:
        SettingsError: the model generates by flow matching.
    """
    if model.flows:
        raise SettingsError(
            f"'{model.name}' generates by flow matching, which scheduler='{name}' does not know; leave it out."
        )
    import diffusers

    return model.for_one_run(getattr(diffusers, SCHEDULERS[name]).from_config(model.scheduler.config))


def _config_folder(config: str | Path, source: Any) -> Path:
    """The folder of a single file's settings.

    Raises:
        SettingsError: the source is something else.
        ModelError: there is no such folder.
    """
    folder = user_path(config)
    if not isinstance(source, str | Path) or Path(source).suffix.lower() not in SUFFIXES:
        raise SettingsError(f"config='{config}' is for a checkpoint in a single file. Leave it out.")
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"config='{config}' is not a model folder: it has no model_index.json.")
    return folder


def _is_pipeline(source: Any) -> bool:
    from diffusers import DiffusionPipeline  # seconds, which `import limelight` need not cost

    return isinstance(source, DiffusionPipeline)


def _check_live(quantize: str | None, offload: str | None) -> None:
    """Refuse to change how somebody else's pipeline keeps its weights."""
    for name, value in (("quantize", quantize), ("offload", offload)):
        if value is not None:
            raise SettingsError(
                f"{name}='{value}' is for models that load() opens. Quantize or offload a live pipeline with diffusers."
            )


def _live(pipeline: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
    """The model of a pipeline that is open already, on its device and in its dtype if there are no wishes."""
    name = getattr(pipeline.config, "_name_or_path", None) or type(pipeline).__name__
    family = _live_family(pipeline, name)
    if device is not None:
        place(pipeline, _device(device), None, None)
    if dtype is not None:
        pipeline.to(dtype)
    return _driven(FAMILIES[family].adapter, pipeline, name)


def _live_family(pipeline: Any, name: str) -> str:
    """The family of an open pipeline, also of a subclass or a community pipeline."""
    index = {}
    for part, value in pipeline.components.items():
        if value is not None:
            bases = [base.__name__ for base in type(value).__mro__]
            known = [family.parts.get(part) for family in FAMILIES.values()]
            # A derived class counts as the class that it is derived from.
            index[part] = ("", next((base for base in bases if base in known), bases[0]))
    return find_family(type(pipeline).__name__, index, name)


def _driven(adapter: type[PipelineModel], pipeline: Any, name: str) -> Model:
    """A pipeline behind its adapter, once it is clear that all its denoiser's inputs can be given."""
    with readable(name):
        model = adapter(pipeline, name)
        model.check_inputs()
    return model


def _stored(
    source: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    config: Path | None,
    memory: tuple[str | None, str | None],
) -> Model:
    """The model of a folder, of a single file or of the hub."""
    where = _device(device)
    check_memory(*memory, where)
    dtype = dtype or (torch.float16 if where.type == "cuda" else torch.float32)
    name = "pocket" if source is None else str(source)
    source = folder_of(source)
    if Path(source).suffix.lower() in SUFFIXES:
        pipeline, adapter = _open_file(user_path(source), name, dtype, config)
    else:
        pipeline, adapter = _open(source, name, dtype)
    place(pipeline, where, *memory)
    model = _driven(adapter, pipeline, name)
    model.quantize, _ = memory
    model.about = about_of(user_path(source) / "limelight.json", model.about)
    return model


class _Settings(Record):
    """A method's settings in `limelight.json`."""

    thresholds: NotRequired[dict[float, float]]
    relative: NotRequired[bool]
    guidance_scale: NotRequired[float]
    layers: NotRequired[list[str]]


_FACTS = record(
    "_FACTS",
    {
        "words": NotRequired[list[str] | None],
        "inversion": NotRequired[_Settings],  # the name of "textual_inversion" before 0.2
        **dict.fromkeys(METHODS, NotRequired[_Settings]),
    },
)
"""The content of `limelight.json`."""


def about_of(path: Path, family: About) -> About:
    """What is known about a model: what its folder says, and for the methods that it does not name its family's."""
    if not path.exists():
        return family
    with reading(path, "settings", "correct it, or remove it"):
        facts = from_json(_FACTS, path.read_bytes())
    facts.setdefault("textual_inversion", facts.get("inversion", {}))
    presets = dict(family.presets)
    for method in METHODS:
        settings = facts.get(method)
        if settings and settings.pop("relative", False):  # before 0.2 there were two rules
            settings["step_rule"] = "relative"
        if settings:
            presets[method] = settings
    words = facts.get("words")
    return About(None if words is None else frozenset(words), presets)


def _open(source: Any, name: str, dtype: torch.dtype) -> tuple[DiffusionPipeline, type[PipelineModel]]:
    """The pipeline of a folder or of the hub, with safe weights alone, and the adapter that drives it."""
    import diffusers

    folder = os.path.expanduser(source)
    if not os.path.isdir(folder) and not is_hub_id(source):
        raise ModelError(
            f"'{name}' is neither a folder, a checkpoint (.safetensors, .ckpt) nor a hub id (owner/name); 'pocket', "
            "'pocket-256' and 'pocket-dit' are always there."
        )

    where = str(folder) if os.path.isdir(folder) else str(source)
    family, index = read_index(where, name)
    cls, adapter = getattr(diffusers, family), FAMILIES[family].adapter
    safe: dict[str, Any] = {"use_safetensors": True, **adapter.loading}
    with _no_alarm(), readable(name):
        stored = Path(where if os.path.isdir(where) else cls.download(where, **safe))
        options = {"dtype": dtype, "use_safetensors": safe["use_safetensors"], "unused": adapter.unused}
        parts = {
            part: load_part(home_of(part, name, stored), name, part, index[part], options)
            for part in FAMILIES[family].parts
            if part in index
        }
        pipeline = cls.from_pretrained(stored, **parts, **{**dict.fromkeys(idle_of(cls)), **safe})
        pipeline.register_to_config(_name_or_path=where)
    return pipeline, adapter


def is_hub_id(source: Any) -> bool:
    """Whether it has the form of a hub id: owner/name."""
    return isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None


def _open_file(
    file: Path, name: str, dtype: torch.dtype, config: Path | None
) -> tuple[DiffusionPipeline, type[PipelineModel]]:
    """The pipeline of a checkpoint in a single file, and the adapter that drives it."""
    if not file.is_file():
        raise ModelError(f"There is no file '{name}'.")
    pipeline, family = open_checkpoint(file, name, dtype, config)
    return pipeline, FAMILIES[family].adapter


def read_index(where: str, name: str) -> tuple[str, Index]:
    """The family of a stored model, and what `model_index.json` says of its parts."""
    from diffusers import DiffusionPipeline

    try:
        config = dict(DiffusionPipeline.load_config(where))
        pipeline = config["_class_name"]
    except Exception as error:
        if os.path.isdir(where):
            raise ModelError(f"'{name}' is not a model folder: it has no readable model_index.json.") from error
        raise ModelError(
            f"'{name}' cannot be fetched from the hub; check the name and the connection, log in with `hf auth login` "
            "if it is private or gated, or give a folder."
        ) from error

    # Of a community pipeline it names the file and the class.
    pipeline = str(pipeline[-1] if isinstance(pipeline, list | tuple) and pipeline else pipeline)
    index = index_of(config)
    return find_family(pipeline, index, name), index


def find_family(pipeline: str, index: Index, name: str) -> str:
    """The family that can drive these parts, whatever the pipeline calls itself.

    Raises:
        ModelError: there is none.
    """
    if pipeline in FAMILIES:
        missing = [part for part in FAMILIES[pipeline].needed if part not in index]
        if missing:
            raise ModelError(
                f"'{name}' cannot be read as a model: it is a {pipeline} without {', '.join(missing)}; get the whole "
                "model."
            )
        return pipeline

    classes = {part: cls for part, (_, cls) in index.items() if part not in _IDLE}
    for known, family in FAMILIES.items():
        if family.is_made_of(classes):
            return known
    raise ModelError(_refusal(pipeline, classes, name))


# Parts on which no image depends that limelight generates.
_IDLE = ("safety_checker", "feature_extractor", "image_encoder")


def idle_of(cls: Any) -> tuple[str, ...]:
    """The idle parts that a pipeline class knows."""
    return tuple(part for part in _IDLE if part in inspect.signature(cls.__init__).parameters)


def _refusal(pipeline: str, classes: Mapping[str, str], name: str) -> str:
    """Say that a pipeline cannot be driven, and what can be done with it."""
    reason = why_not(pipeline)
    if reason is not None:
        return f"'{name}' is a {pipeline}, which is not supported: {reason}."
    message = f"'{name}' is a {pipeline}, which is not supported; supported: {', '.join(FAMILIES)}"
    if classes.get("unet") != "UNet2DConditionModel":
        return f"{message}."
    more = [part for part in classes if part not in FAMILIES["StableDiffusionXLPipeline"].parts]
    besides = f", and it needs more than those: {', '.join(more)}" if more else ""
    return f"{message}{besides}. {ATTACH}"


@contextmanager
def _no_alarm() -> Iterator[None]:
    """Without diffusers' alarm about weight files older than safetensors: they are opened with `weights_only=True`."""

    def other(record: logging.LogRecord) -> bool:
        return re.search("safetensors|unsafe serialization", record.getMessage()) is None

    log = logging.getLogger("diffusers.models.modeling_utils")
    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _device(wanted: str | torch.device | None) -> torch.device:
    """The wanted device, or the best one."""
    there = _device_types()
    try:
        device = torch.device(wanted or there[0])
    except RuntimeError as error:
        raise SettingsError(f"Unknown device '{wanted}'. Choose one of: cuda, mps, cpu.") from error

    beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in there or beyond:
        raise SettingsError(f"The device '{wanted}' is not there; use {' or '.join(there)}.")
    return device


def _device_types() -> list[str]:
    """The kinds of device that this machine has, the fastest first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, available in there.items() if available]
