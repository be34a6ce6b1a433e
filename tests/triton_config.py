"""`config.pbtxt` as Triton Inference Server reads it: by protobuf's own parser, which takes no field that the server's
model_config.proto has not. Those of its messages and fields that this package writes."""

import functools
from pathlib import Path
from typing import Any

import pytest

_SCALARS = {"string": 9, "int32": 5, "int64": 3, "uint32": 13, "uint64": 4, "bool": 8}
_ENUMS = {
    "DataType": ("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
    "TimeoutAction": ("REJECT", "DELAY"),
}
_MESSAGES: dict[str, dict[str, str]] = {
    "ModelParameter": {"string_value": "string"},
    "Latest": {"num_versions": "uint32"},
    "ModelVersionPolicy": {"latest": "Latest"},
    "ModelInput": {"name": "string", "data_type": "DataType", "dims": "int64*", "allow_ragged_batch": "bool"},
    "ModelOutput": {"name": "string", "data_type": "DataType", "dims": "int64*"},
    "ModelInstanceGroup": {"name": "string", "kind": "Kind", "count": "int32", "gpus": "int32*"},
    "ModelQueuePolicy": {
        "timeout_action": "TimeoutAction",
        "default_timeout_microseconds": "uint64",
        "allow_timeout_override": "bool",
        "max_queue_size": "uint32",
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": "int32*",
        "max_queue_delay_microseconds": "uint64",
        "default_queue_policy": "ModelQueuePolicy",
    },
    # What map<string, ModelParameter> stands for.
    "ParametersEntry": {"key": "string", "value": "ModelParameter"},
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "max_batch_size": "int32",
        "version_policy": "ModelVersionPolicy",
        "input": "ModelInput*",
        "output": "ModelOutput*",
        "instance_group": "ModelInstanceGroup*",
        "dynamic_batching": "ModelDynamicBatching",
        "parameters": "ParametersEntry*",
    },
}


@functools.cache
def _model_config() -> Any:
    pytest.importorskip("google.protobuf", reason="protobuf, which reads config.pbtxt, is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = (14 if kind in _ENUMS else 11), f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read_config(path: Path) -> dict[str, Any]:
    """Returns a model's configuration as its `model.py` gets it, defaults among it."""
    from google.protobuf import json_format, text_format

    message = text_format.Parse(path.read_text(), _model_config()())
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    found["parameters"] = {each["key"]: each["value"] for each in found["parameters"]}
    for each in (*found["input"], *found["output"]):
        each["dims"] = [int(size) for size in each["dims"]]
    return found
