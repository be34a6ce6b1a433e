"""What exported files say about themselves: hostile files, and none of their code run."""

import json
import os
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gaia_fast import GaiaZ
from gaia_fast.compiler.package import metadata
from gaia_fast.compiler.package.reading import load
from gaia_fast.compiler.package.writing import read_metadata
from gaia_fast.errors import ArgumentError, InputError

import zoo
from exported import load_one

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

pytestmark = pytest.mark.usefixtures("deadline")

OWN = {"gaia_fast": "1", "threshold": "", "images": "[null, 3, 16, 16]", "dtype": "float32"}
ENTRY = "model/data/aotinductor/model/abc.wrapper_metadata.json"


def record(own: object, **others: object) -> str:
    return json.dumps(
        {"gaia_fast": own if isinstance(own, str) else json.dumps(own), "AOTI_DEVICE_KEY": "cpu", **others}
    )


def package(path: Path, *entries: tuple[str, str | bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data/aotinductor/model/abc.wrapper.so", b"\x7fELF no library")
        for name, content in entries:
            archive.writestr(name, content)
    return path


def graph(path: Path, **entries: str) -> Path:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "none", [], []))
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("prefix", ["model/data/aotinductor/model/", "data/aotinductor/any/", ""])
@pytest.mark.parametrize("name", ["a.wrapper_metadata.json", "metadata.json"])
def test_packages_of_any_layout(tmp_path: Path, prefix: str, name: str) -> None:
    path = package(tmp_path / "a.pt2", (prefix + name, record(OWN)), (prefix + "b.kernel_metadata.json", record(OWN)))
    assert read_metadata(path) == {**OWN, "device": "cpu"}
    assert read_metadata(str(path)) == read_metadata(path)


def test_onnx(tmp_path: Path) -> None:
    assert read_metadata(graph(tmp_path / "a.onnx", **OWN)) == OWN


PACKAGES: dict[str, list[tuple[str, str | bytes]]] = {
    "none": [],
    "of another program": [(ENTRY, json.dumps({"AOTI_DEVICE_KEY": "cpu"}))],
    "no JSON": [(ENTRY, "junk")],
    "no text": [(ENTRY, b"\xff\xfe\x00junk")],
    "empty": [(ENTRY, "")],
    "a list": [(ENTRY, "[]")],
    "a number": [(ENTRY, record(3))],
    "null": [(ENTRY, record("null"))],
    "a list of ours": [(ENTRY, record("[1, 2]"))],
    "text of ours that is no JSON": [(ENTRY, record("{"))],
    "ours without quotes": [(ENTRY, json.dumps({"gaia_fast": OWN}))],
    "deep": [(ENTRY, "[" * 200_000)],
    "deep in ours": [(ENTRY, record("[" * 200_000))],
    "numbers for text": [(ENTRY, record({**OWN, "images": [None, 3, 16, 16]}))],
    "no sizes": [(ENTRY, record({"dtype": "float32"}))],
    "no dtype": [(ENTRY, record({"images": "[1, 1, 1, 1]"}))],
    "too much": [(ENTRY, record({**OWN, "layers": "x" * 2**20}))],
    "parts that contradict each other": [
        (ENTRY, record(OWN)), (ENTRY.replace("wrapper", "kernel"), record({**OWN, "images": "[null, 3, 8, 8]"})),
    ],
    "parts of which one is junk": [(ENTRY, record(OWN)), (ENTRY.replace("wrapper", "kernel"), "junk")],
    "another device in one part": [
        (ENTRY, record(OWN)), (ENTRY.replace("wrapper", "kernel"), record(OWN, AOTI_DEVICE_KEY="cuda")),
    ],
    "in a folder": [(ENTRY + "/", "")],
}  # fmt: skip


@pytest.mark.parametrize("read", [read_metadata, load])
@pytest.mark.parametrize("case", PACKAGES)
def test_packages_with_other_metadata(tmp_path: Path, case: str, read: Callable[[Path], object]) -> None:
    path = package(tmp_path / "a.pt2", *PACKAGES[case])
    with pytest.raises(ArgumentError, match=r"a\.pt2 (cannot be read|has no metadata of gaia_fast).*export it again"):
        read(path)


def hostile(folder: Path, ending: str) -> dict[str, bytes]:
    good = (
        graph(folder / "g.onnx", **OWN) if ending == ".onnx" else package(folder / "g.pt2", (ENTRY, record(OWN)))
    ).read_bytes()
    other = package(folder / "o.pt2", (ENTRY, record(OWN))) if ending == ".onnx" else graph(folder / "o.onnx", **OWN)
    return {
        "empty": b"",
        "text": b"<html>404</html>",
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "the other format": other.read_bytes(),
        "a tenth": good[: len(good) // 10],
        "half": good[: len(good) // 2],
        "all but one byte": good[:-1],
        "ELF": b"\x7fELF" + bytes(100),
        "the end of a zip": b"PK\x05\x06" + bytes(18),
        "a zip that starts nowhere": b"PK\x05\x06" + b"\xff" * 18,
        "a varint without end": b"\x08" + b"\xff" * 50,
        "a length beyond the file": b"\x72\xff\xff\xff\xff\x07",
    }


@pytest.mark.parametrize("read", [read_metadata, load])
@pytest.mark.parametrize("ending", metadata.FORMATS)
def test_files_of_any_bytes(tmp_path: Path, ending: str, read: Callable[[Path], object]) -> None:
    for name, content in hostile(tmp_path, ending).items():
        path = tmp_path / f"{name}{ending}"
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=rf"{name}\{ending} (cannot be read|has no metadata).*export it again"):
            read(path)


@pytest.mark.parametrize("read", [read_metadata, load])
@pytest.mark.parametrize("ending", metadata.FORMATS)
def test_what_is_no_file(tmp_path: Path, ending: str, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / f"link{ending}").symlink_to("absent")
    (tmp_path / f"device{ending}").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "link", "device", "absent", "no/absent"):
        with pytest.raises(ArgumentError, match=rf"{name}\{ending} is not a file; give one that export\(\) wrote"):
            read(tmp_path / f"{name}{ending}")
    with pytest.raises(ArgumentError, match=r"a\.pth ends in neither of"):
        read(tmp_path / "a.pth")


def test_onnx_without_our_metadata(tmp_path: Path) -> None:
    for entries in ({}, {"images": "[1, 1, 1, 1]"}, {"dtype": "float32"}):
        with pytest.raises(ArgumentError, match=r"a\.onnx has no metadata of gaia_fast"):
            read_metadata(graph(tmp_path / "a.onnx", **entries))


def test_a_file_beyond_what_protobuf_holds(tmp_path: Path) -> None:
    with (tmp_path / "a.onnx").open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no space
    with pytest.raises(ArgumentError, match="larger than any ONNX file can be"):
        read_metadata(tmp_path / "a.onnx")


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = package(tmp_path / "a.pt2", (ENTRY, bytes(2**28)), compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        with pytest.raises(ArgumentError, match=r"wrapper_metadata\.json is larger than 1048576 bytes"):
            read_metadata(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("sizes", [
    "", "null", "3", "[]", "[null, 3, 16]", "[null, 3, 16, 16, 1]", "[null, null, 16, 16]", "[0, 3, 16, 16]",
    "[null, -3, 16, 16]", "[null, 3.0, 16, 16]", '[null, "3", 16, 16]', "[true, 3, 16, 16]", "{}", "[" * 100_000,
])  # fmt: skip
def test_sizes_that_are_none(tmp_path: Path, sizes: str) -> None:
    path = package(tmp_path / "a.pt2", (ENTRY, record({**OWN, "images": sizes})))
    with pytest.raises(ArgumentError, match=r"a\.pt2 is said to be for images of sizes .* which are none"):
        load(path)


@pytest.mark.parametrize("dtype", ["", "float33", "nn", "load", "__name__", "torch.float32", "x" * 1000])
def test_dtypes_that_are_none(tmp_path: Path, dtype: str) -> None:
    path = package(tmp_path / "a.pt2", (ENTRY, record({**OWN, "dtype": dtype})))
    with pytest.raises(ArgumentError, match="which are none") as raised:
        load(path)
    assert len(str(raised.value)) < 500


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in both formats."""
    detector = GaiaZ(zoo.build("strided_shortcut"))
    folder = tmp_path_factory.mktemp("exported")
    return {ending: detector.export(folder / f"model{ending}", zoo.images(3)) for ending in metadata.FORMATS}


def test_reading_runs_no_code_of_a_package(exported: dict[str, Path], tmp_path: Path) -> None:
    source, library, mark = tmp_path / "evil.cpp", tmp_path / "evil.so", tmp_path / "mark"
    source.write_text(
        f'#include <cstdio>\n__attribute__((constructor)) static void run() {{ fclose(fopen("{mark}", "w")); }}\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(exported[".pt2"]) as given, zipfile.ZipFile(path, "w") as changed:
        for info in given.infolist():
            content = library.read_bytes() if info.filename.endswith(".so") else given.read(info)
            changed.writestr(info.filename, content)
    assert read_metadata(path) == read_metadata(exported[".pt2"])
    assert not mark.exists()
    with pytest.raises(ArgumentError, match=r"evil\.pt2 cannot be loaded here .*export it again"):
        load(path)
    assert mark.exists()  # as its documentation says


@pytest.mark.parametrize("ending", metadata.FORMATS)
def test_images_that_do_not_fit_are_refused(exported: dict[str, Path], ending: str) -> None:
    run, x = load_one(exported[ending]), zoo.images(2)
    for images in (
        x[:0], x[:, :2], x[:, :, :15], x[:, :, :, :15], x.repeat(1, 1, 2, 1), x[0], x[None], x.double(), x.half(),
        x.to("meta"), x.to_sparse(), x.byte(), x.numpy(), None,
    ):  # fmt: skip
        with pytest.raises(InputError, match="images"):
            run(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", metadata.FORMATS)
def test_images_of_any_strides(exported: dict[str, Path], ending: str) -> None:
    run, x = load_one(exported[ending]), zoo.images(4)
    for images in (
        x.to(memory_format=torch.channels_last), x.mT.contiguous().mT, x[::2], x[:1].expand(4, -1, -1, -1),
        x.repeat_interleave(2, 3)[..., ::2], x.flip(0), x.clone().requires_grad_(),
    ):  # fmt: skip
        plain = run.score(images.detach().clone(memory_format=torch.contiguous_format))
        found = run.score(images)
        assert torch.equal(found.logits, plain.logits)
        assert torch.equal(found.score, plain.score)


def test_a_package_of_a_fixed_number_of_images(tmp_path: Path) -> None:
    run = load_one(GaiaZ(zoo.FixedBatch(3).eval()).export(tmp_path / "model.onnx", zoo.images(3)))
    assert run(zoo.images(3)).shape == (3,)
    for count in (1, 2, 4):
        with pytest.raises(InputError, match=rf"images are torch\.float32 \({count}, 3, 16, 16\).*\(3, 3, 16, 16\)"):
            run(zoo.images(count))
