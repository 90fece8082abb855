"""A program that keeps snapshots and does not answer."""

import socket
import tempfile
from typing import Any

import grpc
import pytest

from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from support.daemon_process import DaemonProcess

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_one_that_does_not_answer_is_waited_for_only_so_long() -> None:
    """And nobody else waits with it."""
    calling: dict[str, Any] = {"metadata": (("containerd-namespace", "default"),), "timeout": 60}
    prepare, remove = snapshots_pb2.PrepareSnapshotRequest, snapshots_pb2.RemoveSnapshotRequest
    with tempfile.TemporaryDirectory(prefix="pyctr-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as mute:
        mute.bind(f"{folder}/mute")
        mute.listen()
        config = f'[proxy_plugins.mute]\naddress = "{folder}/mute"\ntimeout = 1\n'
        with DaemonProcess(config=config) as daemon, daemon.channel() as channel:
            stub = snapshots_pb2_grpc.SnapshotsStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Prepare(prepare(snapshotter="mute", key="k"), **calling)
            assert "snapshotter mute: Prepare" in str(caught.value)
            stub.Prepare(prepare(snapshotter="overlayfs", key="k"), **calling)
            stub.Remove(remove(snapshotter="overlayfs", key="k"), **calling)
