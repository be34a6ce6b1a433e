"""NVIDIA's Triton Inference Server: a detector as a model of its Python backend.

`export_model` writes a model repository, `config.pbtxt` and `model.py` around an exported file. `model.py` here is what
is copied into it: Triton alone imports it.
"""

from gaia_fast.integrations.triton_inference_server.repository import export_model

__all__ = ["export_model"]
