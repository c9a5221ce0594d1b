def _local_bytes(tensor):
    local = tensor.to_local()
    return int(local.numel() * local.element_size())
