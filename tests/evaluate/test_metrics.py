"""Scores against independent computations; detectors of transformers with small random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    SwinConfig,
)

from limelight.evaluate.clip import TEMPLATES, Captioner, Clip, in_templates, minimum_object
from limelight.evaluate.detectors import Detection, OpenVocabulary, PocketDetector
from limelight.evaluate.metrics import METRICS, Before, Instruments, Sample
from limelight.evaluate.suites import Case, Wanted, wanted
from limelight.models.embedded import POCKET

PROMPT = "a cat and a red bow"


@pytest.fixture(scope="module")
def clip():
    return Clip()


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (96, 96, 3), dtype=np.uint8)).resize((128, 128)) for _ in range(3)]


def sample(images, case=None, before=None, **instruments):
    """Images of one case with these instruments."""
    case = case or Case(PROMPT, "mine", wanted(PROMPT))
    return Sample(case, images, before or [None] * len(images), Instruments(**instruments))


def directly(images, texts):
    """Features of images and texts [images, texts] from CLIP's own logits."""
    model = CLIPModel.from_pretrained(POCKET / "clip", dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(POCKET / "clip")
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
        logits = out.image_embeds @ out.text_embeds.T * model.logit_scale.exp()
    assert torch.allclose(logits, out.logits_per_image, atol=1e-5)
    return out.image_embeds, out.text_embeds


@pytest.mark.parametrize("paper", [False, True])
def test_clip_against_transformers(clip, images, paper):
    def expected(text):
        features, texts = directly(images, in_templates(text, paper))
        mean = texts.mean(dim=0)
        return features @ (mean / mean.norm())

    assert len(TEMPLATES) == 80
    whole, halves = expected(PROMPT), [expected("a cat"), expected("a red bow")]
    measured = sample(images, clip=clip, paper=paper)
    assert METRICS["full_text"](measured) == pytest.approx(whole.tolist(), abs=1e-5)
    assert METRICS["minimum_object"](measured) == pytest.approx(torch.minimum(*halves).tolist(), abs=1e-5)
    assert minimum_object(clip, clip.images(images), PROMPT, paper).tolist() == pytest.approx(
        torch.minimum(*halves).tolist(), abs=1e-5
    )


def test_without_templates_it_is_clip_score(clip, images):
    from torchmetrics.functional.multimodal import clip_score  # takes seconds, in every process

    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    texts = ["a cat", "a dog", "a red bow"]
    ours = (clip.images(images) * clip.texts(texts)).sum(dim=-1)

    class Older(CLIPModel):
        """Answers with tensors, as torchmetrics 1.9 knows it from transformers 4."""

        def get_image_features(self, *args, **options):
            return super().get_image_features(*args, **options).pooler_output

        def get_text_features(self, *args, **options):
            return super().get_text_features(*args, **options).pooler_output

    def backbone():
        model = Older.from_pretrained(POCKET / "clip", dtype=torch.float32)
        return model, CLIPProcessor.from_pretrained(POCKET / "clip")

    theirs = [clip_score(t, s, model_name_or_path=backbone).item() for t, s in zip(tensors, texts, strict=True)]
    assert theirs == pytest.approx((100 * ours).clamp(min=0).tolist(), abs=1e-3)
    assert max(theirs) > 0


def test_patches_are_the_last_keys(clip, images):
    seen = []
    handle = clip.model.vision_model.encoder.layers[-1].self_attn.k_proj.register_forward_hook(
        lambda module, arguments, keys: seen.append(keys)
    )
    clip.images(images)
    handle.remove()
    assert torch.equal(clip.patches(images), seen[0][:, 1:])
    assert clip.patches(images).shape == (3, 64, 128)


def test_images_before_and_captions(clip, images):
    before = [Before(images[2]), None, Before(images[2])]
    measured = sample(images, before=before, clip=clip, captioner=Captioner())
    features, texts = directly(images, Captioner().captions(images))
    cosine = (features[0] * features[2]).sum().item()
    assert METRICS["image_image"](measured) == [pytest.approx(cosine, abs=1e-5), None, pytest.approx(1, abs=1e-5)]
    _, prompt = directly(images, in_templates(PROMPT))
    mean = prompt.mean(dim=0)
    assert METRICS["text_text"](measured) == pytest.approx((texts @ (mean / mean.norm())).tolist(), abs=1e-5)


def test_changes_outside_a_mask(clip, images):
    """The left half is edited: only what lies right of it counts."""
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:, :64] = True
    edited = images[0].copy()
    edited.paste(images[1].crop((0, 0, 64, 128)), (0, 0))
    measured = sample(
        [edited, images[1], images[2]], before=[Before(images[0], mask), Before(images[0], mask), None], clip=clip
    )
    kept, changed, without = METRICS["pixels"](measured)
    assert (kept, without) == (0, None)
    assert changed > 0.1
    structure = METRICS["structure"](measured)
    assert structure[0] < structure[1]
    assert structure[2] is None


def test_metrics_without_their_instruments(images):
    """What cannot be measured has no value; nothing fails."""
    measured = sample(images, before=[Before(images[0])] * 3)
    assert {name: metric(measured) for name, metric in METRICS.items()} == dict.fromkeys(METRICS, [None] * 3)


def test_captions_as_the_paper_had_them(images):
    captioner = Captioner()
    captions = captioner.captions(images, paper=True)
    assert len(captions) == 3
    assert all(caption and not caption.startswith("a picture of") for caption in captions)


@pytest.mark.parametrize(("paper", "most"), [(True, 30), (False, 21)])
def test_the_longest_caption(images, monkeypatch, paper, most):
    """LAVIS' limit of 30 tokens counts the begin token and "a picture of"."""
    captioner, seen = Captioner(), []
    embeddings, config = captioner.model.text_decoder.bert.embeddings, captioner.model.config.text_config
    embeddings.position_embeddings = torch.nn.Embedding(64, config.hidden_size)
    embeddings.register_buffer("position_ids", torch.arange(64)[None])
    monkeypatch.setattr(config, "max_position_embeddings", 64)
    generate = captioner.model.generate

    def endless(**options):
        seen.append(generate(**options, suppress_tokens=[config.sep_token_id]))
        return seen[-1]

    monkeypatch.setattr(captioner.model, "generate", endless)
    captioner.captions(images, paper=paper)
    assert seen[0].shape == (3, most)


class Said:
    """A detector that finds what the test says."""

    def __init__(self, *found):
        self._found = found

    def knows(self, word):
        return True

    def find(self, images, things):
        return [
            [Detection(w, 0.9, (i / 9, 0, i / 9 + 0.1, 1), c) for i, (w, c) in enumerate(own)] for own in self._found
        ]


def test_detection_and_binding_by_hand():
    case = Case(PROMPT, "mine", wanted(PROMPT))
    detector = Said([("cat", "white"), ("bow", "red")], [("cat", "red"), ("bow", "blue")], [("cat", "red")])
    measured = sample([Image.new("RGB", (8, 8))] * 3, case, detector=detector)
    assert METRICS["success"](measured) == [1, 1, 0]
    assert METRICS["present"](measured) == [1, 1, 0.5]
    assert METRICS["binding"](measured) == [1, 0, 0]


def test_the_embedded_detector_knows_its_words():
    assert PocketDetector.load().knows("cat")
    assert not PocketDetector.load().knows("xylophone")


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=16)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id}
    config = Owlv2Config(
        text_config=text, vision_config={**small, "image_size": 64, "patch_size": 16}, projection_dim=32
    )
    folder = tmp_path_factory.mktemp("owl")
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] . ? a photo of cat bow ##s".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=2
    )
    swin.out_features = ["stage2", "stage3", "stage4"]
    bert = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        fusion_dropout=0.0, num_feature_levels=4, max_text_len=32,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    GroundingDinoProcessor(image_processor, BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["owl", "dino"])
def test_open_vocabulary_detectors(kind, request, images, clip):
    detector = OpenVocabulary(request.getfixturevalue(kind), clip, threshold=0.0)
    things = (Wanted("cat"), Wanted("bow", "red"))
    found = detector.find(images, things)
    assert len(found) == 3
    for own in found:
        assert [d.score for d in own] == sorted((d.score for d in own), reverse=True)
        assert all(0 <= side <= 1 for d in own for side in d.box)
        assert all((d.color != "") == (d.word == "bow") for d in own)
    assert {d.word for own in found for d in own} <= {"cat", "bow"}
    assert any(found)
    # The surest is what the model's own answer says is surest.
    inputs = detector._processor(
        images=images, text=[["a photo of a cat", "a photo of a bow"]] * 3, return_tensors="pt"
    )
    with torch.no_grad():
        logits = detector._model(**inputs).logits
    if kind == "owl":
        best = logits.sigmoid().flatten(1).amax(dim=1)
        assert [own[0].score for own in found] == pytest.approx(best.tolist(), abs=1e-5)
    assert detector.knows("xylophone")
    assert OpenVocabulary(request.getfixturevalue(kind), clip, threshold=1.0).find(images, things) == [[], [], []]
