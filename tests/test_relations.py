import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cue.cones import Cone
from modeling_cue.training import relations
from modeling_cue.training.relations import LEVELS, Embedded, relation, subset


def padded(sets, width=None):
    width = max([len(s) for s in sets] + [width or 0])
    return torch.tensor([[*s, *[0] * (width - len(s))] for s in sets], dtype=torch.long).view(len(sets), width)


def items(ids, requires=None, implies=None, words=None):
    rows = len(ids)
    sets = [padded(s) if s is not None else torch.zeros(rows, 0, dtype=torch.long) for s in (requires, implies, words)]
    return Embedded(Cone(torch.eye(max(rows, 2))[:rows], torch.ones(rows)), torch.tensor(ids), *sets)


id_sets = st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(id_sets, id_sets, st.integers(1, 40))
def test_subset_equals_that_of_python_sets_whatever_the_chunk(small, large, entries):
    scale = 2**60  # as large as hashed ids are
    small, large = ([[scale + i for i in s] for s in sets] for sets in (small, large))
    expected = [[bool(s) and set(s) <= set(m) for m in large] for s in small]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "TABLE_ENTRIES", entries)
        assert subset(padded(small), padded(large)).tolist() == expected


def test_subset_reads_padding_anywhere_and_needs_no_contiguous_tensor():
    small = torch.tensor([[0, 5], [7, 0]]).T.contiguous().T
    large = torch.tensor([[5, 0, 7], [0, 7, 0]]).T.contiguous().T
    assert subset(small, large).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("shapes", [((0, 3), (2, 2)), ((2, 0), (2, 2)), ((2, 3), (0, 2)), ((2, 3), (2, 0))])
def test_empty_sets_and_empty_batches_have_no_subsets(shapes):
    result = subset(*(torch.ones(shape, dtype=torch.long) for shape in shapes))
    assert result.shape == (shapes[0][0], shapes[1][0])
    assert not result.any()


def test_each_rule_decides_in_its_turn():
    outer = items(
        [1, 2, 3, 4, 5], requires=[[10], [20], [], [40], [10, 20]], words=[[100], [200], [300], [], [100, 200]]
    )
    inner = items([1, 9], implies=[[20, 30], [10, 20]], words=[[200, 300, 500], [100]])
    assert relation(outer, inner).tolist() == [
        [1, 1],  # equal ids; its fact is implied
        [1, 1],  # implied, though its words are there too: known beats unknown
        [-1, 0],  # requires nothing: its word is there; it is not
        [0, 0],  # no words: the whole truth is told, and it is not true
        [0, 1],  # one of two facts and one of two words; both facts
    ]
    assert relation(outer, inner).dtype == torch.int8


def test_a_phrase_says_nothing_of_another_caption_of_its_sample():
    level = LEVELS[0]
    assert (level.outer, level.inner) == ("phrase", "text")
    phrase = items([1], requires=[[10]])
    captions = items([1, 1, 2, 2], implies=[[10], [20], [10], [20]])
    assert level.relation(phrase, captions).tolist() == [[1, -1, 1, 0]]
    assert relation(phrase, captions).tolist() == [[1, 1, 1, 0]]


def test_captions_contain_every_medium_of_their_sample():
    for level in LEVELS[1:]:
        assert level.outer == "text"
        assert level.relation(items([1, 2]), items([2, 1])).tolist() == [[0, 1], [1, 0]]


def test_embedded_takes_rows_as_tensors_do():
    rows = items([1, 2, 3], requires=[[1], [2, 3], []])
    assert len(rows) == 3
    assert rows[1:].ids.tolist() == [2, 3]
    chosen = rows[torch.tensor([2, 0])]
    assert chosen.requires.tolist() == [[0, 0], [1, 0]]
    assert chosen.cone.axis[1].equal(rows.cone.axis[0])


def test_shapes_that_do_not_fit_are_refused_by_name():
    rows = items([1, 2])
    with pytest.raises(ValueError, match="ids"):
        Embedded(rows.cone, torch.tensor([1]), rows.requires, rows.implies, rows.words)
    with pytest.raises(ValueError, match="implies"):
        Embedded(rows.cone, rows.ids, rows.requires, torch.ones(3, 1), rows.words)
