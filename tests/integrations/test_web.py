"""The web page: its functions, a real server with real clients, and a real browser."""

import base64
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import limelight
from limelight.heads.gains import strengthen
from limelight.heads.relevance import relevance_for
from limelight.integrations.web import build, edit, explain, heads, learn, parts, steer
from limelight.integrations.web.page import Page
from limelight.integrations.web.runs import Progress, Run, Stops
from limelight.models.base import Model
from limelight.textual_inversion.training import held_loss
from tests.conftest import BROWSER, POCKET

STEPS = 3
PATIENT = {"verbose": False, "httpx_kwargs": {"timeout": 90}}  # on a machine that does other work, too
BARE = "[...document.querySelectorAll('img')].filter(image => !image.hasAttribute('alt')).length"
BUTTONS = {"Steer": "Generate", "Explain": "Explain", "Edit": "Edit", "Heads": "Strengthen", "Learn": "Learn"}


@pytest.fixture(scope="module")
def pocket() -> Model:
    return limelight.load("pocket", device="cpu")


@pytest.fixture(scope="module")
def page(pocket):
    page = build(pocket, at_once=4)
    page.launch(quiet=True, prevent_thread_lock=True)
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def client(page, tmp_path_factory):
    return Client(page.local_url, **PATIENT, download_files=tmp_path_factory.mktemp("client"))


def steered(client: Client, prompt: str, seed: int, steps: int):
    return client.predict(prompt, None, "conform", seed, 1, steps, 1, api_name="/steer")


def pixels(image) -> np.ndarray:
    path = image["image"] if isinstance(image, dict) else image
    with Image.open(path) as opened:
        return np.asarray(opened)


def run_of(model: Model) -> Run:
    return Run(model, threading.Event())


def test_the_words_of_a_prompt(pocket):
    found = parts.words_of(pocket, "a big red cat and a dog on a dog")
    shown = [(word["name"], word["text"], word["modifiers"], word["kind"]) for word in found["words"]]
    assert shown == [
        ("a", "a", [], "small"),
        ("big red cat", "cat", ["big", "red"], "noun"),
        ("and", "and", [], "small"),
        ("a#2", "a", [], "small"),
        ("dog", "dog", [], "noun"),
        ("on", "on", [], "small"),
        ("a#3", "a", [], "small"),
        ("dog#2", "dog", [], "noun"),
    ]
    for word in found["words"]:
        pocket.prompt("a big red cat and a dog on a dog").find(word["name"])


@pytest.mark.parametrize(
    ("payload", "subjects", "place"),
    [
        (None, "auto", {}),
        (["cat"], ["cat"], {}),
        ({"chosen": None, "boxes": {"cat": [0, 0, 0.5, 1]}, "words": []}, "auto", {"cat": [0, 0, 0.5, 1]}),
    ],
)
def test_what_the_page_and_clients_send_as_subjects(payload, subjects, place):
    chosen = parts.chosen_of(payload)
    assert (chosen.subjects, dict(chosen.place)) == (subjects, place)


@pytest.mark.parametrize("payload", ["cat", 3, {"chosen": "cat"}, {"boxes": [1]}])
def test_other_subjects_are_refused(payload):
    with pytest.raises(limelight.SettingsError, match="must be null, a list of words"):
        parts.chosen_of(payload)


def test_steer_shows_what_compare_gives(pocket):
    box = {"cat": (0, 0, 0.5, 1)}
    updates = list(steer.steered(run_of(pocket), "a cat and a dog", {"boxes": box}, "conform", [3], STEPS, 1))
    plain, guided, text = updates[-1]
    guidance = limelight.preset("conform", pocket)
    wanted = limelight.compare(pocket, "a cat and a dog", guidance=guidance, place=box, seeds=[3], steps=STEPS).runs
    for shown, name in ((plain, "plain"), (guided, "guided")):
        assert np.array_equal(shown[0][0], wanted[name].images[0])
        assert f'"seed": {3}' in shown[0][0].info["limelight"], "the file holds its settings"
    assert text == "Guided: cat, dog. Each row is one seed: 3."
    previews = [row[1] for row in updates[:-1] if isinstance(row[1], list)]
    assert any("unfinished" in caption for shown in previews for _, caption in shown)


def test_explain_shows_the_maps_of_the_run(pocket):
    maps, _ = list(explain.explained(run_of(pocket), "a cat and a dog", "none", 0, STEPS))[-1]
    assert [word["word"] for word in maps["words"]] == ["a", "cat", "and", "a#2", "dog"]
    assert maps["labels"] == ["mean of all steps", "step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert {len(word["frames"]) for word in maps["words"]} == {4}
    result = limelight.generate(pocket, "a cat and a dog", subjects=(), seeds=[0], steps=STEPS, record="steps")
    assert maps["high"] >= round(max(float(step["cat"].max()) for step in result.steps), 3)
    assert maps["trace"] is None

    with Image.open(io.BytesIO(base64.b64decode(maps["image"].partition(",")[2]))) as image:
        assert np.array_equal(image, result.images[0])
        assert '"seed": 0' in image.info["limelight"], "the file holds its settings"


def test_edit_shows_what_edit_gives(pocket, tmp_path):
    found = list(edit.edited(run_of(pocket), "a red car", "a blue car", "car", None, 2, STEPS))[-1]
    wanted = limelight.edit(pocket, "a red car", "a blue car", seeds=[2], local=["car"], steps=STEPS)
    assert np.array_equal(found[0][0][0], wanted.source.images[0])
    assert np.array_equal(found[1][0][0], wanted.target.images[0])

    wanted.source.images[0].save(tmp_path / "photo.png")
    photo = str(tmp_path / "photo.png")
    found = list(edit.edited(run_of(pocket), "a red car", "a blue car", "", photo, 2, STEPS))[-1]
    ddim = limelight.load("pocket", device="cpu", scheduler="ddim")
    wanted = limelight.edit(ddim, "a red car", "a blue car", seeds=[2], image=photo, steps=STEPS)
    assert np.array_equal(found[1][0][0], wanted.target.images[0])


def test_heads_shows_what_strengthening_gives(pocket):
    relevance = relevance_for(pocket)
    plain, strong, _ = list(heads.strengthened(run_of(pocket), relevance, "a cat", "cat", "Animals", 1, STEPS))[-1]
    edits = [strengthen("cat", "Animals")]
    wanted = limelight.generate(pocket, "a cat", subjects=(), seeds=[1], edits=edits, steps=STEPS)
    assert np.array_equal(strong[0][0], wanted.images[0])
    assert not np.array_equal(plain[0][0], wanted.images[0])


def test_the_space_serves_the_page(monkeypatch):
    """The three files of a Space, run as the Space runs them, with its variable."""
    started = []

    def launch(page, **options):
        started.append(page)
        gr.Blocks.launch(page, quiet=True, prevent_thread_lock=True)

    folder = Path(__file__).parents[2] / "examples/space"
    monkeypatch.setenv("LIMELIGHT_MODEL", str(POCKET))
    monkeypatch.setattr(Page, "launch", launch)
    runpy.run_path(str(folder / "app.py"), run_name="__main__")
    (page,) = started
    try:
        plain, _, text = steered(Client(page.local_url, **PATIENT, download_files=False), "a cat", 0, 1)
        assert (len(plain), text) == (1, "Guided: cat. Each row is one seed: 0.")
    finally:
        page.close(verbose=False)

    settings = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (settings["sdk"], settings["app_file"]) == ("gradio", "app.py")
    assert settings["sdk_version"] == gr.__version__, "what the page was tested with"
    assert (folder / "requirements.txt").read_text().split() == ["limelight[web]"]


@pytest.mark.slow
def test_ctrl_c_ends_the_command(tmp_path):
    """While a run is under way, with no word about it."""
    command = [sys.executable, "-m", "limelight", "web", "--device", "cpu"]
    options = {"env": {**os.environ, "TMPDIR": str(tmp_path)}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # where tests run in the background, it is ignored
    with subprocess.Popen(command, text=True, preexec_fn=heed, **options) as served:
        try:
            (address,) = re.findall(r"http\S+", served.stdout.readline())
            client = Client(address, **PATIENT)
            job = client.submit("a cat and a dog", None, "conform", 0, 1, 100, 1, api_name="/steer")
            next(iter(job))
            served.send_signal(signal.SIGINT)
            printed, errors = served.communicate(timeout=120)
        finally:
            served.kill()
    assert (served.returncode, printed) == (0, "")
    assert errors.splitlines() == ["loading pocket ...", "Press Ctrl-C to end it."]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Images to learn from, with few measurements of what is learned."""
    monkeypatch.setattr("limelight.textual_inversion.folder.held_loss", partial(held_loss, count=2))
    paths = []
    for which in range(3):
        noise = np.random.default_rng(which).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{which}.png"))
        Image.fromarray(noise).save(paths[-1])
    return paths


def test_learn_gives_the_word_that_learn_gives(pocket, photos, tmp_path, monkeypatch):
    quick = partial(learn.learn_word, preview_steps=1)
    monkeypatch.setattr(learn, "learn_word", quick)
    updates, words = [], []
    for preview, path, text in learn.learned(run_of(pocket), photos, "<my-cat>", "cat", 2):
        updates.append((preview, text))
        if isinstance(path, str):  # Gradio copies the file before it asks for more
            words.append(limelight.LearnedWord.load(path))
            assert Path(path).name == "my-cat.safetensors"
    config = {"token": "<my-cat>", "init": "cat", "steps": 2}
    wanted = limelight.learn(pocket, photos, config, tmp_path / "own", seeds=[0], preview_steps=1).word
    assert torch.equal(words[0].vectors[0], wanted.vectors[0])
    assert not Path(path).exists(), "nothing is left"
    assert pocket.learned == {}

    captions = [preview[0][1] for preview, _ in updates if isinstance(preview, list)]
    assert captions == [f"Learn \u00b7 step {step} of 2" for step in (0, 2)]
    assert updates[-1][1] == "Learned &lt;my-cat&gt;. Load the file and write &lt;my-cat&gt; in prompts."


def test_a_word_is_not_in_the_prompts_of_others_while_it_is_learned(pocket, photos, monkeypatch):
    monkeypatch.setattr(learn, "learn_word", partial(learn.learn_word, preview_steps=1))
    seen = []
    for _ in learn.learned(run_of(pocket), photos[:1], "<my-cat>", "cat", 1):
        seen.append((pocket.learned, [word.learned for word in pocket.prompt("a <my-cat>").words]))
    assert len(seen) > 1
    assert all(bound == {} and not any(learned) for bound, learned in seen)


def test_learning_that_is_stopped_ends_and_leaves_nothing(pocket, photos, monkeypatch):
    monkeypatch.setattr(learn, "learn_word", partial(learn.learn_word, preview_steps=1))
    folders = []
    monkeypatch.setattr(learn.tempfile, "tempdir", str(Path(photos[0]).parent))
    flag = threading.Event()
    for _, path, text in learn.learned(Run(pocket, flag), photos, "<my-cat>", "cat", 500):
        folders += Path(photos[0]).parent.glob("limelight-learn-*")
        assert not isinstance(path, str)
        if "step 0" in text:
            flag.set()
    assert folders
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("number", "arguments", "message"),
    [
        (0, ("<a>", "cat", 1), "Upload 1 to 20 images of one thing; there are 0."),
        (1, ("my cat", "cat", 1), "write it in angle brackets"),
        (1, ("<a>", "unheardof", 1), "unheardof"),
        (1, ("<a>", "cat", 5000), "3000"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_a_sentence(client, photos, number, arguments, message):
    files = list(map(handle_file, photos[:number]))
    with pytest.raises(AppError, match=re.escape(message)):
        client.predict(files, *arguments, api_name="/learn")


def test_a_learned_word_is_shown_as_it_is_written(pocket):
    vectors = pocket.pipeline.text_encoder.get_input_embeddings().weight[400:401].detach().clone()
    with limelight.LearnedWord("<my-cat>", (vectors,)).bind(pocket):
        last = list(steer.steered(run_of(pocket), "a <my-cat> and a dog", None, "conform", [3], 1, 1))[-1]
        assert last[-1] == "Guided: &lt;my-cat&gt;, dog. Each row is one seed: 3."
        last = list(edit.edited(run_of(pocket), "a <my-cat>", "a dog", "", None, 2, 1))[-1]
        assert last[-1] == "\u201ca &lt;my-cat&gt;\u201d became \u201ca dog\u201d."


def test_a_photo_that_was_not_uploaded_is_not_read(client):
    photo = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.submit("a car", "a cat", "", photo, 0, 1, api_name="/edit").result()


def test_a_run_that_is_stopped_ends_at_its_next_step(pocket):
    stops, request, done = Stops(), gr.Request(session_hash="one"), []
    run = Run(pocket, stops.begin(request, "steer"))

    def work(run: Run):
        for step in range(50):
            done.append(step)
            run.report(f"step {step}")
            if step == 3:
                stops.stop(request, "steer")
        return "never"

    found = list(run.follow(work))
    assert done == [0, 1, 2, 3, 4]
    assert all(isinstance(one, Progress) for one in found)


def test_a_new_run_ends_the_one_before_it_and_no_other():
    stops = Stops()
    one, other = gr.Request(session_hash="one"), gr.Request(session_hash="other")
    first, beside, away = stops.begin(one, "steer"), stops.begin(one, "explain"), stops.begin(other, "steer")
    stops.begin(one, "steer")
    assert (first.is_set(), beside.is_set(), away.is_set()) == (True, False, False)
    stops.leave(one)
    assert (beside.is_set(), away.is_set()) == (True, False)


def test_a_fault_of_the_library_is_not_hidden(pocket):
    def work(run: Run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run_of(pocket).follow(work))


def test_only_this_machine_reaches_the_page_and_nothing_is_shared(page):
    assert page.local_url.startswith("http://127.0.0.1:")
    assert page.server_name == "127.0.0.1"
    assert page.share_url is None
    assert not re.search(r"@import|url\(.?http", page.theme._get_theme_css()), "fonts come from this machine"


def test_eight_clients_at_once_get_the_images_of_a_direct_call(page, pocket, tmp_path):
    steps, asked = 2, [(f"a {color} {noun} and a dog", seed) for seed, (color, noun) in enumerate(
        [("red", "cat"), ("blue", "frog"), ("green", "car"), ("red", "bird")] * 2)]  # fmt: skip

    def ask(which: int):
        own = Client(page.local_url, **PATIENT, download_files=tmp_path / str(which))
        plain, guided, _ = steered(own, *asked[which], steps=steps)
        return pixels(plain[0]), pixels(guided[0])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    guidance = limelight.preset("conform", pocket)
    for (prompt, seed), images in zip(asked, found, strict=True):
        wanted = limelight.compare(pocket, prompt, guidance=guidance, seeds=[seed], steps=steps).runs
        for name, image in zip(("plain", "guided"), images, strict=True):
            assert np.array_equal(image, wanted[name].images[0]), (prompt, seed, name)


def test_the_api_has_a_named_endpoint_for_each_tab(client):
    assert {"/steer", "/explain", "/edit", "/heads", "/learn"} <= set(
        client.view_api(return_format="dict")["named_endpoints"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  ", None, "recommended", 0, 1, 1, 1], "The prompt is empty"),
        (["cat " * 1000, None, "recommended", 0, 1, 1, 1], "at most 2000"),
        (["a <b>cat</b>", ["horse"], "recommended", 0, 1, 1, 1], "'horse' is not in the prompt"),
        (["a cat", {"boxes": {"cat": [0, 0, 2, 1]}}, "recommended", 0, 1, 1, 1], "lies outside the image"),
        (["a cat", None, "unheard-of", 0, 1, 1, 1], "unheard-of"),
        (["a cat", None, "recommended", 0, 1, 100000, 1], "100"),
        (["a cat", None, "recommended", 0, 9, 1, 1], "8"),
        (["a cat", None, "recommended", -1, 1, 1, 1], "0"),
        (["a cat", None, "recommended", 0, 1, 1, 1000], "8"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(client, arguments, message):
    with pytest.raises(AppError, match=re.escape(message)) as caught:
        client.predict(*arguments, api_name="/steer")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "../../../../etc/passwd", __file__, "~/.bashrc"])
def test_no_file_outside_its_folder_can_be_read(page, path):
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "gradio_api/stream/"):
        answer = httpx.get(f"{page.local_url}{route}{path}")
        assert answer.status_code >= 400, route
        assert b"root:" not in answer.content


def test_uploads_are_bounded(page):
    large = {"files": ("large.png", b"\0" * (21 << 20), "image/png")}
    assert httpx.post(f"{page.local_url}gradio_api/upload", files=large, timeout=60).status_code == 413


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]).new_context()
        yield context
        context.browser.close()


@pytest.fixture
def tab(browser, page):
    """The page, opened anew; a browser keeps what it has downloaded."""
    shown = browser.new_page()
    shown.set_viewport_size({"width": 1240, "height": 900})
    shown.elsewhere = []
    shown.on("request", lambda request: shown.elsewhere.append(request.url))
    shown.set_default_timeout(90_000)
    shown.goto(page.local_url)
    shown.wait_for_selector(".ll-chip")
    yield shown
    shown.close()


def fill_slider(tab, label: str, value: int) -> None:
    tab.get_by_label(f"number input for {label}").locator("visible=true").fill(str(value))
    tab.keyboard.press("Tab")


def alts(tab, where: str) -> list[str]:
    """Of the images there, once there is one."""
    images = tab.locator(f"{where} img")
    images.first.wait_for()
    return images.evaluate_all("images => images.map(image => image.getAttribute('alt'))")


def tab_to(tab, wanted: str) -> None:
    """Press Tab until the element in focus has this id or label."""
    for _ in range(40):
        if wanted in tab.evaluate("[document.activeElement.id, document.activeElement.ariaLabel]"):
            return
        tab.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {wanted}")


@pytest.mark.browser
def test_a_session_in_a_browser(tab):
    tab.get_by_label("Prompt").first.fill("a cat and a dog and a car")
    tab.wait_for_selector(".ll-chip[data-name='car']")
    tab.click(".ll-chip[data-name='car']")
    assert tab.get_attribute(".ll-chip[data-name='car']", "aria-pressed") == "false"
    assert tab.get_attribute(".ll-chip[data-name='dog']", "aria-pressed") == "true"
    fill_slider(tab, "Steps", STEPS)
    tab.click("#steer-run")
    tab.wait_for_selector("text=Guided: cat, dog. Each row is one seed: 0, 1.")
    for name in ("plain", "guided"):
        assert alts(tab, f"#steer-{name}") == [f"{name.capitalize()}, seed {seed}" for seed in (0, 1)]

    fill_slider(tab, "Steps", 100)
    tab.click("#steer-run")
    tab.wait_for_selector("text=/step \\d+ of 100/")
    tab.click("#steer-stop")
    tab.wait_for_selector("text=Stopped.")

    tab.get_by_label("Prompt").first.fill("   ")
    tab.click("#steer-run")
    tab.wait_for_selector("text=The prompt is empty.")

    tab.get_by_label("Prompt").first.fill("a cat and a dog")
    tab.wait_for_selector(".ll-chip[data-name='dog'][aria-pressed='true']")
    tab.click(".ll-place summary")
    area = tab.locator(".ll-stage").bounding_box()
    tab.mouse.move(area["x"] + 2, area["y"] + area["height"] / 4)
    tab.mouse.down()
    tab.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] + 9, steps=2)
    tab.mouse.up()
    for label, value in (("Steps", 2), ("Images", 1), ("Audition", 2)):
        fill_slider(tab, label, value)
    tab.click("#steer-run")
    tab.wait_for_selector("text=Guided: cat, dog. Each row is one seed")
    shown = httpx.get(tab.locator("#steer-guided img").get_attribute("src")).content
    with Image.open(io.BytesIO(shown)) as image:
        settings = json.loads(image.info["limelight"])
    box = {"cat": pytest.approx([0.01, 0.25, 0.5, 1], abs=0.011)}
    assert (settings["place"], settings["audition"]["candidates"]) == (box, 2)
    outside = [url for url in tab.elsewhere if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url)]
    assert not outside


@pytest.mark.browser
def test_the_other_tabs_in_a_browser(tab):
    tab.get_by_role("tab", name="Explain").click()
    fill_slider(tab, "Steps", 2)
    tab.click("#explain-run")
    tab.wait_for_selector(".ll-trace")
    image, heat, curves = alts(tab, "#explain-overlay")
    assert [image, heat] == [
        "The image of \u201ca cat and a dog\u201d",
        "Attention to \u201ccat\u201d, mean of all steps",
    ]
    assert curves.startswith("Curves over the guided steps")
    assert tab.locator(".ll-trace").evaluate("image => image.naturalWidth") > 300

    shown = {tab.get_attribute(".ll-heat", "src")}
    tab.hover(".ll-overlay .ll-chip >> text=dog")
    said = [tab.text_content(".ll-said")]
    shown.add(tab.get_attribute(".ll-heat", "src"))
    tab.mouse.move(0, 0)
    tab.focus(".ll-moment input")
    tab.keyboard.press("ArrowRight")
    said.append(tab.text_content(".ll-said"))
    shown.add(tab.get_attribute(".ll-heat", "src"))
    assert said == [
        "Attention to \u201cdog\u201d, mean of all steps",
        "Attention to \u201ccat\u201d, step 1 of 2",
    ]
    assert len(shown) == 3

    tab.get_by_role("tab", name="Edit").click()
    fill_slider(tab, "Steps", 2)
    tab.click("#edit-run")
    tab.wait_for_selector("text=became")
    assert (alts(tab, "#edit-before"), alts(tab, "#edit-after")) == (["Before, seed 0"], ["After, seed 0"])

    tab.get_by_role("tab", name="Heads").click()
    fill_slider(tab, "Steps", 2)
    tab.click("#heads-run")
    tab.wait_for_selector("text=strengthened by the heads of")
    assert (alts(tab, "#heads-plain"), alts(tab, "#heads-edited")) == (["Plain, seed 0"], ["Strengthened, seed 0"])
    assert alts(tab, "#heads-map") == ["Relevance of every head to Animals, by layer"]
    assert tab.evaluate(BARE) == 0


@pytest.mark.browser
def test_no_tab_is_wider_than_the_window(tab):
    for width in (360, 390, 720):
        tab.set_viewport_size({"width": width, "height": 844})
        for name, button in BUTTONS.items():
            tab.get_by_role("tab", name=name).click()
            tab.get_by_role("button", name=button, exact=True).wait_for()
            assert tab.evaluate("document.documentElement.scrollWidth") == width, (name, width)


@pytest.mark.browser
def test_learning_in_a_browser(tab, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "learn_word", partial(learn.learn_word, preview_steps=1))
    tab.get_by_role("tab", name="Learn").click()
    tab.set_input_files("#learn-images input[type=file]", photos)
    tab.wait_for_selector("#learn-images [aria-label='2.png']")
    fill_slider(tab, "Training steps", 1)
    tab.click("#learn-run")
    tab.wait_for_selector("text=Learned <my-cat>.")
    assert tab.locator("#learn-preview img").first.get_attribute("alt") == "Learn \u00b7 step 1 of 1"
    with tab.expect_download() as download:
        tab.locator("#learn-word a").first.click()
    download.value.save_as(tmp_path / "word.safetensors")
    assert limelight.LearnedWord.load(tmp_path / "word.safetensors").token == "<my-cat>"


@pytest.mark.browser
def test_the_page_by_keyboard_alone(tab):
    tab.get_by_label("Prompt").first.focus()
    tab.keyboard.press("Tab")
    names = []
    for _ in range(8):
        names.append(tab.evaluate("document.activeElement.dataset.name || document.activeElement.tagName"))
        tab.keyboard.press("Tab")
    assert names[:6] == ["a", "red cat", "and", "a#2", "blue dog", "SUMMARY"]
    tab.focus(".ll-place summary")
    tab.keyboard.press("Enter")
    field = tab.get_by_label("Right edge of the box of red cat, percent")
    field.fill("50")
    tab.keyboard.press("Tab")
    box = tab.locator(".ll-box")
    assert box.text_content() == "red cat"
    assert box.evaluate("box => box.style.width") == "50%"

    for label, value in (("Steps", 2), ("Images", 1)):
        tab_to(tab, f"number input for {label}")
        tab.keyboard.press("Control+a")
        tab.keyboard.type(str(value))
    tab_to(tab, "steer-run")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("text=Guided: red cat, blue dog. Each row is one seed: 0.")
    assert (alts(tab, "#steer-plain"), alts(tab, "#steer-guided")) == (["Plain, seed 0"], ["Guided, seed 0"])
    assert tab.evaluate(BARE) == 0
