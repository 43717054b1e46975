"""References built from folders, archives and statistics, with the faults that real data sets have."""

import json
import multiprocessing
import os
import shutil
import signal
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from bench.cli import main
from bench.judges.base import load_judge
from bench.judges.judge import JudgeSpec
from bench.judges.pixels.resize import resize
from bench.metrics.frechet import frechet_distance_from_features
from bench.references.build import BuildRequest, build_reference
from bench.references.stored import built_references, prepare_reference
from bench.run.runner import run
from protocols import find_protocol
from results.errors import BenchError

SIZE, CLASSES = 16, ("red", "green", "blue")
TENCH, SHARK = "n01440764", "n01484850"


class Colours(FeatureExtractorBase):
    """Means of the channels in the four quarters: 12 features; and 3 logits."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.scale = torch.nn.Parameter(torch.tensor(1.0 if name.endswith("Colours") else 2.0))

    def forward(self, images):
        pool = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) * self.scale / 255
        outputs = {"pool": pool, "logits": pool[:, :3]}
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "pool"


class OtherColours(Colours):
    """The same network with other weights."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__("other", features_list)


register_feature_extractor("Colours", Colours)
register_feature_extractor("OtherColours", OtherColours)


class Said:
    """Progress that remembers, and interrupts after so many batches."""

    def __init__(self, stop_after=None):
        self.lines, self.batches, self.begun, self.stop_after = [], 0, None, stop_after

    def begin(self, total, done):
        self.begun = (total, done)

    def advance(self, count):
        self.batches += 1
        if self.batches == self.stop_after:
            raise KeyboardInterrupt

    def say(self, text):
        self.lines.append(text)


def colours(name="Colours"):
    return load_judge(JudgeSpec("inception", "torch-fidelity", {"extractor": name}), device="cpu", root=Path())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "cache"))


def protocol(kind="folder", resize="squash", names=CLASSES, **reference):
    base = find_protocol("digits")
    table = {"name": "colours", "kind": kind, "resize": resize, **reference}
    judges = {"inception": {"kind": "torch-fidelity", "extractor": "Colours"}}
    return replace(base, name="test", resolution=SIZE, class_names=tuple(names), reference=table, judges=judges)


def write(root, name, seed, size=(23, 31), mode="RGB", **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def make_folder(root, count=30):
    for index in range(count):
        write(root, f"{CLASSES[index % 3]}/{index:03d}.png", index, size=(16 + index % 5, 20 + index % 7))
    return root


def build(data, asked, said=None, judge=None, **options):
    return build_reference(BuildRequest("colours", data, asked, **options), [judge or colours()], said or Said())


def test_images_of_every_flavour_are_judged_as_pillow_converts_them(tmp_path):
    root = tmp_path / "data"
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        write(root, "a-grey.png", 1, mode="L"),
        write(root, "b-cmyk.jpg", 2, mode="CMYK"),
        write(root, "c-palette.png", 3, mode="P"),
        write(root, "d-alpha.png", 4, mode="RGBA"),
        write(root, "e-rotated.JPEG", 5, exif=exif),
        write(root, "f.webp", 6),
        write(root, "g.BMP", 7),
        write(root, "h.tiff", 8),
    ]
    asked = protocol(resize="adm-center-crop")
    result = build(root, asked)
    features = np.load(result.references[0].directory / "features.npy")
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    images = torch.cat(
        [resize(torch.from_numpy(p.copy()).permute(2, 0, 1)[None], SIZE, "adm-center-crop") for p in pixels]
    )
    expected = colours()(images, torch.zeros(len(files), dtype=torch.int64))["features"].numpy()
    assert features.shape == (8, 12) and (features == expected).all()
    assert result.references[0].facts["labels"] is None


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"no image", "cannot be decoded"), (None, "cannot be decoded")]
)
def test_an_unreadable_image_stops_the_build_unless_it_is_to_be_skipped(tmp_path, content, reason):
    root = make_folder(tmp_path / "data")
    bad = root / "green" / "bad.jpg"
    if content is None:
        content = write(tmp_path, "whole.jpg", 0, size=(64, 64)).read_bytes()[:700]
    bad.write_bytes(content)
    with pytest.raises(BenchError, match=reason) as error:
        build(root, protocol())
    assert str(bad) in str(error.value) and "--skip-unreadable" in str(error.value) and "\n" not in str(error.value)
    assert built_references("colours") == []

    said = Said()
    built = build(root, protocol(), said, skip_unreadable=True).references[0]
    assert [entry["file"] for entry in built.facts["skipped"]] == ["green/bad.jpg"]
    assert "left out" in said.lines[0]
    reference = prepare_reference(protocol(), {"inception": colours()}, tmp_path)
    assert reference.n == 30 and len(reference.labels) == 30
    kept = np.array(reference.features()["inception.features"].features)
    bad.unlink()
    said = Said()
    clean = build(root, protocol(), said).references[0]
    assert clean.facts["digest"] != built.facts["digest"]
    assert (np.load(clean.directory / "features.npy") == kept).all()


def test_the_reference_gives_labels_features_and_full_rank_moments(tmp_path):
    root = make_folder(tmp_path / "data")
    build(root, protocol(classes=3))
    reference = prepare_reference(protocol(classes=3), {"inception": colours()}, tmp_path)
    found = reference.features()["inception.features"]
    assert np.bincount(reference.labels).tolist() == [10, 10, 10]
    assert found.mu == pytest.approx(found.features.astype(np.float64).mean(axis=0), abs=1e-12)
    assert found.sigma == pytest.approx(np.cov(found.features.astype(np.float64), rowvar=False), abs=1e-12)
    other = found.features + np.random.RandomState(0).normal(size=found.features.shape)
    assert found.frechet.distance_from_features(other) == pytest.approx(
        frechet_distance_from_features(np.asarray(found.features), other), rel=1e-9
    )


def test_a_stopped_build_continues_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.references.build.BATCH", 8)
    root = make_folder(tmp_path / "data")
    whole = build(root, protocol()).references[0]
    expected = np.load(whole.directory / "features.npy")
    with pytest.raises(KeyboardInterrupt):
        build(root, protocol(), Said(stop_after=2), fresh=True)
    assert built_references("colours") == [whole]  # the finished one stays until the next is whole
    shutil.rmtree(whole.directory)
    said = Said()
    continued = build(root, protocol(), said).references[0]
    assert said.begun == (30, 16)
    assert continued.facts["digest"] == whole.facts["digest"]
    assert (np.load(continued.directory / "features.npy") == expected).all()
    assert [*(tmp_path / "cache").rglob("*.partial"), *(tmp_path / "cache").rglob("*.tmp")] == []


def _build_slowly(root, cache):
    torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them
    os.environ["BENCH_CACHE_DIR"] = str(cache)
    import bench.references.build

    bench.references.build.BATCH = 2

    class Slow(Said):
        def advance(self, count):
            time.sleep(0.2)

    build(root, protocol(), Slow())


def test_a_killed_build_continues_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.references.build.BATCH", 2)
    root = make_folder(tmp_path / "data")
    child = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(root, tmp_path / "cache"))
    child.start()
    deadline = time.monotonic() + 60
    done = 0
    while done < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
        for path in (tmp_path / "cache").rglob("progress.json"):
            done = json.loads(path.read_text())["done"]
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert 6 <= done < 30 and built_references("colours") == []
    said = Said()
    continued = build(root, protocol(), said).references[0]
    assert said.begun[1] >= done
    assert np.isfinite(np.load(continued.directory / "features.npy")).all() and continued.facts["n"] == 30


def test_changed_files_are_judged_again_and_take_the_place_of_the_old_ones(tmp_path):
    root = make_folder(tmp_path / "data")
    first = build(root, protocol()).references[0]
    assert build(root, protocol()).reused == 1
    write(root, "red/000.png", 99)
    second = build(root, protocol())
    assert second.reused == 0 and second.references[0].facts["data"] != first.facts["data"]
    assert [entry.facts["digest"] for entry in built_references("colours")] == [second.references[0].facts["digest"]]


def test_a_reference_by_another_judge_or_cut_otherwise_is_refused(tmp_path):
    judges = {"inception": colours()}
    with pytest.raises(BenchError, match="is not built here: bench reference build colours --data DIR --protocol"):
        prepare_reference(protocol(), judges, tmp_path)
    root = make_folder(tmp_path / "data")
    build(root, protocol(), judge=colours("OtherColours"))
    with pytest.raises(BenchError, match="was not judged by 'inception' as protocol 'test' defines it"):
        prepare_reference(protocol(), judges, tmp_path)
    build(root, protocol())
    prepare_reference(protocol(), judges, tmp_path)
    with pytest.raises(BenchError, match=r"was cropped with squash at 16 pixels, .* uses adm-center-crop at 16"):
        prepare_reference(protocol(resize="adm-center-crop"), judges, tmp_path)
    with pytest.raises(BenchError, match=r"was cropped with squash at 16 pixels, .* uses squash at 32"):
        prepare_reference(replace(protocol(), resolution=32), judges, tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"images": 31}, "has 30 images, but protocol 'test' needs 31"),
        ({"classes": 4, "names": (*CLASSES, "black")}, r"is missing 1 of 4 classes, the first 3 \(black\)"),
    ],
)
def test_too_few_images_or_classes_are_met_before_anything_is_judged(tmp_path, options, reason):
    root = make_folder(tmp_path / "data")
    said = Said()
    with pytest.raises(BenchError, match=reason):
        build(root, protocol(**options), said)
    assert said.begun is None
    build(root, protocol())
    with pytest.raises(BenchError, match=reason if "images" in options else "class names other than those"):
        prepare_reference(protocol(**options), {"inception": colours()}, tmp_path)


def test_other_class_names_and_missing_classes_are_refused(tmp_path):
    root = make_folder(tmp_path / "data")
    with pytest.raises(BenchError, match="'green' does not match any class"):
        build(root, protocol(names=("red", "lime", "blue")))
    build(root, protocol())
    with pytest.raises(BenchError, match="built for class names other"):
        prepare_reference(protocol(names=("red", "blue", "green")), {"inception": colours()}, tmp_path)
    flat = tmp_path / "flat"
    write(flat, "a.png", 0)
    write(flat, "b.png", 1)
    with pytest.raises(BenchError, match="has no classes, but protocol 'test' needs them"):
        build(flat, replace(protocol(), label_plan="reference"))


def test_images_of_another_size_need_a_cut(tmp_path):
    write(tmp_path / "data", "a.png", 0)
    write(tmp_path / "data", "b.png", 0)
    with pytest.raises(BenchError, match=r"a.png: is 23x31 pixels and must be 16x16; choose how"):
        build(tmp_path / "data", protocol(resize="none"))
    with pytest.raises(BenchError, match="unknown resize policy 'crop'"):
        build(tmp_path / "data", protocol(), resize="crop")


def test_synset_folders_become_a_reference_with_imagenets_labels(tmp_path):
    root = tmp_path / "data"
    for index in range(4):
        write(root, f"val/{(TENCH, SHARK)[index % 2]}/{index}.JPEG", index)
    names = find_protocol("fair-imagenet-256").class_names
    asked = protocol("imagenet-val", names=names)
    built = build(root, asked).references[0]
    assert built.facts["labels"] == {"0": 2, "2": 2}
    assert prepare_reference(asked, {"inception": colours()}, tmp_path).labels.tolist() == [0, 0, 2, 2]
    with pytest.raises(BenchError, match=r"is missing 998 of 1000 classes, the first 1 \(goldfish\)"):
        build(root, protocol("imagenet-val", names=names, classes=1000))


def archive(path, count=30, **extra):
    images = np.random.RandomState(0).randint(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    np.savez(path, arr_0=images, **extra)
    return images


def test_a_reference_batch_keeps_its_own_statistics_beside_the_features_of_its_images(tmp_path):
    images = archive(tmp_path / "plain.npz")
    asked = protocol("npz", "none")
    plain = build(tmp_path / "plain.npz", asked).references[0]
    features = np.load(plain.directory / "features.npy").astype(np.float64)
    mu, sigma = features.mean(axis=0) + 0.001, 1.1 * np.cov(features, rowvar=False)
    archive(tmp_path / "batch.npz", mu=mu, sigma=sigma)
    said = Said()
    built = build(tmp_path / "batch.npz", asked, said).references[0]
    found = prepare_reference(asked, {"inception": colours()}, tmp_path).features()["inception.features"]
    assert (found.mu == mu).all() and (found.sigma == sigma).all() and len(found.features) == len(images)
    assert "archive's own statistics are used" in said.lines[0]
    assert built.facts["statistics"]["features"]["distance_to_own_images"] < 0.01
    archive(tmp_path / "foreign.npz", mu=mu + 10, sigma=sigma)
    with pytest.raises(BenchError, match="so they come from another network"):
        build(tmp_path / "foreign.npz", asked)


def test_statistics_alone_give_fid_and_leave_the_rest_to_their_reason(tmp_path):
    from bench.metrics.measure import measure

    mu, sigma = np.zeros(12), np.eye(12)
    np.savez(tmp_path / "s.npz", ref_mu=mu, ref_sigma=sigma)
    asked = protocol("statistics", "none", images=50_000)
    build(tmp_path / "s.npz", asked)
    reference = prepare_reference(asked, {"inception": colours()}, tmp_path)
    assert reference.n == 0 and reference.labels is None
    features = np.random.RandomState(0).normal(size=(200, 12)).astype(np.float32)
    measured = measure({"inception.features": features}, reference.features(), ["fid", "kid"], blocks=4)
    assert measured.values[0].value < 0.6
    assert measured.skipped[0].reason == "needs the reference's features, but only its mean and covariance are known"
    np.savez(tmp_path / "wide.npz", mu=np.zeros(13), sigma=np.eye(13))
    with pytest.raises(BenchError, match="of 13 features do not fit any judge"):
        build(tmp_path / "wide.npz", asked)


@pytest.mark.parametrize(
    ("kind", "arrays", "reason"),
    [
        ("statistics", {"arr_0": np.zeros((2, SIZE, SIZE, 3), np.uint8)}, "has no mu and sigma .* only arr_0"),
        ("npz", {"mu": np.zeros(12), "sigma": np.eye(12)}, "has no images"),
        ("npz", {"arr_0": np.zeros((2, SIZE, SIZE, 3))}, "contains float64"),
        ("npz", {"arr_0": np.array([{}], dtype=object)}, "pickled objects"),
        ("npz", {"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "contains images of 8x8 pixels, but 16x16 is required"),
    ],
)
def test_an_unusable_archive_is_one_clear_line(tmp_path, kind, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BenchError, match=reason) as error:
        build(tmp_path / "a.npz", protocol(kind, "none"))
    assert "\n" not in str(error.value)


def test_a_protocol_without_a_reference_still_has_a_row_for_it(tmp_path):
    reference = prepare_reference(protocol("none", "none"), {"inception": colours()}, tmp_path)
    assert reference.row()["n"] == 0 and reference.features() == {}


def test_a_run_against_a_built_reference_equals_the_embedded_one(tmp_path, quiet, digits_request):
    from protocols.digits.data import load_split
    from results.leaderboard import rows
    from results.store import connect

    split = load_split("test")
    images = split.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "digits.npz", arr_0=images, arr_1=split.labels.numpy())
    table = {"name": "digits-archive", "kind": "npz", "images": 599, "classes": 10}
    archived = replace(find_protocol("digits"), reference=table)
    with pytest.raises(
        BenchError,
        match=r"missing for digits-flow-small under digits: reference digits-archive\n.*bench reference build digits",
    ):
        run(digits_request(protocol=archived), tmp_path / "runs", progress=quiet(), workers=1)
    judges = []
    for name in ("inception", "cross_check"):
        options = {key: value for key, value in archived.judges[name].items() if key != "kind"}
        spec = JudgeSpec(name, archived.judges[name]["kind"], options)
        judges.append(load_judge(spec, device="cpu", root=archived.path.parent))
    build_reference(BuildRequest("digits-archive", tmp_path / "digits.npz", archived), judges, Said())
    found = []
    for request in (digits_request(), digits_request(protocol=archived)):
        summary = run(request, tmp_path / "runs", progress=quiet(), workers=1)
        with connect(summary.database) as connection:
            cells = {cell.cell_id for cell in summary.measured}
            found.append(next(row for row in rows(connection) if row.cell["cell_id"] in cells))
    embedded, built = found
    assert built.metrics["fid"].value == pytest.approx(embedded.metrics["fid"].value, rel=1e-9)
    assert built.metrics["fd_cross_check"].value == pytest.approx(embedded.metrics["fd_cross_check"].value, rel=1e-9)
    assert built.metrics["precision"].value == embedded.metrics["precision"].value
    assert built.cell["ranking"] != embedded.cell["ranking"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    images = np.lib.format.open_memmap(tmp_path / "arr_0.npy", "w+", np.uint8, (4000, SIZE, SIZE, 3))
    images.flush()
    peaks = []
    for count in (500, 4000):
        np.savez(tmp_path / f"{count}.npz", arr_0=images[:count])
        tracemalloc.start()
        build(tmp_path / f"{count}.npz", protocol("npz", "none"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_image = SIZE * SIZE * 3 + 12 * 8
    assert peaks[1] - peaks[0] < 0.5 * 3500 * per_image


def test_the_command_builds_lists_and_says_what_it_left_out(tmp_path, capsys):
    root = make_folder(tmp_path / "data", 9)
    (root / "red" / "empty.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    text = (
        f'extends = "fair-imagenet-256"\nname = "mine"\ntitle = "Mine"\nresolution = {SIZE}\n'
        '[reference]\nname = "mine-val"\nkind = "folder"\nimages = 9\nclasses = 1\n'
        '[judges.inception]\nextractor = "Colours"\n'
    )
    path = tmp_path / "mine.toml"
    path.write_text(text + "[labels]\n" + f"names = {list(CLASSES)}\n".replace("'", '"'))
    arguments = ["reference", "build", "mine-val", "--data", str(root), "--protocol", str(path), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "empty.png: is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--dry-run"])
    planned = capsys.readouterr().out
    assert stop.value.code == 0 and not built_references("mine-val")
    assert "10 images, 3 classes" in planned and "squash at 16 pixels" in planned and "inception" in planned
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--skip-unreadable"])
    said = capsys.readouterr().err
    assert stop.value.code == 0
    assert "9 images, 3 classes, squash at 16 pixels" in said
    assert "left out" in said and "passed over: notes.txt is not an image file" in said
    with pytest.raises(SystemExit):
        main(["references", "--json", "--runs-dir", str(tmp_path / "runs")])
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["name"], entry["n"], len(entry["skipped"])) for entry in listed] == [("mine-val", 9, 1)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["imagenet-val-256-squish"], "did you mean imagenet-val-256-squash"),
        (["mine", "--protocol", "imagenet-256-adm"], "uses reference 'adm-imagenet-256', not 'mine'"),
        (["digits-test", "--protocol", "digits"], "is made by code; there is nothing to build"),
    ],
)
def test_the_command_refuses_names_that_no_protocol_asks_for(tmp_path, capsys, arguments, reason):
    with pytest.raises(SystemExit) as stop:
        main(["reference", "build", *arguments, "--data", str(tmp_path)])
    assert stop.value.code == 2 and reason in capsys.readouterr().err


def test_a_build_that_met_an_unreadable_image_goes_on_from_there_when_it_may_skip_it(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.references.build.BATCH", 8)
    root = make_folder(tmp_path / "data")
    (root / "blue" / "zz.png").write_bytes(b"")
    with pytest.raises(BenchError, match="is empty"):
        build(root, protocol())
    said = Said()
    build(root, protocol(), said, skip_unreadable=True)
    assert said.begun == (31, 24)
    assert [*(tmp_path / "cache").rglob("*.partial")] == []


def test_two_processes_do_not_build_one_reference_at_once(tmp_path):
    home = tmp_path / "cache" / "references" / "colours"
    home.mkdir(parents=True)
    with FileLock(home / "build.lock"), pytest.raises(BenchError, match="is being built by another process"):
        build(make_folder(tmp_path / "data"), protocol())
