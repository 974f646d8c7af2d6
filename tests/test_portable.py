"""The files of a run, as Windows would have them: a system that is stricter than POSIX about files in use."""

import errno
import os
import stat
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import inf, isnan
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from spherear import VAE, Pipeline, SamplingSettings
from spherear.bench.machine import machine, memory_bytes
from spherear.evaluation.samples import draw_samples, finish_samples, read_samples
from spherear.models.files import write_json, write_text
from spherear.train import train_ar, train_vae
from spherear.training.data.cached import encode_all
from spherear.training.data.catalog import load_data
from spherear.training.progress import memory_gib
from spherear.training.recipes import ARRecipe, VAERecipe
from tests.conftest import TINY_AR, TINY_VAE

MISSING = ("fork", "geteuid", "getloadavg", "pread", "sysconf")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the open and mapped files of Linux")


@pytest.fixture(autouse=True)
def as_on_windows(monkeypatch):
    """No file in use is removed or renamed, no read-only handle is synced, and calls of POSIX are missing."""
    import fcntl

    process, sync = psutil.Process(), os.fsync

    def unused(action):
        def checked(*paths, **options):
            files = {str(Path(path).resolve()) for path in paths if not options.get("dir_fd")}
            used = files & {file.path for file in (*process.open_files(), *process.memory_maps())}
            if used:
                raise PermissionError(errno.EACCES, "the file is in use", used.pop())
            return action(*paths, **options)

        return checked

    def fsync(handle):
        reads = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if reads and not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "the handle cannot write")
        sync(handle)

    for name in ("remove", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, unused(getattr(os, name)))
    monkeypatch.setattr(os, "fsync", fsync)
    for name in MISSING:
        monkeypatch.delattr(os, name)
    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)


def test_the_stand_in_is_as_strict_as_windows(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    mapped = torch.from_file(str(path), size=2, dtype=torch.float32)
    with pytest.raises(PermissionError, match="in use"):
        path.replace(tmp_path / "other")
    del mapped
    with path.open("rb") as file:
        with pytest.raises(PermissionError, match="in use"):
            path.unlink()
        with pytest.raises(OSError, match="cannot write"):
            os.fsync(file.fileno())
    path.unlink()


def test_text_is_the_same_bytes_everywhere(tmp_path):
    for text in ("first\n", "κ = 5\n"):
        write_text(tmp_path / "text", text)
    assert (tmp_path / "text").read_bytes() == b"\xce\xba = 5\n"
    write_json(tmp_path / "json", {"a": 1})
    assert (tmp_path / "json").read_bytes() == b'{\n  "a": 1\n}\n'


def test_a_machine_that_tells_little():
    device = torch.device("cpu")
    assert (memory_bytes(device), machine(device)["load"]) == (inf, None)
    assert isnan(memory_gib())


def test_runs_are_written_and_resumed(tmp_path):
    data = load_data("digits", 16)
    sizes = {"steps": 4, "batch_size": 8, "save_every": 2, "log_every": 1, "warmup_steps": 2}
    rates = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "ema_decay": 0.9}
    vae_recipe, ar_recipe = VAERecipe(**sizes, **rates), ARRecipe(**sizes, **rates)

    def vae_run():
        return train_vae(TINY_VAE, data, vae_recipe, tmp_path / "vae")

    def ar_run():
        return train_ar(TINY_AR, VAE.from_pretrained(tmp_path / "vae"), data, ar_recipe, tmp_path / "ar")

    for run in vae_run, ar_run:
        with closing(run()) as states:
            assert next(states).step == 1
        assert [state.step for state in run()] == [2, 3, 4]


def test_posteriors_are_cached(tmp_path, tiny_vae):
    data = load_data("digits", 16)
    with torch.no_grad():
        cached = encode_all(tiny_vae, data, folder=tmp_path / "cache")
    assert torch.equal(cached.features, encode_all(tiny_vae, data).features)


def test_samples_are_drawn(tmp_path, tiny_vae, tiny_ar):
    settings, pipeline = SamplingSettings(steps=1), Pipeline(tiny_vae, tiny_ar)
    both = [draw_samples(tmp_path, pipeline, 6, settings, shard=2, rank=rank, size=2) for rank in (0, 1)]
    for images in (next(both[0]), *both[1], next(both[0])):  # the first is not at its end
        assert images == 2
    file = finish_samples(tmp_path)
    assert len(read_samples(file)) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"samples.json", "samples.npz"}


def test_threads_read_a_tar_at_once(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(40):
            path = tmp_path / f"{number:02}.png"
            Image.fromarray(np.full((16, 16, 3), 6 * number, np.uint8)).save(path)
            tar.add(path, f"class/{path.name}")
    data = load_data(f"tar:{tmp_path / 'x.tar'}", 16)
    with ThreadPoolExecutor(4) as pool:
        images = torch.cat(list(pool.map(lambda i: data.batch(torch.tensor([i]))[0], range(40))))
    assert_close(images.mean((1, 2, 3)), 6 * torch.arange(40) / 127.5 - 1)
    assert data.broken == {}
    again = load_data(data.spec, 16)
    os.utime(tmp_path / "x.tar")  # a change, for which its index is written again
    assert load_data(data.spec, 16).name_of(7) == again.name_of(7) == "class/07.png"
    (tmp_path / "x.tar").unlink()
