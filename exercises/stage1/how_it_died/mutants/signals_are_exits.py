def describe(exit_code):
    if exit_code == -9:
        return "was killed by SIGKILL (probably out of memory)"
    return f"exited with status {exit_code}"
