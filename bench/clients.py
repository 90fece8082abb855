"""containerd's own client, ctr, on two daemons in turns: images imported and pulled, and a container run to its end.

Prints the median of each figure and the ratio peer / pyctrd. It runs in the arena, and pulls from a registry that it
starts (Debian's docker-registry) on a loopback port:

    sudo bench/arena .venv/bin/python bench/clients.py [--count N]
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import statistics
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quick import busybox_layer

REGISTRY = "127.0.0.1:5123"
LARGE = ("large", 10, 20 << 20)  # 200 MiB
SMALL = ("small", 20_000, 2 << 10)
RUNS_FOR_EACH = 10  # runs of a container for each image that is pulled


def layer(name: str, count: int, size: int) -> bytes:
    """Return a layer of `count` files of `size` bytes, half of which a compressor cannot make smaller."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for number in range(count):
            entry = tarfile.TarInfo(f"{name}/{number // 500}/{number}")
            entry.size = size
            archive.addfile(entry, io.BytesIO(os.urandom(size // 2) + bytes(size - size // 2)))
    return out.getvalue()


def image(path: Path, reference: str, layers: list[tuple[str, bytes]]) -> None:
    """Write an OCI archive of an image with layers of these media types."""
    blobs: dict[str, bytes] = {}

    def keep(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def plain(media_type: str, data: bytes) -> bytes:
        return gzip.decompress(data) if media_type.endswith("gzip") else data

    oci = "application/vnd.oci.image"
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "true"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(plain(*one)).hexdigest() for one in layers],
        },
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": keep(f"{oci}.config.v1+json", json.dumps(config).encode()),
        "layers": [keep(*one) for one in layers],
    }
    entry = keep(f"{oci}.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"io.containerd.image.name": reference}
    files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@contextmanager
def registry(directory: Path) -> Iterator[None]:
    """Serve what `directory` holds, on REGISTRY, meanwhile."""
    configuration = directory / "registry.yml"
    configuration.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: '{REGISTRY}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}}}\n"
    )
    process = subprocess.Popen(["docker-registry", "serve", configuration], stderr=subprocess.DEVNULL)
    try:
        while True:
            with suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://{REGISTRY}/v2/").close()
                break
            if process.poll() is not None:
                raise RuntimeError("docker-registry has ended; is something else at its port?")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


class Client:
    """ctr on one daemon."""

    def __init__(self, name: str, address: str) -> None:
        """Talk to the daemon at `address`."""
        self.name = name
        self._address = address

    def ctr(self, *arguments: str | Path) -> float:
        """Run ctr and return the milliseconds that it took."""
        begin = time.perf_counter()
        command = ["ctr", "--address", self._address, "--namespace", "bench", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
        return (time.perf_counter() - begin) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5, help="imports and pulls of each image by each daemon")
    options = parser.parse_args()
    clients = [Client("pyctrd", os.environ["PYCTR_ADDRESS"]), Client("containerd", os.environ["PEER_ADDRESS"])]
    samples: dict[str, dict[str, list[float]]] = {}

    def keep(client: Client, figure: str, value: float) -> None:
        samples.setdefault(figure, {}).setdefault(client.name, []).append(value)

    directory = Path(os.environ["ARENA"])
    base = ("application/vnd.oci.image.layer.v1.tar", busybox_layer())
    references = {}
    with registry(directory):
        for shape in (LARGE, SMALL):
            name = shape[0]
            reference = references[name] = f"{REGISTRY}/bench/{name}:1"
            archive = directory / f"{name}.tar"
            image(archive, reference, [base, ("application/vnd.oci.image.layer.v1.tar+gzip", layer(*shape))])
            for turn in range(options.count):
                for client in clients:
                    keep(client, f"import, {name} (ms)", client.ctr("image", "import", archive))
                    if turn == 0 and client is clients[0]:
                        client.ctr("image", "push", "--plain-http", reference)
                    client.ctr("image", "rm", "--sync", reference)
            for _ in range(options.count):
                for client in clients:
                    pull = ("image", "pull", "--plain-http", reference)
                    keep(client, f"pull, {name} (ms)", client.ctr(*pull))
                    for number in range(RUNS_FOR_EACH):
                        run = ("run", "--rm", reference, f"{name}-{number}", "/bin/busybox", "true")
                        keep(client, "run --rm of true (ms)", client.ctr(*run))
                    client.ctr("image", "rm", "--sync", reference)

    print(f"{'median':28}" + "".join(f"{client.name:>12}" for client in clients) + f"{'ratio':>8}")
    for figure, values in samples.items():
        ours, peer = (statistics.median(values[client.name]) for client in clients)
        print(f"{figure:28}{ours:12.1f}{peer:12.1f}{peer / ours:8.2f}")


if __name__ == "__main__":
    main()
