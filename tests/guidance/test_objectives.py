"""Every objective against the numbers of the authors' own functions on one fixture, and what must hold for all."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from limelight import SettingsError
from limelight.attention.maps import AttentionMaps
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.bind import bind
from limelight.guidance.combined import weighted
from limelight.guidance.contrast import contrast
from limelight.guidance.divergence import divergence
from limelight.guidance.layout import inside
from limelight.guidance.overlap import overlap
from limelight.guidance.self_cross import otsu, peak_overlap, self_cross
from limelight.guidance.terms import blur, sharpened
from limelight.models.sites import AttentionSite
from limelight.prompts.prompt import parse
from limelight.prompts.subjects import Subject

SIDE = 16
CROSS = AttentionSite("attn2", "cross", "down", 1, 1)
SELF = AttentionSite("attn1", "self", "down", 1, 1)
CAR, BENCH = (
    Subject((3,), ((2,),), (5 / 16, 12 / 16, 13 / 16, 1.0)),
    Subject((7,), ((6,),), (2 / 16, 0.0, 10 / 16, 5 / 16)),
)
PAIR = (CAR, BENCH)
NOUNS = (Subject((3,)), Subject((7,)))


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    along = torch.arange(SIDE, dtype=torch.float64)
    return torch.meshgrid(along, along, indexing="ij")


def cross_attention(shift: float = 0.0) -> torch.Tensor:
    """A softmax over 77 tokens [16, 16, 77] in which each of the eight words has a spot of its own."""
    y, x = grid()
    logits = torch.zeros(SIDE, SIDE, 77, dtype=torch.float64)
    logits[..., 0] = 5
    for t in range(1, 9):
        squared = (x - 3 * t % 16 - shift) ** 2 + (y - 5 * t % 16) ** 2
        logits[..., t] = 3 * torch.exp(-squared / 18)
    return logits.softmax(dim=-1)


def self_attention() -> torch.Tensor:
    """[256, 256], near places attend to each other."""
    y, x = grid()
    places = torch.stack([y.flatten(), x.flatten()], dim=-1)
    return (-((places[:, None] - places[None]) ** 2).sum(-1) / 18).softmax(dim=-1)


@pytest.fixture
def maps(tokenizer) -> AttentionMaps:
    prompt = parse("a red car and a blue bench", tokenizer, 77)
    read = lambda p: p.flatten(0, 1)[None, None]  # noqa: E731
    before = AttentionMaps({CROSS: read(cross_attention(1.0))}, (SIDE, SIDE), (prompt,))
    layers = {CROSS: read(cross_attention()), SELF: self_attention()[None, None]}
    return AttentionMaps(layers, (SIDE, SIDE), (prompt,), before)


@pytest.fixture
def first(maps) -> AttentionMaps:
    """The same at the first step, which has no step before."""
    return AttentionMaps(maps.layers, maps.latent_size, maps.prompts)


def loss(objective, maps, subjects=PAIR, **settings) -> float:
    return objective(maps, [subjects], **settings).loss.item()


def near(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


def test_attend_and_excite(maps):
    assert loss(excite, maps) == near(0.12855863)


def test_overlap_of_sharpened_maps(maps):
    assert loss(overlap, maps, sharpen=True) / 2 == near(0.08137868)


def test_syngen(maps):
    syngen = partial(bind, distance="kl", push="both", words="all", published=True)
    assert loss(syngen, maps) == near(-0.06686041)


def test_ebama(maps):
    ebama = partial(bind, words="all", published=True)
    assert loss(ebama, maps) == near(1.37854905 - 1.37997080)
    assert loss(ebama, maps, intensity=0.5) == near(-0.89234673)
    assert loss(ebama, maps, intensity=1.0) - loss(ebama, maps) == near(-1.78184997)


def test_conform(maps, first):
    assert loss(contrast, first, memory=True) == near(1.09005102)
    assert loss(contrast, maps, memory=True) == near(1.32089185)
    assert loss(contrast, maps, NOUNS, memory=True) == near(0.40603578)
    assert loss(contrast, first, memory=True, sharpen=True) == near(1.09245672)
    assert loss(contrast, maps, memory=True, sharpen=True) == near(1.24914221)
    assert loss(contrast, first, NOUNS, memory=True) == 0


def test_focus(maps):
    assert loss(divergence, maps, sigma=0) == near(0.53407501)
    assert loss(divergence, maps, NOUNS, sigma=0) == near(0.00826086)


def test_jedi(maps):
    jedi = partial(divergence, power=1, sigma=0, geometric=True)
    assert 2 * loss(jedi, maps) == near(0.29388835 + 0.87994828)
    assert 2 * loss(jedi, maps, spread=0.01) == near(1.17411866)


def test_initno(maps):
    assert loss(peak_overlap, maps, clean=0) == near(0.02831909)


def test_self_cross(maps):
    assert loss(self_cross, maps, clean=0) == near(0.67696411)
    masks = otsu(blur(sharpened(maps.cross, [PAIR])[0]))
    assert masks.sum(dim=(2, 3)).tolist() == [[14, 20]]


def test_layout_guidance(maps):
    assert loss(inside, maps) == near(0.25818723)


OBJECTIVES = {
    "excite": excite,
    "overlap": overlap,
    "sharpened overlap": partial(overlap, sharpen=True),
    "syngen": partial(bind, distance="kl", push="both", words="all", published=True),
    "ebama": partial(bind, words="all", published=True, intensity=0.5),
    "bind": bind,
    "contrast": contrast,
    "contrast with memory": partial(contrast, memory=True),
    "sharpened contrast": partial(contrast, memory=True, sharpen=True),
    "divergence": divergence,
    "jedi": partial(divergence, power=1, sigma=0, geometric=True, spread=0.01),
    "self_cross": self_cross,
    "peak_overlap": peak_overlap,
    "inside": inside,
    "sum": weighted((1, excite), (1, self_cross), (0.5, bind)),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@every_objective
def test_parts_lie_between_nothing_and_everything(objective, maps):
    score = objective(maps, [PAIR])
    assert "neglect" in score.parts
    for part in score.parts.values():
        assert 0 <= part.item() <= 1
        assert not part.requires_grad


@every_objective
def test_subjects_have_no_order(objective, maps):
    assert loss(objective, maps, (BENCH, CAR)) == pytest.approx(loss(objective, maps), abs=1e-9)


@every_objective
def test_images_do_not_mix(objective, maps):
    """In a batch beside an image of one subject, the pair has its own score and a gradient of its own."""
    alone = objective(maps, [PAIR])
    several = AttentionMaps(
        {layer: torch.cat([p, p.flip(2)]) for layer, p in maps.layers.items()},
        maps.latent_size,
        maps.prompts * 2,
        AttentionMaps({CROSS: maps.before.layers[CROSS].expand(2, -1, -1, -1)}, maps.latent_size, maps.prompts * 2),
    )
    together = objective(several, [PAIR, (CAR,)])
    assert together.loss[0].item() == pytest.approx(alone.loss.item(), abs=1e-9)
    for name, part in alone.parts.items():
        assert together.parts[name][0].item() == pytest.approx(part.item(), abs=1e-9)
    assert together.presence[1, 1].isnan()


@every_objective
@pytest.mark.parametrize("subjects", [(CAR,), (Subject((3,), (), CAR.box),)], ids=["described", "bare"])
def test_a_single_subject_has_nobody_to_mix_with(objective, subjects, maps):
    variable = maps.layers[CROSS].clone().requires_grad_()
    score = objective(
        AttentionMaps({**maps.layers, CROSS: variable}, maps.latent_size, maps.prompts, maps.before), [subjects]
    )
    assert score.parts.get("mixing", torch.zeros(1)).item() == 0 or "bind" in str(objective)
    if score.loss.requires_grad:
        (gradient,) = torch.autograd.grad(score.loss.sum(), variable)
        assert gradient.isfinite().all()
    assert score.loss.isfinite().all()


@every_objective
def test_a_word_in_two_tokens_is_one_word(objective, maps):
    """The noun "car" cut in two equal columns, the second one taken from the padding."""
    columns = maps.layers[CROSS].clone()
    columns[..., 3] /= 2
    columns[..., 20] = columns[..., 3]
    before = maps.before.layers[CROSS].clone()
    before[..., 3] /= 2
    before[..., 20] = before[..., 3]
    cut = AttentionMaps(
        {**maps.layers, CROSS: columns},
        maps.latent_size,
        maps.prompts,
        AttentionMaps({CROSS: before}, maps.latent_size, maps.prompts),
    )
    whole = AttentionMaps(
        {**maps.layers, CROSS: maps.layers[CROSS].clone().index_fill(3, torch.tensor([20]), 0)},
        maps.latent_size,
        maps.prompts,
        maps.before,
    )
    pieces = (CAR._replace(positions=(3, 20)), BENCH)
    # The sharpening softmax has one column less where two are one word.
    assert loss(objective, cut, pieces) == pytest.approx(loss(objective, whole), abs=0.02)


@every_objective
def test_gradients_are_those_of_finite_differences(objective, maps):
    layer = maps.layers[CROSS]
    direction = torch.randn(layer.shape, generator=torch.Generator().manual_seed(0), dtype=layer.dtype) * layer

    def value(step: torch.Tensor) -> torch.Tensor:
        layers = {**maps.layers, CROSS: layer + step * direction}
        moved = AttentionMaps(layers, maps.latent_size, maps.prompts, maps.before)
        detached = contrast in (objective, getattr(objective, "func", None))
        if detached and not getattr(objective, "keywords", {}).get("memory"):
            objective_ = partial(objective, memory=True)  # its other half is a constant that moves along
            return objective_(moved, [PAIR]).loss.sum()
        return objective(moved, [PAIR]).loss.sum()

    step = torch.zeros((), dtype=layer.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(value(step), step)
    h = 1e-5
    with torch.no_grad():
        measured = (value(torch.tensor(h)) - value(torch.tensor(-h))) / (2 * h)
    assert slope.item() == pytest.approx(measured.item(), rel=1e-3, abs=1e-6)


def test_maps_need_not_be_square(maps):
    """Half of each map, every objective: finite, and the same for the transposed image."""
    read = maps.layers[CROSS].unflatten(2, (SIDE, SIDE))[:, :, :8]
    wide = AttentionMaps({CROSS: read.flatten(2, 3)}, (8, SIDE), maps.prompts)
    tall = AttentionMaps({CROSS: read.transpose(2, 3).flatten(2, 3)}, (SIDE, 8), maps.prompts)
    for name in ("excite", "overlap", "syngen", "ebama", "contrast", "divergence", "jedi"):
        assert loss(OBJECTIVES[name], wide) == pytest.approx(loss(OBJECTIVES[name], tall), abs=1e-9)


@pytest.mark.parametrize("name", ["syngen", "bind", "contrast", "contrast with memory", "jedi", "inside"])
def test_losses_of_raw_maps_do_not_ask_how_strong_a_word_is(name, maps):
    """The noun "car" with a third of its attention, and with next to none."""
    for factor in (1 / 3, 1e-8):
        weaker = maps.layers[CROSS].clone()
        weaker[..., 3] *= factor
        scaled = AttentionMaps({**maps.layers, CROSS: weaker}, maps.latent_size, maps.prompts, maps.before)
        assert loss(OBJECTIVES[name], scaled) == pytest.approx(loss(OBJECTIVES[name], maps), abs=1e-7)


def test_a_map_without_contrast_has_no_mask():
    assert otsu(torch.full((1, 1, 4, 4), 0.3)).sum() == 0


def test_boxes_are_needed_where_they_are_asked_for(maps):
    with pytest.raises(SettingsError, match="needs a box"):
        inside(maps, [NOUNS])


def test_cells_count_by_their_share_in_the_box(maps):
    """Of a flat map in a box of a quarter of the image, three quarters lie outside, wherever the box begins."""
    flat = AttentionMaps({CROSS: torch.full((1, 1, SIDE * SIDE, 77), 1 / 77)}, (SIDE, SIDE), maps.prompts)
    for left in (0.0, 0.1, 0.33):
        assert loss(inside, flat, (Subject((3,), (), (left, left, left + 0.5, left + 0.5)),)) == pytest.approx(0.75**2)


def test_a_modifier_that_outshines_its_noun_counts_for_it(maps):
    """With its modifiers a subject is there where "red" gets all, and its loss is that of a subject of both tokens."""
    together = excite(maps, [PAIR], modifiers=True)
    phrases = [(Subject((3, 2)), Subject((7, 6)))]
    assert torch.equal(together.loss, excite(maps, phrases).loss)

    probabilities = next(iter(maps.layers.values())).clone()
    probabilities[..., 2] += 0.5  # "red" everywhere
    layers = {CROSS: probabilities / probabilities.sum(dim=-1, keepdim=True)}
    red = AttentionMaps(layers, maps.latent_size, maps.prompts)
    assert excite(red, [(CAR,)]).presence.item() < 0.01
    assert excite(red, [(CAR,)], modifiers=True).presence.item() > 0.99
