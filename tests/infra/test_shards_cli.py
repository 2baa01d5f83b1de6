import json
import shutil

import numpy as np
import simplejpeg
from PIL import Image

from infra.cli import main
from shards.codec import npy_bytes
from tests.helpers import make_dataset
from tests.shards.test_foreign import write as write_tar
from tests.shards.test_hdf5 import write


def lewm(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_preview_draws_a_sheet_and_a_clip(capsys, tmp_path):
    data = make_dataset(tmp_path / "data", 5, steps=(8, 12)).path
    for clip in ("gif", "webp"):
        code, out, _ = lewm(
            capsys, "shards", "preview", data, "--out", tmp_path, "--count", 2, "--clip", clip, "--json"
        )
        assert code == 0
        assert len(json.loads(out)["episodes"]) == 2
        with Image.open(tmp_path / f"preview.{clip}") as image:
            assert 9 <= getattr(image, "n_frames", 1) <= 13
    with Image.open(tmp_path / "preview.png") as image:
        assert image.width >= 1200
        assert len(image.getcolors(1 << 24) or []) > 100
    code, _, err = lewm(capsys, "shards", "preview", data, "--out", tmp_path, "--episodes", 7)
    assert code == 2
    assert "has episodes 0 to 4" in err


def test_index_merge_and_import(capsys, tmp_path):
    digest = make_dataset(tmp_path / "one", 2).digest
    (tmp_path / "tar/shards").mkdir(parents=True)
    shutil.copy(tmp_path / "one/shards/part-00000.tar", tmp_path / "tar/shards")
    options = ("--environment", "lab/x", "--dt", "0.1", "--json")
    code, out, _ = lewm(capsys, "shards", "index", tmp_path / "tar", *options)
    assert (code, json.loads(out)["digest"]) == (0, digest[:12])
    write(tmp_path / "x.h5")
    for name in ("two", "two"):
        command = ("shards", "import", tmp_path / "x.h5", "--out", tmp_path / name, *options)
        code, out, err = lewm(capsys, *command)
        assert (code, json.loads(out)["episodes"]) == (0, 5)
        assert "import: 5/5 episodes" in err
    make_dataset(tmp_path / "three", 3, seed=9)
    code, out, _ = lewm(
        capsys, "shards", "merge", tmp_path / "one", tmp_path / "three", "--out", tmp_path / "m", "--json"
    )
    assert (code, json.loads(out)["episodes"]) == (0, 5)
    code, _, err = lewm(capsys, "shards", "merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "n")
    assert code == 2
    assert "the datasets differ in environment" in err
    assert lewm(capsys, "shards", "index", tmp_path / "nothing", *options[:-1])[0] == 2


def test_stats_of_a_dataset_without_state(capsys, tmp_path):
    make_dataset(tmp_path / "one", 2)
    (tmp_path / "tar/shards").mkdir(parents=True)
    sample = {"__key__": "run", "action.npy": npy_bytes(np.zeros((2, 1), np.float32))}
    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    write_tar(tmp_path / "tar/shards/x.tar", sample | {f"{t:05d}.jpg": jpeg for t in range(3)})
    assert lewm(capsys, "shards", "index", tmp_path / "tar", "--environment", "lab/x", "--dt", "0.1")[0] == 0
    code, out, err = lewm(capsys, "shards", "stats", tmp_path / "tar")
    assert code == 0
    assert "Physical state" not in out
    assert "stats: 1/1 episodes" in err
    code, out, err = lewm(capsys, "shards", "stats", tmp_path / "one")
    assert (code, "Physical state" in out) == (0, True)


def test_verify_shows_progress(capsys, tmp_path):
    make_dataset(tmp_path / "one", 2)
    code, out, err = lewm(capsys, "shards", "verify", tmp_path / "one")
    assert (code, "every byte checks" in out) == (0, True)
    assert "bytes" in err
