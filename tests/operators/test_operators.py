"""Operators: adjoints, pseudo-inverses, fast decompositions against dense ones, and what they measure by plain formulae."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve1d
from torch.nn import functional as F

from gencli.config import choose
from gencli.core import Field
from gencli.errors import GencliError
from gencli.operators._base import LinearOperator

GREY, COLOUR = (1, 6, 8), (3, 4, 6)
CASES = [
    ("inpaint", {}, GREY),
    ("inpaint", {"mask": "random", "share": 0.5}, COLOUR),
    ("inpaint", {"mask": "left-half"}, GREY),
    ("super-resolution", {"factor": 2}, COLOUR),
    ("deblur", {}, GREY),
    ("deblur", {"kernel": "square", "width": 2}, COLOUR),
    ("deblur", {"width": 3}, GREY),
    ("colourise", {}, COLOUR),
    ("compressed-sensing", {"share": 0.3}, COLOUR),
]
IDS = [f"{name}-{'-'.join(map(str, settings.values())) or 'own'}" for name, settings, _ in CASES]


def built(name, settings, shape):
    return choose("operators", {"name": name, **settings}).build(Field("image", shape, range=(-1.0, 1.0)))


def images(shape, n=5, seed=0):
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def dense(operator):
    """The matrix `(numbers measured, D)`, a column from each unit image."""
    size = int(np.prod(operator.shape))
    return operator.measure(torch.eye(size, dtype=torch.float64).view(size, *operator.shape)).flatten(1).T


@pytest.mark.parametrize(("name", "settings", "shape"), CASES, ids=IDS)
def test_a_linear_operator_keeps_its_laws(name, settings, shape):
    operator, x = built(name, settings, shape), images(shape)
    assert isinstance(operator, LinearOperator)
    assert torch.allclose(operator.back(operator.rotate(x)), x, atol=1e-12), "V is orthonormal"
    assert torch.allclose(operator.rotate(x).norm(dim=1), x.flatten(1).norm(dim=1), atol=1e-12)
    y = operator.measure(x)
    other = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inner = (y * other).flatten(1).sum(1)
    assert torch.allclose(inner, (x * operator.adjoint(other)).flatten(1).sum(1), atol=1e-12), "<Ax, y> = <x, Aᵀy>"
    assert torch.allclose(operator.measure(operator.pseudo_inverse(y)), y, atol=1e-6), "A A⁺ A = A"
    assert operator.seen(y).shape == x.shape


@pytest.mark.parametrize(("name", "settings", "shape"), CASES, ids=IDS)
def test_the_fast_decomposition_is_the_dense_one(name, settings, shape):
    operator = built(name, settings, shape)
    matrix = dense(operator)
    exact = torch.linalg.svdvals(matrix)
    ours = operator.singular(matrix).sort(descending=True).values[: len(exact)]
    assert torch.allclose(ours, exact, atol=1e-10)
    y, z = operator.measure(images(shape)), images(shape, seed=2)
    normal = matrix.T @ matrix + 0.3 * torch.eye(matrix.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(normal, (y.flatten(1) @ matrix + 0.3 * z.flatten(1)).T).T
    assert torch.allclose(operator.nearest(y, z, 0.3).flatten(1), solved, atol=1e-9)


def test_what_is_measured_is_what_the_names_say():
    x, grey = images(COLOUR), images(GREY)
    assert torch.allclose(built("super-resolution", {"factor": 2}, COLOUR).measure(x), F.avg_pool2d(x, 2), atol=1e-12)
    assert torch.allclose(built("colourise", {}, COLOUR).measure(x), x.mean(1, keepdim=True), atol=1e-12)
    left = built("inpaint", {"mask": "left-half"}, GREY).measure(grey)
    assert torch.equal(left[..., :4], grey[..., :4]) and not left[..., 4:].any()
    for kernel, width, weights in (("square", 1, np.ones(3) / 3), ("gaussian", 1.0, None)):
        operator = built("deblur", {"kernel": kernel, "width": width}, GREY)
        weights = operator.weights().numpy() if weights is None else weights
        wanted = convolve1d(
            convolve1d(grey.numpy(), weights, axis=-1, mode="reflect"), weights, axis=-2, mode="reflect"
        )
        assert np.abs(operator.measure(grey).numpy() - wanted).max() < 1e-12
    gauss = built("deblur", {}, GREY).weights()
    assert gauss[3] / gauss[4] == pytest.approx(np.exp(0.5)) and gauss.sum() == pytest.approx(1)


def test_a_hidden_box_and_hidden_pixels_are_the_share_that_was_asked_for():
    box = built("inpaint", {"share": 0.25}, (1, 16, 16)).mask
    assert (~box).sum() == 64 and not box[4:12, 4:12].any() and box[:4].all()
    scattered = built("inpaint", {"mask": "random", "share": 0.7}, (1, 16, 16)).mask
    assert (~scattered).sum() == round(0.7 * 256)
    assert torch.equal(scattered, built("inpaint", {"mask": "random", "share": 0.7}, (1, 16, 16)).mask)


def test_a_mask_from_a_file_measures_what_is_white(tmp_path):
    drawn = np.zeros((6, 8), np.uint8)
    drawn[2:, 3:] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    assert torch.equal(built("inpaint", {"mask": str(tmp_path / "mask.png")}, GREY).mask, torch.from_numpy(drawn > 0))
    with pytest.raises(GencliError, match="is 8×6, the images are 6×4"):
        built("inpaint", {"mask": str(tmp_path / "mask.png")}, COLOUR)
    Image.fromarray(drawn * 0).save(tmp_path / "black.png")
    with pytest.raises(GencliError, match="measures nothing"):
        built("inpaint", {"mask": str(tmp_path / "black.png")}, GREY)


def test_phase_retrieval_does_not_know_an_image_from_itself_upside_down():
    operator, x = built("phase-retrieval", {}, GREY), images(GREY)
    y = operator.measure(x)
    assert y.shape == (5, 1, 10, 12) and not isinstance(operator, LinearOperator)
    assert torch.allclose(y, operator.measure(x.flip(-1, -2)), atol=1e-12)
    assert not torch.allclose(y, operator.measure(x.flip(-1)), atol=1e-2)
    energy = ((x + 1) / 2).square().flatten(1).sum(1)
    assert torch.allclose(y.square().flatten(1).sum(1), energy), "Parseval"


@pytest.mark.parametrize(
    ("name", "settings", "field", "words"),
    [
        ("colourise", {}, Field("image", GREY), "needs images of 3 channels, these have 1"),
        ("super-resolution", {"factor": 4}, Field("image", GREY), "blocks of 4×4 do not fit images of 8×6"),
        ("inpaint", {"mask": "middle"}, Field("image", GREY), "mask 'middle' is no file"),
        ("deblur", {}, Field("codes", (7, 7), vocab=9), "measures images, the model's space is codes"),
    ],
)
def test_what_cannot_be_measured_is_refused(name, settings, field, words):
    with pytest.raises(GencliError, match=words):
        choose("operators", {"name": name, **settings}).build(field)
