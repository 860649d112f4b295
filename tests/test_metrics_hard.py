import pytest
import torch
from embedded import items, unit
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.metrics import roc_auc_score

from modeling_cue.cones import pairwise_angle, pairwise_containment_margin
from modeling_cue.training import metrics_cones
from modeling_cue.training.metrics_cones import containment_metrics, level_counts
from modeling_cue.training.metrics_hard import VectorSimilarity, WordSimilarity, hardest_negatives
from modeling_cue.training.phrases import hash_id, words
from modeling_cue.training.relations import LEVELS

TEXTS = [
    "a dog runs on the grass", "a dog lies on the grass", "a black dog runs", "two men play football",
    "a man plays the guitar on stage", "children swim", "a man runs", "the grass",
]  # fmt: skip


def captions(texts, ids, generator):
    lines = [[hash_id(word) for word in words(text)] for text in texts]
    width = max(map(len, lines))
    sets = torch.tensor([line + [0] * (width - len(line)) for line in lines])
    own = torch.tensor([[hash_id(text)] for text in texts])
    radius = torch.rand(len(texts), generator=generator) * 2
    return items(unit(len(texts), 8, generator), ids, radius, requires=own, implies=own, words=sets)


@pytest.fixture
def embedded():
    generator = torch.Generator().manual_seed(0)
    return {
        "text": captions(TEXTS, list(range(1, 9)), generator),
        "image": captions([text + " outside" for text in TEXTS], list(range(1, 9)), generator),
    }


def test_similarity_is_that_of_tf_idf(embedded):
    similarity = WordSimilarity(embedded["text"], embedded["image"]).rows(0, 8)
    inner = [" ".join(words(text + " outside")) for text in TEXTS]
    counter = CountVectorizer(binary=True, token_pattern=r"\S+")
    seen = counter.fit_transform(inner)
    tf_idf = TfidfTransformer(smooth_idf=False).fit(seen)
    tf_idf.idf_ = tf_idf.idf_ - 1  # theirs adds 1, so that a word of every item still counts
    expected = tf_idf.transform(counter.transform([" ".join(words(t)) for t in TEXTS])) @ tf_idf.transform(seen).T
    torch.testing.assert_close(similarity, torch.tensor(expected.toarray(), dtype=torch.float32))
    part = WordSimilarity(embedded["text"], embedded["image"]).rows(2, 5)
    torch.testing.assert_close(part, similarity[2:5])


def test_the_hardest_of_the_wrong_ones_stay():
    similarity = torch.tensor([[0.9, 0.5, 0.7, 0.0, 0.6], [0.0, 0.0, 0.3, 0.2, 0.1]])
    labels = torch.tensor([[1, 0, 0, 0, -1], [1, 0, 0, 0, 0]], dtype=torch.int8)
    hard = hardest_negatives(similarity, labels, 2)
    # The true and the unknown are never chosen, nor is what shares no word.
    assert hard.tolist() == [[1, 0, 0, -1, -1], [1, -1, 0, 0, -1]]


def test_hard_figures_equal_brute_force(embedded, monkeypatch):
    found = containment_metrics(embedded)
    text, image = embedded["text"], embedded["image"]
    labels = next(level for level in LEVELS if level.name == "c2i").relation(text, image)
    hard = hardest_negatives(WordSimilarity(text, image).rows(0, 8), labels)
    kept = hard >= 0
    assert 0 < (hard == 0).sum() < (labels == 0).sum()
    margin = pairwise_containment_margin(text.cone, image.cone)
    cosine = -pairwise_angle(text.cone.axis, image.cone.axis)
    for name, scores in (("hard", margin), ("hard_cosine", cosine)):
        expected = roc_auc_score(hard[kept], scores[kept])
        assert found[f"containment_auroc_{name}_c2i"] == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(metrics_cones, "CHUNK_PAIRS", 16)
    assert containment_metrics(embedded) == pytest.approx(found, rel=1e-12)


def test_without_words_there_are_no_hard_negatives(embedded):
    for kind, rows in embedded.items():
        embedded[kind] = items(rows.cone.axis, rows.ids, rows.cone.radius, rows.requires, rows.implies)
    found = containment_metrics(embedded)
    assert "containment_auroc_c2i" in found
    assert not any("hard" in key for key in found)


def test_vectors_of_another_encoder_choose_the_hard_negatives(embedded):
    text, image = embedded["text"], embedded["image"]
    generator = torch.Generator().manual_seed(1)
    queries, told = unit(8, 6, generator), unit(20, 6, generator)
    of = torch.tensor([*range(8), *range(8), 0, 0, 1, 2])
    cosine = queries @ told.T
    nearest = torch.stack([cosine[:, of == item].amax(1) for item in range(8)], 1)
    similarity = VectorSimilarity(queries, told, of)
    torch.testing.assert_close(similarity.rows(2, 7), nearest[2:7])
    torch.testing.assert_close(VectorSimilarity(queries, told[:8]).rows(0, 8), cosine[:, :8])

    level = next(level for level in LEVELS if level.name == "c2i")
    hard = hardest_negatives(nearest, level.relation(text, image))
    kept = hard >= 0
    expected = roc_auc_score(hard[kept], pairwise_containment_margin(text.cone, image.cone)[kept])
    found = level_counts(text, image, level, similarity)
    assert found.hard_margins.auroc() == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(level_counts(text, image, level).hard_margins.auroc(), abs=1e-3)
