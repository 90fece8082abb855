"""TLS: whom the client believes, and to whom it shows a certificate of ours."""

import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pyctr_wire.errors import ApiError, FailedPrecondition, NotFound, Unauthenticated, Unavailable
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.references import Reference
from pyctrd.offload import Offload
from pyctrd.registry.access import Registries
from pyctrd.registry.client import Repository
from pyctrd.registry.credentials import Credentials
from pyctrd.registry.hosts import Endpoint, HostsConfig, Tls
from pyctrd.registry.uploads import uploads_to
from support.images import MANIFEST, digest, image
from support.scripted_registry import Answer, ScriptedRegistry, scripted_registry

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

Open = Callable[..., Repository]

IMAGE = image({"file": b"content"})
BLOB = b"blob"
LAYER = Descriptor("layer", digest(BLOB), len(BLOB))
BLOB_PATH = f"/v2/some/image/blobs/{LAYER.digest}"
TAG = "/v2/some/image/manifests/v1"
OK = Answer(200, IMAGE.manifest, {"Content-Type": MANIFEST, "Docker-Content-Digest": IMAGE.digest})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    pair = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", str(pair[0]), "-keyout", str(pair[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return pair


def serving(certificate: tuple[Path, Path], *, asks_for_ours: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    if asks_for_ours:
        context.load_verify_locations(certificate[0])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def endpoint(registry: ScriptedRegistry, tls: Tls) -> Endpoint:
    return Endpoint(f"{registry.url}/v2", registry.host, tls=tls)


async def test_an_unknown_authority_is_not_believed(
    certificate: tuple[Path, Path], open_repository: Open, pauses: list[float]
) -> None:
    async with scripted_registry(serving(certificate)) as registry:
        registry.on("HEAD", TAG, OK)

        with pytest.raises(FailedPrecondition, match="certificate cannot be verified"):
            await open_repository(served_by=(endpoint(registry, Tls()),)).resolve()

        assert registry.seen == []
        assert pauses == []


@pytest.mark.parametrize("how", ["ca", "skip_verify"])
async def test_whom_we_are_told_to_believe(certificate: tuple[Path, Path], open_repository: Open, how: str) -> None:
    tls = Tls((certificate[0],)) if how == "ca" else Tls(skip_verify=True)
    async with scripted_registry(serving(certificate)) as registry:
        registry.on("HEAD", TAG, OK)

        assert (await open_repository(served_by=(endpoint(registry, tls),)).resolve()).digest == IMAGE.digest


@pytest.mark.parametrize("known", [True, False])
async def test_a_login_believes_whom_a_pull_believes(
    certificate: tuple[Path, Path], tmp_path: Path, *, known: bool
) -> None:
    async with scripted_registry(serving(certificate)) as registry:
        registry.on("GET", "/v2/", Answer(401, headers={"WWW-Authenticate": "Basic realm=x"}), Answer(200))
        (tmp_path / registry.host).mkdir()
        ca = f'ca = "{certificate[0]}"' if known else ""
        (tmp_path / registry.host / "hosts.toml").write_text(f'server = "{registry.url}"\n{ca}')
        with contextlib.closing(Offload(1)) as offload:
            check = Registries(HostsConfig((tmp_path,)), nobody, nobody, offload, "test/1").check_login
            if known:
                await check(registry.host, Credentials("me", "pass"))
            else:
                with pytest.raises(FailedPrecondition, match="certificate cannot be verified"):
                    await check(registry.host, Credentials("me", "pass"))

        assert len(registry.seen) == (2 if known else 0)


async def test_a_login_refused_over_tls_is_not_tried_in_the_clear(
    certificate: tuple[Path, Path], open_repository: Open
) -> None:
    async with scripted_registry(serving(certificate)) as registry:
        registry.on("GET", "/v2/", Answer(401, headers={"WWW-Authenticate": "Basic realm=x"}))
        maybe = replace(endpoint(registry, Tls(skip_verify=True)), may_fall_back=True)

        known = {registry.host: Credentials("me", "wrong")}

        with pytest.raises(Unauthenticated):
            await open_repository(known, (maybe,), Reference(registry.host, "")).check_login()


async def nobody(host: str, challenges: tuple[str, ...]) -> Credentials | None:
    raise AssertionError("a login is checked with what was typed")


async def test_our_certificate_is_shown_to_the_registry_and_to_nobody_behind_it(
    certificate: tuple[Path, Path], open_repository: Open
) -> None:
    tls = Tls((certificate[0],), (certificate,))
    demanding = serving(certificate, asks_for_ours=True)
    async with scripted_registry(demanding) as registry, scripted_registry(demanding) as other:
        registry.on("HEAD", TAG, OK)
        registry.on("GET", BLOB_PATH, Answer(307, headers={"Location": f"{other.url}/blob"}))
        other.on("GET", "/blob", Answer(200, BLOB))
        repository = open_repository(served_by=(endpoint(registry, tls),))

        await repository.resolve()
        with pytest.raises(Unavailable):
            async with repository.blob(LAYER, 0):
                pass

        assert other.seen == []


async def test_a_redirect_from_tls_to_plain_http_is_refused(
    certificate: tuple[Path, Path], registry: ScriptedRegistry, open_repository: Open
) -> None:
    async with scripted_registry(serving(certificate)) as safe:
        safe.on("GET", BLOB_PATH, Answer(307, headers={"Location": f"{registry.url}/blob"}))

        with pytest.raises(FailedPrecondition, match="plain http"):
            async with open_repository(served_by=(endpoint(safe, Tls(skip_verify=True)),)).blob(LAYER, 0):
                pass

    assert registry.seen == []


async def test_an_upload_from_tls_to_plain_http_is_refused(
    certificate: tuple[Path, Path], registry: ScriptedRegistry, open_repository: Open
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield BLOB

    async with scripted_registry(serving(certificate)) as safe:
        safe.on("POST", "/v2/some/image/blobs/uploads/", Answer(202, headers={"Location": f"{registry.url}/upload"}))

        with pytest.raises(FailedPrecondition, match="plain http"):
            await (await uploads_to(open_repository(served_by=(endpoint(safe, Tls(skip_verify=True)),)))).blob(
                LAYER, body
            )

    assert registry.seen == []


async def test_http_that_may_be_tls_is_asked_both_ways(
    registry: ScriptedRegistry, open_repository: Open, pauses: list[float]
) -> None:
    registry.on("HEAD", TAG, OK)
    maybe = Endpoint(f"https://{registry.host}/v2", registry.host, tls=Tls(skip_verify=True), may_fall_back=True)

    repository = open_repository(served_by=(maybe,))
    assert (await repository.resolve()).digest == IMAGE.digest
    assert len(pauses) == 1
    registry.on("GET", BLOB_PATH, Answer(200, BLOB))
    async with repository.blob(LAYER, 0):
        assert len(pauses) == 1  # that it does not speak TLS is known


@pytest.mark.parametrize("speaks_tls", [True, False])
async def test_http_that_may_be_tls_is_pushed_to_as_it_answers(
    certificate: tuple[Path, Path], open_repository: Open, *, speaks_tls: bool
) -> None:
    async with scripted_registry(serving(certificate) if speaks_tls else None) as registry:
        registry.on("HEAD", BLOB_PATH, Answer(200))
        maybe = Endpoint(f"https://{registry.host}/v2", registry.host, tls=Tls(skip_verify=True), may_fall_back=True)

        uploads = await uploads_to(open_repository(served_by=(maybe,)))

        assert uploads.endpoint == (maybe if speaks_tls else maybe.plain())
        assert await uploads.has(LAYER)


@pytest.mark.parametrize(
    ("skip_verify", "answer", "error"),
    [
        (True, Answer(404), NotFound),
        (True, Answer(401, headers={"WWW-Authenticate": "Basic realm=x"}), Unauthenticated),
        (False, OK, FailedPrecondition),
    ],
    ids=["missing", "refused", "certificate"],
)
async def test_what_answers_over_tls_is_not_asked_in_the_clear(
    certificate: tuple[Path, Path], open_repository: Open, *, skip_verify: bool, answer: Answer, error: type[ApiError]
) -> None:
    """It would be shown what it refused, and its next answer, that it wants TLS, would hide why."""
    async with scripted_registry(serving(certificate)) as registry:
        registry.on("HEAD", TAG, answer)
        registry.on("GET", BLOB_PATH, answer)
        maybe = replace(endpoint(registry, Tls(skip_verify=skip_verify)), may_fall_back=True)
        repository = open_repository({registry.host: Credentials("me", "wrong")}, (maybe,))

        with pytest.raises(error):
            await repository.resolve()
        with pytest.raises(error):
            async with repository.blob(LAYER, 0):
                pass


async def test_certificates_that_cannot_be_read_are_named(registry: ScriptedRegistry, open_repository: Open) -> None:
    missing = Endpoint(f"{registry.url}/v2", registry.host, tls=Tls((Path("/does/not/exist.pem"),)))

    with pytest.raises(FailedPrecondition, match=r"exist\.pem"):
        await open_repository(served_by=(missing,)).resolve()
