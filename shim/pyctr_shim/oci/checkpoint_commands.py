"""The subcommands of `pyctr-oci` that save containers and restore them."""

import argparse
import os

from pyctr_shim.oci import commands, process_commands, service
from pyctr_shim.oci.checkpoint.choices import Common, Dump, Restore
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.state import Status

_IMAGES = "checkpoint"


def checkpoint(options: argparse.Namespace) -> int:
    """Save a container; unless it is left running, it is deleted, as in runc."""
    from pyctr_shim.oci.checkpoint.dump import dump

    choices = Dump(
        _common(options),
        leave_running=options.leave_running,
        pre_dump=options.pre_dump,
        parent=options.parent_path,
        tcp_skip_in_flight=options.tcp_skip_in_flight,
        link_remap=options.link_remap,
        page_server=_page_server(options.page_server),
        status_fd=options.status_fd,
    )
    with commands.existing(options) as (directory, record, container):
        status = commands.status_of(directory, record, container)
        if status not in {Status.RUNNING, Status.PAUSED}:
            raise OciError(f"cannot checkpoint a container that is {status.value}: it must be running")
        if service.has_socket(directory):
            raise OciError("cannot checkpoint a container with $NOTIFY_SOCKET, which its spec does not give it again")
        dump(record, choices)
        if not (options.leave_running or options.pre_dump):
            commands.end(container)
            container.delete()
            commands.remove_directory(directory)
    return 0


def restore(options: argparse.Namespace) -> int:
    """Make a container of a checkpoint; unless detached, wait for its end and return its exit status."""
    choices = Restore(_common(options), options.lsm_profile, options.lsm_mount_context)
    return process_commands.run_restored(options, choices)


def _common(options: argparse.Namespace) -> Common:
    return Common(
        images=os.path.abspath(options.image_path or _IMAGES),
        work=os.path.abspath(options.work_path) if options.work_path else "",
        program=options.criu,
        tcp_established=options.tcp_established,
        external_unix_sockets=options.ext_unix_sk,
        shell_job=options.shell_job,
        file_locks=options.file_locks,
        auto_dedup=options.auto_dedup,
        lazy_pages=options.lazy_pages,
        cgroup_mode=options.manage_cgroups_mode,
        empty_namespaces=tuple(options.empty_ns),
    )


def _page_server(text: str | None) -> tuple[str, int] | None:
    if not text:
        return None
    address, separator, port = text.rpartition(":")
    if not separator or not port.isdigit():
        raise OciError(f"--page-server: {text!r} is not ADDRESS:PORT")
    return address, int(port)
