def _command(self):
    config = self.config
    line = (
        f"cd '{config.workdir or os.getcwd()}' && PYTHONPATH='{CODE_ROOT}' "
        f"exec '{config.python}' -m {__package__}.worker_server --node"
    )
    if config.launcher is not None:
        return [*config.launcher, line]
    return [*SSH, *config.ssh_options, "--", config.host, line]
