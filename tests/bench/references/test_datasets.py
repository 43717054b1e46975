import numpy as np
import pytest
from scipy.io import savemat

from bench.references.datasets import open_image_set
from protocols.imagenet import imagenet_classes
from results.errors import BenchError, DatasetError

TENCH, SHARK, CRANE_BIRD = "n01440764", "n01484850", "n02012849"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def val(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def test_synset_folders_are_found_below_val_and_ordered_by_label_then_name(tmp_path):
    touch(tmp_path / "val", f"{SHARK}/b.JPEG", f"{SHARK}/a.JPEG", f"{TENCH}/c.jpg", f"{TENCH}/notes.txt", ".DS_Store")
    found = open_image_set("imagenet-val", tmp_path)
    assert [file.as_posix() for file in found.files] == [f"{TENCH}/c.jpg", f"{SHARK}/a.JPEG", f"{SHARK}/b.JPEG"]
    assert found.labels.tolist() == [0, 2, 2]
    assert [entry.name for entry in found.left_out] == [f"{TENCH}/notes.txt"]


def test_a_synset_beyond_the_thousand_is_refused(tmp_path):
    touch(tmp_path, "n00000001/a.JPEG")
    with pytest.raises(DatasetError, match=r"n00000001: is not one of the 1000 synsets"):
        open_image_set("imagenet-val", tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "LOC_val_solution.csv",
            f"ImageId,PredictionString\nILSVRC2012_val_00000001,{SHARK} 1 2 3 4 {SHARK} 5 6 7 8\n"
            f"ILSVRC2012_val_00000002,{TENCH} 1 2 3 4\n",
        ),
        ("val.txt", f"{val(1)} 2\n{val(2)} 0\n"),
        ("val.txt", f"{val(1)} {SHARK}\n{val(2)} {TENCH}\n"),
        ("synset_labels.txt", f"{SHARK}\n{TENCH}\n"),
    ],
)
def test_the_flat_folder_takes_its_classes_from_a_file_beside_it(tmp_path, name, text):
    touch(tmp_path / "val", val(1), val(2))
    (tmp_path / name).write_text(text)
    found = open_image_set("imagenet-val", tmp_path)
    assert [(file.name, label) for file, label in zip(found.files, found.labels.tolist(), strict=True)] == [
        (val(2), 0),
        (val(1), 2),
    ]


@pytest.mark.parametrize("listing", ["meta.mat", "map_clsloc.txt"])
def test_the_official_ground_truth_is_read_in_the_development_kits_own_order(tmp_path, listing):
    order = [entry.synset for entry in reversed(imagenet_classes())]
    touch(tmp_path / "val", val(1), val(2))
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1000\n998\n")
    if listing == "meta.mat":
        rows = np.zeros(1001, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
        for number, synset in enumerate([*order, "n00001740"], start=1):
            rows[number - 1] = (number, synset)
        savemat(kit / "meta.mat", {"synsets": rows})
    else:
        (kit / "map_clsloc.txt").write_text("".join(f"{s} {n} name\n" for n, s in enumerate(order, start=1)))
    found = open_image_set("imagenet-val", tmp_path)
    assert [(file.name, label) for file, label in zip(found.files, found.labels.tolist(), strict=True)] == [
        (val(1), 0),
        (val(2), 2),
    ]


def test_development_kit_numbers_without_their_order_are_refused(tmp_path):
    touch(tmp_path, val(1))
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n")
    with pytest.raises(DatasetError, match=r"own order; put its meta.mat"):
        open_image_set("imagenet-val", tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("hello\n", "not a label file of a known form"),
        (f"{TENCH}\n", "has 1 lines but none for image"),
        (f"{val(1)} 2\n", "does not list image"),
        (f"{val(1)} 1000\n", "not one of the 1000 synsets"),
    ],
)
def test_a_bad_file_of_labels_is_named_with_the_reason(tmp_path, text, reason):
    touch(tmp_path / "val", val(1), val(2))
    file = tmp_path / "labels.txt"
    file.write_text(text)
    with pytest.raises(DatasetError, match=reason) as error:
        open_image_set("imagenet-val", tmp_path, label_file=file)
    assert str(file) in str(error.value)


def test_a_flat_folder_without_labels_is_refused(tmp_path):
    touch(tmp_path / "deep" / "er" / "and" / "deeper" / "val", val(1))
    with pytest.raises(DatasetError, match="without a label file"):
        open_image_set("imagenet-val", tmp_path / "deep" / "er" / "and" / "deeper")


def test_imagenetv2_folders_count_as_numbers_not_as_text(tmp_path):
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    touch(root, "0/a.jpeg", "10/b.jpeg", "2/c.jpeg", "100/d.jpeg")
    found = open_image_set("imagenetv2", tmp_path, variant="matched-frequency")
    assert found.labels.tolist() == [0, 2, 10, 100]
    assert [file.name for file in found.files] == ["a.jpeg", "c.jpeg", "b.jpeg", "d.jpeg"]
    with pytest.raises(DatasetError, match="not the variant 'top-images'"):
        open_image_set("imagenetv2", root, variant="top-images")
    touch(root, "1000/e.jpeg")
    with pytest.raises(DatasetError, match="1000: its name is not a class number"):
        open_image_set("imagenetv2", root)


def test_several_variants_side_by_side_must_be_told_apart(tmp_path):
    touch(tmp_path, "imagenetv2-top-images-format-val/0/a.jpeg", "imagenetv2-threshold0.7-format-val/1/a.jpeg")
    with pytest.raises(DatasetError, match="choose one of them with --data"):
        open_image_set("imagenetv2", tmp_path)
    assert open_image_set("imagenetv2", tmp_path, variant="threshold-0.7").labels.tolist() == [1]


@pytest.mark.parametrize("clash", ["crane", "maillot", "Cardigan", "cardigan"])
def test_relaionet_names_that_clash_are_refused_or_left_out_but_never_guessed(tmp_path, clash):
    root = tmp_path / "reLAIONet-cleaned-v1"
    touch(root, f"{clash}/a.png", "carpenter_s_kit/b.png", "great-white-shark/c.png", f"{CRANE_BIRD}/d.png")
    with pytest.raises(DatasetError, match=rf"'{clash}' matches both class \d+ .* and class \d+"):
        open_image_set("relaionet", tmp_path)
    found = open_image_set("relaionet", tmp_path, ambiguous="skip")
    assert found.labels.tolist() == [2, 134, 477]
    assert [entry.name for entry in found.left_out] == [clash]


def test_relaionet_folders_of_no_class_are_refused_with_the_nearest_name(tmp_path):
    touch(tmp_path, "goldfish/a.png", "great_wite_shark/b.png")
    with pytest.raises(
        DatasetError, match=r"'great_wite_shark' does not match any class \(close to: great_white_shark\)"
    ):
        open_image_set("relaionet", tmp_path)


def test_a_plain_folder_has_classes_only_if_it_has_folders(tmp_path):
    flat = touch(tmp_path / "flat", "b.png", "a.PNG", "c.webp", "readme.md")
    assert open_image_set("folder", flat).labels is None
    assert [file.name for file in open_image_set("folder", flat).files] == ["a.PNG", "b.png", "c.webp"]
    classes = touch(tmp_path / "classes", "two/x.png", "0/y.png")
    assert open_image_set("folder", classes, class_names=("one", "two")).labels.tolist() == [0, 1]
    assert open_image_set("folder", classes).class_names == ("0", "two")
    with pytest.raises(DatasetError, match="'two' does not match any class"):
        open_image_set("folder", classes, class_names=("one", "three"))
    touch(classes, "loose.png")
    with pytest.raises(DatasetError, match=r"loose.png: lies next to class folders"):
        open_image_set("folder", classes)


def test_a_folder_is_named_by_published_names_or_synsets_where_the_classes_are_imagenets(tmp_path):
    names = tuple(entry.name for entry in imagenet_classes())
    touch(tmp_path, f"{TENCH}/a.png", "carpenter's_kit/b.png", "crane bird/c.png")
    assert open_image_set("folder", tmp_path, class_names=names).labels.tolist() == [0, 134, 477]


def test_nothing_there_is_one_clear_line(tmp_path):
    with pytest.raises(DatasetError, match="does not exist; name the data set's folder"):
        open_image_set("folder", tmp_path / "none")
    for kind in ("folder", "relaionet", "imagenetv2", "imagenet-val"):
        with pytest.raises(DatasetError, match="contains no images"):
            open_image_set(kind, tmp_path)
    with pytest.raises(BenchError, match="unknown kind"):
        open_image_set("imagenet", tmp_path)
