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


def test_a_changed_index_is_made_again_and_another_file_is_refused(tmp_path):
    """A bit of a label, then files that are no whole index."""
    path = pack(write(tmp_path / "data", FILES), tmp_path / "x.tar")
    expected, index = classes_of(load_data(f"tar:{path}", 16)), path.with_name("x.tar.index.safetensors")
    whole = index.read_bytes()
    place = whole.rindex(np.array([0, 0, 1, 1]).tobytes())  # the labels of the four pictures
    index.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    assert classes_of(load_data(f"tar:{path}", 16)) == expected
    assert len(index.read_bytes()) == len(whole)  # the order of its facts may differ
    for content in (whole[:-9], b"", b"x" * 999):
        index.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.tar.index.safetensors is not .*without that file it is made again"):
            load_data(f"tar:{path}", 16)
        assert index.read_bytes() == content


def test_classes_are_sorted_character_by_character(tmp_path):
    root = write(tmp_path, {f"{name}/1.png": png(1) for name in ("10", "9", "Zoo", "ant")})
    assert load_data(f"folder:{root}", 16).classes == ("10", "9", "Zoo", "ant")


CLASSES = ["ant", "Bee", "10", "9", "cow pie", "Ärger", "漢字", "a#b@c?d", "n.o.t.e", "x.png"]
FORMATS = {
    "PNG": (("png", "PNG"), ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    "JPEG": (("jpg", "JPEG", "jfif", "jpe"), ("L", "RGB", "CMYK")),
    "WEBP": (("webp",), ("RGB", "RGBA")),
    "TIFF": (("tif", "tiff"), ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "I", "F")),
    "GIF": (("gif",), ("P", "L")),
    "BMP": (("bmp",), ("1", "L", "P", "RGB")),
    "PPM": (("ppm",), ("RGB",)),
}
"""Format -> its endings, and the modes that Pillow writes."""
WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF")
JUNK = ("{0}/.x.png", ".cache/y.png", "__MACOSX/{0}/z.png", "{0}/._1.png", ".DS_Store", "{0}/.ipynb_checkpoints/1.png")
OTHERS = ("{0}/notes.txt", "table.csv", "cover.png", "{0}/deep/labels.cls.json")


def random_image(rng, mode):
    """A picture of a mode, of any shape; transparent pixels are wholly so."""
    size = (16, 16) if rng.random() < 0.3 else tuple(int(side) for side in rng.integers(9, 60, 2))
    image = picture(int(rng.integers(1000)), size=size)
    if mode in ("I;16", "I"):
        return Image.fromarray(np.asarray(image.convert("L")).astype({"I;16": np.uint16, "I": np.int32}[mode]) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.choice([0, 255], size[::-1]).astype(np.uint8)))
    return image.convert(mode)


def random_picture(rng):
    """-> (ending, the bytes of a picture, whether its mode has a range of values)."""
    kind = str(rng.choice(sorted(FORMATS)))
    endings, modes = FORMATS[kind]
    mode, options, file = str(rng.choice(modes)), {}, io.BytesIO()
    if kind in WITH_EXIF and rng.random() < 0.6:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = int(rng.integers(1, 9))
    if mode == "P" and kind in ("PNG", "GIF") and rng.random() < 0.5:
        options["transparency"] = int(rng.integers(0, 40))
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True}
    random_image(rng, mode).save(file, format=kind, **options)
    return str(rng.choice(endings)), file.getvalue(), mode not in ("I", "F")


def random_tree(root, rng):
    """A folder with everything that people have in theirs.

    Returns name -> (class, content, or nothing if it cannot be read), and the names of what is no picture of a class.
    """
    expected: dict[str, tuple[str, bytes]] = {}
    classes = [str(kind) for kind in rng.permutation(CLASSES)[: rng.integers(2, 5)]]
    for kind in classes:
        expected[f"{kind}/plain.png"] = (kind, png(int(rng.integers(1000))))
        for number in range(rng.integers(1, 6)):
            deep = rng.choice(["", "day/", "day/late/", "n.o.t.e/", "sp ace/"])
            ending, content, ranged = random_picture(rng)
            expected[f"{kind}/{deep}{number}.{ending}"] = (kind, content if ranged else b"")
            write(root, {f"{kind}/{deep}{number}.{ending}": content})
    write(root, {name: content for name, (_, content) in expected.items() if content})
    if rng.random() < 0.5:
        expected[f"{classes[0]}/cut.png"] = (classes[0], b"")
        write(root, {f"{classes[0]}/cut.png": b"\x89PNG\r\n\x1a\ncut"})
    write(root, {str(rng.choice(JUNK)).format(classes[0]): b"junk" for _ in range(2)})
    others = {str(rng.choice(OTHERS)).format(classes[1]) for _ in range(2)}
    write(root, dict.fromkeys(others, b"x"))
    return expected, sorted(others)


def add_links(root, expected, rng):
    """A linked picture, a linked folder of them, and a link to nowhere -> expected, and the names of the latter two."""
    kind = sorted(expected)[0].split("/")[0]
    elsewhere = write(root.with_name("elsewhere"), {"far.png": png(5), ".hidden.png": b"junk"})
    (root / kind / "again.png").symlink_to(root / kind / "plain.png")
    (root / kind / "linked").symlink_to(elsewhere)
    (root / kind / "gone.png").symlink_to(root / "nowhere.png")
    expected[f"{kind}/again.png"] = expected[f"{kind}/plain.png"]
    expected[f"{kind}/linked/far.png"], expected[f"{kind}/gone.png"] = (kind, png(5)), (kind, b"")
    return {f"{kind}/linked/far.png", f"{kind}/gone.png"}


def independent(content):
    """A picture as Pillow's documentation reads it, with the arithmetic written out; cropped by Pillow's `fit`."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode.startswith("I"):
        values = np.repeat((np.asarray(image).astype(np.int64) // 257)[..., None], 3, axis=2)
    elif image.mode == "CMYK":
        values = np.asarray(image.convert("RGB"))
    else:
        rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
        alpha = rgba[..., 3:] / 255
        values = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
    return np.asarray(ImageOps.fit(Image.fromarray(values.astype(np.uint8)), (16, 16), Image.Resampling.LANCZOS), int)


def check_reading(spec, expected, others):
    """The labels, classes and pixels of a data set are those of the independent reading, or the file is named."""
    data = load_data(spec, 16)
    assert classes_of(data) == {name: kind for name, (kind, _) in expected.items()}
    assert list(data.classes) == sorted({kind for kind, _ in expected.values()})
    assert list(data.others) == others
    images, labels = data.batch(torch.arange(len(data)))
    for index in range(len(data)):
        name = data.name_of(index)
        kind, content = expected[name]
        if not content:
            assert name in data.broken
            continue
        assert data.classes[int(labels[index])] == kind
        seen = np.asarray((images[index].permute(1, 2, 0) + 1) * 127.5)
        assert np.abs(seen - independent(content)).max() <= 1, name  # a rounding
    assert sorted(data.broken) == sorted(name for name, (_, content) in expected.items() if not content)


@pytest.mark.parametrize("seed", range(40))
def test_generated_folders_are_read_as_an_independent_reading_says(tmp_path, seed):
    rng, root = np.random.default_rng(seed), tmp_path / "data"
    expected, others = random_tree(root, rng)
    beyond = add_links(root, expected, rng) if os.name == "posix" and rng.random() < 0.5 else set()
    check_reading(f"folder:{root}", expected, others)
    packed = {name: value for name, value in expected.items() if name not in beyond}  # a tar holds no such links
    check_reading(f"tar:{pack(root, tmp_path / 'x.tar')}", packed, others)
    empty = str(rng.choice(["Zebra", "äpfel", "0"]))
    (root / empty).mkdir()
    if rng.random() < 0.5:
        write(root, {f"{empty}/.hidden.png": png(1), f"{empty}/notes.txt": b"x"})
    with pytest.raises(ValueError, match=f"has no picture of '{empty}'"):
        load_data(f"folder:{root}", 16)


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
