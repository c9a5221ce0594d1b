def _command(self):
    config = self.config
    words = ["cd", config.workdir or os.getcwd(), "&&", f"PYTHONPATH={CODE_ROOT}"]
    words += ["exec", config.python, "-m", f"{__package__}.worker_server", "--node"]
    if config.launcher is not None:
        return [*config.launcher, " ".join(words)]
    return [*SSH, *config.ssh_options, "--", config.host, *words]
