"""Drawn street scenes: deterministic, any size, and labeled as they are painted."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fcnfast.data import CAMVID
from fcnfast.data.scenery.bodies import Vehicle
from fcnfast.data.scenery.buildings import House, draw_house
from fcnfast.data.scenery.canvas import (
    BICYCLIST,
    BUILDING,
    CAR,
    FENCE,
    PAVEMENT,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIGN,
    SKY,
    TREE,
    Canvas,
)
from fcnfast.data.scenery.fences import draw_boundary
from fcnfast.data.scenery.ground import Ground, Side, Street
from fcnfast.data.scenery.people import Person, draw_cyclist, draw_pedestrian
from fcnfast.data.scenery.plan import empty_street
from fcnfast.data.scenery.plants import Tree, draw_tree
from fcnfast.data.scenery.posts import draw_lamp, draw_signal
from fcnfast.data.scenery.stage import Camera, Light, Noise, Stage
from fcnfast.data.scenery.vehicles import draw_vehicle
from fcnfast.data.synthetic import SyntheticScenes, draw_scene

CAMERA = Camera(240, 180, 230.0, 120.0, 90.0, 1.4, 0.0, 0.0, 0.0)
LIGHT = Light((0.3, 0.8, -0.5), 0.5, 0.6, (230, 235, 240), 300.0)
PINK = (255, 0, 255)


def digest(seed, size):
    image, labels = draw_scene(seed, size)
    return hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, (90, 120)) for seed in range(20)]


def empty_stage():
    pixels = np.empty((180, 240, 3), np.uint8)
    pixels[:] = PINK
    return Stage(Canvas(pixels, np.full((180, 240), 99, np.uint8)), CAMERA, LIGHT, Noise(1))


def grown(mask):
    padded = np.pad(mask, 1)
    h, w = mask.shape
    return np.any([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], 0)


def test_class_numbers_are_those_of_the_table():
    order = [SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST]
    assert order == list(range(len(CAMVID)))
    wanted = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"]
    wanted += ["pedestrian", "bicyclist"]
    for name, start in zip(CAMVID.names, wanted, strict=True):
        assert name.lower().startswith(start)


def test_same_seed_same_bytes_in_another_process():
    code = (
        "import hashlib; from fcnfast.data.synthetic import draw_scene;"
        "image, labels = draw_scene(11, (75, 100));"
        "print(hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[1]
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    here = digest(11, (75, 100))
    draw_scene(5, (30, 50))  # what was drawn before must not matter
    assert here == digest(11, (75, 100)) == elsewhere.stdout.strip()


def test_scenes_are_pictures_with_labels(scenes):
    for image, labels in scenes:
        assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (120, 90)
        assert labels.dtype == np.uint8 and labels.shape == (90, 120)
        assert labels.max() < len(CAMVID)


def test_every_class_appears_and_no_two_scenes_are_alike(scenes):
    counts = sum(np.bincount(labels.ravel(), minlength=len(CAMVID)) for _, labels in scenes)
    assert (counts > 0).all()
    shares = counts / counts.sum()
    assert shares[[SKY, BUILDING, ROAD]].min() > 0.08
    pictures = [np.asarray(image, np.float32) for image, _ in scenes]
    for i in range(1, len(pictures)):
        assert np.abs(pictures[i] - pictures[i - 1]).mean() > 5


def test_sky_is_above_and_road_below(scenes):
    above = np.mean([np.mean(labels[:10] == ROAD) for _, labels in scenes])
    below = np.mean([np.mean(labels[-10:] == ROAD) for _, labels in scenes])
    assert above == 0 and below > 0.5
    assert all(not (labels[60:] == SKY).any() for _, labels in scenes)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (61, 7), (300, 200), (2, 400), (720, 1280)])
def test_odd_sizes(size):
    for seed in range(1 if size[0] > 400 else 4):
        image, labels = draw_scene(seed, size)
        assert image.size == (size[1], size[0]) and labels.shape == size
        assert labels.flags.writeable and labels.flags.c_contiguous
        assert labels.max() < len(CAMVID)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 48), st.integers(1, 48))
def test_any_seed_and_size(seed, height, width):
    image, labels = draw_scene(seed, (height, width))
    assert image.size == (width, height) and labels.shape == (height, width)
    assert labels.max() < len(CAMVID)


def test_the_same_street_at_twice_the_size():
    _, small = draw_scene(8, (120, 160))
    _, large = draw_scene(8, (240, 320))
    agree = np.mean(small == large[1::2, 1::2])
    assert agree > 0.9


@pytest.mark.parametrize(
    ("brush", "label"),
    [
        (lambda s: draw_pedestrian(s, Person(0, 8, 0, 1.75, "back", 1, 3), 1.0), {PEDESTRIAN}),
        (lambda s: draw_pedestrian(s, Person(1, 5, 0, 1.6, "side", -1, 4), 1.0), {PEDESTRIAN}),
        (lambda s: draw_cyclist(s, Person(0, 8, 0, 1.75, "side", 1, 3), 1.0), {BICYCLIST}),
        (lambda s: draw_cyclist(s, Person(0, 8, 0, 1.75, "front", 1, 5), 1.0), {BICYCLIST}),
        (lambda s: draw_lamp(s, 1.5, 9, 3, 1.0), {POLE}),
        (lambda s: draw_signal(s, 1.5, 9, 3, 1.0), {POLE, SIGN}),
        (lambda s: draw_boundary(s, 3.0, 4, 20, "boards", 3, 1.0), {FENCE}),
        (lambda s: draw_boundary(s, 3.0, 4, 20, "wall", 3, 1.0), {BUILDING}),
        (lambda s: draw_boundary(s, -3.0, 4, 20, "hedge", 3, 1.0), {TREE}),
        (lambda s: draw_tree(s, Tree(0, 25, 8, 2.5, "leafy", 3), 1.0), {TREE}),
        (lambda s: draw_tree(s, Tree(0, 25, 8, 2, "conifer", 4), 1.0), {TREE}),
        (
            lambda s: draw_house(s, House(1, 6, 16, 4, 6, 7, 2.5, "red brick", True, 3)),
            {BUILDING},
        ),
    ]
    + [
        (lambda s, k=kind, t=turn: draw_vehicle(s, Vehicle(k, 0.5, 14, t, (90, 20, 20), 1), 1.0),
         {CAR})
        for kind in ("hatch", "saloon", "estate", "van", "bus")
        for turn in (0.0, 0.7, 1.6, 3.1)
    ],
)  # fmt: skip
def test_labels_cover_what_is_painted(brush, label):
    stage = empty_stage()
    brush(stage)
    pixels, labels = stage.canvas.result()
    change = np.abs(pixels.astype(int) - PINK).max(-1)
    labeled = labels != 99
    assert set(np.unique(labels[labeled])) == label
    assert labeled.sum() > 40
    # A pixel's nine samples make its color and the middle one its label: a pixel's difference.
    assert not ((change > 127) & ~grown(labeled)).any()
    assert not (labeled & ~grown(change > 60)).any()


def test_bars_count_as_the_surface_that_they_fill():
    stage = empty_stage()
    draw_boundary(stage, 1.2, 3, 6, "railings", 3, 1.0)
    pixels, labels = stage.canvas.result()
    through = np.abs(pixels.astype(int) - PINK).max(-1) < 20
    assert (labels[through] == FENCE).sum() > 10


def test_nearer_things_hide_farther_ones():
    stage = empty_stage()
    draw_vehicle(stage, Vehicle("bus", 0, 25, 0.0, (160, 30, 30), 1), 1.0)
    draw_pedestrian(stage, Person(0, 8, 0, 1.75, "back", 1, 3), 1.0)
    x, y = CAMERA.at(0, 1.2, 8)
    labels = stage.canvas.result()[1]
    assert labels[int(y), int(x)] == PEDESTRIAN
    assert (labels == CAR).any()


def test_scene_is_painted_from_back_to_front():
    scene = empty_street(random.Random(0), 180, 240)
    seen = []
    for z in (5.0, 50.0, 20.0, 1000.0):
        scene.add(z, lambda stage, lit, z=z: seen.append(z), (0.0, z))
    for brush, lit in scene.in_order(np.zeros((180, 240), np.float32)):
        brush(empty_stage(), lit)
    assert seen == [1000.0, 50.0, 20.0, 5.0]


@given(st.floats(2, 20), st.floats(-8, 8), st.floats(0.5, 3))
@settings(max_examples=30, deadline=None)
def test_ground_labels_follow_the_plan(z, s, pavement):
    sides = (Side(-1, pavement, verge=1.0), Side(1, pavement, grass=True))
    ground = Ground(CAMERA, Street(3.0, sides, None, False, 1.0, 0.5), Noise(2))
    _, labels = ground.paint(LIGHT, np.zeros((180, 240), np.float32))
    x, y = CAMERA.at(s, 0.0, z)
    row, column = int(y), int(x)
    if not (0 <= column < 240 and ground.top <= row < 180):
        return
    out, place = abs(ground.s[row - ground.top, column]) - 3.0, labels[row - ground.top, column]
    if out < 0:
        assert place == ROAD
    elif ground.s[row - ground.top, column] < 0:
        assert place == (TREE if 0.16 <= out < 1.16 else PAVEMENT)
    else:
        assert place == (TREE if out >= pavement else PAVEMENT)


def test_dataset_items_are_the_scenes():
    data = SyntheticScenes(3, size=(60, 80), seed=40)
    assert len(data) == 3
    image, labels, name = data[2]
    expected = draw_scene(42, (60, 80))
    assert image.tobytes() == expected[0].tobytes() and np.array_equal(labels, expected[1])
    assert "42" in name and data[-1].name == name
    assert len({sample.name for sample in data}) == 3
    with pytest.raises(IndexError, match="3"):
        data[3]
    with pytest.raises(IndexError):
        data[-4]


def test_dataset_works_in_loader_processes():
    loader = DataLoader(
        SyntheticScenes(4, (30, 40)), batch_size=None, num_workers=2, collate_fn=lambda item: item
    )
    for i, sample in enumerate(loader):
        assert np.array_equal(sample.labels, draw_scene(i, (30, 40))[1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1,), ValueError, "seed.*-1"),
        ((1.5,), TypeError, "seed.*1.5"),
        ((True,), TypeError, "seed"),
        ((0, (0, 10)), ValueError, "size.*0"),
        ((0, (10, -3)), ValueError, "size.*-3"),
        ((0, (10.0, 3)), TypeError, "size.*10.0"),
        ((0, 10), TypeError, "size.*10"),
        ((0, (10, 10, 3)), TypeError, "size"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        draw_scene(*arguments)
    with pytest.raises(error, match=words):
        SyntheticScenes(2, *arguments[1:], seed=arguments[0])


def test_bad_count_is_named():
    with pytest.raises(ValueError, match="count.*-2"):
        SyntheticScenes(-2)
    assert len(SyntheticScenes(0)) == 0
