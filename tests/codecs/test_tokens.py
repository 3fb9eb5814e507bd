"""Grey levels as whole numbers."""

import pytest
import torch

from gencli.codecs.tokens import Tokens
from gencli.core import Field, Spec


def codec(vocab, levels=0):
    made = Tokens.make({"levels": levels})
    return made, made.spec(Spec(Field("image", (1, 1, 256), vocab=vocab), {"label": Field("label", (), vocab=3)}))


def test_256_levels_are_the_bytes_themselves():
    made, spec = codec(256)
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    tokens = made.encode({"x": x, "label": torch.tensor([1])})
    assert tokens["x"].dtype == torch.long and torch.equal(tokens["x"], x.long())
    assert torch.equal(made.decode(tokens)["x"], x) and tokens["label"].tolist() == [1]
    assert spec.x.vocab == 256 and spec.x.range is None and "label" in spec.cond


@pytest.mark.parametrize("vocab", [2, 8, 17, 256])
def test_every_token_survives_the_bytes(vocab):
    made, spec = codec(vocab)
    tokens = torch.arange(256).view(1, 1, 1, 256) % vocab
    grey = made.decode({"x": tokens})["x"]
    assert spec.x.vocab == vocab and grey.dtype == torch.uint8
    assert grey.min() == 0 and grey.max() == 255
    assert torch.equal(made.encode({"x": grey})["x"], tokens)


def test_fewer_levels_than_the_datas_round_to_the_nearest():
    made, spec = codec(256, levels=4)
    assert spec.x.vocab == 4
    grey = torch.tensor([0, 42, 43, 127, 128, 213, 255], dtype=torch.uint8).view(1, 1, 1, -1)
    assert made.encode({"x": grey})["x"].flatten().tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_tokens_keep_volume():
    made, _ = codec(17)
    assert made.log_det({"x": torch.zeros(3, 1, 1, 256)}).tolist() == [0, 0, 0]
