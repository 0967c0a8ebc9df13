"""Words beside a prompt: they attend to the image, and nothing attends to them.

So there are maps of words that are not in the prompt, and the image stays as it is. After the idea of Alec Helbling et
al., "ConceptAttention: Diffusion Transformers Learn Highly Interpretable Features", 2025,
https://arxiv.org/abs/2502.04320

Where a layer reads the text by cross-attention, such a word's keys depend on the word alone. In joint attention the
image rewrites the text in every block: the words ride as further tokens of the text in a pass of their own, each of
them attends to image positions and to its own tokens, and the keys that it has in every layer are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..errors import PromptError
from ..models.base import Conditioning, Model
from ..models.sites import AttentionSite, Layout
from ..prompts.prompt import Prompt
from .call import Call
from .probe import Beside, Probe


@dataclass(eq=False)
class Passengers:
    """Words beside a prompt, for one run.

    Attributes:
        model: reads them.
        words: words or phrases.
        layers: in which their keys are wanted, in execution order; those that read no text are left out.
        states: their encoded tokens [tokens, width], each word encoded by itself.
        owners: which word each token is of, int64 [tokens].
        riding: whether they have a pass of their own just now.
        keys: of the tokens in every layer, in the last pass: [images, heads, tokens, width] each.
    """

    model: Model
    words: tuple[str, ...]
    layers: tuple[AttentionSite, ...]
    states: Tensor
    owners: Tensor
    riding: bool = False
    keys: dict[AttentionSite, Tensor] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, words: Sequence[str], layers: Sequence[AttentionSite]) -> Passengers:
        """Encode the words.

        Raises:
            ModelError: words beside a prompt do not work on the model's family.
            PromptError: the model reads no token of a word.
        """
        model.require("also")
        prompts = [model.prompt(word) for word in words]
        states, owners = list[Tensor](), list[Tensor]()
        for which, prompt in enumerate(prompts):
            places = own_places(prompt)
            if not places:
                raise PromptError(f"The word '{prompt.text}' has no tokens that this model reads; choose another.")
            encoded = model.encode([prompt]).conditional["encoder_hidden_states"]
            states.append(encoded[0, places])
            owners.append(torch.full((len(places),), which, device=encoded.device))
        read = tuple(layer for layer in layers if layer.reads_text)
        return cls(model, tuple(words), read, torch.cat(states), torch.cat(owners))

    @property
    def columns(self) -> dict[str, tuple[int, ...]]:
        """The columns of each word behind a prompt's, see `AttentionMaps.also`."""
        count = len(self.owners)
        found: dict[str, list[int]] = {word: [] for word in self.words}
        for i, which in enumerate(self.owners.tolist()):
            found[self.words[which]].append(i - count)
        return {word: tuple(columns) for word, columns in found.items()}

    @torch.no_grad()
    def beside(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Beside:
        """The words in one pass of the denoiser, whose latents, timestep and conditioning these are."""
        if not self.layers or (self.keys and not self.layers[0].joint):  # the same in every pass
            return Beside(self.keys, self.columns)

        passes = [(latents, conditioning)]
        if self.model.ragged:  # each behind its own text, and not behind that of the longest prompt
            passes = [(latents[i : i + 1], conditioning.alone(i)) for i in range(len(latents))]
        found = [self._pass(own, timestep, of_it) for own, of_it in passes]
        self.keys = {layer: torch.cat([keys[layer] for keys in found]) for layer in self.layers}
        return Beside(self.keys, self.columns)

    def _pass(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[AttentionSite, Tensor]:
        """The keys of the words' tokens in one pass of their own."""
        length = conditioning.conditional["encoder_hidden_states"].shape[1]
        keys: dict[AttentionSite, Tensor] = {}
        self.riding = True
        try:
            with Probe(self.model, answer=partial(self._ride, keys, length)):
                carried = conditioning.carrying(self.states)
                self.model.predict(latents, timestep, carried, until=self.layers[-1])
        finally:
            self.riding = False
        return keys

    def _ride(
        self, kept: dict[AttentionSite, Tensor], length: int, layer: AttentionSite, call: Call, layout: Layout
    ) -> Tensor:
        """A layer's output where the words are further tokens behind a text of some length; their keys are kept."""
        device, count = call.query.device, len(self.owners)
        keys = torch.arange(call.key.shape[2], device=device)
        first = layout.text + length
        ours = keys[first : first + count]
        others = torch.cat([keys[:first], keys[first + count :]])
        kept[layer] = call.key[:, :, ours]
        if not layer.joint:
            return call.some(torch.arange(call.query.shape[2], device=device), others).attend()

        output = torch.empty_like(call.query)
        output[:, :, others] = call.some(others, others).attend()
        pixels = keys[layout.pixels]
        own = self.owners[:, None] == self.owners
        visible = torch.cat([own.new_ones(count, len(pixels)), own], dim=1)
        rides = call.some(ours, torch.cat([pixels, ours]))
        output[:, :, ours] = rides.masked(visible).attend()
        return output


def own_places(prompt: Prompt) -> list[int]:
    """Where a prompt's own tokens are in its encoded text, in every stream."""
    positions = range(1, prompt.end)
    return [prompt.places[i] if prompt.places else i for i in positions]
