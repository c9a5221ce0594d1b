"""Stage 5: tensors on the wire, process groups, and FSDP over 2 nodes x 4 GPUs."""
