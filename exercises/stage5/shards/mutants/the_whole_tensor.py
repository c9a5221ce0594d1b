def _local_bytes(tensor):
    return tensor.numel() * tensor.element_size()
