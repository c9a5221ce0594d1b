def memory_bytes(optimizer):
    parameters = optimizer.param_groups[0]["params"]
    states = [value for one in optimizer.state.values() for value in one.values()]
    return {
        "parameters": sum(map(_local_bytes, parameters)),
        "gradients": sum(_local_bytes(one.grad) for one in parameters if one.grad is not None),
        "optimizer": sum(_local_bytes(value) for value in states if hasattr(value, "numel")),
    }
