"""TEBOpt: encoded subjects that are like themselves alone and unlike each other.

Chieh-Yun Chen, Chiang Tseng, Li-Wu Tsao, Hong-Han Shuai, "A Cat Is A Cat (Not A Dog!): Unraveling Information Mix-ups
in Text-to-Image Encoders through Causal Analysis and Embedding Optimization", 2024, https://arxiv.org/abs/2410.00321
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PromptError
from ..models.base import Conditioning, Model
from ..prompts.subjects import SubjectChoice, resolve
from .states import STATES, check_states, noun_of, with_states


def tebopt(
    model: Model,
    prompt: str,
    *,
    subjects: SubjectChoice = "auto",
    negative: str | None = "",
    rate: float = 20.0,
    iterations: int = 21,
    enough: float = -0.7,
) -> Conditioning:
    """Encode a prompt, and move its states e by gradient descent until its subjects lie apart.

    With e_k the state of subject k in the prompt and p_k its state in "a photo of a SUBJECT", cosines of

        loss = -min_k cos(e_k, p_k) + mean_{k, j other subject} cos(e_k, e_j)

    No pass of the denoiser. The article of p_k is "an" before a vowel, which the authors' code never writes.

    Args:
        model: one with CLIP's text encoder: Stable Diffusion 1.x, 2.x or XL.
        prompt: what to show.
        subjects: at least two, see `limelight.generate`; of each, its noun counts.
        negative: of the unconditional branch; None leaves that out.
        rate: of a step of descent.
        iterations: most steps.
        enough: loss at which it ends.

    Returns:
        One row, for `conditioning` of `limelight.generate`; for several seeds take ``.rows([0] * seeds)``.

    Raises:
        ModelError: the text encoder is not CLIP's.
        PromptError: the prompt has fewer than two subjects.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> encoded = tebopt(model, "a cat and a monkey and a chair")
        >>> len(limelight.generate(model, "a cat and a monkey and a chair", steps=2, conditioning=encoded).images)
        1
    """
    check_states(model, "TEBOpt")
    parsed = model.prompt(prompt)
    _, found = resolve(parsed, subjects)
    if len(found) < 2:
        raise PromptError(f"TEBOpt sets subjects apart, and '{prompt}' has {len(found)}. Name at least two.")

    encoded = model.encode([parsed], negative)
    places = [subject.positions[-1] for subject in found]
    alone = _alone(model, [noun_of(parsed, subject) for subject in found])

    states = encoded.conditional[STATES].float().requires_grad_()
    for _ in range(iterations):
        loss = _loss(states[0, places], alone)
        if loss.item() < enough:
            break
        (gradient,) = torch.autograd.grad(loss, states)
        states = (states - rate * gradient).detach().requires_grad_()
    return with_states(encoded, states.detach())


def _alone(model: Model, nouns: Sequence[str]) -> Tensor:
    """The state of each noun in a photo of it alone, [nouns, width]."""
    texts = [f"a photo of {'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}" for noun in nouns]
    prompts = [model.prompt(text) for text in texts]
    states = model.encode(prompts).conditional[STATES].float()
    return torch.stack([states[i, prompt.words[-1].positions[-1]] for i, prompt in enumerate(prompts)])


def _loss(own: Tensor, alone: Tensor) -> Tensor:
    """The loss of the subjects' states [subjects, width]."""
    kept = F.cosine_similarity(own, alone).min()
    pairs = torch.tensor(list(permutations(range(len(own)), 2)))
    return F.cosine_similarity(own[pairs[:, 0]], own[pairs[:, 1]]).mean() - kept
