"""An exec that has been deleted is unknown to the next daemon too, and its id is free."""

import grpc
import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from support.containers import Containers

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]


def run_exec(containers: Containers, exec_id: str, status: int) -> None:
    containers.exec("web", exec_id, "sh", "-c", f"exit {status}")
    assert containers.wait("web", exec_id).status == status
    containers.tasks("DeleteProcess", tasks_pb2.DeleteProcessRequest(container_id="web", exec_id=exec_id))


def test_its_id_is_free(containers: Containers) -> None:
    containers.run("web", "sleep", "1000")
    for status in range(3):
        run_exec(containers, "probe", status)
        run_exec(containers, "init", status)
        containers.daemon.restart()
        with pytest.raises(grpc.RpcError) as refused:
            containers.wait("web", "probe")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert [path.name for path in containers.bundles.rglob("*probe*")] == []
    containers.kill("web")
    assert containers.wait("web").status == 137
