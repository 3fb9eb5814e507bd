"""Features of published transformers: those of the library on images prepared by hand; damaged and foreign folders refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gencli.errors import GencliError
from gencli.metrics._features import extractor
from gencli.metrics._torchvision import import_torchvision

import_torchvision()
transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def dinov2(folder):
    config = transformers.Dinov2Config(**SMALL, image_size=56, patch_size=14)
    return saved(transformers.Dinov2Model(config), folder)


def clip(folder):
    config = transformers.CLIPVisionConfig(**SMALL, image_size=28, patch_size=14, projection_dim=12)
    return saved(transformers.CLIPVisionModelWithProjection(config), folder)


def saved(net, folder):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return net


CASES = {
    "dinov2": (dinov2, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "pooler_output"),
    "clip": (clip, 28, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "image_embeds"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_features_are_the_library_s_on_images_prepared_by_hand(tmp_path, name, channels):
    make, side, mean, deviation, field = CASES[name]
    net = make(tmp_path / "weights")
    images = torch.randint(256, (3, channels, 20, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    by_hand = []
    for image in images.expand(3, 3, 20, 32).permute(0, 2, 3, 1).numpy():
        resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), np.float32)
        by_hand.append((resized / 255 - mean) / deviation)
    x = torch.tensor(np.stack(by_hand)).permute(0, 3, 1, 2).float()
    by = extractor(str(tmp_path / "weights"))
    with torch.no_grad():
        expected = getattr(net(pixel_values=x), field)
        assert torch.allclose(by.features(images), expected, atol=1e-5)
    assert by.name.startswith(name) and f"{side}×{side}" in by.words and len(by.sha256) == 64


def test_published_weights_are_looked_for_by_name(tmp_path):
    with pytest.raises(GencliError, match=r"no clip weights in .*clip-vit-large-patch14-336.*model.safetensors"):
        extractor("clip")
    clip(tmp_path / "home" / "weights" / "clip-vit-large-patch14-336")
    assert extractor("clip").name.startswith("clip-")


def test_a_folder_that_lacks_a_tensor_is_not_filled_at_random(tmp_path):
    dinov2(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in state if "attention" in key)
    save_file(
        {key: value for key, value in state.items() if key != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(GencliError, match=r"lacks 1 tensors of Dinov2Model"):
        extractor(str(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read as CLIPVision"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "bert"})), "of type 'bert'"),
    ],
    ids=["damaged", "without weights", "another network"],
)
def test_folders_that_give_no_features_are_refused(tmp_path, spoil, words):
    clip(tmp_path)
    spoil(tmp_path)
    with pytest.raises(GencliError, match=words):
        extractor(str(tmp_path))
