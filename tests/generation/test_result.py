from __future__ import annotations

import json
import pickle

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import limelight
from limelight import FileError, SettingsError, UnknownWords
from limelight.heads.gains import adjust, strengthen, weaken
from limelight.utils.files import own_slug, slug, write
from limelight.utils.images import grid
from tests.conftest import unhashed


@pytest.fixture(scope="module")
def result(tiny_pipeline):
    guidance = limelight.AttendAndExcite(resolution=8, max_refinements=1)
    return limelight.generate(
        limelight.load(tiny_pipeline()), "a cat and a dog", seeds=[3, 8], guidance=guidance, steps=4
    )


def test_save(result, tmp_path):
    paths = result.save(tmp_path / "new" / "folder")
    assert [unhashed(path) for path in paths] == ["a-cat-and-a-dog-3.png", "a-cat-and-a-dog-8.png"]
    written = sorted(map(unhashed, paths[0].parent.iterdir()))
    assert written == [f"a-cat-and-a-dog-{seed}.{kind}" for seed in (3, 8) for kind in ("json", "png", "safetensors")]
    with Image.open(paths[1]) as image:
        assert image.tobytes() == result.images[1].tobytes()
        settings = json.loads(image.text["limelight"])
    assert settings["seed"] == 8
    assert settings["prompt"] == "a cat and a dog"
    assert settings["subjects"] == ["cat", "dog"]
    guidance = settings["guidance"]
    assert (guidance["name"], guidance["objective"], guidance["scale"]) == ("AttendAndExcite", "excite", 20.0)
    assert guidance["thresholds"] == {"0": 0.05, "0.2": 0.5, "0.4": 0.8}
    tensors = load_file(paths[1].with_suffix(".safetensors"))
    assert torch.equal(tensors["latents"], result.latents[1])
    assert sum(name.startswith("maps.") for name in tensors) == len(result.maps.layers)
    record = json.loads(paths[1].with_suffix(".json").read_text())
    assert record["settings"] == settings
    assert [row["loss"] for row in record["trace"]] == [row["loss"][1] for row in result.trace]


def test_settings_draw_the_same_picture_again(result, tiny):
    settings = result.settings
    again = limelight.generate(
        tiny,
        settings["prompt"],
        subjects=settings["subjects"],
        seeds=8,
        steps=settings["steps"],
        guidance_scale=settings["guidance_scale"],
        height=settings["height"],
        width=settings["width"],
        guidance=limelight.AttendAndExcite(
            **{name: settings["guidance"][name] for name in ("resolution", "scale", "max_refinements")}
        ),
    )
    assert torch.allclose(again.latents[0], result.latents[1], atol=1e-8)


@pytest.mark.parametrize(
    "prompt", ["../../etc/passwd", "a/b\\c", "..", "x" * 400, "", "\x00\n", "\u732b and dog", "CON: *?"]
)
def test_names_stay_inside_the_folder(result, tmp_path, prompt):
    folder = tmp_path / "inside"
    written = result.save(folder, prompt)
    assert all(path.parent == folder and path.exists() for path in written)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert all(len(path.name.encode()) < 255 for path in written)


def test_slug():
    assert slug("A cat & a <dog>!") == "a-cat-a-dog"
    assert slug("../..") == "untitled"
    assert len(slug("word " * 100)) <= 80
    assert len(slug("\u732b" * 400).encode()) <= 80


def test_a_failed_write_leaves_nothing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(FileError, match="cannot be written"):
        write(blocked / "image.png", b"content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        write(tmp_path / "folder", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_grid():
    red, blue = (Image.new("RGB", (200, 60), color) for color in ("red", "blue"))
    sheet = grid([[red, blue], [blue]], gap=2)
    assert sheet.size == (406, 126)
    assert [sheet.getpixel(at) for at in ((2, 2), (204, 2), (2, 64), (204, 64), (0, 0))] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
        (255, 255, 255),
        (255, 255, 255),
    ]


def test_lines_of_a_grid():
    """A title in as many lines as it takes, a label above a row, captions above its images; all in ink."""
    red = Image.new("RGB", (200, 60), "red")
    sheet = grid([[red, red], [red]], ["one"], title="a cat " * 24, captions=[["seed 0", "seed 1"]], gap=2)
    whole = grid([[red, red], [red]], gap=2)
    lines = sheet.height - whole.height
    assert (sheet.width, lines % 20, lines // 20) == (whole.width, 0, 5), "three of the title, a label, the captions"
    for line in range(5):
        assert sheet.crop((2, line * 20, 202, line * 20 + 20)).convert("L").getextrema()[0] < 128, f"ink in line {line}"
    assert [sheet.getpixel(at) for at in ((2, 102), (204, 102), (2, 164))] == [(255, 0, 0)] * 3


def test_small_images_are_shown_twice_as_large():
    small = Image.new("RGB", (128, 96), "red")
    assert grid([[small]], gap=2).size == (260, 196)
    large = Image.new("RGB", (512, 96), "red")
    assert grid([[large]], gap=2).size == (516, 100)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_no_result_takes_the_place_of_another(tiny, tmp_path):
    long = "a cat and a dog " * 4
    prompts = [
        long + "in rain",
        long + "in snow",
        "\U0001f431",
        "\U0001f436",
        "a cat, a dog",
        "a cat. a dog!",
        "a (cat:1.5)",
    ]
    options = {"subjects": [()] * len(prompts), "steps": 1}
    results = limelight.generate(tiny, prompts, seeds=[0, 0, 1], **options)
    results += limelight.generate(tiny, prompts, guidance_scale=2.0, **options)
    paths = [path for result in results for path in result.save(tmp_path)]
    # A seed that is given twice is one image.
    assert len(set(paths)) == len(prompts) * (2 + 1)
    assert len(contents(tmp_path)) == 3 * len(set(paths))
    for result, path in zip(results[: len(prompts)], paths[::3], strict=False):
        with Image.open(path) as image:
            assert json.loads(image.text["limelight"])["prompt"] == result.settings["prompt"]
            assert image.tobytes() == result.images[0].tobytes()


def test_the_same_inputs_have_the_same_name(tiny, tmp_path):
    def names(folder, **options):
        return [path.name for path in limelight.generate(tiny, "a cat", subjects=[], steps=1, **options).save(folder)]

    first = names(tmp_path / "one")
    other = names(tmp_path / "two", negative="a dog")
    assert names(tmp_path / "two") == first
    assert other != first
    before = contents(tmp_path / "two")
    # Without its maps the same image is another result: its file of tensors would lose them.
    (without,) = names(tmp_path / "two", record=False)
    assert without not in (*first, *other)
    assert before.items() <= contents(tmp_path / "two").items()


def test_results_of_other_latents_have_other_names(tiny, tmp_path):
    """The settings say "given" of both."""
    noise = torch.randn(2, 1, 4, 16, 16, dtype=torch.float64)
    for latents in noise:
        limelight.generate(tiny, "a cat", subjects=[], steps=1, latents=latents).save(tmp_path)
    before = contents(tmp_path)
    assert len(before) == 2 * 3
    for latents in noise:
        limelight.generate(tiny, "a cat", subjects=[], steps=1, latents=latents).save(tmp_path)
    assert contents(tmp_path) == before


def test_the_home_folder(result, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert [path.parent for path in result.save("~/kept")] == [tmp_path / "kept"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(FileError, match="'~nobody-here/x' cannot be found"):
        result.save("~nobody-here/x")


def test_slugs_of_their_own():
    assert own_slug("a white dog") == "a-white-dog"
    texts = [
        "a-white dog",
        "a white, dog",
        "A white dog",
        "\U0001f431",
        "\U0001f436",
        "untitled",
        "x" * 90,
        "x" * 91,
        "",
    ]
    assert len({own_slug(text) for text in texts} | {"a-white-dog"}) == len(texts) + 1
    assert all(len(own_slug(text).encode()) < 90 for text in texts)


def test_names_that_the_system_cannot_have(result, tmp_path):
    with pytest.raises(FileError, match="cannot be written"):
        result.save(tmp_path / "a\0b")


@pytest.mark.parametrize("record", [True, "steps"])
def test_a_pickled_result_takes_its_own_size(tiny, record):
    prompts, options = ["a cat"] * 8, {"subjects": [()] * 8, "steps": 2, "record": record}
    results = limelight.generate(tiny, prompts, **options)
    one = limelight.generate(tiny, prompts[:1], **{**options, "subjects": [()]})[0]
    content = pickle.dumps(results[5])
    assert len(content) < 1.1 * len(pickle.dumps(one))
    back = pickle.loads(content)
    assert torch.equal(back.latents, results[5].latents)
    assert torch.equal(back.maps["cat"], results[5].maps["cat"])
    if record == "steps":
        assert all(torch.equal(b["cat"], r["cat"]) for b, r in zip(back.steps, results[5].steps, strict=True))
    # In memory, too, one result does not hold the others.
    assert results[5].latents.untyped_storage().nbytes() == results[5].latents.nbytes


def test_a_pickled_edit_takes_its_own_size(tiny):
    result = limelight.edit(tiny, "a cat", ["a dog", "a car"], seeds=[0, 1], steps=1)
    whole, one = len(pickle.dumps(result)), len(pickle.dumps(result.target))
    assert one < 0.4 * whole
    assert torch.equal(pickle.loads(pickle.dumps(result.target)).latents, result.target.latents)


def test_edits_guidance_and_warnings_pickle(tiny):
    for edit in (strengthen("cat", "Animals"), adjust("cat", "Animals", "Color"), weaken([0], 0.5)):
        assert pickle.loads(pickle.dumps(edit)).about == edit.about
    gains = pickle.loads(pickle.dumps(weaken([1], 0.5))).gains(tiny)
    assert gains[:3].tolist() == [1.0, 0.5, 1.0]
    guidance = limelight.AttendAndExcite(scale=3.0)
    assert pickle.loads(pickle.dumps(guidance)) == guidance
    warning = UnknownWords("pocket", (word for word in ("a", "b")), cure="do that")
    assert str(pickle.loads(pickle.dumps(warning))) == str(warning)
    for error in (SettingsError("x"), limelight.PromptError("x"), limelight.ProbeError("x"), FileError("x")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back)) == (type(error), "x")


@pytest.mark.parametrize("record", [True, "steps", "all", False])
def test_a_result_opens_again(tiny, tmp_path, record):
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    options = {"steps": 2, "guidance": guidance, "subjects": ["cat", "dog"], "record": record}
    result = limelight.generate(tiny, "a cat and a dog", seeds=[8, 3], **options)
    result.save_all(tmp_path)
    again = limelight.Result.load(tmp_path)
    assert (again.seeds, again.subjects) == ((3, 8), ("cat", "dog"))
    assert again.settings == json.loads(json.dumps(result.settings))
    assert (again.kind, again.sentences()) == ("guided", result.sentences()[::-1])
    assert torch.equal(again.latents, result.latents[[1, 0]])
    assert [image.tobytes() for image in again.images] == [result.images[i].tobytes() for i in (1, 0)]
    assert again.trace[0]["loss"] == result.trace[0]["loss"][::-1]
    assert list(again.maps.layers) == list(result.maps.layers)
    assert again.maps.prompts == result.maps.prompts
    if record:
        assert torch.equal(again.maps["dog"], result.maps["dog"][[1, 0]])
        assert torch.equal(torch.from_numpy(again.maps.to_numpy()["dog"]), again.maps["dog"])
    assert len(again.steps) == len(result.steps)
    for i in range(len(result.steps)):
        assert torch.equal(again.steps[i].map("dog", (8, 8)), result.steps[i].map("dog", (8, 8))[[1, 0]])


def test_what_cannot_be_opened_is_explained(tiny, tmp_path):
    with pytest.raises(FileError, match="holds no result"):
        limelight.Result.load(tmp_path)
    for steps in (1, 2):
        (path,) = limelight.generate(tiny, "a cat", subjects=[], steps=steps).save(tmp_path)
    with pytest.raises(FileError, match="holds 2 results; name one of their images"):
        limelight.Result.load(tmp_path)
    assert limelight.Result.load(path).settings["steps"] == 2

    file = path.with_suffix(".safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["limelight"])["words"] == ["a", "cat"]
    tensors = load_file(file)
    save_file(tensors, file)
    with pytest.raises(FileError, match="was written by an older limelight, without the words of its maps"):
        limelight.Result.load(path)
    (name,) = (name for name in list(tensors)[:2] if name != "latents")
    save_file({**tensors, name: tensors[name][:, :5].clone()}, file, metadata)
    with pytest.raises(FileError, match="do not fit its prompt"):
        limelight.Result.load(path)
