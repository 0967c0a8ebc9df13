"""What people write instead of the right arguments is explained, before anything is generated."""

from __future__ import annotations

import pytest
import torch

import limelight
from limelight import PromptError, SettingsError
from limelight.generation.plan import checked

PROMPT = "a cat and a dog"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 2}, "generate has no option 'num_inference_steps'. Use steps."),
        ({"negative_prompt": "x"}, "generate has no option 'negative_prompt'. Use negative."),
        ({"seed": 3}, "generate has no option 'seed'. Use seeds."),
        ({"guidence": None}, r"generate has no option 'guidence'.*Did you mean 'guidance'\?"),
        ({"guidance": "attend-and-exite"}, r"Unknown guidance .*Did you mean 'attend-and-excite'\?"),
        ({"guidance": 7.5}, "is guidance_scale=7.5"),
        ({"guidance": limelight.AttendAndExcite}, r"for example limelight.AttendAndExcite\(\)"),
        ({"guidance_scale": "7"}, "guidance_scale='7' must be a number"),
        ({"eta": "0"}, "eta='0' must be a number"),
        ({"seeds": "0-x"}, "Cannot read '0-x' as seeds. Write for example 0-3,7."),
        ({"seeds": True}, "seeds has the entry True"),
        ({"edits": "gain"}, "edits has the entry 'gain'"),
        ({"on_step": 3}, "on_step=3 must be a function"),
        ({"audition": "4"}, "audition='4' must be a number of seeds"),
        ({"latents": [1]}, r"latents=\[1\] must be a tensor"),
        ({"conditioning": 1}, "conditioning=1 must be what model.encode gives"),
    ],
)
def test_wrong_options_are_explained(tiny, options, message):
    with pytest.raises(SettingsError, match=message):
        limelight.generate(tiny, PROMPT, **{"steps": 1, **options})


def test_what_is_no_model(pocket):
    for call in (
        lambda model: limelight.generate(model, PROMPT),
        lambda model: limelight.compare(model, PROMPT, guidance="focus"),
        lambda model: limelight.edit(model, PROMPT, "a bird and a dog"),
        lambda model: limelight.explain(model, PROMPT),
        lambda model: limelight.calibrate(model, [PROMPT]),
    ):
        with pytest.raises(SettingsError, match=r"model='pocket' is a name. .*: model = limelight.load\('pocket'\)"):
            call("pocket")
    with pytest.raises(SettingsError, match=r"StableDiffusionPipeline. Open it first: model = limelight.load\(pipe"):
        limelight.generate(pocket.pipeline, PROMPT)
    with pytest.raises(SettingsError, match="model=3 is not a model"):
        limelight.generate(3, PROMPT)


@pytest.mark.parametrize("prompt", [None, 5, [5]])
def test_what_is_no_prompt(tiny, prompt):
    with pytest.raises(PromptError, match="must be text, for example 'a cat and a dog', or a list of texts"):
        limelight.generate(tiny, prompt)


def test_names_of_guidance_and_seeds_as_text(tiny):
    named = limelight.generate(tiny, PROMPT, guidance="attend-and-excite", seeds="3-4", steps=2)
    given = limelight.generate(tiny, PROMPT, guidance=limelight.AttendAndExcite.suited(tiny), seeds=[3, 4], steps=2)
    assert named.seeds == (3, 4)
    assert torch.equal(named.latents, given.latents)
    assert named.settings["guidance"] == given.settings["guidance"]
    assert limelight.generate(tiny, PROMPT, guidance="none", steps=1).settings["guidance"] is None
    assert checked("0-2,7") == (0, 1, 2, 7)


def test_sizes_beyond_the_model(tiny, monkeypatch):
    high, wide = tiny.default_size
    with pytest.warns(limelight.SizeWarning, match=f"far beyond the {high}x{wide} pixels that the model") as found:
        limelight.generate(tiny, PROMPT, steps=1, height=4 * high, width=2 * wide, record=False)
    assert found[0].filename == __file__

    monkeypatch.setattr(tiny, "encode", lambda *_, **__: pytest.fail("began"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 10**6, "available": 10**6}))
    with pytest.raises(SettingsError, match=r"takes at least .* GB of memory, and this machine has 0 GB; .*smaller"):
        limelight.generate(tiny, PROMPT, steps=1, height=1024, width=1024)
