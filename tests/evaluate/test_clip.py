from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limelight import ModelError
from limelight.evaluate.clip import (
    TEMPLATES,
    Captioner,
    Clip,
    image_text,
    in_templates,
    minimum_object,
    parts,
    text_text,
)
from limelight.evaluate.scoring import Backbones, Scorer
from limelight.models.embedded import POCKET


class Bag:
    """Stands in for CLIP: a text is the set of its known words."""

    words = ("cat", "dog", "red")

    def texts(self, texts):
        rows = torch.tensor([[float(word in text.split()) for word in self.words] for text in texts]) + 1e-6
        return rows / rows.norm(dim=-1, keepdim=True)

    def prompt(self, text, paper=False):
        return self.texts([text])[0]


def test_templates():
    assert len(set(TEMPLATES)) == 80
    texts = in_templates("an elephant and a dog")
    assert "a bad photo of an elephant and a dog." in texts
    assert "the an elephant and a dog in a video game." not in texts
    assert "an elephant and a dog in a video game." in texts
    assert "a photo of many an elephant and a dog." in texts  # as it is: "many" is no article
    assert "a photo of a clean red car." in in_templates("red car")


def test_texts_as_the_paper_handled_them():
    texts = in_templates("a orange bowl", paper=True)
    assert "a bad photo of a orange bowl." in texts
    assert "a photo of my a orange bowl." in texts
    assert "a orange bowl in a video game." in texts
    # Within words too: "the apple" loses its article, and so does "the a".
    assert "a photo of apple." in in_templates("apple", paper=True)
    assert "a photo of the apple." in in_templates("apple")
    assert parts("a cat and a dog with a bow and a car", paper=True) == ["a cat", "a dog with a bow"]
    assert parts("a cat with a bow", paper=True) == ["a cat", "a bow"]
    assert parts("a cat", paper=True) == []


def test_similarities_by_hand():
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), dim=-1)
    whole = image_text(Bag(), images, "a cat and a dog")
    assert torch.allclose(whole, torch.tensor([1.0, 0.5**0.5]), atol=1e-4)
    least = minimum_object(Bag(), images, "a cat and a dog")
    assert torch.allclose(least, torch.tensor([0.5**0.5, 0.0]), atol=1e-4)
    assert parts("a cat with a red bow and a dog") == ["a cat", "a red bow", "a dog"]
    said = text_text(Bag(), ["a cat and a dog", "a dog"], "a cat and a dog")
    assert torch.allclose(said, torch.tensor([1.0, 0.5**0.5]), atol=1e-4)


class Program:
    """A pickle of it makes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("kind", "cls"), [("clip", Clip), ("captioner", Captioner)])
def test_of_older_files_only_weights_are_read(tmp_path, kind, cls):
    folder, made = tmp_path / kind, tmp_path / "made"
    shutil.copytree(POCKET / kind, folder)
    weights = load_file(folder / "model.safetensors")
    torch.save({**weights, "program": Program(made)}, folder / "pytorch_model.bin")
    names = {"clip": "none", "captioner": "none", "detector": "none", kind: str(folder)}
    Scorer(Backbones(**names))  # safetensors come first

    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"^The {kind} '.*' cannot be opened: .* more than weights, .* safetensors.$"):
        Scorer(Backbones(**names))
    assert not made.exists()

    torch.save(weights, folder / "pytorch_model.bin")
    ours = cls().model.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in cls(folder).model.state_dict().items())
