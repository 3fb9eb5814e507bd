"""The table of GANs: real images have its best figures, and what the controls make is far from them."""

from benchmarks import gans


def test_real_digits_are_at_no_distance_and_controls_are_far(monkeypatch):
    monkeypatch.setitem(gans.N, "digits", 300)
    real = gans.seen(gans.reference("digits"), "digits")
    assert real["fid"] < 1e-6 and real["precision"] == real["recall"] == 1 and real["entropy"] > 2.29
    made = gans.controls("digits")
    assert min(one["fid"] for one in made.values()) > 5
    assert made["untrained"]["entropy"] < gans.LEAST["entropy"] or made["untrained"]["recall"] < gans.LEAST["recall"]
