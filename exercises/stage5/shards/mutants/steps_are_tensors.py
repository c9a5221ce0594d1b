def memory_bytes(optimizer):
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    states = [value for one in optimizer.state.values() for value in one.values()]
    return {
        "parameters": sum(map(_local_bytes, parameters)),
        "gradients": sum(_local_bytes(one.grad) for one in parameters if one.grad is not None),
        "optimizer": sum(_local_bytes(value) for value in states),
    }
