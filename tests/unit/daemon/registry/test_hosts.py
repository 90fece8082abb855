"""hosts.toml: who serves a registry, in which order, and how."""

from pathlib import Path

import pytest

from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.registry.hosts import Capability, HostsConfig, Tls, endpoints, parse_hosts

NOWHERE = HostsConfig(())


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("example.com", "https://example.com/v2"),
        ("example.com:5000", "https://example.com:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("127.0.0.1:443", "https://127.0.0.1:443/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("[::1]", "http://[::1]/v2"),
    ],
)
def test_a_registry_without_configuration_serves_itself(host: str, url: str) -> None:
    [endpoint] = endpoints(host, NOWHERE)

    assert endpoint.url == url
    assert endpoint.capabilities == Capability.ALL
    assert endpoint.serves(host)


def test_plain_http_where_it_is_configured() -> None:
    config = HostsConfig((), frozenset({"registry.lan:5000"}))

    assert endpoints("registry.lan:5000", config)[0].url == "http://registry.lan:5000/v2"
    assert endpoints("registry.lan", NOWHERE, "http")[0].url == "http://registry.lan/v2"


@pytest.mark.parametrize(
    "host",
    [
        *("", "a/b", "a b", "../x", "..", ".", "a..b", "user@host", f"{'a' * 64}.com", "[:::]"),
        *("host:port", "host:123456", "host:65536", "host:0", ".".join(["a" * 60] * 5)),
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidArgument):
        endpoints(host, NOWHERE)


def test_mirrors_come_in_the_order_of_the_file_and_the_server_last() -> None:
    mirror, path, server = parse_hosts(
        """
        server = "https://registry.example"
        ca = "/root.pem"
        [host."https://mirror.local:5000"]
          capabilities = ["pull", "resolve"]
          ca = ["a.pem", "b.pem"]
          client = [["c.pem", "k.pem"], "both.pem"]
          dial_timeout = "1m2.5s"
          [host."https://mirror.local:5000".header]
            x-key = ["a", "b"]
        [host."http://path.local/registry"]
          override_path = true
        """,
        "registry.example",
        Path("/d"),
    )

    assert mirror.url == "https://mirror.local:5000/v2"
    assert not mirror.serves("registry.example")
    assert mirror.capabilities == Capability.PULL | Capability.RESOLVE
    assert mirror.headers == {"x-key": ("a", "b")}
    assert mirror.dial_timeout == 62.5
    assert mirror.tls == Tls(
        (Path("/d/a.pem"), Path("/d/b.pem")),
        ((Path("/d/c.pem"), Path("/d/k.pem")), (Path("/d/both.pem"), None)),
    )
    assert path.url == "http://path.local/registry"
    assert server.url == "https://registry.example/v2"
    assert server.tls == Tls((Path("/root.pem"),))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5m", 90),
        ("500ms", 0.5),
        ("2h", 7200),
        ("1s1h", 3601),
        (".5s", 0.5),
        ("1.s", 1),
        ("250us", 0.00025),
        ("0", 0),
    ],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    endpoint, _ = parse_hosts(f'[host."https://x"]\ndial_timeout = "{text}"', "example.com", Path("/d"))

    assert endpoint.dial_timeout == pytest.approx(seconds)


def test_settings_without_a_server_are_about_the_registry_itself() -> None:
    [endpoint] = parse_hosts('capabilities = ["pull"]', "docker.io", Path("/d"))

    assert endpoint.url == "https://registry-1.docker.io/v2"
    assert endpoint.capabilities == Capability.PULL


def test_http_with_tls_settings_is_tried_with_tls_first() -> None:
    endpoint, _ = parse_hosts('[host."http://mirror:80"]\nskip_verify = true', "example.com", Path("/d"))

    assert endpoint.url == "https://mirror:80/v2"
    assert endpoint.may_fall_back
    assert endpoint.plain().url == "http://mirror:80/v2"


@pytest.mark.parametrize(
    "text",
    [
        'server = "ftp://x"',
        "server = 5",
        'server = "https://x/?q"',
        'host = "x"',
        '[host."https://x"]\ncapabilities = ["fly"]',
        '[host."https://x"]\nskip_verify = "yes"',
        '[host."https://x"]\nclient = [["a", "b", "c"]]',
        '[host."https://x"]\nca = 1',
        '[host."https://x"]\ndial_timeout = "soon"',
        '[host."https://x"]\ndial_timeout = ""',
        '[host."https://x"]\ndial_timeout = "5"',
        '[host."https://x"]\ndial_timeout = "-5s"',
        '[host."https://x"]\ndial_timeout = ".s"',
        '[host."https://x"]\nheader = "x"',
        '[host."https://x".header]\nx = "a\\r\\nb"',
    ],
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_hosts(text, "example.com", Path("/d"))


def test_the_first_directory_that_knows_the_host_counts(tmp_path: Path) -> None:
    def write(name: str, server: str) -> None:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "hosts.toml").write_text(f'server = "https://{server}"')

    write("first/_default", "default")
    write("second/example.com_5000_", "never")
    write("first/other.com:5000", "colon")
    write("first/other.com", "name")
    write("first/last.com_5000_", "underscores")
    config = HostsConfig((tmp_path / "missing", tmp_path / "first", tmp_path / "second"))

    assert [
        endpoints(host, config)[0].host
        for host in ("example.com:5000", "other.com:5000", "other.com:1", "last.com:5000")
    ] == ["default", "colon", "name", "underscores"]


@pytest.mark.parametrize("text", ["server = ", f"server = {'[' * 5000}"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "example.com").mkdir()
    (tmp_path / "example.com" / "hosts.toml").write_text(text)

    with pytest.raises(FailedPrecondition, match=r"hosts\.toml"):
        endpoints("example.com", HostsConfig((tmp_path,)))


def test_a_directory_that_cannot_be_knows_nobody() -> None:
    assert endpoints("example.com", HostsConfig((Path("/x" * 5000),))) == endpoints("example.com", NOWHERE)


def test_dockers_certificates_are_used(tmp_path: Path) -> None:
    directory = tmp_path / "localhost:5000"
    directory.mkdir()
    for name in ("ca.crt", "client.cert", "client.key"):
        (directory / name).touch()

    [endpoint] = endpoints("localhost:5000", HostsConfig((tmp_path,)))

    assert endpoint.url == "https://localhost:5000/v2"
    assert endpoint.tls == Tls((directory / "ca.crt",), ((directory / "client.cert", directory / "client.key"),))

    (directory / "client.key").unlink()
    with pytest.raises(FailedPrecondition, match=r"client\.key"):
        endpoints("localhost:5000", HostsConfig((tmp_path,)))
