"""What GPUs can do at most, known without asking one."""

PEAK_FLOPS = {"A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16 FLOP/s by a part of the device's name, the first that fits (NVIDIA's data sheets of these GPUs; theirs with
sparsity are twice as high)."""
