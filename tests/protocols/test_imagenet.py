from collections import Counter
from pathlib import Path

import pytest

from protocols.imagenet import imagenet_classes, labels_of_name, spelling, synset_labels

OURS = {264: "cardigan dog", 517: "crane machine"}
CLASHES = {"crane": (134, 517), "maillot": (638, 639), "cardigan": (264, 474)}


def test_synsets_are_those_of_timm_in_its_order():
    timm = pytest.importorskip("timm")
    file = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    assert [entry.synset for entry in imagenet_classes()] == file.read_text().split()


def test_names_are_those_of_torchvision_but_for_the_two_that_clash():
    meta = pytest.importorskip("torchvision.models._meta")
    expected = [OURS.get(label, name) for label, name in enumerate(meta._IMAGENET_CATEGORIES)]
    assert [entry.name for entry in imagenet_classes()] == expected


def test_names_are_readable_and_tell_all_classes_apart():
    names = [entry.name for entry in imagenet_classes()]
    assert len(names) == 1000
    assert not [name for name in names if "_" in name or "," in name or name != name.strip()]
    assert [name for name, count in Counter(map(spelling, names)).items() if count > 1] == []
    assert [entry.label for entry in imagenet_classes()] == list(range(1000))


def test_published_names_clash_where_the_published_benchmark_counts_images_in_the_wrong_class():
    assert {name: labels for name, labels in labels_of_name().items() if len(labels) > 1} == CLASHES
    by_label = imagenet_classes()
    assert by_label[2].published_name == "great_white_shark"
    assert by_label[477].published_name == "carpenter's_kit"
    assert synset_labels()["n02012849"] == 134
