"""Adapters of which each text takes those of its language (X-MOD): a plan is for the configuration's default language."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def choose_language_adapters(model: nn.Module, language: str | None) -> None:
    """Make every module with an adapter for each language call that of `language` alone.

    The module's own code picks rows by language, which cannot be traced. Without a language it is left as it is, and refuses.
    """
    for module in model.modules():
        if language is not None and hasattr(module, "adapter_modules") and hasattr(module, "lang_adapter"):
            _choose(module, language)


def _choose(module: Any, language: str) -> None:
    def adapted(_languages: Tensor, hidden: Tensor) -> Tensor:
        residual = hidden
        if module.adapter_layer_norm is not None:
            hidden = module.adapter_layer_norm(hidden)
        elif module.adapter_reuse_layer_norm:
            hidden = module.LayerNorm(hidden)
        if module.ln_before_adapter:
            residual = hidden
        return module.adapter_modules[language](hidden) + residual

    vars(module)["lang_adapter"] = adapted
