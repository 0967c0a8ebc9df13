"""The metrics of images: what each measures, how people call it, and what it needs. The one registry.

The functions behind them are in `limelight.evaluate.clip`, `detectors` and `preservation`. A new metric is one more
function of a `Sample` and one more line of `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from torch import Tensor

from .clip import Captioner, Clip, image_image, image_text, minimum_object, parts, text_text
from .detectors import Detector, SceneCheck, check_scene
from .preservation import pixel_change, structure_change
from .suites import Case

Values = list[float | None]
"""One value per image; None where an image has none."""


@dataclass(frozen=True)
class Instruments:
    """The models that measure; None leaves out the metrics that need it.

    Attributes:
        paper: handle texts as the authors' script does, see `limelight.evaluate.clip.in_templates`.
    """

    clip: Clip | None = None
    captioner: Captioner | None = None
    detector: Detector | None = None
    paper: bool = False


@dataclass(frozen=True, eq=False)
class Before:
    """The image that an edit or a guidance began with.

    Attributes:
        mask: where the words are that an edit changes, bool [height, width]; None if unknown.
    """

    image: Image.Image
    mask: Tensor | None = None


class Sample:
    """Some images of one case, with what several metrics share: features, captions, detections.

    Args:
        case: what the images should show.
        images: at least one.
        before: for each, the image that it began with, if there is one.
        instruments: the models that measure.
    """

    def __init__(
        self, case: Case, images: Sequence[Image.Image], before: Sequence[Before | None], instruments: Instruments
    ) -> None:
        self.case, self.images, self.before, self.instruments = case, images, before, instruments

    @property
    def clip(self) -> Clip:
        """The CLIP model, where there is one."""
        assert self.instruments.clip is not None
        return self.instruments.clip

    @cached_property
    def features(self) -> Tensor:
        """CLIP's features of the images [images, width]."""
        return self.clip.images(self.images)

    @cached_property
    def captions(self) -> list[str] | None:
        """A caption of each image; None without a captioner."""
        captioner = self.instruments.captioner
        if captioner is None or self.instruments.clip is None:
            return None
        return captioner.captions(self.images, self.instruments.paper)

    @cached_property
    def checks(self) -> list[SceneCheck] | None:
        """What a detector finds of the case; None where there is none, or it does not know all that is wanted."""
        detector, things = self.instruments.detector, self.case.wanted
        if detector is None or not things or not all(detector.knows(thing.word) for thing in things):
            return None
        return [check_scene(found, things) for found in detector.find(self.images, things)]

    @cached_property
    def pairs(self) -> dict[int, Before]:
        """What was before the images that have one before, by their places."""
        return {i: before for i, before in enumerate(self.before) if before is not None}

    @cached_property
    def marked(self) -> dict[int, tuple[Image.Image, Image.Image, Tensor]]:
        """Image before, image, and mask of the images whose edit is marked, by their places."""
        found = {}
        for i, before in self.pairs.items():
            if before.mask is not None:
                found[i] = before.image, self.images[i], before.mask
        return found

    @cached_property
    def patches(self) -> dict[int, tuple[Tensor, Tensor]]:
        """CLIP's features of patches, before and after, of the images whose edit is marked, by their places."""
        if not self.marked:
            return {}
        earlier, later, _ = zip(*self.marked.values(), strict=True)
        patches = zip(self.clip.patches(earlier), self.clip.patches(later), strict=True)
        return dict(zip(self.marked, patches, strict=True))

    def of_all(self, values: Mapping[int, float | None]) -> Values:
        """Values of some images, by their places, as those of all images."""
        return list(map(values.get, range(len(self.images))))


def _full_text(sample: Sample) -> Values | None:
    """CLIP similarity to the whole prompt, -1..1; None where the paper's script has none."""
    if not parts(sample.case.prompt, sample.instruments.paper):
        return None
    return image_text(sample.clip, sample.features, sample.case.prompt, sample.instruments.paper).tolist()


def _minimum_object(sample: Sample) -> Values | None:
    """CLIP similarity to the part of the prompt that the image shows least, -1..1."""
    if not parts(sample.case.prompt, sample.instruments.paper):
        return None
    return minimum_object(sample.clip, sample.features, sample.case.prompt, sample.instruments.paper).tolist()


def _text_text(sample: Sample) -> Values | None:
    """Similarity of a caption of the image to the prompt, -1..1."""
    if sample.captions is None:
        return None
    return text_text(sample.clip, sample.captions, sample.case.prompt, sample.instruments.paper).tolist()


def _success(sample: Sample) -> Values | None:
    """Whether the detector finds all that the case wants, 0 or 1."""
    if sample.checks is None:
        return None
    return [float(not check.missing) for check in sample.checks]


def _present(sample: Sample) -> Values | None:
    """Share of the wanted things that are there, 0..1."""
    if sample.checks is None:
        return None
    return [sum(check.present) / len(check.present) for check in sample.checks]


def _binding(sample: Sample) -> Values | None:
    """Share of the things wanted in a color that are there in it, 0..1."""
    if sample.checks is None:
        return None
    values: Values = []
    for check in sample.checks:
        right = [colored for colored in check.colored if colored is not None]
        values.append(sum(right) / len(right) if right else None)
    return values


def _mixed(sample: Sample) -> Values | None:
    """Whether something in the image could be two of the wanted things, 0 or 1."""
    if sample.checks is None:
        return None
    return [float(check.mixed) for check in sample.checks]


def _image_image(sample: Sample) -> Values | None:
    """CLIP similarity to the image before, -1..1."""
    if not sample.pairs:
        return None
    before = sample.clip.images([before.image for before in sample.pairs.values()])
    own = sample.features[list(sample.pairs)]
    return sample.of_all(dict(zip(sample.pairs, image_image(own, before).tolist(), strict=True)))


def _structure(sample: Sample) -> Values | None:
    """Change of structure outside the place of an edit, 0..2."""
    return sample.of_all({i: structure_change(*sample.patches[i], mask) for i, (_, _, mask) in sample.marked.items()})


def _pixels(sample: Sample) -> Values | None:
    """Change of pixels outside the place of an edit, 0..1."""
    return sample.of_all({i: pixel_change(*marked) for i, marked in sample.marked.items()})


@dataclass(frozen=True)
class Metric:
    """A metric of single images.

    Attributes:
        name: its column in scores.parquet.
        title: what people call it.
        mean: the name of its mean in scores.json; those of the authors' scripts where they have it.
        measure: the values of a sample, or None where the sample has none.
        needs_clip: whether it needs CLIP.
        lower_is_better: whether a smaller value is the better one.
    """

    name: str
    title: str
    mean: str
    measure: Callable[[Sample], Values | None]
    needs_clip: bool = True
    lower_is_better: bool = False

    def __call__(self, sample: Sample) -> Values:
        """One value per image, None where there is none."""
        if self.needs_clip and sample.instruments.clip is None:
            return [None] * len(sample.images)
        return self.measure(sample) or [None] * len(sample.images)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("full_text", "CLIP, full prompt", "full_text_aggregation", _full_text),
        Metric("minimum_object", "CLIP, minimum object", "min_first_second_aggregation", _minimum_object),
        Metric("text_text", "caption to prompt", "average_similarity", _text_text),
        Metric("success", "all there", "detection_success", _success, needs_clip=False),
        Metric("present", "things there", "things_present", _present, needs_clip=False),
        Metric("binding", "right color", "attribute_binding", _binding, needs_clip=False),
        Metric("mixed", "subjects mixed", "subjects_mixed", _mixed, needs_clip=False, lower_is_better=True),
        Metric("image_image", "CLIP, to the image before", "image_similarity", _image_image),
        Metric("structure", "structure changed outside", "structure_change", _structure, lower_is_better=True),
        Metric("pixels", "pixels changed outside", "pixel_change", _pixels, lower_is_better=True),
    )
}
