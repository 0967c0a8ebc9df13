"""What methods that move a prompt's encoded states share."""

from __future__ import annotations

from ..errors import ModelError
from ..models.base import Model
from ..models.stable_diffusion import StableDiffusion, StableDiffusionXL

STATES = "encoder_hidden_states"


def check_states(model: Model, method: str) -> None:
    """Refuse a model whose text encoder is not CLIP's.

    Raises:
        ModelError: it is not.
    """
    if not isinstance(model, (StableDiffusion, StableDiffusionXL)):
        raise ModelError(
            f"{method} moves the states of CLIP's text encoder, and '{model.name}' reads prompts with another. Choose "
            "Stable Diffusion 1.x, 2.x or XL."
        )
