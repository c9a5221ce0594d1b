def describe(exit_code):
    if exit_code > 128:
        name = signal.Signals(exit_code - 128).name
        return f"was killed by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")
    return f"exited with status {exit_code}"
