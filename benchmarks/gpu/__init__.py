"""What benchmarks of device kernels share: cases, bundles of built kernels, timing on the device."""
