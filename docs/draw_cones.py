#!/usr/bin/env python
"""Draws docs/cones.png: five concepts as cones on the sphere, with a join and a compound. Needs matplotlib."""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch

from modeling_cue import Cone, contains, join, meet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Colours that stay apart for colour-blind readers (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")


def point(longitude: float, latitude: float) -> torch.Tensor:
    """A unit vector of the 2-sphere from degrees."""
    lon, lat = math.radians(longitude), math.radians(latitude)
    return torch.tensor([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])


def rim(cone: Cone) -> np.ndarray:
    """(200, 3): points at angle theta from the axis."""
    axis = cone.axis.numpy()
    a = np.cross(axis, [0.3, 0.2, 0.9])
    a /= np.linalg.norm(a)
    b = np.cross(axis, a)
    t = np.linspace(0, 2 * np.pi, 200)[:, None]
    theta = float(cone.radius)
    return np.cos(theta) * axis + np.sin(theta) * (np.cos(t) * a + np.sin(t) * b)


def main(path: Path) -> None:
    def cone(longitude: float, latitude: float, degrees: float) -> Cone:
        return Cone(point(longitude, latitude), torch.tensor(math.radians(degrees)))

    animal, dog, red = cone(-24, 18, 44), cone(-34, 22, 24), cone(-2, 6, 27)
    photo = cone(-42, 28, 5)
    compound = meet(dog, red)
    both = join(dog, red)
    assert contains(animal, dog) and contains(dog, photo) and not compound.empty and contains(both, red)
    shown = {
        '"an animal"': (animal, COLOURS[0], "-"),
        '"a dog" (inside "an animal")': (dog, COLOURS[1], "-"),
        "a photo of a dog": (photo, COLOURS[2], "-"),
        '"something red"': (red, COLOURS[3], "-"),
        'meet: "a red dog"': (Cone(compound.axis, compound.radius), COLOURS[4], "-"),
        'join of "a dog" and "something red"': (both, COLOURS[5], "--"),
    }
    figure = plt.figure(figsize=(8, 5.2))
    axes = figure.add_subplot(projection="3d", computed_zorder=False)
    u, v = np.mgrid[0 : 2 * np.pi : 73j, 0 : np.pi : 37j]
    sphere = np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v)
    axes.plot_surface(*sphere, color="#f6f6f6", shade=False, edgecolor="#e2e2e2", linewidth=0.4, zorder=0)
    for label, (c, colour, style) in shown.items():
        line = 1.01 * rim(c)
        axes.plot(
            *line.T, style, color=colour, linewidth=2.2, label=f"{label}, {math.degrees(c.radius):.0f}°", zorder=2
        )
        tip = 1.01 * c.axis.numpy()
        axes.plot(*np.stack([tip, 1.12 * tip]).T, color=colour, linewidth=1.5, zorder=3)
    axes.view_init(elev=16, azim=-20)
    axes.set_proj_type("ortho")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axes.set_box_aspect((1, 1, 1), zoom=1.4)
    axes.set_axis_off()
    figure.legend(loc="center right", frameon=False, fontsize=9, title="cone and angular radius")
    figure.subplots_adjust(left=-0.05, right=0.72, top=1, bottom=0)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=Path(__file__).parent / "cones.png")
    main(parser.parse_args().path)
