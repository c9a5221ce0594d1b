def _command(self):
    config = self.config
    script = (
        f"cd {shlex.quote(config.workdir or '.')} && "
        f"PYTHONPATH={shlex.quote(str(CODE_ROOT))} "
        f"exec {shlex.quote(config.python)} -m {__package__}.worker_server --node"
    )
    line = f"exec /bin/sh -c {shlex.quote(script)}"
    if config.launcher is not None:
        return [*config.launcher, line]
    return [*SSH, *config.ssh_options, "--", config.host, line]
