"""What `--tool-parser` may say; apart from the formats, so that a command line is checked without them."""

from __future__ import annotations

AUTO, NONE = "auto", "none"
NAMES = (
    "harmony", "kimi_k2", "deepseek_v3", "deepseek_v31", "glm45", "seed_oss", "minimax_m2", "qwen3_coder", "mistral",
    "hermes", "llama3_json",
)  # fmt: skip
