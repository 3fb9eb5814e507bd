"""High and low bits of grey levels."""

import pytest
import torch

from gencli.codecs.bit_planes import BitPlanes
from gencli.core import Field, Spec
from gencli.errors import GencliError


@pytest.mark.parametrize(("levels", "low"), [(0, 5), (32, 2), (17, 2)])
def test_every_grey_level_is_its_high_and_its_low_bits_and_comes_back(levels, low):
    codec = BitPlanes.make({"levels": levels, "low": low})
    spec = codec.spec(Spec(Field("image", (1, 16, 16), vocab=256)))
    assert spec.x.shape == (2, 16, 16) and spec.x.vocab == (levels or 256) and spec.x.range is None
    tokens = torch.arange(256).view(1, 1, 16, 16) % spec.x.vocab
    grey = (tokens.double() * (255 / (spec.x.vocab - 1))).round().to(torch.uint8)
    made = codec.encode({"x": grey})["x"]
    assert torch.equal(made[:, :1] * 2**low + made[:, 1:], tokens) and int(made[:, 1:].max()) == 2**low - 1
    assert torch.equal(codec.decode({"x": made})["x"], grey)


def test_colours_keep_their_order():
    codec = BitPlanes.make({"low": 4})
    codec.spec(Spec(Field("image", (3, 1, 1), vocab=256)))
    grey = torch.tensor([0x12, 0x34, 0x56], dtype=torch.uint8).view(1, 3, 1, 1)
    assert codec.encode({"x": grey})["x"].flatten().tolist() == [1, 3, 5, 2, 4, 6]


def test_what_cannot_be_split_is_refused():
    with pytest.raises(GencliError, match="5 low bits leave no high ones of 32"):
        BitPlanes.make({"levels": 32}).spec(Spec(Field("image", (1, 2, 2), vocab=256)))
    with pytest.raises(GencliError, match="points"):
        BitPlanes.make({}).spec(Spec(Field("points", (2,), vocab=256)))
