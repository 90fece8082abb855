"""A node's images on stores of a test's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyctrd.cri.images import Images
from support.image_node import Node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    found = Node(tmp_path)
    try:
        yield found
    finally:
        found.offload.close()
        found.database.close()


@pytest.fixture
async def images_of(node: Node) -> Images:
    return node.new_images()
