"""The configuration, from its file."""

from pathlib import Path
from typing import Final

from pyctrd.config.checks import check
from pyctrd.config.tables import Config
from pyctrd.config.values import ConfigError, build
from pyctrd.rootless import paths

DEFAULT_PATH: Final = Path("/etc/pyctr/config.toml")


def load(path: Path | None) -> Config:
    """Return the configuration in `path`; None is the default file if it is there, else the defaults.

    Raises ConfigError if the file cannot be read or used.
    """
    source = path or default_path()
    try:
        text = source.read_text()
    except FileNotFoundError as error:
        if path is None:
            return defaults()
        raise ConfigError(f"{source}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error
    return parse(text, str(source)) if text else defaults()


def default_path() -> Path:
    """Return where the configuration is if nobody says otherwise."""
    return paths.configuration() / "config.toml" if paths.is_rootless() else DEFAULT_PATH


def defaults() -> Config:
    """Return what holds where the configuration says nothing: root's defaults, or an ordinary user's own."""
    config = Config()
    if not paths.is_rootless():
        return config
    registry = config.registry._replace(
        config_path=(str(paths.configuration() / "certs.d"), *config.registry.config_path),
        docker_config=str(Path.home() / ".docker/config.json"),
    )
    return config._replace(root=paths.data(), state=paths.state(), registry=registry)


def parse(text: str, source: str) -> Config:
    """Return the configuration that `text` is; `source` names it in the ConfigError that is raised otherwise."""
    import tomllib  # not needed, and not loaded, where there is no file

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error
    config: Config = build(defaults(), table, source)
    check(config, source)
    return config
