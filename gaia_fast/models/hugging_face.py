"""Image classifiers of Hugging Face's transformers (the extra `hf`), from a folder or by their names on its hub."""

from typing import Any

from torch import nn

from gaia_fast import extras
from gaia_fast.errors import ArgumentError, ModelError, first_line


def image_classifier(name: str, num_classes: int | None = None, pretrained: bool = True) -> nn.Module:
    """Returns a model in float32 and eval mode, whose forward pass gives an object with `logits`.

    Weights are read from safetensors alone, so that nothing is unpickled, and no code that comes with them is run.

    Args:
        name: a folder with config.json and model.safetensors, or a name on the hub.
        num_classes: of a model without weights; else those of the weights.
        pretrained: whether it gets its weights; random ones otherwise.

    Raises:
        ModelError: a weight of the model is not in the file, or has another shape there: transformers would draw it at
            random. ArgumentError: transformers is not installed. Whatever transformers raises for what it cannot load.
    """
    transformers = _transformers("transformers", name)
    if not pretrained:
        classes = {} if num_classes is None else {"num_labels": num_classes}
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **classes)
        return transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False).float().eval()
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    absent = sorted(str(each) for key in ("missing_keys", "mismatched_keys") for each in info[key])
    if absent:
        raise ModelError(
            f"{name} has no weights that fit {', '.join(absent[:4])}{' and others' if len(absent) > 4 else ''}; take a "
            "model that was trained for image classification, not its backbone"
        )
    return model.float().eval()


def preprocessing(name: str) -> dict[str, Any]:
    """Returns the configuration of the image processor that belongs to a model.

    Raises:
        ArgumentError: there is none, or transformers is not installed.
    """
    processing = _transformers("transformers.image_processing_base", name)
    try:
        config, _ = processing.ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{name} has no preprocessor_config.json that can be read: {first_line(error)}") from error
    return dict(config)


def _transformers(module: str, name: str) -> Any:
    return extras.load(module, "hf", name, ArgumentError)
