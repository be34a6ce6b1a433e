"""pytorch-ood's detectors, imported when they are needed."""

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType

from gaia_fast.errors import BackendError, first_line
from gaia_fast.extras import how_to_install

_PACKAGE = "pytorch_ood"


@lru_cache
def detectors() -> ModuleType:
    """`pytorch_ood.detector`.

    The package imports torchvision, for its datasets and networks. Its detectors do not need it: where torchvision is
    missing, or was built for another torch, they are imported without the rest.

    Raises:
        BackendError: pytorch-ood is missing, or its detectors cannot be imported.
    """
    with_all = f"{_PACKAGE}.detector"
    try:
        return importlib.import_module(with_all)
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch: RuntimeError
        spec = importlib.util.find_spec(_PACKAGE) if _PACKAGE not in sys.modules else None
        if spec is None or spec.submodule_search_locations is None:
            raise BackendError(
                f"the baselines are pytorch-ood's, which is not there ({first_line(error)}): "
                f"{how_to_install('baselines')}"
            ) from error
        failed = error
    bare = ModuleType(_PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations)
    try:
        _forget()  # what the attempt has left
        sys.modules[_PACKAGE] = bare
        return importlib.import_module(with_all)
    except Exception as error:
        raise BackendError(
            f"pytorch-ood's detectors cannot be imported: {first_line(failed)}; and without torchvision: "
            f"{first_line(error)}"
        ) from error
    finally:
        _forget()  # whoever imports the package itself gets all of it, or its own error


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
        del sys.modules[name]
