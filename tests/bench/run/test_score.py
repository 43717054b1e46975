"""Images made elsewhere go through the same shards, arrays and record as a run's own."""

import pickle
import shlex

import numpy as np
import pytest
from PIL import Image

import bench.run.score
from bench.cli import main
from bench.references.stored import Reference
from bench.run.record import Context
from bench.run.score import score_images
from protocols import find_protocol
from results.cells import CellDirectory
from results.errors import BenchError
from results.leaderboard import missing_metrics, rows
from results.store import connect


def archive(path, count, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8).repeat(3, axis=3)
    np.savez(path, arr_0=images, arr_1=np.arange(count) % 10)
    return path


def test_a_scored_row_keeps_its_arrays_whatever_the_batches(tmp_path, monkeypatch):
    source, runs, protocol = archive(tmp_path / "a.npz", 130), tmp_path / "runs", find_protocol("digits")
    cell_id = score_images(source, protocol, runs, name="a")
    first = {name: np.array(array) for name, array in CellDirectory(runs, cell_id).arrays().items()}
    assert first["inception.features"].shape[0] == first["clip.score"].shape[0] == 130
    assert not list(runs.glob("cells/scoring-*")) and not list(runs.glob("cells/*/shard-*"))
    monkeypatch.setattr(bench.run.score, "BATCH", 7)
    assert score_images(source, protocol, runs, name="a") == cell_id
    again = CellDirectory(runs, cell_id).arrays()
    assert all(np.allclose(again[name], first[name], rtol=1e-4, atol=1e-4) for name in first)


def test_a_source_that_breaks_off_leaves_no_directory(tmp_path):
    source = archive(tmp_path / "a.npz", 600)
    source.write_bytes(source.read_bytes()[:-40_000])
    with pytest.raises(BenchError):
        score_images(source, find_protocol("digits"), tmp_path / "runs", name="a")
    assert not list((tmp_path / "runs").glob("cells/*"))


def test_a_worker_keeps_the_reference_from_task_to_task(tmp_path):
    np.save(tmp_path / "features.npy", np.random.default_rng(0).standard_normal((30, 4)))
    reference = Reference("r", "digest", {"n": 30}, {"inception.features": tmp_path / "features"})
    context = Context(find_protocol("digits"), reference, {}, {}, "cpu")
    factor = context.reference_features()["inception.features"].frechet
    sent: Context = pickle.loads(pickle.dumps(context))
    assert sent.reference_features()["inception.features"].frechet is factor


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"nfe": float("nan")}, "--nfe: nan"), ({"nfe": float("inf")}, "--nfe: inf"), ({"nfe": -3.0}, "--nfe: -3"),
        ({"name": " "}, "--name: ' '"), ({"name": "a\nb"}, "--name: .*control"), ({"name": "\x1b[31m"}, "--name"),
    ],
)  # fmt: skip
def test_what_no_row_may_hold_is_refused_at_the_door(tmp_path, options, reason):
    source = archive(tmp_path / "a.npz", 20)
    with pytest.raises(BenchError, match=reason):
        score_images(source, find_protocol("digits"), tmp_path / "runs", **{"name": "a", **options})
    assert not (tmp_path / "runs").exists()


def test_a_row_tells_its_command_what_is_missing_and_what_its_pixels_look_like(tmp_path):
    (tmp_path / "dir with space").mkdir()
    source = tmp_path / "dir with space" / "a b.npz"
    np.savez(source, arr_0=np.ones((20, 8, 8, 3), np.uint8), y=np.arange(20))
    cell_id = score_images(source, find_protocol("digits"), tmp_path / "runs", name="x; rm -r y", nfe=4)
    record = CellDirectory(tmp_path / "runs", cell_id).read_result()
    words = shlex.split(record["cell"]["command"])
    assert words[:6] == ["bench", "score", "--protocol", "digits", "--name", "x; rm -r y"]
    assert words[6:] == ["--nfe", "4", "--device", "cpu", "--", str(source)]
    reasons = {row["metric"]: row["reason"] for row in record["skipped_metrics"]}
    why = "no labels (arr_1, labels or label); the file also contains: y"
    few = "20 images in 48 dimensions are too few to remove the bias; it takes 240"
    assert reasons == {"clip": why, "pick": why, "accuracy": why, "fid_corrected": few}
    assert record["cell"]["pixels"]["remarks"][0] == "all pixels are 0 or 1: scale to 0..255"
    with connect(tmp_path / "runs" / "bench.duckdb") as connection:
        (row,) = rows(connection)
        assert row.remarks == record["cell"]["pixels"]["remarks"]
        assert missing_metrics(connection, [row]) == [
            "no labels (arr_1, labels or label): clip, pick, accuracy, mmhm not measured; the file also contains: y",
            "20 images in 48 dimensions are too few to remove the bias: fid_corrected not measured; it takes 240",
        ]


def test_a_dry_run_of_a_score_stores_nothing(tmp_path, capsys):
    path = archive(tmp_path / "mine.npz", 20)
    with pytest.raises(SystemExit) as stop:
        main(["score", str(path), "--dry-run", "--runs-dir", str(tmp_path / "runs")])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "20 images, 10 classes" in said and "inception, cross_check, clip, pick" in said
    assert not (tmp_path / "runs").exists()


def test_the_order_of_files_does_not_move_the_inception_score(tmp_path):
    (tmp_path / "unshuffled.toml").write_text(
        'extends = "digits"\nname = "unshuffled"\n[metrics.options]\nis_shuffle = false\n'
    )
    with np.load(archive(tmp_path / "in-turn.npz", 200)) as file:
        images, labels = file["arr_0"], file["arr_1"]
    by_class, mixed = np.argsort(labels, kind="stable"), np.random.default_rng(1).permutation(200)
    np.savez(tmp_path / "by-class.npz", arr_0=images[by_class], arr_1=labels[by_class])
    np.savez(tmp_path / "mixed.npz", arr_0=images[mixed], arr_1=labels[mixed])
    for index, image in enumerate(images):
        folder = tmp_path / "folder" / find_protocol("digits").class_names[labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    protocol, runs = find_protocol(str(tmp_path / "unshuffled.toml")), tmp_path / "runs"
    for name in ("in-turn.npz", "by-class.npz", "mixed.npz", "folder"):
        score_images(tmp_path / name, protocol, runs, name=name)
    with connect(runs / "bench.duckdb") as connection:
        scores = [row.value("is") for row in rows(connection)]
    assert len(scores) == 4 and scores == pytest.approx([scores[0]] * 4, rel=1e-5)
