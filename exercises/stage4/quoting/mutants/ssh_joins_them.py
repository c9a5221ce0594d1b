def _command(self):
    config = self.config
    script = (
        f"cd {shlex.quote(config.workdir or os.getcwd())} && "
        f"PYTHONPATH={shlex.quote(str(CODE_ROOT))} "
        f"exec {shlex.quote(config.python)} -m {__package__}.worker_server --node"
    )
    words = ["/bin/sh", "-c", script]
    if config.launcher is not None:
        return [*config.launcher, f"exec /bin/sh -c {shlex.quote(script)}"]
    return [*SSH, *config.ssh_options, "--", config.host, *words]
