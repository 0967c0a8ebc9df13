"""A model without its weights: what its configuration files say, on torch's meta device."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from ..utils.progress import quiet_loading
from ..utils.reading import from_json
from .embedded import folder_of, home_of
from .families import FAMILIES
from .loading import about_of, find_family, idle_of, is_hub_id, read_index
from .parts import Index, check_sizes, class_of, index_of, readable
from .pipeline_model import PipelineModel

Configs = Mapping[str, Mapping[str, Any]]
"""Part of a pipeline -> its settings."""


def blueprint(source: str | Path | None, dtype: torch.dtype = torch.float16) -> PipelineModel:
    """Open a model without its weights. Of a hub id the configuration files alone are fetched.

    It has no tokenizers, and its weights no values: its passes can be counted, and give nothing.

    Args:
        source: None or the name of an embedded model, a folder in diffusers' layout, or a hub id.

    Raises:
        ModelError: nothing is there, it cannot be reached, or its family is not supported.
    """
    name = "pocket" if source is None else str(source)
    source = folder_of(source)
    folder = os.path.expanduser(source)
    if not os.path.isdir(folder) and not is_hub_id(source):
        raise ModelError(f"'{name}' is neither a folder in diffusers' layout nor a hub id (owner/name).")

    where = str(folder) if os.path.isdir(folder) else str(source)
    with quiet_loading(), readable(name):
        family, index = read_index(where, name)
        stored = Path(where if os.path.isdir(where) else _fetched(where))
        configs = {
            part: _config(home_of(part, name, stored) / part, part) for part in FAMILIES[family].parts if part in index
        }
        options = from_json(dict[str, Any], (stored / "model_index.json").read_bytes())
    model = built(name, options, configs, dtype)
    model.about = about_of(stored / "limelight.json", model.about)
    return model


def built(name: str, options: Mapping[str, Any], configs: Configs, dtype: torch.dtype = torch.float16) -> PipelineModel:
    """A model of given settings without its weights.

    Args:
        options: what a `model_index.json` holds.
        configs: of each part what its `config.json` or `scheduler_config.json` holds; parts without one are left out.
    """
    import diffusers

    index = index_of(options)
    family = find_family(str(options["_class_name"]), index, name)
    known = FAMILIES[family]
    with quiet_loading(), readable(name):
        parts = dict.fromkeys(part for part in known.parts if part not in configs or not configs[part])
        parts |= {part: _part(index, part, config, dtype) for part, config in configs.items() if config}
        cls = getattr(diffusers, family)
        accepted = inspect.signature(cls.__init__).parameters
        own = {key: value for key, value in options.items() if key in accepted and key not in index}
        model = known.adapter(cls(**{**dict.fromkeys(idle_of(cls)), **own, **parts}), name)
        model.check_inputs()
    return model


_CONFIGURATIONS = ["model_index.json", "limelight.json", "*/config.json", "*/scheduler_config.json"]


def _fetched(hub_id: str) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(hub_id, allow_patterns=_CONFIGURATIONS)


def _config(folder: Path, part: str) -> dict[str, Any]:
    """The settings of a part; none of those that have none, as tokenizers."""
    for name in ("config.json", "scheduler_config.json"):
        path = folder / name
        if path.is_file() and not part.startswith("tokenizer"):
            config = from_json(dict[str, Any], path.read_bytes())
            check_sizes(config)
            return config
    return {}


def _part(index: Index, part: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A part of given settings; a module on the meta device."""
    from transformers import PreTrainedModel

    cls = class_of(*index[part])
    if issubclass(cls, PreTrainedModel):
        settings = cls.config_class.from_dict(dict(config))
        with torch.device("meta"):
            return cls._from_config(settings, dtype=dtype).eval()
    module = issubclass(cls, torch.nn.Module)
    with torch.device("meta") if module else nullcontext():
        made = cls.from_config(dict(config))
    # Without the class's own notice of layers that its weights have in float32.
    return torch.nn.Module.to(made, dtype).eval() if module else made
