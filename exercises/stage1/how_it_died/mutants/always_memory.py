def describe(exit_code):
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + ("" if name == "SIGTERM" else " (probably out of memory)")
