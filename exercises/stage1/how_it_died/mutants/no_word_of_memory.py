def describe(exit_code):
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    return f"was killed by {signal.Signals(-exit_code).name}"
