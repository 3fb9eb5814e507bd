"""Rejection and re-ranking: the rule's invariants, within classes, and a classifier as the judge."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gencli.bundle import Run
from gencli.core import Field, Model, Spec
from gencli.errors import GencliError
from gencli.evaluation.generate import Progress
from gencli.evaluation.rejection import best, best_of_each, candidates, classifier_score, facts, only


def scores(n=50, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------- passport of `clip-rerank`


def test_keeping_all_keeps_all_in_order():
    assert best(scores(), 50).tolist() == list(range(50))


@pytest.mark.parametrize("count", [1, 7, 25, 49])
def test_those_kept_are_the_greatest_and_no_worse_on_average(count):
    each = scores()
    kept = best(each, count)
    assert sorted(each[kept].tolist()) == sorted(each.tolist())[-count:] and kept.tolist() == sorted(kept.tolist())
    assert each[kept].mean() >= each.mean()


def test_the_mean_of_those_kept_never_falls_with_more_candidates():
    each = scores(200)
    means = [float(each[:n][best(each[:n], 5)].mean()) for n in range(5, 200)]
    assert all(b >= a - 1e-12 for a, b in pairwise(means)) and means[-1] > means[0] + 1


def test_rescaling_the_scores_changes_nothing():
    each = scores()
    for rescaled in (each.exp(), 3 * each - 7, each.softmax(0), each**3):
        assert torch.equal(best(rescaled, 9), best(each, 9))


def test_of_equal_scores_the_earlier_are_kept():
    assert best(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 4).tolist() == [0, 1, 2, 3]
    assert best(torch.zeros(1000), 3).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------ by class


def test_the_balance_of_classes_is_kept_however_the_judge_likes_them():
    labels = torch.arange(40) % 4
    each = scores(40) + 100.0 * (labels == 2)
    kept = best_of_each(each, labels, 10)
    assert torch.bincount(labels[kept]).tolist() == torch.bincount(labels[:10]).tolist() == [3, 3, 2, 2]
    for label in range(4):
        own = each[labels == label]
        assert each[kept][labels[kept] == label].min() >= own.sort(descending=True).values[[3, 3, 2, 2][label] - 1]
    assert best_of_each(each, labels, 40).tolist() == list(range(40))


def test_a_class_that_was_asked_for_only_later_gives_none():
    labels = torch.tensor([0, 0, 1, 1])
    assert labels[best_of_each(torch.tensor([0.0, 1.0, 9.0, 9.0]), labels, 1)].tolist() == [0]


@pytest.mark.parametrize(("count", "share", "drawn"), [(4, 0.5, 8), (4, 1.0, 4), (3, 0.1, 30), (5, 0.3, 17)])
def test_so_many_are_drawn_that_the_share_is_kept(count, share, drawn):
    assert candidates(count, share) == drawn


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(GencliError, match="rejection-share"):
        candidates(4, share)


# ----------------------------------------------------------------------------------------------------------- the judge


class Judge(Model):
    """Logits that are a fixed map of the pixels."""

    def __init__(self, spec):
        super().__init__(None, spec)
        self.map = torch.nn.Linear(4, spec.cond["label"].vocab if spec.cond else 3)

    def loss(self, batch, turn):
        raise NotImplementedError

    def class_logits(self, x, sigma=None):
        return self.map(x.float().flatten(1) / 255)


IMAGE = Field("image", (1, 2, 2), vocab=256)


def judge(names=(), vocab=3):
    spec = Spec(IMAGE, {"label": Field("label", (), vocab=vocab, names=names)} if vocab else {})
    return Run(Judge(spec), [], spec, spec, {})


def pictures(n=6):
    return torch.randint(256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


def test_the_score_is_the_log_probability_of_the_class_asked_for():
    run, x, labels = judge(), pictures(), torch.tensor([0, 1, 2, 2, 1, 0])
    made = classifier_score(run, Field("label", (), vocab=3), IMAGE.shape)(x, {"label": labels})
    logits = run.model.class_logits(x).double()
    wanted = torch.stack([logits[i, k] - logits[i].exp().sum().log() for i, k in enumerate(labels)])
    assert torch.allclose(made, wanted, atol=1e-12) and made.requires_grad is False


def test_classes_are_matched_by_name():
    run, x = judge(("cat", "dog", "Owl")), pictures()
    asked = Field("label", (), vocab=2, names=("owl", "cat"))
    made = classifier_score(run, asked, IMAGE.shape)(x, {"label": torch.tensor([0, 1] * 3)})
    logp = run.model.class_logits(x).double().log_softmax(1)
    assert torch.allclose(made, logp[torch.arange(6), torch.tensor([2, 0] * 3)])


def test_a_judge_of_other_classes_or_images_or_of_none_is_refused():
    asked = Field("label", (), vocab=2, names=("owl", "bat"))
    with pytest.raises(GencliError, match="does not know class 'bat'"):
        classifier_score(judge(("cat", "dog", "owl")), asked, IMAGE.shape)
    with pytest.raises(GencliError, match="is no classifier"):
        classifier_score(judge(vocab=0), asked, IMAGE.shape)
    with pytest.raises(GencliError, match=r"takes \(1, 2, 2\), the samples are \(1, 4, 4\)"):
        classifier_score(judge(), Field("label", (), vocab=3), (1, 4, 4))  # before anything is drawn


# ------------------------------------------------------------------------------------------------------------ choosing


def test_frames_and_facts_of_those_kept_stay_together():
    def chunk(first, size):
        rows = torch.arange(first, first + size)
        return Progress(1, rows, rows * 10, [rows + 100], [{"entropy": rows + 200, "sigma": torch.tensor(3.0)}])

    made = only([chunk(0, 3), chunk(3, 3), chunk(6, 2)], torch.tensor([1, 2, 7]))
    assert [progress.chunk.tolist() for progress in made] == [[1, 2], [7]], "an empty one is left out"
    assert made[0].evaluations.tolist() == [10, 20] and made[1].frames[0].tolist() == [107]
    assert made[0].info[0]["entropy"].tolist() == [201, 202] and float(made[1].info[0]["sigma"]) == 3.0


def test_the_receipt_has_the_means_of_all_and_of_those_kept(tmp_path):
    run = judge()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    run.path = tmp_path
    logp = torch.tensor([0.1, 0.2, 0.9, 0.4]).log()
    made = facts(run, logp, torch.tensor([2, 3]), 0.5)
    assert made["mean_probability"] == {"candidates": pytest.approx(0.4), "kept": pytest.approx(0.65)}
    assert made["candidates"] == 4 and made["weights"] == run.weights_hash() and made["share"] == 0.5
