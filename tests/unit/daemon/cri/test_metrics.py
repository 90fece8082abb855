"""What is told of a pod, which may have called things whatever it liked."""

from pathlib import Path

from pyctr_wire.cri import runtime_pb2
from pyctrd.cri.metrics import interfaces

HEADER = b"Inter-| Receive\n face |bytes packets\n"


def test_an_interface_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    """With CAP_NET_ADMIN a pod gives any; nobody else's figures may suffer from that."""
    counts = b" 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
    (tmp_path / "dev").write_bytes(HEADER + b"    lo:" + counts + b"\xfc\x85:" + counts + b"  eth0:" + counts)

    found = interfaces(tmp_path / "dev")

    assert found["eth0"] == tuple(range(1, 17))
    assert len(found) == 2
    for name in found:
        assert runtime_pb2.NetworkInterfaceUsage(name=name).SerializeToString()
