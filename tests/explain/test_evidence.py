"""Explanations of a trained network point at what it was trained to see: textures planted in photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from studies.photographs import TEXTURES
from studies.planted import (
    EXPLAINED_BY,
    PATCH,
    SIZE,
    held_out_scenes,
    measure,
    plant,
    train_network,
)

from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.sanity import THRESHOLD, cascading_randomization, rank_correlation

pytest.importorskip("skimage")

POINTING, ENERGY, PREFERENCE = 0.95, 0.85, 0.95
MANY = 60


@pytest.fixture(scope="session")
def view() -> ModelView:
    """Trained once, which takes most of the time, whichever test is first."""
    return ModelView.of(train_network(seed=1))


def check_pointing(view: ModelView, method: str, count: int) -> None:
    single, double = held_out_scenes(count, 1, seed=1), held_out_scenes(count // 2, 2, seed=1)
    evidence = measure(view, method, single, double, EXPLAINED_BY[method])
    assert evidence.pointing >= POINTING
    assert evidence.deletion < evidence.random_deletion
    assert evidence.preference >= PREFERENCE
    assert method != "contribution" or evidence.energy >= ENERGY


def check_targets(view: ModelView, method: str, count: int) -> None:
    """The maps of the two textures of a picture are not the same map."""
    for scene in held_out_scenes(count, 2, seed=2):
        x = view.preprocessing(scene.picture)
        first, second = (explain(view, x, method, target, **EXPLAINED_BY[method]).map for target in scene.regions)
        similarity = rank_correlation(first, second)
        assert similarity is not None and similarity < 0.9


def check_random_weights(view: ModelView, method: str, count: int) -> None:
    """On average over pictures: the correlation of a single one has a spread of a fifth.

    A map that random weights leave empty, as Grad-CAM's behind its ReLU, is no map that they leave alone.
    """
    similarities = []
    for seed, scene in enumerate(held_out_scenes(count, 1, seed=3)):
        x, (target,) = view.preprocessing(scene.picture), scene.regions
        rows = cascading_randomization(view, x, {method: EXPLAINED_BY[method]}, target, seed=seed)
        assert all((row.similarity is None) == bool(row.note) for row in rows)
        if rows[-1].similarity is not None:
            similarities.append(abs(rows[-1].similarity))
    assert similarities and np.mean(similarities) < THRESHOLD


@pytest.mark.slow
@pytest.mark.parametrize("method", EXPLAINED_BY)
def test_maps_of_a_trained_network(method: str, view: ModelView) -> None:
    check_pointing(view, method, MANY)
    check_targets(view, method, 4)
    check_random_weights(view, method, 1 if method == "rise" else 3)  # it takes a second for a map


def test_training_leaves_random_states_alone() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second = (train_network(3, pictures=24, epochs=2).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("textures", [[], [2], [0, 1]])
def test_patches_show_what_was_planted(textures: list[int]) -> None:
    """Regions are squares that do not overlap; outside of them is the same photograph without them."""
    scenes = [plant(textures, "val", np.random.default_rng(seed)) for seed in range(5)]
    for seed, scene in enumerate(scenes):
        assert scene.picture.size == (SIZE, SIZE) and list(scene.regions) == textures
        total = sum((region.astype(int) for region in scene.regions.values()), np.zeros((SIZE, SIZE), int))
        assert total.max(initial=0) <= 1 and total.sum() == len(textures) * PATCH**2
        background = np.asarray(plant([], "val", np.random.default_rng(seed)).picture)
        different = (np.asarray(scene.picture) != background).any(axis=2)
        assert not different[total == 0].any()
        assert not textures or different[total == 1].mean() > 0.9


def test_held_out_scenes_show_all_classes_alike() -> None:
    for textures in (1, 2):
        shown = [label for scene in held_out_scenes(6, textures, seed=0) for label in scene.regions]
        assert [shown.count(label) for label in range(len(TEXTURES))] == [2 * textures] * len(TEXTURES)
