"""The one release of Triton that kernels are made and measured with."""

VERSION = "3.9.0"
