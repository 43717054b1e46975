"""Files of labels as people save them: every spelling is read alike, or refused by its line."""

import pytest

from bench.references.label_file import read_label_file
from results.errors import DatasetError

IMAGE, OTHER = "ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"
SYNSET = "n01751748"  # label 65


@pytest.mark.parametrize(
    "text",
    [
        f"ImageId,PredictionString\n{IMAGE},{SYNSET} 111 108 441 193\n",
        f'"ImageId","PredictionString"\n"{IMAGE}","{SYNSET} 111 108 441 193"\n',
        f"\ufeffImageId,PredictionString\r\n{IMAGE},{SYNSET} 1 2 3 4\r\n\r\n",
        f"{IMAGE}.JPEG 65\n\n",
        f"{IMAGE}.JPEG\t65\r",
        f"\ufeff{IMAGE}.JPEG,65",
        f"filename;label\n{IMAGE}.JPEG;65",
        f"{SYNSET}/{IMAGE}.JPEG 65\n{IMAGE}.JPEG 65",
        f"val\\{IMAGE}.JPEG {SYNSET}",
        f"\ufeff{SYNSET}\r\nn09193705\r\n",
    ],
)
def test_every_spelling_is_read_alike(tmp_path, text):
    (tmp_path / "labels.txt").write_bytes(text.encode())
    assert read_label_file(tmp_path / "labels.txt")(IMAGE) == 65


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"ImageId,PredictionString\n{IMAGE}\n", "line 2 has 1 field instead of 2"),
        (f"{IMAGE} 65\n{OTHER}\n", "line 2 has 1 field instead of 2"),
        (f"{IMAGE} 65 extra\n", "line 1 has 3 fields instead of 2"),
        (f"{IMAGE} 65\n{IMAGE}.JPEG 66\n", "lines 1 and 2 give image .* two classes, 65 and 66"),
        (f"{IMAGE} -1\n", r"line 1: -1 is not one of the 1000 synsets' numbers 0\.\.999"),
        (f"{IMAGE} 65.0\n", r"line 1: 65\.0 is not a whole number"),
        (f"{IMAGE} n00000001\n", "line 1: 'n00000001' is not one of the 1000 synsets"),
        (f"{SYNSET}\n\n{SYNSET}\n", "line 2 is blank, but line k is for image k"),
        ("".join(f"a{n} {n}\n" for n in range(1, 1001)), "seem to be numbered from 1 .1000 is present.*--first-label"),
        (
            "".join(f"a{n} {n}\n" for n in range(1, 1000)),
            r"seem to be numbered from 1 .1\.\.999 are "
            "present.*--first-label",
        ),
        (f"{IMAGE} 1\n".encode("utf-16"), "is in UTF-16"),
        (f"{IMAGE} 1\n{OTHER} \xe9\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"\0\0\0", "is not text"),
        (b"", "is empty"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(tmp_path, content, reason):
    file = tmp_path / "labels.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=reason) as raised:
        read_label_file(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_numbers_from_one_are_read_when_that_is_said(tmp_path):
    (tmp_path / "labels.txt").write_text("".join(f"a{n} {n}\n" for n in range(1, 1001)))
    label_of = read_label_file(tmp_path / "labels.txt", first_label=1)
    assert (label_of("a1"), label_of("a1000")) == (0, 999)
