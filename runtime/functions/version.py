"""The version of the allow-list; a plan names the version it was compiled for. Free of torch, to refuse a plan early."""

FUNCTIONS_VERSION = 1
