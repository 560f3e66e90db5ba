"""The kernels of the accelerators: what templates ask for, what the functions compute, what is built of them."""
