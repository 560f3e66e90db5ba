# The wheel ships its compiled bindings without stubs; to the type checker everything in here is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
