"""The judge of digits, its controls, and what it says of copies."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import judge
from benchmarks._images import samples
from gencli.errors import GencliError

LABELS = torch.arange(120) % 10


def test_the_judge_classifies_held_out_digits():
    assert judge.judge(*judge.real("digits", "test"), "digits") >= 0.97


def test_held_out_digits_pass_the_bar():
    images, labels = judge.real("digits", "test")
    found = judge.verdict(images, labels, "digits")
    assert judge.passes(found) and found["novelty"] == pytest.approx(1)


def test_both_controls_fail_the_bar():
    for control in (judge.gaussian("digits", len(LABELS)), judge.untrained("digits", len(LABELS))):
        assert control.dtype == torch.uint8 and control.shape == (120, 1, 16, 16)
        found = judge.verdict(control, LABELS, "digits")
        assert not judge.passes(found), found


def test_the_gaussian_control_has_the_mean_and_covariance_of_the_data():
    x = judge.real("digits", "train")[0].double().flatten(1)
    drawn = judge.gaussian("digits", 4000).double().flatten(1)
    inner = (x.mean(0) - 127).abs() < 40  # where clipping to grey levels acts least
    assert (drawn.mean(0) - x.mean(0))[inner].abs().max() < 8
    ours, theirs = drawn.T.corrcoef()[inner][:, inner], x.T.corrcoef()[inner][:, inner]
    assert inner.sum() > 20 and (ours - theirs).abs().max() < 0.1


def test_a_gaussian_for_each_class_is_recognised_as_that_class():
    assert judge.judge(judge.gaussian_per_class("digits", LABELS), LABELS, "digits") > 0.9


def test_copies_of_training_images_are_not_new():
    x, _ = judge.real("digits", "train")
    assert judge.novelty(x[:100], "digits") < 1e-6


def test_a_collapsed_sampler_has_no_recall():
    x, y = judge.real("digits", "test")
    ones = x[y == 1][:1].repeat(120, 1, 1, 1)
    assert judge.verdict(ones, torch.ones(120).long(), "digits")["recall"] < 0.1


def test_a_folder_of_samples_is_read_with_its_labels(tmp_path):
    x, y = judge.real("digits", "test")
    items = []
    for i in range(5):
        Image.fromarray(x[i, 0].numpy()).save(tmp_path / f"{i:04d}.png")
        items.append({"file": f"{i:04d}.png", "seed": i, "label": int(y[i])})
    (tmp_path / "samples.json").write_text(json.dumps({"items": items}), encoding="utf-8")
    images, labels = samples(tmp_path)
    assert torch.equal(images, x[:5]) and torch.equal(labels, y[:5])
    with pytest.raises(GencliError, match=r"samples\.json"):
        samples(tmp_path / "elsewhere")
