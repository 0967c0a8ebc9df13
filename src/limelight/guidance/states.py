"""What methods that move a prompt's encoded states share."""

from __future__ import annotations

from torch import Tensor

from ..errors import ModelError
from ..models.base import Conditioning, Model
from ..models.stable_diffusion import StableDiffusion, StableDiffusionXL
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject

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


def noun_of(prompt: Prompt, subject: Subject) -> str:
    """The word that a subject is."""
    return next(word.text for word in prompt.words if subject.positions[-1] in word.positions)


def with_states(encoded: Conditioning, states: Tensor) -> Conditioning:
    """An encoded prompt with other states [images, tokens, width] in its conditional branch."""
    conditional = {**encoded.conditional, STATES: states.to(encoded.conditional[STATES])}
    return Conditioning(encoded.prompts, conditional, encoded.unconditional)
