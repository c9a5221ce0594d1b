def memory_bytes(optimizer: "torch.optim.Optimizer") -> dict[str, int]:
    """Return the bytes that this rank holds: {"parameters", "gradients", "optimizer"}.

    Of a sharded parameter (DTensor) only this rank's shard counts.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    states = [one[name] for one in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "parameters": sum(map(_local_bytes, parameters)),
        "gradients": sum(_local_bytes(one.grad) for one in parameters if one.grad is not None),
        "optimizer": sum(_local_bytes(value) for value in states if hasattr(value, "numel")),
    }
