"""Magnet: encoded nouns that are drawn to their own modifiers and away from those of others.

Chenyi Zhuang, Ying Hu, Pan Gao, "Magnet: We Never Know How Text-to-Image Diffusion Models Work, Until We Learn How
Vision-Language Models Function", 2024, https://arxiv.org/abs/2409.19967
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PromptError
from ..models.base import Conditioning, Model
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject, SubjectChoice, resolve
from .states import STATES, check_states, noun_of, with_states

NOUNS = tuple(
    "cat dog horse cow sheep pig bear lion tiger elephant monkey rabbit mouse fox wolf deer giraffe zebra panda bird "
    "owl duck chicken penguin eagle parrot fish shark whale dolphin frog turtle snake lizard bee butterfly spider "
    "apple orange banana lemon pear grape cherry strawberry tomato carrot potato onion mushroom bread cake pizza "
    "burger cheese egg cookie coffee cup bowl plate bottle glass spoon knife chair bench table sofa bed lamp clock "
    "mirror vase box bag backpack suitcase basket book pen pencil camera phone laptop television guitar piano drum "
    "violin car bus truck train bicycle motorcycle boat ship airplane balloon rocket house castle tower bridge door "
    "window tree flower rose sunflower leaf mountain river beach hat cap shirt dress coat shoe boot glove scarf crown "
    "ring necklace glasses umbrella ball kite doll robot man woman boy girl".split()
)
"""Nouns among which neighbours are looked for. (The authors' bank of 614 has no licence.)"""


@dataclass(frozen=True)
class _Described:
    """A subject that the prompt describes.

    Attributes:
        noun: its word.
        modifiers: the words that describe it, in one text.
        positions: its noun's tokens.
    """

    noun: str
    modifiers: str
    positions: tuple[int, ...]

    @property
    def phrase(self) -> str:
        return f"{self.modifiers} {self.noun}"


@dataclass
class _Encoder:
    """The states of short texts, each encoded once."""

    model: Model
    known: dict[str, tuple[Prompt, Tensor]] = field(default_factory=dict)

    def read(self, texts: Sequence[str], at_once: int = 64) -> None:
        """Encode what is not known yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), at_once):
            prompts = [self.model.prompt(text) for text in new[start : start + at_once]]
            states = self.model.encode(prompts).conditional[STATES].float()
            for i, prompt in enumerate(prompts):
                self.known[new[start + i]] = (prompt, states[i])

    def last(self, text: str) -> Tensor:
        """The state of a text's last token before the end, [width]."""
        self.read([text])
        prompt, states = self.known[text]
        return states[prompt.end - 1]

    def ends(self, text: str) -> tuple[Tensor, Tensor]:
        """The states of the first token after a text and of the last, [width] each."""
        self.read([text])
        prompt, states = self.known[text]
        return states[prompt.end], states[-1]


def magnet(
    model: Model,
    prompt: str,
    *,
    subjects: SubjectChoice = "auto",
    negative: str | None = "",
    neighbors: int = 5,
    nouns: Sequence[str] = NOUNS,
) -> Conditioning:
    """Encode a prompt, and move the states of its described nouns.

    With E(text) the state of a text's last token, n_1..n_K the `nouns` whose E is nearest to that of noun n, m(n) the
    modifiers of n and w the cosine of the end token's and the last token's state of "m(n) n" alone,

        v(m)  = mean_k [E("m n_k") - E("n_k")]
        e_n  += exp(0.6 - w) v(m(n)) - (1 - w^2) sum_{other nouns o} v(m(o))

    No pass of the denoiser. A prompt that describes nothing is encoded as always.

    Args:
        model: one with CLIP's text encoder: Stable Diffusion 1.x, 2.x or XL.
        prompt: what to show.
        subjects: see `limelight.generate`; "auto" finds the words that describe each.
        negative: of the unconditional branch; None leaves that out.
        neighbors: K, at least 1.
        nouns: where to look for them; those that the model knows count.

    Returns:
        One row, for `conditioning` of `limelight.generate`; for several seeds take ``.rows([0] * seeds)``.

    Raises:
        ModelError: the text encoder is not CLIP's.
        PromptError: there are too few nouns.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> encoded = magnet(model, "a red car and a blue chair")
        >>> len(limelight.generate(model, "a red car and a blue chair", steps=2, conditioning=encoded).images)
        1
    """
    check_states(model, "Magnet")
    parsed = model.prompt(prompt)
    _, found = resolve(parsed, subjects)
    described = [_described(parsed, subject) for subject in found if subject.modifiers]

    encoded, encoder = model.encode([parsed], negative), _Encoder(model)
    states = encoded.conditional[STATES].clone()
    for own in described:
        near = _nearest(encoder, own.noun, nouns, neighbors)
        others = [other for other in described if other is not own]
        states[:, list(own.positions)] += _move(encoder, own, others, near).to(states)
    return with_states(encoded, states)


def _described(prompt: Prompt, subject: Subject) -> _Described:
    """The texts of a subject and of its modifiers."""
    words = {word.positions: word.text for word in prompt.words}
    return _Described(noun_of(prompt, subject), " ".join(words[own] for own in subject.modifiers), subject.positions)


def _nearest(encoder: _Encoder, noun: str, nouns: Sequence[str], count: int) -> list[str]:
    """The other nouns whose states are most like that of one.

    Raises:
        PromptError: there are fewer than asked for.
    """
    model = encoder.model
    others = [other for other in nouns if other != noun and not model.unknown(model.prompt(other))]
    if not 1 <= count <= len(others):
        raise PromptError(
            f"neighbors={count} does not fit the {len(others)} nouns that '{model.name}' knows besides '{noun}'."
        )

    encoder.read([noun, *others])
    states = torch.stack([encoder.last(other) for other in others])
    likeness = F.cosine_similarity(states, encoder.last(noun)[None])
    return [others[i] for i in likeness.topk(count).indices.tolist()]


def _move(encoder: _Encoder, own: _Described, others: Sequence[_Described], near: Sequence[str]) -> Tensor:
    """By how much a noun's state moves, [width]."""
    end, last = encoder.ends(own.phrase)
    omega = F.cosine_similarity(end, last, dim=0)

    move = torch.exp(0.6 - omega) * _pull(encoder, own.modifiers, near)
    for other in others:
        move = move - (1 - omega**2) * _pull(encoder, other.modifiers, near)
    return move


def _pull(encoder: _Encoder, modifiers: str, nouns: Sequence[str]) -> Tensor:
    """What modifiers add to nouns, on average, [width]."""
    encoder.read([text for noun in nouns for text in (noun, f"{modifiers} {noun}")])
    added = [encoder.last(f"{modifiers} {noun}") - encoder.last(noun) for noun in nouns]
    return torch.stack(added).mean(dim=0)
