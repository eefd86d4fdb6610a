"""Publishing a model as a folder (`save`) and as a Hugging Face Hub repository (`push`).

`load_model` loads either by its name. Pushing a folder imports no torch.
"""

# The functions shadow the modules of the same names, which only this package imports.
from swag_models.publish.push import Upload, push
from swag_models.publish.save import save
from swag_models.publish.signing import sign_folder

__all__ = ["Upload", "push", "save", "sign_folder"]


def __dir__() -> list[str]:
    return sorted(__all__)
