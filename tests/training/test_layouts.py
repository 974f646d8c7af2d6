"""Which files are images of which class: folders, tars, tars in tars, WebDatasets; hidden, other and missing files."""

import errno
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from spherear.training.data.catalog import load_data
from spherear.training.data.images import as_tensor
from tests.training.test_photographs import add, jpeg, picture, tar_of


def png(seed, **options):
    file = io.BytesIO()
    picture(seed, size=(16, 16)).save(file, format="PNG", **options)
    return file.getvalue()


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def pack(root, path, prefix=""):
    """A tar of a folder, its files in no particular order."""
    with tarfile.open(path, "w") as archive:
        for file in sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: hash(p.name)):
            add(archive, prefix + file.relative_to(root).as_posix(), file.read_bytes())
    return path


def classes_of(data):
    """name -> class, for every image."""
    return {data.name_of(i): data.classes[int(label)] for i, label in enumerate(data.labels)}


FILES = {"cat/day/1.png": png(1), "cat/night/2.png": png(2), "dog/3.png": png(3), "dog/deep/er/4.png": png(4)}


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/x.png", "__MACOSX/cat/1.png", "cat/._1.png", ".DS_Store", "cat/.thumbs/1.png"]
)
def test_hidden_files_change_nothing(tmp_path, hidden):
    root = write(tmp_path / "data", FILES)
    before = load_data(f"folder:{root}", 16)
    write(root, {hidden: png(9)})
    (root / ".empty").mkdir()
    after = load_data(f"folder:{root}", 16)
    assert (after.classes, after.labels.tolist(), after.others) == (before.classes, before.labels.tolist(), ())
    packed = load_data(f"tar:{pack(root, tmp_path / 'x.tar')}", 16)
    assert (classes_of(packed), packed.others) == (classes_of(before), ())


@pytest.mark.parametrize("prefix", ["", "./", "data/", "a/b/"])
def test_a_tar_gives_the_classes_of_its_folder(tmp_path, prefix):
    root = write(tmp_path / "data", FILES)
    folder, packed = load_data(f"folder:{root}", 16), load_data(f"tar:{pack(root, tmp_path / 'x.tar', prefix)}", 16)
    assert folder.classes == packed.classes == ("cat", "dog")
    expected = {prefix.removeprefix("./") + name: kind for name, kind in classes_of(folder).items()}
    assert classes_of(packed) == expected == {prefix.removeprefix("./") + name: name[:3] for name in FILES}
    for ours, theirs in zip(folder.batch(torch.arange(4)), packed.batch(torch.arange(4)), strict=True):
        assert torch.equal(ours, theirs)


def test_every_picture_counts_and_other_files_are_named(tmp_path):
    kinds = {"png": "PNG", "tif": "TIFF", "gif": "GIF", "jfif": "JPEG", "JPEG": "JPEG", "ppm": "PPM", "webp": "WEBP"}
    files = {}
    for number, (ending, kind) in enumerate(kinds.items()):
        file = io.BytesIO()
        picture(number, size=(16, 16)).save(file, format=kind)
        files[f"{'ab'[number % 2]}/{number}.{ending}"] = file.getvalue()
    root = write(tmp_path / "data", files | {"a/notes.txt": b"x", "cover.png": png(1), "b/table.csv": b"1,2"})
    for spec in (f"folder:{root}", f"tar:{pack(root, tmp_path / 'x.tar')}"):
        data = load_data(spec, 16)
        data.batch(torch.arange(len(data)))
        assert (len(data), data.broken) == (7, {})
        assert data.others == ("a/notes.txt", "b/table.csv", "cover.png")
        assert data.describe().endswith(
            "7 images of 2 classes, a, b; not read: 3 others, a/notes.txt, b/table.csv, cover.png"
        )


def test_a_class_without_a_readable_image_is_refused(tmp_path):
    root = write(tmp_path / "data", FILES | {"cow/readme.txt": b"none yet"})
    message = "has no picture of 'cow'; expected some for each of its 3 classes"
    with pytest.raises(ValueError, match=message):
        load_data(f"folder:{root}", 16)
    tars = tmp_path / "tars.tar"
    tars.write_bytes(tar_of({"cat.tar": tar_of({"1.jpg": jpeg(1)}), "cow.tar": tar_of({})}))
    with pytest.raises(ValueError, match=r"has no picture of 'cow'; expected some for each of its 2 classes"):
        load_data(f"tar:{tars}", 16)
    write(root, {"cow/1.png": b"cut", "cow/2.png": b""})
    for spec in (f"folder:{root}", f"tar:{pack(root, tmp_path / 'x.tar')}"):
        data = load_data(spec, 16)
        with pytest.raises(
            ValueError, match=r"no image of the class 'cow' of .* can be read \(.*cow/1.png: .*cow/2.png"
        ):
            data.batch(torch.arange(len(data)))


def test_a_webdataset_has_a_label_beside_each_picture(tmp_path):
    path = tmp_path / "shard.tar"
    files = {f"{i:04}.jpg": jpeg(i) for i in range(4)} | {f"{i:04}.cls": b"%d\n" % (i % 2) for i in range(4)}
    path.write_bytes(tar_of(files | {f"{i:04}.json": b"{}" for i in range(4)}))
    data = load_data(f"tar:{path}", 16)
    assert classes_of(data) == {"0000.jpg": "0", "0001.jpg": "1", "0002.jpg": "0", "0003.jpg": "1"}
    assert data.others == tuple(f"{i:04}.json" for i in range(4))
    del files["0002.cls"]
    path.write_bytes(tar_of(files))
    with pytest.raises(ValueError, match=r"has .cls files, but none for \['0002.jpg'\]"):
        load_data(f"tar:{path}", 16)


def test_pictures_without_a_class_and_two_layouts_at_once(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"1.png": png(1), "2.png": png(2)}))
    with pytest.raises(ValueError, match=r"has no images \(only 1.png, 2.png\); expected pictures in a folder"):
        load_data(f"tar:{path}", 16)
    path.write_bytes(tar_of({"cat.tar": tar_of({"1.jpg": jpeg(1)}), "dog/2.jpg": jpeg(2)}))
    with pytest.raises(ValueError, match=r"holds tars, and pictures outside them: \['dog/2.jpg'\]"):
        load_data(f"tar:{path}", 16)


def test_classes_are_sorted_character_by_character(tmp_path):
    root = write(tmp_path, {f"{name}/1.png": png(1) for name in ("10", "9", "Zoo", "ant")})
    assert load_data(f"folder:{root}", 16).classes == ("10", "9", "Zoo", "ant")


def random_tree(root, rng):
    """A folder with everything that people have in theirs; returns how each picture should be seen."""
    expected = {}
    for kind in rng.permutation(["ant", "Bee", "10", "cow pie"])[: rng.integers(2, 5)]:
        for number in range(rng.integers(2, 5)):
            deep = rng.choice(["", "day/", "day/late/", "n.o.t.e/"])
            mode = rng.choice(["RGB", "L", "RGBA", "P", "LA", "1", "I;16"])
            ending, file_kind = [("png", "PNG"), ("PNG", "PNG"), ("tiff", "TIFF"), ("gif", "GIF")][rng.integers(4)]
            mode = "RGB" if file_kind != "PNG" else str(mode)
            image, options = picture(int(rng.integers(1000)), size=(16, 16)), {}
            if mode == "I;16":
                image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
            elif mode in ("RGBA", "LA"):
                image.putalpha(Image.fromarray(rng.choice([0, 255], (16, 16)).astype(np.uint8)))
                image = image.convert(mode)
            else:
                image = image.convert(mode)
            if file_kind == "PNG" and rng.random() < 0.5:
                options["exif"] = Image.Exif()
                options["exif"][0x0112] = int(rng.integers(1, 9))
            file = io.BytesIO()
            image.save(file, format=file_kind, **options)
            name = f"{kind}/{deep}{number}.{ending}"
            write(root, {name: file.getvalue()})
            expected[name] = (str(kind), file.getvalue())
    junk = ["{0}/.x.png", ".cache/y.png", "__MACOSX/{0}/z.png", "{0}/._1.png"]
    write(root, {str(rng.choice(junk)).format(next(iter(expected)).split("/")[0]): b"junk" for _ in range(2)})
    first = next(iter(expected)).split("/")[0]
    if rng.random() < 0.5 and os.name == "posix":
        link = root / first / "again.png"
        link.symlink_to(root / next(iter(expected)))
        expected[f"{first}/again.png"] = (first, link.read_bytes())
    if rng.random() < 0.5:
        write(root, {f"{first}/cut.png": b"\x89PNG\r\n\x1a\ncut"})
        expected[f"{first}/cut.png"] = (first, b"")
    return expected


def independent(content):
    """A picture as Pillow's documentation reads it, with the arithmetic written out."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image).astype(np.int64) // 257)[..., None], 3, axis=2)
    rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))


@pytest.mark.parametrize("seed", range(25))
def test_generated_folders_are_read_as_an_independent_reading_says(tmp_path, seed):
    rng = np.random.default_rng(seed)
    expected = random_tree(tmp_path / "data", rng)
    specs = [f"folder:{tmp_path / 'data'}", f"tar:{pack(tmp_path / 'data', tmp_path / 'x.tar')}"]
    for spec in specs:
        data = load_data(spec, 16)
        assert classes_of(data) == {name: kind for name, (kind, _) in expected.items()}
        assert list(data.classes) == sorted({kind for kind, _ in expected.values()})
        images, labels = data.batch(torch.arange(len(data)))
        for index in range(len(data)):
            name = data.name_of(index)
            kind, content = expected[name]
            if not content:
                assert name in data.broken
                continue
            assert data.classes[int(labels[index])] == kind
            seen = np.asarray((images[index].permute(1, 2, 0) + 1) * 127.5)
            assert np.abs(seen - independent(content)).max() <= 1  # a rounding
        assert sorted(data.broken) == sorted(name for name, (_, content) in expected.items() if not content)


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_circles_of_links_end_and_linked_folders_count_once(tmp_path):
    root = write(tmp_path / "data", FILES)
    (root / "dog" / "circle").symlink_to(root / "dog")
    write(tmp_path / "elsewhere", {"5.png": png(5)})
    (root / "cow").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load_data(f"folder:{root}", 16)
    assert classes_of(data) == {name: name[:3] for name in (*FILES, "cow/5.png", "dog/gone.png")}
    data.batch(torch.arange(len(data)))
    assert list(data.broken) == ["dog/gone.png"]


def test_a_small_picture_is_seen_pixel_by_pixel(tmp_path):
    root = write(tmp_path, {"a/1.png": png(7)})
    (image,), _ = load_data(f"folder:{root}", 16).batch(torch.tensor([0]))
    assert torch.equal(image, as_tensor(Image.open(io.BytesIO(png(7)))))
    assert Path(root / "a" / "1.png").read_bytes() == png(7)


@pytest.mark.parametrize("inner", [False, True])
def test_a_tar_that_was_cut_between_two_files_is_noticed(tmp_path, inner):
    """It holds whole files, and lacks the zeros at its end."""
    whole = tar_of({f"cat/{i}.jpg": jpeg(i) for i in range(3)} | {f"dog/{i}.jpg": jpeg(i) for i in range(3)})
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        cut = whole[: archive.getmembers()[-1].offset]
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"cat.tar": cut, "dog.tar": whole}) if inner else cut)
    with pytest.raises(ValueError, match=r"x.tar.* ends without the zeros that end a tar; .* this one was cut"):
        load_data(f"tar:{path}", 16)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".safetensors")] == []


def test_folders_of_splits_are_no_classes(tmp_path):
    files = {f"{split}/{name}": content for split in ("train", "Val") for name, content in FILES.items()}
    root = write(tmp_path / "data", files)
    for spec in (f"folder:{root}", f"tar:{pack(root, tmp_path / 'x.tar')}"):
        with pytest.raises(ValueError, match=r"has the classes (Val, train|train, Val), names of splits; expected the"):
            load_data(spec, 16)
    assert load_data(f"folder:{root / 'train'}", 16).classes == ("cat", "dog")


def test_an_index_in_a_folder_that_cannot_be_written_is_read_without_a_lock(tmp_path, monkeypatch):
    path = pack(write(tmp_path / "data", FILES), tmp_path / "x.tar")
    before = load_data(f"tar:{path}", 16)
    lock = tmp_path / "x.tar.index.safetensors.lock"
    lock.unlink(missing_ok=True)
    monkeypatch.setattr("os.access", lambda *args: False)
    monkeypatch.setattr("spherear.training.data.tar.locked", lambda place: pytest.fail(f"a lock at {place}"))
    assert classes_of(load_data(f"tar:{path}", 16)) == classes_of(before)
    monkeypatch.undo()
    monkeypatch.setattr("os.access", lambda *args: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.utime(path, (1, 1))  # another file by its time: the index beside it does not count
    assert classes_of(load_data(f"tar:{path}", 16)) == classes_of(before)
    assert len(list((tmp_path / "cache" / "spherear").glob("*.safetensors"))) == 1
    assert not lock.exists()


def test_photographs_travel_as_bytes(tmp_path):
    data = load_data(f"folder:{write(tmp_path / 'data', FILES)}", 16)
    stored, labels = data.raw(torch.arange(4))
    images, expected = data.batch(torch.arange(4))
    assert (stored.dtype, stored.shape) == (torch.uint8, (4, 3, 16, 16))
    assert torch.equal(stored.double() / 127.5 - 1, (images.double() + 1).mul(127.5).round() / 127.5 - 1)
    assert torch.equal(labels, expected)


def test_storage_that_fails_is_asked_again_and_is_no_broken_image(tmp_path, monkeypatch):
    data = load_data(f"folder:{write(tmp_path / 'data', FILES)}", 16)
    expected, waits, left = data.batch(torch.arange(4))[0], [], [2]
    real = type(data).content

    def sometimes(self, index):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, index)

    monkeypatch.setattr(type(data), "content", sometimes)
    monkeypatch.setattr("time.sleep", waits.append)
    assert torch.equal(data.batch(torch.arange(4))[0], expected)
    assert waits == [0.5, 2.0]
    left[0] = 100
    with pytest.raises(OSError, match=r"cat/day/1.png of folder:.* cannot be read: the storage fails .*Input/output"):
        data.batch(torch.arange(4))
    assert data.broken == {}
