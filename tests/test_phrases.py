"""Captions as text: ids, normal forms, content words, and the phrases of a caption."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cue.training.phrases import hash_id, normalise, split_phrases, words


def test_ids_are_known_numbers():
    """Feature caches and checkpoints outlive a process: the function may never change."""
    program = "from modeling_cue.training.phrases import hash_id; print(hash_id('a red ball'))"
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert hash_id("a red ball") == int(elsewhere.stdout) == 6153510686071745571


@given(st.text())
def test_ids_are_positive_int63(text):
    assert 0 < hash_id(text) < 2**63


def test_ids_differ():
    assert len({hash_id(str(number)) for number in range(20_000)}) == 20_000


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A  Red ball .", "red ball"),
        ("the man's hat", "man hat"),
        ("the man 's hat", "man hat"),
        ("a T-shirt", "t shirt"),
        ("An ＡＢＣ ball", "abc ball"),
        ("The", "the"),
        ("...", "..."),
        ("ein roter Ball", "ein roter ball"),
        ("赤いボール。", "赤いボール"),
        ("एक लड़की दौड़ती है।", "एक लड़की दौड़ती है"),  # whose marks are parts of its letters
        ("เสื้อ", "เสื้อ"),
        ("  ", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalise(text) == normal


@given(st.text())
def test_normal_form_is_idempotent_and_empty_only_of_blanks(text):
    assert normalise(normalise(text)) == normalise(text)
    assert bool(normalise(text)) == bool(text.strip())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("riding bikes", "rides a bike"),
        ("two dogs running", "two dogs run"),
        ("a man and a woman", "men and women"),
        ("dresses", "a dress"),
        ("watches a boat", "watching boats"),
        ("berries on a box", "berry in the boxes"),
        ("standing", "stands"),
    ],
)
def test_content_words_ignore_inflection(one, other):
    assert set(words(one)) == set(words(other))


def test_content_words_leave_out_function_words_but_are_never_empty():
    assert words("The red ball is on a box of the other one") == ["red", "ball", "box"]
    assert words("it is on the") == ["it", "is", "on"]
    assert words("") == []


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        (
            "A man in a blue shirt is standing on a ladder cleaning a window .",
            ["A man", "A man in a blue shirt", "a blue shirt", "standing on a ladder", "a ladder", "cleaning a window",
             "a window"],
        ),
        ("Two dogs run on a path", ["Two dogs", "run on a path", "a path"]),
        ("A shirtless man climbs a rock wall.", ["A shirtless man", "climbs a rock wall", "a rock wall"]),
        ("A group of people , and her dog .", ["A group of people", "dog"]),
        ("a black and white dog and a running horse", ["a black and white dog", "a running horse"]),
        ("A dog leaps off a dock in front of a boat",
         ["A dog", "leaps off a dock", "a dock", "in front of a boat", "a boat"]),
        ("a small red circle above a large blue square",
         ["a small red circle", "a small red circle above a large blue square", "a large blue square"]),
        ("a boy that 's smiling", ["a boy", "smiling"]),
        ("dog", ["dog"]),
        ("it is there", ["it is there"]),
        ("...", ["..."]),
        ("赤いボール", ["赤いボール"]),
        ("एक लड़की दौड़ती है।", ["एक लड़की दौड़ती है"]),
        ("   ", []),
    ],
)  # fmt: skip
def test_phrases(caption, phrases):
    assert split_phrases(caption) == phrases


WORDS = st.sampled_from(
    ["a", "the", "dog", "dogs", "red", "and", "of", "in", "to", "runs", "running", ".", "her", "'s"]
)
TEXTS = st.one_of(st.text(), st.lists(WORDS).map(" ".join))


@given(TEXTS)
def test_phrases_contain_their_caption(caption):
    """Every word of a phrase stands in the caption; no phrase comes twice; a caption that says anything has one."""
    phrases = split_phrases(caption)
    assert bool(phrases) == bool(caption.strip())
    assert all(phrase.strip() for phrase in phrases)
    assert len({normalise(phrase) for phrase in phrases}) == len(phrases)
    told = "".join(caption.split())
    assert all(word in told for phrase in phrases for word in phrase.split())


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A man is not wearing a hat .", ["A man"]),
        ("A dog without a collar , on the grass", ["A dog", "on the grass", "the grass"]),
        ("A child isn't smiling but waves a flag", ["A child", "waves", "a flag"]),
        ("A child isn’t smiling", ["A child"]),
        ("A boy with no shirt", ["A boy"]),
        ("Nobody is here", ["Nobody is here"]),
        ("A knot in a notebook", ["A knot", "A knot in a notebook", "a notebook"]),
    ],
)
def test_what_a_caption_denies_is_no_phrase_of_it(caption, phrases):
    assert split_phrases(caption) == phrases
