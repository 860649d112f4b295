"""Small embedded data sets for the tests of metrics."""

import torch

from modeling_cue.cones import Cone
from modeling_cue.training.relations import Embedded


def unit(rows, dim, generator):
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)


def items(axis, ids, radius=0.5, requires=None, implies=None, words=None):
    sets = [torch.zeros(len(ids), 0, dtype=torch.long) if s is None else torch.as_tensor(s) for s in
            (requires, implies, words)]  # fmt: skip
    radius = torch.full((len(ids),), radius) if isinstance(radius, float) else torch.as_tensor(radius)
    return Embedded(Cone(axis, radius), torch.as_tensor(ids), *sets)


def world(generator, samples=12, dim=8):
    """A data set of random cones: two captions and three phrases for each of some images, sounds and clips."""

    def kind(ids, **sets):
        radius = torch.rand(len(ids), generator=generator) * 2.5
        return items(unit(len(ids), dim, generator), ids, radius, **sets)

    ids = torch.arange(1, samples + 1)
    facts = torch.randint(1, 9, (samples, 4), generator=generator)
    twice, thrice = ids.repeat_interleave(2), ids.repeat_interleave(3)
    said = facts[:, :3].repeat_interleave(2, 0)
    single = facts.repeat_interleave(3, 0).gather(1, torch.arange(3).repeat(samples)[:, None])
    return {
        "text": kind(twice, requires=said, implies=said),
        "image": kind(ids, implies=facts),
        "audio": kind(ids[: samples // 2], implies=facts[: samples // 2]),
        "video": kind(ids, implies=facts),
        "phrase": kind(thrice, requires=single),
        "composed": kind(ids, requires=facts[:, :2]),
        "parts_mean": kind(ids, requires=facts[:, :2]),
    }
