from collections.abc import Callable
from typing import Any

from torch import Tensor

class Module:
    __call__: Callable[..., Any]
    def __getattr__(self, name: str) -> Tensor | Module: ...

def __getattr__(name: str) -> Any: ...
