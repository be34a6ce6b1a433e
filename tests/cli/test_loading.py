import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from gaia_fast.models import digits_resnet

NETWORK = """
    import torch
    from gaia_fast.models import digits_resnet

    made = []

    def network(num_classes=10):
        model = digits_resnet(num_classes, pretrained=num_classes == 10)
        made.append(model.train())
        return model

    def bare():
        return digits_resnet()

    def not_a_module():
        return 3

    def broken():
        raise ValueError("checkpoint\\n  missing")

    class Zoo:
        network = staticmethod(network)

    instance = digits_resnet(pretrained=True)
"""


@pytest.fixture
def network(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module `own.network` in the current folder, by a name no other test uses."""
    name = f"own_{tmp_path.name}"
    (tmp_path / "cwd" / name).mkdir()
    (tmp_path / "cwd" / name / "network.py").write_text(textwrap.dedent(NETWORK))
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    return f"{name}.network"


def scores(result: Result) -> list[float]:
    assert result.exit_code == 0, result.output
    return [float(line.split(",")[2]) for line in result.stdout.splitlines()[1:]]


def test_own_model_from_the_current_folder(run: Callable[..., Result], network: str, digits_npz: Path) -> None:
    expected = scores(run("score", digits_npz, "--arch", "digits_resnet", "--preset", "digits"))
    for attribute in ("network", "Zoo.network", "instance"):
        found = run("score", digits_npz, "--model", f"{network}:{attribute}", "--preset", "digits")
        assert scores(found) == expected


def test_num_classes_is_passed_on(run: Callable[..., Result], network: str, digits_npz: Path) -> None:
    arguments = (
        "validate",
        digits_npz,
        "--preset",
        "digits",
        "--limit",
        "1",
        "--method",
        "gaia-z",
        "--engine",
        "reference",
    )
    assert run(*arguments, "--model", f"{network}:network", "--num-classes", "3").exit_code == 0
    assert __import__("sys").modules[network].made[-1].linear.out_features == 3
    found = run(*arguments, "--model", f"{network}:bare", "--num-classes", "3")
    assert found.exit_code == 2
    assert "takes no num_classes" in found.stderr


@pytest.mark.parametrize("choice", [("--arch", "digits_resnet"), ("--model", "{}:bare")])
def test_weights_apply_to_either(
    run: Callable[..., Result], network: str, digits_npz: Path, tmp_path: Path, choice: tuple[str, ...]
) -> None:
    torch.manual_seed(1)
    other = digits_resnet()
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    model = [each.format(network) for each in choice]
    found = scores(run("score", digits_npz, *model, "--weights", tmp_path / "other.safetensors", "--preset", "digits"))
    shipped = scores(run("score", digits_npz, "--arch", "digits_resnet", "--preset", "digits"))
    assert len(found) == len(shipped)
    assert found != shipped


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("broken", "failed: ValueError: checkpoint missing"),
        ("absent", "has no attribute 'absent'"),
        ("not_a_module", "returned a int; it must return a torch.nn.Module"),
    ],
)
def test_own_model_that_fails_is_one_line(
    run: Callable[..., Result], network: str, digits_npz: Path, attribute: str, message: str
) -> None:
    found = run("score", digits_npz, "--model", f"{network}:{attribute}")
    assert found.exit_code == 1
    assert message in found.stderr
    assert found.stderr.startswith("Error: ")
    assert found.stderr.count("\n") == 1


def test_module_that_does_not_exist(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, "--model", "no_such_package.models:net")
    assert found.exit_code == 1
    assert "No module named 'no_such_package'" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "exactly one of --arch and --model"),
        (("--arch", "resnet18", "--model", "a:b"), "exactly one of --arch and --model"),
        (("--arch", "resnet99"), "resnet99"),
        (("--model", "package.module"), "write package.module:callable"),
        (("--arch", "resnet18"), "needs --weights"),
        (("--arch", "digits_resnet", "--device", "toaster"), "toaster"),
        (("--arch", "digits_resnet", "--preset", "mnist"), "mnist"),
        (("--arch", "digits_resnet", "--batch-size", "0"), "--batch-size"),
        (("--arch", "digits_resnet", "--engine", "steam"), "steam"),
        (("--arch", "digits_resnet", "--fusion", "inner"), "--fusion belongs to gaia-a"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], digits_npz: Path, arguments: tuple[str, ...], message: str) -> None:
    found = run("score", digits_npz, *arguments)
    assert found.exit_code == 2
    assert message in found.stderr


def test_wrong_weights(run: Callable[..., Result], digits_npz: Path, tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "wrong.safetensors")
    found = run("score", digits_npz, "--arch", "digits_resnet", "--weights", tmp_path / "wrong.safetensors")
    assert found.exit_code == 1
    assert "does not fit ResNet" in found.stderr
    assert "some.weight" in found.stderr
    found = run("score", digits_npz, "--arch", "digits_resnet", "--weights", tmp_path / "absent.safetensors")
    assert found.exit_code == 1
    assert "absent.safetensors is not a file" in found.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_device_that_is_not_there(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", "--device", "cuda")
    assert found.exit_code == 1
    assert "--device cuda cannot be used here" in found.stderr
    assert found.stderr.count("\n") == 1


def test_backend_that_cannot_run(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", "--backend", "cuda", "--preset", "digits")
    if not torch.cuda.is_available():
        assert found.exit_code == 1
        assert "backend='cuda' cannot run here" in found.stderr
