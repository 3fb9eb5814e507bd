"""CLIPScore: what the library's whole CLIP makes of the same images and prompts; refused before anything is drawn."""

import json

import numpy as np
import pytest
import torch
from evidence import beside_digits, digits, images

from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._features import extractor
from gencli.metrics._torchvision import import_torchvision
from gencli.metrics.clip_score import ClipScore

import_torchvision()
transformers = pytest.importorskip("transformers")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "projection_dim": 12,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A whole CLIP with random weights and a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**SMALL, "vocab_size": len(words), "max_position_embeddings": 40, **ends}
    vision = {**SMALL, "image_size": 28, "patch_size": 14}
    net = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    with torch.no_grad():
        net.text_projection.weight.neg_()  # so that most cosines are above 0, where the score looks
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder, net, words


def tokens(words, prompt):
    """The prompt letter by letter, as a vocabulary without merges spells it."""
    spelt = [letter + "</w>" * (i == len(word) - 1) for word in prompt.split() for i, letter in enumerate(word)]
    return torch.tensor([[words.index(part) for part in ("<|startoftext|>", *spelt, "<|endoftext|>")]])


def given(n=20):
    test = digits().split("test")
    return beside_digits(images(test.x[:n], test.cond["label"][:n]))


@torch.no_grad()
def test_it_is_a_hundred_times_the_cosine_that_the_whole_clip_has(clip):
    folder, net, words = clip
    evidence = given()
    found = ClipScore.make({"weights": str(folder)})(evidence)
    raw = evidence.samples.items.batch(torch.arange(20))
    x = extractor(str(folder))._prepared(raw["x"])
    cosine = torch.zeros(20, 10)
    for k in range(10):
        made = net(input_ids=tokens(words, f"a photo of a {k}"), pixel_values=x)
        cosine[:, k] = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
    asked = cosine.clamp(min=0)[torch.arange(20), raw["label"]]
    assert found.value == pytest.approx(100 * float(asked.mean()), rel=1e-4) and found.value > 0
    assert found.facts["clip_s"] == pytest.approx(2.5 * float(asked.mean()), rel=1e-4)
    others = cosine.clamp(min=0).sum(1) - asked
    assert found.facts["with_other_prompts"] == pytest.approx(100 * float(others.mean()) / 9, rel=1e-4)
    assert (
        found.interval[0] < found.value < found.interval[1]
        and found.n == 20
        and found.name.startswith("clip-score[clip-")
    )
    other = ClipScore.make({"weights": str(folder), "prompt": "the number {class}"})(evidence)
    assert other.value != found.value and np.isfinite(other.value)


def test_what_is_missing_is_said_before_anything_is_drawn(clip, tmp_path):
    folder, _, _ = clip
    label = digits().spec.cond["label"]
    with pytest.raises(GencliError, match=r"no clip weights in .*clip-vit-large-patch14-336"):
        ClipScore.make().foresee(label)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(GencliError, match=r"has no vocabulary of CLIP: tokenizer.json"):
        ClipScore.make({"weights": str(tmp_path)}).foresee(label)
    with pytest.raises(GencliError, match=r"is 'a photo', which has no \{class\}"):
        ClipScore.make({"weights": str(folder), "prompt": "a photo"}).foresee(label)
    for classes in (None, Field("label", (), vocab=3)):
        with pytest.raises(GencliError, match="needs classes with names"):
            ClipScore.make({"weights": str(folder)}).foresee(classes)
