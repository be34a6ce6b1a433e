"""Digits, and what is no digit, scored by a model of Triton Inference Server.

python examples/triton/run.py                               # writes models/, and asks its model.py here
python examples/triton/run.py --url http://localhost:8000   # asks a server that serves models/
"""

import argparse
import importlib.util
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from gaia_fast import GaiaZ
from gaia_fast.data.digits import held_out_digits, held_out_pictures, noise_pictures
from gaia_fast.integrations.triton_inference_server import export_model
from gaia_fast.models import digits_resnet

NAME = "digits"


def write(models: Path) -> Path:
    """Writes the package's own digits network, with a threshold, as a model that takes uint8 pictures."""
    x, _ = held_out_digits()
    detector = GaiaZ(digits_resnet(pretrained=True), engine="hooks").calibrate(x[:500])
    return export_model(detector, models, x[:8], name=NAME, preset="digits")


def ask_here(exported: Path, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Calls model.py as the server does, with the tests' stand-in for the module that the server alone has."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    import triton_python_backend_utils as pb_utils

    spec = importlib.util.spec_from_file_location("served", exported.with_name("model.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = json.dumps({"max_batch_size": 32})  # of what the server reads in config.pbtxt, all that is looked at
    model.initialize({"model_config": config, "model_instance_kind": "CPU", "model_instance_name": NAME})
    (response,) = model.execute([pb_utils.InferenceRequest(inputs=[pb_utils.Tensor("images", pictures)])])
    if response.has_error():
        raise SystemExit(response.error().message())
    return {each.name(): each.as_numpy() for each in response.output_tensors()}


def ask_server(url: str, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Asks a server by HTTP."""
    images = {"name": "images", "shape": pictures.shape, "datatype": "UINT8", "data": pictures.ravel().tolist()}
    body = json.dumps({"inputs": [images]}).encode()
    with urllib.request.urlopen(f"{url}/v2/models/{NAME}/infer", body, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer["outputs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="the model repository")
    parser.add_argument("--url", help="of a server; none is asked without it")
    options = parser.parse_args()
    grey = np.concatenate([held_out_pictures()[0][-5:], noise_pictures()[:5]])
    pictures = np.repeat(grey[:, None], 3, axis=1)  # (10, 3, 8, 8): five digits, five times noise
    if options.url:
        found = ask_server(options.url, pictures)
    else:
        exported = write(options.models)
        print(f"wrote {exported}")
        found = ask_here(exported, pictures)
    print("picture  label   score  is_ood")
    for place in range(len(pictures)):
        kind = "digit" if place < 5 else "noise"
        label, score, is_ood = found["logits"][place].argmax(), found["score"][place, 0], found["is_ood"][place, 0]
        print(f"{kind:7}  {label:5}  {score:6.3f}  {bool(is_ood)!s:6}")


if __name__ == "__main__":
    main()
