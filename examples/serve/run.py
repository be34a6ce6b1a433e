"""Calibrates, serves, asks, and ends the service: see README.md beside this file."""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gaia_fast.data.digits import held_out_pictures, noise_pictures

MODEL = ["--arch", "digits_resnet", "--preset", "digits"]


def write(pictures: np.ndarray, folder: Path) -> list[Path]:
    """Writes pictures as PNG files."""
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        Image.fromarray(picture).convert("RGB").save(path)
    return paths


def ask(url: str, image: Path | None = None) -> dict[str, Any]:
    """What the service answers, to an image where one is given."""
    with urllib.request.urlopen(url, None if image is None else image.read_bytes(), timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def told(report: dict[str, Any]) -> str:
    """A drift report in a line."""
    found, expected = report["gaia-z"]["ood_share"], report["gaia-z"]["expected_ood_share"]
    drifted = "drifted" if report["gaia-z"]["drifted"] else "no drift"
    return f"{found:.0%} out of distribution, {expected:.0%} expected: {drifted}"


def main() -> None:
    digits, _ = held_out_pictures()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "gaia_fast"]
        write(digits[:300], folder / "id")
        saved = str(folder / "digits.gaia")
        subprocess.run([*command, "calibrate", str(folder / "id"), *MODEL, "--out", saved], check=True)
        service = subprocess.Popen(
            [*command, "serve", *MODEL, "--detector", saved, "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        assert service.stderr is not None
        try:
            url = ""
            for line in service.stderr:
                print(line, end="", file=sys.stderr)
                if line.startswith("serving at"):
                    url = line.split()[-1]
                    break
            if not url:
                raise SystemExit("the service did not start")
            for image in write(digits[300:400], folder / "digits"):
                answer = ask(f"{url}/score", image)
                if image.stem in ("0", "1", "2"):
                    print(f"digit {image.name}: {json.dumps(answer)}")
            print(f"after digits: {told(ask(f'{url}/drift'))}")
            for image in write(noise_pictures()[:100], folder / "noise"):
                answer = ask(f"{url}/score", image)
                if image.stem in ("0", "1", "2"):
                    print(f"noise {image.name}: {json.dumps(answer)}")
            print(f"after noise: {told(ask(f'{url}/drift'))}")
        finally:
            service.terminate()
            service.wait(60)


if __name__ == "__main__":
    main()
