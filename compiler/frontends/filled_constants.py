"""The values of buffers that no checkpoint holds, as transformers makes them when it loads a model."""

from __future__ import annotations

from typing import Any

import torch
import transformers


def fill_constants(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Compute non-persistent buffers on the CPU, as transformers does after loading a checkpoint.

    Modules above the one that has a buffer may be what fills it, so all are asked. What comes out with whatever was in memory
    before is left out.
    """
    owned = {
        f"{path}.{name}": (module, name)
        for path, module in model.named_modules()
        for name in sorted(module._non_persistent_buffers_set)
        if module._buffers.get(name) is not None
    }
    on_meta = {path: module._buffers[name] for path, (module, name) in owned.items()}
    above = [
        (path, module)
        for path, module in model.named_modules()
        if any(name.startswith(f"{path}." if path else "") for name in owned)
    ]
    filled = []
    for value in (0, 1):
        for path, (module, name) in owned.items():
            buffer = on_meta[path]
            assert buffer is not None
            module._buffers[name] = torch.full(buffer.shape, value, dtype=buffer.dtype, device="cpu")
        for path, module in reversed(above):
            _owner(model, path)._init_weights(module)
        filled.append({path: module._buffers[name] for path, (module, name) in owned.items()})
    for path, (module, name) in owned.items():
        module._buffers[name] = on_meta[path]
    first, second = filled
    return {path: value for path, value in first.items() if value is not None and torch.equal(value, second[path])}


def _owner(model: torch.nn.Module, path: str) -> Any:
    """The innermost model of transformers around a module, whose rules fill it."""
    found: Any = model
    for name in filter(None, path.split(".")):
        model = getattr(model, name)
        found = model if isinstance(model, transformers.PreTrainedModel) else found
    return found
