"""The credentials that come with a PullImage: whose they are, and in which of their forms they came.

Source: CRI v1, AuthConfig; containerd internal/cri/server/images, ParseAuth.
"""

import base64
import binascii

from pyctr_wire.cri import image_pb2 as pb
from pyctr_wire.errors import InvalidArgument
from pyctrd.registry.credentials import Credentials, CredentialSource, canonical_host


def credentials_of(auth: pb.AuthConfig, host: str) -> Credentials | None:
    """Return what `auth` gives for the registry `host`; None if it has nothing, or is for another registry.

    Raises InvalidArgument for an `auth` field that is not base64 of NAME:PASSWORD.
    """
    if auth.server_address and canonical_host(auth.server_address) != canonical_host(host):
        return None
    if auth.username:
        return Credentials(auth.username, auth.password)
    if auth.identity_token:
        return Credentials(secret=auth.identity_token)
    if auth.auth:
        return _decoded(auth.auth)
    if auth.registry_token:
        return Credentials(header=f"Bearer {auth.registry_token}")
    return None


def only_for(registry: str, credentials: Credentials) -> CredentialSource:
    """Return a source that has `credentials` for the host `registry`, and nothing for its mirrors or any other."""
    owner = canonical_host(registry)

    async def find(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        return credentials if canonical_host(host) == owner else None

    return find


def _decoded(encoded: str) -> Credentials:
    try:
        name, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if not colon:
        # Never quoted: it is a secret even where it is damaged.
        raise InvalidArgument("the auth field of the request's credentials is not base64 of NAME:PASSWORD")
    return Credentials(name, password.strip("\0"))
