"""Scenes: contents and splits, the truth of every wording by an independent reading of it, media, and queries."""

import io
import re
from itertools import combinations, pairwise

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_cue.training.scenes import (
    HELD_OUT,
    SPLITS,
    contents,
    held_out_pairs,
    make_scenes,
    scene_id,
    scenes_by_id,
)
from modeling_cue.training.scenes_language import (
    ABOVE,
    COLOURS,
    SHAPES,
    SIZES,
    Claim,
    Thing,
    fact_id,
    facts,
    implied,
)
from modeling_cue.training.scenes_queries import composition_queries, reader_ceiling
from modeling_cue.training.scenes_render import FRAMES, PIXELS, SAMPLING_RATE, draw, play

# An independent reading of the wording: words, not claims

ATTRIBUTES = {"small": "small", "little": "small", "large": "large", "big": "large"}
ATTRIBUTES |= {word: word for word in (*COLOURS, *SHAPES)}
EMPTY_WORDS = {"a", "an", "something", "thing", "object", "and"}
ANYTHING = r"(?:an? |something)"
FORWARD = ("to the left of", "left of", "above", "over")
BACKWARD = ("to the right of", "right of", "below", "under")


def read_thing(text: str) -> frozenset[str]:
    words = text.split()
    assert all(word in ATTRIBUTES or word in EMPTY_WORDS for word in words), text
    return frozenset(ATTRIBUTES[word] for word in words if word in ATTRIBUTES)


def read(text: str) -> tuple[str | None, list[frozenset[str]]]:
    """(direction or "both" or None, things): things in reading order where there is a direction."""
    text = re.sub(r"^(there is|here is|a scene with) ", "", text)
    for form, direction in (
        (r"(?P<a>.+) on the left and (?P<b>.+) on the right", "across"),
        (r"on the right (?P<b>.+), on the left (?P<a>.+)", "across"),
        (r"(?P<a>.+) at the top and (?P<b>.+) at the bottom", "down"),
        (r"at the bottom (?P<b>.+), at the top (?P<a>.+)", "down"),
    ):
        if match := re.fullmatch(form, text):
            return direction, [read_thing(match["a"]), read_thing(match["b"])]
    for words in FORWARD + BACKWARD:
        if f" {words} " in text:
            things = [read_thing(part) for part in text.split(f" {words} ")]
            return "across" if words.endswith("of") else "down", things if words in FORWARD else things[::-1]
    if match := re.fullmatch(rf"({ANYTHING}.*?) (?:and|with|together with) ({ANYTHING}.*)", text):
        return "both", [read_thing(match[1]), read_thing(match[2])]
    return None, [read_thing(text)]


def true_of(text: str, scene: str) -> bool:
    direction, claimed = read(text)
    stands, things = read(scene)
    if direction is None:
        return any(claimed[0] <= thing for thing in things)
    fits = len(things) == 2 and claimed[0] <= things[0] and claimed[1] <= things[1]
    if direction == "both":
        return fits or (len(things) == 2 and claimed[0] <= things[1] and claimed[1] <= things[0])
    return fits and direction == stands


@pytest.fixture(scope="module")
def scene_rows() -> list[dict]:
    return list(make_scenes("test", 200, seed=3, modalities=()))


def test_contents_are_many_and_belong_to_one_split() -> None:
    ids = {split: {scene_id(scene) for scene in contents(split)} for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not ids[a] & ids[b]
    things = len(SIZES) * len(COLOURS) * len(SHAPES)
    assert things * (things - 1) * 2 == 33_540
    assert all(len(ids[split]) == len(contents(split)) for split in SPLITS)
    assert [len(ids[split]) for split in SPLITS] == [17_404, 1_046, 3_226]
    assert scenes_by_id()[scene_id(contents("test")[7])] == contents("test")[7]


def test_held_out_pairs_occur_in_test_only() -> None:
    for split in ("train", "validation"):
        for scene in contents(split):
            words = set(scene_id(scene).split())
            assert not any({colour, shape} <= words for colour, shape in HELD_OUT)
    found = {pair for scene in contents("test") for pair in held_out_pairs(scene)}
    assert found == set(HELD_OUT)
    share = np.mean([bool(held_out_pairs(scene)) for scene in contents("test")])
    assert 0.25 < share < 0.45


def test_no_two_rows_are_alike_and_a_small_set_begins_a_large_one(scene_rows: list[dict]) -> None:
    assert len({row["id"] for row in scene_rows}) == len(scene_rows)
    assert list(make_scenes("test", 5, seed=3, modalities=())) == scene_rows[:5]
    assert make_scenes("test", 5, seed=4, modalities=())["id"] != [row["id"] for row in scene_rows[:5]]


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, second = (make_scenes("train", 3, seed=1, parts=True) for _ in range(2))
    assert list(first) == list(second)
    assert first._fingerprint == second._fingerprint
    assert make_scenes("train", 3, seed=2)._fingerprint != first._fingerprint
    assert make_scenes("train", 3, seed=1, modalities=("video",))["video"][:] == first["video"][:]


def test_every_caption_and_phrase_is_true_exactly_where_its_words_are(scene_rows: list[dict]) -> None:
    rows = scene_rows[:60]
    for row in rows[:30]:
        assert len(row["caption"]) == 5
        captions = zip(row["caption"], row["caption_requires"], row["caption_facts"], strict=True)
        for k, (caption, requires, closure) in enumerate(captions):
            assert true_of(caption, row["id"]), (caption, row["id"])
            for other in rows:
                truth = true_of(caption, other["id"])
                assert truth == set(requires).issubset(other["facts"]) == set(closure).issubset(other["facts"])
            for phrase, fact in zip(row["phrases"][k], row["phrase_facts"][k], strict=True):
                assert fact in closure, (phrase, caption)
                for other in rows:
                    assert true_of(phrase, other["id"]) == (fact in other["facts"]), (phrase, other["id"])


def test_wordings_of_one_claim_share_one_fact_and_other_claims_do_not(scene_rows: list[dict]) -> None:
    by_fact: dict[int, set] = {}
    for row in scene_rows:
        for phrases, numbers in zip(row["phrases"], row["phrase_facts"], strict=True):
            assert len(set(numbers)) == len(numbers)
            for phrase, number in zip(phrases, numbers, strict=True):
                direction, things = read(phrase)
                claim = (direction, frozenset(things) if direction == "both" else tuple(things))
                by_fact.setdefault(number, set()).add((claim, len(things)))
    assert all(len(claims) == 1 and number > 0 for number, claims in by_fact.items())
    assert len({next(iter(claims)) for claims in by_fact.values()}) == len(by_fact)


def test_phrases_and_captions_go_from_general_to_specific(scene_rows: list[dict]) -> None:
    phrase_sizes, caption_sizes = set(), []
    for row in scene_rows:
        caption_sizes.append([sum(map(len, read(caption)[1])) for caption in row["caption"]])
        phrase_sizes |= {sum(map(len, read(phrase)[1])) for line in row["phrases"] for phrase in line}
    assert phrase_sizes >= {1, 2, 3, 4, 5}
    assert all(max(sizes) == 6 and min(sizes) <= 5 for sizes in caption_sizes)
    assert {min(sizes) for sizes in caption_sizes} == {4}
    assert len({caption for row in scene_rows for caption in row["caption"]}) > 900


def test_facts_are_the_ids_of_what_is_implied() -> None:
    scenes = [*contents("train")[::3000], Claim(Thing("small", "red", "cross")), Claim(Thing(shape="cross"))]
    scenes += [Claim(Thing(shape="cross"), ABOVE, Thing(shape="cross"))]
    for scene in scenes:
        assert facts(scene) == sorted({fact_id(claim) for claim in implied(scene)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 3), "split='dev' does not exist"),
        (("test", 0), "size=0 .* ask for 1 to 3226"),
        (("test", 4000), "size=4000 .* ask for 1 to 3226"),
        (("test", 3, 0, ("smell",)), "modalities=\\['smell'\\] cannot be rendered: choose among image, audio, video"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scenes(*arguments)


# Media


def decode_image(value: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(value["bytes"])))


def decode_audio(value: dict) -> np.ndarray:
    sound, rate = soundfile.read(io.BytesIO(value["bytes"]), dtype="float32")
    assert rate == SAMPLING_RATE
    return sound


def decode_video(value: dict) -> np.ndarray:
    with av.open(io.BytesIO(value["bytes"])) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_media_are_files_that_decode_and_are_not_degenerate() -> None:
    for row in make_scenes("test", 20, seed=1, parts=True):
        for name in ("image", "part_image"):
            image = decode_image(row[name])
            assert image.shape == (PIXELS, PIXELS, 3)
            assert image.std() > 5
        for name in ("audio", "part_audio"):
            sound = decode_audio(row[name])
            assert sound.ndim == 1
            assert 0.35 < len(sound) / SAMPLING_RATE < 1.8
            assert 0.2 < np.abs(sound).max() < 1
            assert sound.std() > 0.01
        clip = decode_video(row["video"])
        assert clip.shape == (FRAMES, PIXELS, PIXELS, 3)
        smooth = clip.astype(float).reshape(FRAMES, 12, 4, 12, 4, 3).mean((2, 4, 5))
        assert np.abs(smooth[-1] - smooth[0]).max() > 4  # something moved
        assert row["part_facts"][0] in row["facts"]


def test_nuisances_vary_while_the_content_stays() -> None:
    scene = contents("test")[100]
    pictures = np.stack([draw(scene, np.random.default_rng(i))[0] for i in range(8)]).astype(float)
    corners = pictures[:, :6, :6].mean((1, 2, 3))
    assert corners.std() > 5
    assert np.diff(pictures, axis=0).std() > 10
    sounds = [play(scene, np.random.default_rng(i)) for i in range(8)]
    assert len({len(sound) for sound in sounds}) > 6
    assert np.std([np.abs(sound).max() for sound in sounds]) > 0.05
    length = min(map(len, sounds))
    assert np.abs(np.corrcoef(np.stack([sound[:length] for sound in sounds]))[np.triu_indices(8, 1)]).max() < 0.6


def picture_features(picture: np.ndarray) -> np.ndarray:
    """What differs from the ground, coarsely, so that a few pixels of shift matter little."""
    away = picture.astype(float) - np.median(picture.reshape(-1, 3), axis=0)
    return away.reshape(12, 4, 12, 4, 3).mean((1, 3)).ravel()


def sound_features(sound: np.ndarray) -> np.ndarray:
    """Log energies of 24 bands over 48 moments between the first and the last that sound."""
    loud = np.flatnonzero(np.abs(sound) > 0.1 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1]]
    starts = np.linspace(0, len(sound) - 400, 48).astype(int)
    frames = np.stack([sound[start : start + 400] for start in starts]) * np.hanning(400)
    energy = np.abs(np.fft.rfft(frames)) ** 2
    bands = np.geomspace(2, 200, 25).astype(int)
    bands = np.stack([energy[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(bands)])
    return np.maximum(np.log10(bands / bands.max()), -3).ravel()


def test_a_nearest_template_reads_pictures_clips_and_sounds() -> None:
    """Of 25 contents, by the mean of 5 other renderings each: chance is 0.04."""
    scenes = contents("test")[40::130]
    assert len(scenes) >= 24
    readers = {
        "image": lambda scene, seed: picture_features(draw(scene, np.random.default_rng(seed))[0]),
        "video": lambda scene, seed: picture_features(draw(scene, np.random.default_rng(seed), FRAMES).mean(0)),
        "audio": lambda scene, seed: sound_features(play(scene, np.random.default_rng(seed))),
    }
    for modality, features in readers.items():
        templates = np.stack([np.mean([features(s, [i, 1]) for i in range(5)], axis=0) for s in scenes])
        asked = np.stack([features(s, [i, 2]) for s in scenes for i in range(3)])
        nearest = np.linalg.norm(asked[:, None] - templates, axis=-1).argmin(1)
        accuracy = np.mean(nearest == np.repeat(np.arange(len(scenes)), 3))
        assert accuracy > 0.6, (modality, accuracy)


# Ceiling and queries


def test_reader_ceiling_by_hand() -> None:
    rows = [
        {"facts": [1, 2], "caption_requires": [[1], [2]], "caption_facts": [[1], [2]]},
        {"facts": [1, 3], "caption_requires": [[1], [3]], "caption_facts": [[1], [1, 3]]},
    ]
    ceiling = reader_ceiling(rows, "tia")
    # Fact 1 is true of both rows, facts 2 and 3 of one.
    assert ceiling["t2i_R@1"] == pytest.approx((0.5 + 1 + 0.5 + 1) / 4)
    # The first row is told by three captions, two of them its own; the second by a more specific one of its own.
    assert ceiling["i2t_R@1"] == pytest.approx((2 / 3 + 1) / 2)
    assert ceiling["a2i_R@1"] == ceiling["i2a_R@1"] == 1
    assert set(ceiling) == {f"{a}2{b}_R@1" for a in "tia" for b in "tia" if a != b}


def test_reader_ceiling_of_test_scenes(scene_rows: list[dict]) -> None:
    ceiling = reader_ceiling(scene_rows)
    assert 0.95 < ceiling["t2i_R@1"] < 1
    assert ceiling["i2t_R@1"] == 1  # every scene has one complete caption
    fits = [
        [true_of(caption, row["id"]) for row in scene_rows] for one in scene_rows[:20] for caption in one["caption"]
    ]
    brute = np.mean([1 / sum(line) for line in fits])
    assert reader_ceiling(scene_rows[:20], "ti")["t2i_R@1"] >= brute


def test_queries_ask_for_pairs_never_seen_together(scene_rows: list[dict]) -> None:
    queries = composition_queries(scene_rows, seed=1)
    count = {kind: sum(query.kind == kind for query in queries) for kind in ("text", "image", "audio")}
    assert min(count.values()) >= 200
    thing_of = {fact_id(Claim(Thing(*v))): v for v in ((z, c, s) for z in SIZES for c in COLOURS for s in SHAPES)}
    for query in queries:
        texts = [part.value for part in query.parts if part.modality == "text"]
        shown = [thing_of[part.facts[0]] for part in query.parts if part.modality != "text"]
        assert [part.modality for part in query.parts if part.modality != "text"] == [query.kind][: len(shown)]
        assert len(shown) == (query.kind != "text")
        assert 2 <= len(query.parts) <= 4
        assert query.pair in HELD_OUT
        assert not any(thing[1:] in HELD_OUT for thing in shown)
        # The pair is spread over two parts, which no scene of train made true together.
        named = [set(text.split()) for text in texts] + [set(thing) for thing in shown]
        assert not any(set(query.pair) <= words for words in named)
        assert set(query.pair) <= set().union(*named)
        hits = tuple(
            i
            for i, row in enumerate(scene_rows)
            if all(true_of(text, row["id"]) for text in texts)
            and all(any(set(thing) <= words for words in read(row["id"])[1]) for thing in shown)
        )
        assert query.hits == hits
        assert 1 <= len(hits) <= 3
    assert [q.hits for q in composition_queries(scene_rows, seed=1)] == [q.hits for q in queries]
    for query in queries:
        for part in query.parts:
            if part.modality == "image":
                assert decode_image(part.value).shape == (PIXELS, PIXELS, 3)
            elif part.modality == "audio":
                assert len(decode_audio(part.value)) > 0.3 * SAMPLING_RATE
