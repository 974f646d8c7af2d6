"""Photographs in files: a made-up ILSVRC, folders, hub formats; views, broken images, hostile archives."""

import ast
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.testing import assert_close

import spherear
from spherear import VAE
from spherear.train import train_ar, train_vae
from spherear.training.augment import Augmentation
from spherear.training.data import tar as tar_module
from spherear.training.data.catalog import load_data
from spherear.training.data.images import as_tensor, seen
from spherear.training.jobs import Execution
from spherear.training.recipes import recipes
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_train import AR_RECIPE, VAE_RECIPE


def picture(seed, size=(40, 30), mode="RGB"):
    """A smooth picture that JPEG keeps nearly as it is."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(seed, **options):
    buffer = io.BytesIO()
    picture(seed, **options).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


@pytest.fixture
def ilsvrc(tmp_path):
    """Two classes of tars in a tar: one with a cut, a CMYK and a grey image."""
    odd = {f"n02_{i}.JPEG": jpeg(i) for i in range(8)}
    odd |= {"n02_cut.JPEG": jpeg(50)[:200], "n02_cmyk.JPEG": jpeg(51, mode="CMYK"), "n02_grey.JPEG": jpeg(52, mode="L")}
    classes = {
        "n02.tar": tar_of(odd),
        "n01.tar": tar_of({f"n01_{i}.JPEG": jpeg(100 + i) for i in range(9)} | {"notes.txt": b"no image"}),
    }
    path = tmp_path / "ILSVRC.tar"
    path.write_bytes(tar_of(classes))
    return path


def test_ilsvrc_is_read_in_place(ilsvrc):
    data = load_data(f"tar:{ilsvrc}", 16)
    assert data.classes == ("n01", "n02")
    assert (len(data), data.augmented) == (20, True)
    names = [data.name_of(i) for i in range(20)]
    assert names == sorted(names)
    place = names.index("n02/n02_3.JPEG")
    images, labels = data.batch(torch.tensor([place, 0]))
    expected = Image.open(io.BytesIO(jpeg(3)))
    side = (5, 0, 35, 30)
    direct = np.asarray(expected.resize((16, 16), Image.Resampling.LANCZOS, box=side, reducing_gap=3.0))
    assert_close(images[0], torch.from_numpy(direct.copy()).permute(2, 0, 1) / 127.5 - 1)
    assert labels.tolist() == [1, 0]
    assert [p.name for p in ilsvrc.parent.iterdir() if p.name.endswith((".JPEG", "n01.tar"))] == []


def test_grey_and_cmyk_are_images_and_the_cut_one_is_stood_in_for(ilsvrc):
    data = load_data(f"tar:{ilsvrc}", 16)
    names = [data.name_of(i) for i in range(20)]
    cut, grey, cmyk = (names.index(f"n02/n02_{kind}.JPEG") for kind in ("cut", "grey", "cmyk"))
    images, labels = data.batch(torch.tensor([cut, grey, cmyk]))
    assert labels.tolist() == [1, 1, 1]
    assert list(data.broken) == ["n02/n02_cut.JPEG"]
    assert "truncated" in data.broken["n02/n02_cut.JPEG"].lower()
    assert_close(images[0], images[1])  # the next in order is the grey one
    assert_close(images[1][0], images[1][2], atol=0, rtol=0)
    assert images[2].std() > 0.1


def test_the_index_is_built_once_and_again_when_the_tar_changes(ilsvrc, monkeypatch):
    calls = []
    real = tar_module.build_index
    monkeypatch.setattr(tar_module, "build_index", lambda path: calls.append(path) or real(path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tar_module.read_index(ilsvrc), range(4)))
    assert len(calls) == 1
    assert all(index.names == found[0].names and index.classes == ["n01", "n02"] for index in found)
    ilsvrc.write_bytes(tar_of({"a/1.png": b"x", "b/2.JPG": b"y", "b/readme": b"z"}))
    index = tar_module.read_index(ilsvrc)
    assert (index.names, index.classes, index.labels.tolist()) == (["a/1.png", "b/2.JPG"], ["a", "b"], [0, 1])
    assert len(calls) == 2
    ilsvrc.write_bytes(b"not a tar")
    with pytest.raises(ValueError, match="is not a complete tar file"):
        tar_module.read_index(ilsvrc)


def test_a_made_up_ilsvrc_trains_and_reports_what_it_skipped(ilsvrc, tmp_path):
    data = load_data(f"tar:{ilsvrc}", 16)
    recipe = replace(VAE_RECIPE, max_broken=0.06, crop=1.25, flip=True)
    *_, last = train_vae(TINY_VAE, data, recipe, tmp_path / "vae")
    assert last.step == 8
    lines = [json.loads(line) for line in (tmp_path / "vae" / "skipped-0.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["n02/n02_cut.JPEG"]
    assert json.loads((tmp_path / "vae" / "metrics.jsonl").read_text().splitlines()[-1])["skipped_images"] == 1
    vae = VAE.from_pretrained(tmp_path / "vae")
    ar = replace(TINY_AR, num_classes=2)
    for copies in (0, 2):
        ours = replace(AR_RECIPE, max_broken=0.06, cached_copies=copies)
        assert len(list(train_ar(ar, vae, load_data(f"tar:{ilsvrc}", 16), ours))) == 8


def test_too_many_broken_images_stop_the_run_with_the_list(ilsvrc):
    data = load_data(f"tar:{ilsvrc}", 16)
    with pytest.raises(ValueError, match=r"1 of 20 images are broken, more than max_broken, 0.01.*n02_cut.JPEG: "):
        list(train_vae(TINY_VAE, data, replace(VAE_RECIPE, max_broken=0.01)))


@pytest.mark.slow
def test_workers_read_what_the_loop_reads(ilsvrc):
    recipe = replace(VAE_RECIPE, max_broken=0.06, crop=1.25, flip=True, micro_batches=2)
    runs = []
    for workers in (0, 2):
        data = load_data(f"tar:{ilsvrc}", 16)
        states = train_vae(TINY_VAE, data, recipe, execution=Execution(workers=workers))
        runs.append([state.metrics() for state in states])
        assert list(data.broken) == ["n02/n02_cut.JPEG"]
    assert runs[0] == runs[1]


def test_an_archive_that_would_write_elsewhere_writes_nothing(tmp_path):
    inside = tmp_path / "data"
    inside.mkdir()
    path = inside / "hostile.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "../../escaped.jpg", jpeg(1))
        link = tarfile.TarInfo("a/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "a/" + "../" * 9 + "tmp/evil.jpg", jpeg(2))
        add(archive, "/absolute.jpg", jpeg(3))
    data = load_data(f"tar:{path}", 16)
    data.batch(torch.arange(len(data)))
    assert len(data) == 3
    assert {p.name for p in tmp_path.rglob("*")} == {
        "data", "hostile.tar", "hostile.tar.index.safetensors", "hostile.tar.index.safetensors.lock",
    }  # fmt: skip


def test_a_pickle_is_never_read(tmp_path):
    """Where the index, a checkpoint or cached posteriors should be, code is refused and does not run."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    evil = pickle.dumps(Evil())
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"a/1.jpg": jpeg(1)}))
    (tmp_path / "x.tar.index.safetensors").write_bytes(evil)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_data(f"tar:{path}", 16)
    run = tmp_path / "run"
    digits = load_data("digits", 16)
    states = train_vae(TINY_VAE, digits, VAE_RECIPE, run)
    next(states)
    states.close()
    (run / "checkpoints" / "0000001" / "state.safetensors").write_bytes(evil)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        next(train_vae(TINY_VAE, digits, VAE_RECIPE, run))
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "evil.jpg").write_bytes(evil)
    with pytest.raises(ValueError, match="no image of the class .a. of folder:.* can be read"):
        load_data(f"folder:{tmp_path / 'broken'}", 16).batch(torch.tensor([0]))
    assert not (tmp_path / "ran").exists()


def test_the_library_unpickles_nothing_and_calls_no_shell():
    """Read off the source: nothing is unpickled, no shell, and loaders that can run code are told not to."""
    package = Path(spherear.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                called = ast.unparse(node.func)
                assert not options.get("shell"), path
                assert called not in ("os.system", "os.popen", "eval", "exec"), path
                assert not called.startswith(("pickle.", "marshal.", "shelve.")), path
                assert not options.get("allow_pickle"), path
                assert called != "torch.load" or options.get("weights_only") is True, path
                assert not called.endswith((".extractall", ".extract")), path


@pytest.fixture
def folder(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(3):
            picture(i + 10 * (kind == "dog")).save(tmp_path / "images" / kind / f"{i}.png")
    return tmp_path / "images"


def test_folders_are_classes(folder):
    data = load_data(f"folder:{folder}", 16)
    assert (len(data), data.classes) == (6, ("cat", "dog"))
    assert data.batch(torch.tensor([0, 5]))[1].tolist() == [0, 1]
    (folder / "dog" / "1.png").write_bytes(b"")
    data.batch(torch.tensor([4]))
    assert list(data.broken) == ["dog/1.png"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder:", "data is 'folder:'; expected folder: and then where"),
        ("folder:/nowhere", "/nowhere is not a folder"),
        ("tar:/nowhere.tar", "/nowhere.tar is not a file"),
    ],
)
def test_places_that_are_not_there(spec, message):
    with pytest.raises(ValueError, match=message):
        load_data(spec, 16)


def test_the_hubs_formats_are_read_by_index_and_as_a_stream(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    exif, asked = Image.Exif(), {}
    exif[0x0112] = 6
    picture(20, size=(60, 20)).save(folder / "dog" / "1.png", exif=exif)  # stored on its side
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(folder / "cat" / "0.png")  # nothing, on black
    real = datasets.load_dataset

    def local(name, split, revision, streaming):
        asked.update(name=name, split=split, revision=revision, streaming=streaming)
        found = real("imagefolder", data_dir=str(folder), split=split, cache_dir=str(tmp_path / "cache"))
        if not streaming:
            return found
        stream = found.to_iterable_dataset()
        stream.info.builder_name = found.info.builder_name
        stream.info.splits = datasets.splits.SplitDict(  # as a hub's data card says
            train=datasets.splits.SplitInfo("train", num_examples=len(found))
        )
        return stream

    monkeypatch.setattr(datasets, "load_dataset", local)
    data = load_data("hub:some/body@abc123#train", 16)
    assert (asked["name"], asked["revision"], asked["split"], asked["streaming"]) == (
        "some/body",
        "abc123",
        "train",
        False,
    )
    assert (len(data), data.classes[:2]) == (6, ("cat", "dog"))
    direct = load_data(f"folder:{folder}", 16)
    order = torch.tensor([4, 0, 3])
    for ours, theirs in zip(data.batch(order), direct.batch(order), strict=True):
        assert_close(ours, theirs, atol=0, rtol=0)
    assert (data.batch(order)[0][1] == 1).all()  # nothing is white
    upright = picture(20, size=(60, 20)).transpose(Image.Transpose.ROTATE_270)
    seen = as_tensor(ImageOps.fit(upright, (16, 16), Image.Resampling.LANCZOS))
    assert_close(data.batch(order)[0][0], seen, atol=1.01 / 127.5, rtol=0)
    stream = load_data("hub:some/body#train?stream", 16)
    assert asked["streaming"]
    for ours, theirs in zip(stream.batch(order), direct.batch(order), strict=True):
        assert_close(ours, theirs, atol=0, rtol=0)
    assert len(list(train_vae(TINY_VAE, stream, VAE_RECIPE))) == 8
    with pytest.raises(ValueError, match="expected \\?stream or nothing"):
        load_data("hub:some/body?flow", 16)


def test_a_row_of_the_hub_cannot_read_a_file_of_this_machine(tmp_path):
    """A table whose image is a path, of which the file exists."""
    datasets = pytest.importorskip("datasets")
    secret = tmp_path / "secret.png"
    picture(1).save(secret)
    root = tmp_path / "table"
    root.mkdir()
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=["a", "b"]))
    content = secret.read_bytes()
    rows = [{"bytes": content, "path": None}, {"bytes": None, "path": str(secret)}, {"bytes": content, "path": None}]
    table = datasets.Dataset.from_dict({"image": rows, "label": [0, 0, 1]}, features=features)
    table.to_parquet(root / "train-00000.parquet")
    for stream in ("", "?stream"):
        data = load_data(f"hub:{root}{stream}", 16)
        data.batch(torch.arange(3))
        assert list(data.broken.items()) == [
            ("row 1", f"it is the file {secret}; expected one in the folders of the data set")
        ]
        assert data.facts()["revision"] == ""


def test_the_revision_of_the_hub_is_recorded_and_may_change(folder, tmp_path, monkeypatch):
    from spherear.training.data.hub import _revision
    from spherear.training.run_file import check_facts

    commit = "0123456789abcdef" * 2 + "01234567"
    files = f"[{{'filename': '/cache/some___body/default/0.0.0/{commit}/body-train.arrow'}}]"
    assert _revision("some/body", "main", files) == commit
    assert _revision(str(folder), "", "[]") == ""
    assert _revision("some/body", commit, "") == commit
    (tmp_path / "run.json").write_text(json.dumps({"dataset": {"revision": commit, "images": 3}}))
    assert check_facts(tmp_path, {"dataset": {"revision": "other", "images": 3}}) == ["dataset.revision"]
    with pytest.raises(ValueError, match=r"dataset.images: expected 3, got 4\)"):
        check_facts(tmp_path, {"dataset": {"revision": "other", "images": 4}})


def test_a_view_depends_on_seed_epoch_and_index_alone():
    look = Augmentation(seed=1, epoch=2, crop=1.25, spread=1.0, flip=True)
    assert look.view(7, 40, 30) == replace(look).view(7, 40, 30)
    views = {look.view(7, 40, 30), look.view(8, 40, 30), replace(look, epoch=3).view(7, 40, 30),
             replace(look, seed=2).view(7, 40, 30)}  # fmt: skip
    assert len(views) == 4


def test_views_stay_inside_and_fill_their_range():
    look = Augmentation(crop=1.25, spread=1.0, flip=True)
    found = [look.view(i, 50, 40) for i in range(2000)]
    left, top, right, bottom = torch.tensor([box for box, _ in found]).T
    assert_close(right - left, bottom - top)
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 50 and bottom.max() <= 40  # noqa: PT018
    side = 40 / (right - left)  # uniform on [1, 1.25]
    assert_close(float(side.mean()), 1.125, atol=0.005, rtol=0)
    assert_close(float(side.std()), 0.25 / 12**0.5, atol=0.003, rtol=0)
    assert abs(sum(mirrored for _, mirrored in found) / 2000 - 0.5) < 0.04


def test_crops_fade_to_the_centre():
    recipe = recipes("imagenet256-B").ar
    assert (recipe.augmentation_at(0).crop, recipe.augmentation_at(350).spread) == (1.25, 1.0)
    half = recipe.augmentation_at(362)
    assert 1.11 < half.crop < 1.14
    for epoch in (375, 399):
        box, _ = recipe.augmentation_at(epoch).view(3, 50, 40)
        assert box == (5.0, 0.0, 45.0, 40.0)


def test_a_mirror_is_a_mirror():
    image = picture(3)
    look = Augmentation(flip=True)
    found = {look.view(i, 40, 30)[1]: i for i in range(20)}
    plain, mirrored = (np.asarray(seen(image, look, found[flag], 16)) for flag in (False, True))
    assert np.array_equal(plain[:, ::-1], mirrored)
