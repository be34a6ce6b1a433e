import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

from gaia_fast.cli import main
from gaia_fast.data import PRESETS
from gaia_fast.data.digits import held_out_pictures, noise_pictures
from gaia_fast.models import digits_resnet
from gaia_fast.reproduction import networks
from gaia_fast.reproduction.scoring import NetworkScores
from gaia_fast.reproduction.tables import TABLES

import torchvision_schemas  # noqa: F401  (before pytorch-ood)

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_ood") is None, reason="pytorch-ood is not installed"
)
METHODS = ("--method", "msp", "--method", "gaia-z", "--method", "gaia-a")
NETWORK = ("--network", "resnet34_cifar10")


def enlarged(pictures: np.ndarray) -> np.ndarray:
    """8x8 pixels to 32x32, as CIFAR's are."""
    images = [Image.fromarray(each).resize((32, 32)).convert("RGB") for each in pictures]
    return np.stack([np.asarray(each) for each in images])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder: digits for CIFAR-10, noise for TinyImageNet, and the digits' network for ResNet34."""
    folder = tmp_path / "data"
    folder.mkdir()
    pictures, labels = held_out_pictures()
    np.savez(folder / "cifar10_test.npz", x=enlarged(pictures[:60]), y=labels[:60])
    np.savez(folder / "cifar10_train.npz", x=enlarged(pictures[100:300]), y=labels[100:300])
    np.savez(folder / "tinyimagenet_crop.npz", x=enlarged(noise_pictures()[:50]))
    save_file(digits_resnet(pretrained=True).state_dict(), folder / "resnet34_cifar10.safetensors")
    small = replace(networks.NETWORKS["resnet34_cifar10"], make=digits_resnet, preset=PRESETS["digits"])
    monkeypatch.setitem(networks.NETWORKS, "resnet34_cifar10", small)
    return folder


@pytest.fixture
def reproduce(run: Callable[..., Result], data: Path, tmp_path: Path) -> Callable[..., Result]:
    def call(what: str, *arguments: object) -> Result:
        return run("reproduce", what, "--data", data, "--cache", tmp_path / "cache", "--json", "out.json", *arguments)

    return call


def read() -> Any:
    return json.loads(Path("out.json").read_text())


@needs_library
def test_a_table_with_the_papers_figures_beside_ours(reproduce: Callable[..., Result]) -> None:
    found = reproduce("table1", *METHODS, "--out", "table.md")
    assert found.exit_code == 0, found.output
    record = read()
    assert set(record["results"]) == {"msp", "gaia-z", "gaia-a", "gaia-z, last stage", "gaia-a, all layers"}
    ours = record["results"]["gaia-z"]["tinyimagenet"]
    assert {"auroc", "fpr95_id_positive", "fpr95_ood_positive", "aupr_in", "aupr_out", "n_id", "n_ood"} <= set(ours)
    assert record["paper"]["gaia-z"]["tinyimagenet"] == {"fpr95": 6.26, "auroc": 98.63}
    assert record["difference"]["gaia-z"]["tinyimagenet"]["auroc"] == pytest.approx(100 * ours["auroc"] - 98.63)
    assert record["average"]["gaia-z"]["over"] == ["tinyimagenet"]
    assert record["paper"]["gaia-z"]["average"]["auroc"] == 98.63  # over the same sets as ours
    assert set(record["absent_sets"]) == {"svhn", "lsun", "places", "textures"}
    assert "svhn.npz" in record["absent_sets"]["svhn"]
    assert set(record["absent_networks"]) == {"wrn_40_2_cifar10", "resnet34_cifar100", "wrn_40_2_cifar100"}
    assert record["id_accuracy"] > 0.5
    text = Path("table.md").read_text()
    assert " reproduce table1 --data DATA --method msp --method gaia-z --method gaia-a\n" in text
    assert "| GAIA-Z, all layers | " in text
    assert f"{100 * ours['auroc']:.1f} (98.6, {100 * ours['auroc'] - 98.63:+.1f})" in text
    assert "Not there, and so not in the averages: svhn, lsun, places, textures." in text


@needs_library
def test_every_method_is_there_or_says_why_not(reproduce: Callable[..., Result]) -> None:
    assert reproduce("table1", *NETWORK, "--limit", "20").exit_code == 0
    record = read()
    asked = {row.key for row in TABLES["table1"].rows(networks.NETWORKS["resnet34_cifar10"], [])}
    assert set(record["results"]) | set(record["not_computed"]) == asked
    assert not record["not_computed"]
    assert all(each >= 0 for each in record["seconds"].values())
    assert record["images"] == {"id": 20, "ood": {"tinyimagenet": 20}, "fitted_on": 200}


@needs_library
def test_a_second_run_takes_what_was_kept(reproduce: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    assert reproduce("table1", *NETWORK, *METHODS).exit_code == 0
    first = read()["results"]

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(NetworkScores, "_timed", refuse)
    assert reproduce("table1", *NETWORK, *METHODS).exit_code == 0
    assert read()["results"] == first


@needs_library
def test_a_run_that_was_stopped_goes_on(reproduce: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    timed = NetworkScores._timed

    def stop(self: NetworkScores, *arguments: Any) -> Any:
        computed.append(arguments[0].names)
        if len(computed) == 4:
            raise KeyboardInterrupt
        return timed(self, *arguments)

    monkeypatch.setattr(NetworkScores, "_timed", stop)
    assert reproduce("table1", *NETWORK, *METHODS).exit_code != 0
    assert reproduce("table1", *NETWORK, *METHODS).exit_code == 0
    assert len(computed) == 4 + 3  # six parts in all: a pass, GAIA-Z and GAIA-A, on two sets


def test_the_reference_gives_the_same_tables(reproduce: Callable[..., Result]) -> None:
    methods = ("--method", "gaia-z", "--method", "gaia-a")
    assert reproduce("table1", *NETWORK, *methods).exit_code == 0
    compiled = read()["results"]
    assert reproduce("table1", *NETWORK, *methods, "--engine", "reference").exit_code == 0
    for method, sets in read()["results"].items():
        for name, metrics in sets.items():
            for each in ("auroc", "fpr95_id_positive"):
                assert metrics[each] == pytest.approx(compiled[method][name][each], abs=1e-3)


def test_combinations_are_marked(reproduce: Callable[..., Result]) -> None:
    assert reproduce("table1", *NETWORK, "--method", "rank-average", "--method", "max-standardised").exit_code == 0
    record = read()
    assert set(record["results"]) == {"rank-average", "max-standardised"}
    assert record["paper"] == {"rank-average": {}, "max-standardised": {}}
    assert reproduce("table1", *NETWORK, "--method", "rank-average", "--out", "t.md").exit_code == 0
    assert "| Rank average of GAIA-Z and GAIA-A, not in the paper | " in Path("t.md").read_text()


def test_table_3_and_4_are_of_one_pass_each(reproduce: Callable[..., Result], data: Path) -> None:
    assert reproduce("table3", *NETWORK).exit_code == 0
    assert set(read()["results"]) == {f"gaia-a, {fusion}" for fusion in ("top1", "output", "inner", "division")}
    assert reproduce("table4", *NETWORK).exit_code == 0
    record = read()
    assert len(record["results"]) == 12
    # The paper prints averages over five sets, and one is here.
    assert record["paper"]["gaia-z block 3"] == {}
    for name in ("svhn", "lsun_crop", "places_crop", "textures_crop"):
        shutil.copy(data / "tinyimagenet_crop.npz", data / f"{name}.npz")
    assert reproduce("table4", *NETWORK, "--method", "gaia-z block 3").exit_code == 0
    record = read()
    assert record["paper"]["gaia-z block 3"]["average"] == {"fpr95": 22.17, "auroc": 95.71}
    assert record["difference"]["gaia-z block 3"]["average"]["auroc"] == pytest.approx(
        100 * record["results"]["gaia-z block 3"]["svhn"]["auroc"] - 95.71
    )


@needs_library
def test_table_5_measures_images_a_second(reproduce: Callable[..., Result]) -> None:
    assert reproduce("table5", *NETWORK, "--limit", "16", "--engine", "hooks").exit_code == 0
    record = read()
    assert set(record["speed"]) == {"lee-alregib", "gradnorm", "exgrad", "gaia-a", "gaia-z"}
    assert all(each["one_by_one"] > 0 and each["in_batches"] > 0 for each in record["speed"].values())


@pytest.mark.parametrize("name", ["fig2", "fig3", "fig4", "fig5"])
def test_figures(name: str, reproduce: Callable[..., Result]) -> None:
    found = reproduce(name, *NETWORK, "--limit", "12", "--engine", "hooks", "--plots", "pictures")
    assert found.exit_code == 0, found.output
    with Image.open(f"pictures/{name}-resnet34_cifar10.png") as picture:
        assert picture.width > 400
        assert len(picture.convert("L").getcolors(256) or []) > 20
    assert read()["numbers"]


@needs_library
def test_without_training_images_the_rest_of_the_id_set_is_fitted_on(
    reproduce: Callable[..., Result], data: Path
) -> None:
    (data / "cifar10_train.npz").unlink()
    pictures, labels = held_out_pictures()
    np.savez(data / "cifar10_test.npz", x=enlarged(pictures[:120]), y=labels[:120])
    found = reproduce("table1", *NETWORK, "--method", "knn", "--limit", "20")
    assert found.exit_code == 0
    assert "fitted on the 100 images of cifar10 behind the first 20" in found.stderr
    assert read()["images"] == {"id": 20, "ood": {"tinyimagenet": 20}, "fitted_on": 100}


def test_too_few_images_to_fit_on_leave_methods_out(reproduce: Callable[..., Result], data: Path) -> None:
    (data / "cifar10_train.npz").unlink()
    found = reproduce("table1", *NETWORK, "--method", "knn", "--method", "gaia-z")
    assert found.exit_code == 0
    assert "left out" in found.stderr
    assert "knn has to be fitted" in read()["not_computed"]["knn"]


def test_weights_that_are_named(reproduce: Callable[..., Result], data: Path) -> None:
    moved = data / "elsewhere.safetensors"
    (data / "resnet34_cifar10.safetensors").rename(moved)
    found = reproduce("table1", *NETWORK, "--method", "gaia-z")
    assert found.exit_code == 1
    assert "resnet34_cifar10.safetensors (or .pth, .pt, .npz) is expected" in found.stderr
    assert reproduce("table1", *NETWORK, "--method", "gaia-z", "--weights", f"resnet34-cifar10={moved}").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("table1", "--network", "vgg"), "no network 'vgg'"),
        (("table1", *NETWORK, "--method", "gaia-q"), "--method gaia-q: there is no row"),
        (("table1", *NETWORK, "--weights", "file"), "NETWORK=FILE"),
        (("table1", "--network", "bit_s_r101x1"), "no network 'bit_s_r101x1' here"),
        (("table1", *NETWORK, "--no-cache"), "not both"),
    ],
)
def test_what_does_not_exist_is_refused(
    arguments: tuple[str, ...], reason: str, reproduce: Callable[..., Result]
) -> None:
    found = reproduce(*arguments)
    assert found.exit_code in (1, 2)
    assert reason in found.stderr


def test_no_ood_set_at_all(reproduce: Callable[..., Result], data: Path) -> None:
    (data / "tinyimagenet_crop.npz").unlink()
    found = reproduce("table1", *NETWORK, "--method", "gaia-z")
    assert found.exit_code == 1
    assert "no OOD set of resnet34_cifar10 is there" in found.stderr


def test_is_a_command() -> None:
    assert "reproduce" in main.commands


def test_sets_and_devices_that_are_not_there_end_no_run(reproduce: Callable[..., Result], data: Path) -> None:
    shutil.copy(data / "resnet34_cifar10.safetensors", data / "resnet34_cifar100.safetensors")
    found = reproduce("table4", "--network", "resnet34")
    assert found.exit_code == 0, found.output
    assert "resnet34_cifar100" in read()["absent_networks"]
    assert read()["network"] == "resnet34_cifar10"
    found = reproduce("table4", *NETWORK, "--device", "cuda:99")
    assert found.exit_code == 1
    assert "--device cuda:99 cannot be used here" in found.stderr
    assert reproduce("table4", *NETWORK, "--device", "nonsense").exit_code == 2


def test_a_set_that_cannot_be_read_leaves_the_others(reproduce: Callable[..., Result], data: Path) -> None:
    (data / "svhn").mkdir()
    (data / "svhn" / "a.png").write_bytes(b"no image")
    assert reproduce("table4", *NETWORK).exit_code == 0
    record = read()
    assert "svhn" in record["unusable_sets"][0]
    assert record["results"]["gaia-z block 3"].keys() == {"tinyimagenet"}


def test_unreadable_images_are_named_with_their_set(reproduce: Callable[..., Result], data: Path) -> None:
    with np.load(data / "tinyimagenet_crop.npz") as kept:
        pictures = kept["x"]
    (data / "tinyimagenet_crop.npz").unlink()
    folder = data / "Imagenet" / "test"
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures[:20]):
        Image.fromarray(picture).save(folder / f"{index:02}.png")
    (folder / "03.png").write_bytes(b"no image")
    (folder / "04.png").unlink()
    (folder / "04.png").symlink_to(folder / "nowhere.png")
    found = reproduce("table4", *NETWORK)
    assert found.exit_code == 3
    assert "unreadable: tinyimagenet: 03.png: " in found.stderr
    assert read()["images"]["ood"] == {"tinyimagenet": 18}


def test_the_papers_figures_stand_beside_their_own_network_alone(reproduce: Callable[..., Result], data: Path) -> None:
    """Textures are among CIFAR's sets and ImageNet's; Tables 3 and 5 are of ImageNet."""
    shutil.copy(data / "tinyimagenet_crop.npz", data / "textures_crop.npz")
    assert reproduce("table3", *NETWORK).exit_code == 0
    assert not any(read()["paper"].values())
