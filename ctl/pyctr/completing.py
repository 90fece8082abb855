"""What a shell offers for arguments and for values of options: what the daemon has, files, one of a few words."""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from pyctr.connection import CONTAINERS, CONTENT, ENGINE, IMAGES, LEASES, NAMESPACES, SNAPSHOTS, Answer
from pyctr.session import Session
from pyctr.transport import TlsFiles
from pyctr_wire import labels
from pyctr_wire.errors import ApiError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from google.protobuf.message import Message

VARIABLE: Final = "_PYCTR_COMPLETE"  # is set when a shell asks, and says which one
_PATIENCE: Final = 5.0  # seconds; a shell waits
_BASH: Final = r"""%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_REPLACED="${COMP_WORDS[COMP_CWORD]}" \
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


def register_bash() -> None:
    """Replace click's completion for bash, which knows a word only as far back as the last colon.

    Our script hands on the line up to the cursor, and the end of it that bash will replace; click's, which earlier
    versions wrote, go on as they did.
    """
    from click import shell_completion

    class Bash(shell_completion.BashComplete):
        source_template = _BASH
        _before = ""  # what of the word bash leaves as it is

        def get_completion_args(self) -> tuple[list[str], str]:
            if "COMP_REPLACED" not in os.environ:
                return super().get_completion_args()
            line, replaced = os.environ["COMP_WORDS"], os.environ["COMP_REPLACED"].lstrip(":=")
            words = shell_completion.split_arg_string(line)
            incomplete = words.pop() if words and not line[-1:].isspace() else ""
            if incomplete.endswith(replaced):  # otherwise it is quoted, and whole
                self._before = incomplete.removesuffix(replaced)
            return words[1:], incomplete

        def format_completion(self, item: "CompletionItem[Any]") -> str:
            return f"{item.type},{item.value.removeprefix(self._before)}"

    shell_completion.add_completion_class(Bash)


def _session(ctx: click.Context) -> Session:
    """Return a session with the root's options: its own callback does not run for a completion."""
    given = ctx.find_root().params
    tls = TlsFiles.of(given["tls_ca"], given["tls_cert"], given["tls_key"])
    return Session(given["address"], given["namespace"], tls=tls)


def _beginning(candidates: Iterable[str], incomplete: str) -> list[str]:
    return sorted({one for one in candidates if one and one.startswith(incomplete)})


def _listed(ctx: click.Context, service: str, method: str, request: "Message", response: type[Answer]) -> Answer:
    """Return what the daemon lists; nothing if it does not answer."""
    session = _session(ctx)
    try:
        return session.connection.call(service, method, request, response, timeout=_PATIENCE)
    except ApiError:
        return response()
    finally:
        session.close()


def _streamed(ctx: click.Context, service: str, request: "Message", response: type[Answer]) -> list[Answer]:
    """Return what the daemon lists in several answers; nothing if it does not answer."""
    session = _session(ctx)
    try:
        return list(session.connection.stream(service, "List", request, response))
    except ApiError:
        return []
    finally:
        session.close()


def files(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """Have the shell offer files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def one_of(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what offers these."""
    return lambda _, __, incomplete: _beginning(words, incomplete)


restart_policies: Final = one_of("no", "always", "unless-stopped", "on-failure")


def containers(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of containers; ids where there is no name, or where an id is being typed."""
    from pyctr_wire.containerd.services.containers.v1 import containers_pb2 as pb

    found = _listed(ctx, CONTAINERS, "List", pb.ListContainersRequest(), pb.ListContainersResponse).containers
    names = _beginning((one.labels.get(labels.NAME, "") or one.id for one in found), incomplete)
    return names or _beginning((one.id for one in found), incomplete)


def images(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of images as docker shortens them."""
    from pyctr import references
    from pyctr_wire.containerd.services.images.v1 import images_pb2 as pb

    found = _listed(ctx, IMAGES, "List", pb.ListImagesRequest(), pb.ListImagesResponse).images
    return _beginning((references.familiar(one.name) for one in found), incomplete)


def containers_and_images(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return names of both, or of the kind that `--type` names."""
    kind = ctx.params.get("kind")
    found = [] if kind == "image" else containers(ctx, parameter, incomplete)
    return found if kind == "container" else [*found, *images(ctx, parameter, incomplete)]


def volumes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of volumes."""
    from pyctr_wire.pyctr import engine_pb2 as pb

    found = _listed(ctx, ENGINE, "Volumes", pb.VolumesRequest(), pb.VolumesResponse).volumes
    return _beginning((one.name for one in found), incomplete)


def sources(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> "list[str] | list[CompletionItem[str]]":
    """Return what can be mounted: volumes, or files; nothing behind the colon, which is inside of the container."""
    if ":" in incomplete:
        return []
    return volumes(ctx, parameter, incomplete) or files(ctx, parameter, incomplete)


def namespaces(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of namespaces."""
    from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2 as pb

    found = _listed(ctx, NAMESPACES, "List", pb.ListNamespacesRequest(), pb.ListNamespacesResponse).namespaces
    return _beginning((one.name for one in found), incomplete)


def leases(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return ids of leases."""
    from pyctr_wire.containerd.services.leases.v1 import leases_pb2 as pb

    found = _listed(ctx, LEASES, "List", pb.ListRequest(), pb.ListResponse).leases
    return _beginning((one.id for one in found), incomplete)


def digests(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return digests of blobs."""
    from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb

    answers = _streamed(ctx, CONTENT, pb.ListContentRequest(), pb.ListContentResponse)
    return _beginning((one.digest for answer in answers for one in answer.info), incomplete)


def snapshots(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return keys and names of the snapshotter's snapshots."""
    from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2 as pb

    request = pb.ListSnapshotsRequest(snapshotter=ctx.params["snapshotter"])
    answers = _streamed(ctx, SNAPSHOTS, request, pb.ListSnapshotsResponse)
    return _beginning((one.name for answer in answers for one in answer.info), incomplete)
