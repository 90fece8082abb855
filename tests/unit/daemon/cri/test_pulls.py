"""Pulls: who shares one, what ends one, what the kubelet is told, and which records there are afterwards."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from pyctr_wire.errors import (
    ApiError,
    Cancelled,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    UnknownError,
)
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import digest_of
from pyctrd.core.images import Image
from pyctrd.cri.image_index import MANAGED, MANAGED_LABEL, PINNED, PINNED_LABEL, reference_of
from pyctrd.cri.images import NAMESPACE, Images
from pyctrd.cri.pulls import Pulls, Request
from pyctrd.registry.credentials import Credentials
from pyctrd.runtime.operations import Operations
from pyctrd.transfer.progress import Listener, Report
from support.image_node import HOST, Node
from support.images import image, index

ONE = image({"a": b"1"}, {"b": b"2"})
ID = digest_of(ONE.config)
LABELS = {MANAGED_LABEL: MANAGED}
DENIED = "pull access denied, repository does not exist or may require authorization"
PATIENCE = 300.0


def asking(text: str = "registry.example/one:v1", credentials: Credentials | None = None) -> Request:
    reference = reference_of(text)
    assert reference
    return Request(reference, "native", credentials)


class ScriptedFetch:
    """Fetches that end when they are told to; `listeners` are what they would report to."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[str]] = []
        self.sources: list[Any] = []
        self.listeners: list[Listener] = []
        self.cancelled = 0

    async def __call__(self, ns: str, source: Any, destination: Any, name: Any, credentials: Any, listener: Any) -> Any:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.calls.append(future)
        self.sources.append(credentials)
        self.listeners.append(listener)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def called(self, times: int) -> None:
        """Return when so many fetches have begun."""
        async with asyncio.timeout(30):
            while len(self.calls) < times:
                await asyncio.sleep(0)


@pytest.fixture
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as found:
        yield found


@pytest.fixture
async def scripted() -> ScriptedFetch:
    return ScriptedFetch()


@pytest.fixture
async def operations() -> Operations:
    return Operations()


@pytest.fixture
async def pulls(scripted: ScriptedFetch, operations: Operations, group: asyncio.TaskGroup) -> Pulls:
    return Pulls(scripted, HOST, frozenset(), PATIENCE, operations, group)


async def _all(*pulls: Awaitable[str]) -> list[str | BaseException]:
    return await asyncio.gather(*pulls, return_exceptions=True)


# -- who shares


async def test_fifty_who_want_the_same_share_one_pull(pulls: Pulls, scripted: ScriptedFetch) -> None:
    waiting = [asyncio.ensure_future(pulls.pull(asking())) for _ in range(50)]
    await scripted.called(1)
    waiting[7].cancel()  # one that leaves does not matter to the others

    scripted.calls[0].set_result(ID)

    results = await _all(*waiting)
    assert isinstance(results.pop(7), asyncio.CancelledError)
    assert results == [ID] * 49
    assert len(scripted.calls) == 1


async def test_a_pull_that_has_ended_is_not_shared(pulls: Pulls, scripted: ScriptedFetch) -> None:
    """A tag may have moved since."""
    for number in range(2):
        waiting = asyncio.ensure_future(pulls.pull(asking()))
        await scripted.called(number + 1)
        scripted.calls[number].set_result(ID)
        assert await waiting == ID


async def test_other_credentials_share_nothing(pulls: Pulls, scripted: ScriptedFetch) -> None:
    """Who has no right to an image must not get it with somebody else's."""
    requests = [
        asking(),
        asking(credentials=Credentials("me", "secret")),
        asking(credentials=Credentials("me", "guessed")),
        asking(credentials=Credentials(header="Bearer x")),
        asking("registry.example/one:v2"),
    ]
    waiting = [asyncio.ensure_future(pulls.pull(one)) for one in requests]
    await scripted.called(5)

    for call in scripted.calls:
        call.set_result(ID)
    assert await _all(*waiting) == [ID] * 5
    assert await scripted.sources[1]("registry.example", ()) == Credentials("me", "secret")
    assert await scripted.sources[1]("mirror.example", ()) is None
    assert scripted.sources[0] is None


async def test_all_who_share_hear_of_the_failure(pulls: Pulls, scripted: ScriptedFetch, operations: Operations) -> None:
    waiting = [asyncio.ensure_future(pulls.pull(asking())) for _ in range(3)]
    await scripted.called(1)

    scripted.calls[0].set_exception(NotFound("gone"))

    assert {str(error) for error in await _all(*waiting)} == {
        'failed to pull image "registry.example/one:v1": gone: not found'
    }
    assert not operations.running()


async def test_a_bug_ends_one_pull_and_not_the_daemon(
    pulls: Pulls, scripted: ScriptedFetch, group: asyncio.TaskGroup
) -> None:
    waiting = asyncio.ensure_future(pulls.pull(asking()))
    await scripted.called(1)

    scripted.calls[0].set_exception(ZeroDivisionError())

    assert [type(error) for error in await _all(waiting)] == [ZeroDivisionError]
    group.create_task(asyncio.sleep(0))  # raises in a group that is ending


async def test_the_last_one_to_leave_ends_the_pull(pulls: Pulls, scripted: ScriptedFetch) -> None:
    waiting = [asyncio.ensure_future(pulls.pull(asking())) for _ in range(2)]
    await scripted.called(1)

    for one in waiting:
        assert not scripted.cancelled
        one.cancel()
        await _all(one)
    again = asyncio.ensure_future(pulls.pull(asking()))  # begins anew, though the old one may still be ending
    await scripted.called(2)

    scripted.calls[1].set_result(ID)
    assert await again == ID
    assert scripted.cancelled == 1


async def test_a_daemon_that_stops_says_so(scripted: ScriptedFetch, operations: Operations) -> None:
    class StopError(Exception):
        pass

    waiting: list[asyncio.Future[str]] = []

    async def serve() -> None:
        async with asyncio.TaskGroup() as group:
            pulls = Pulls(scripted, HOST, frozenset(), PATIENCE, operations, group)
            waiting.append(asyncio.ensure_future(pulls.pull(asking())))
            await scripted.called(1)
            raise StopError

    with pytest.raises(ExceptionGroup) as caught:
        await serve()

    assert [type(error) for error in caught.value.exceptions] == [StopError]
    with pytest.raises(Unavailable, match="stopping"):
        await waiting[0]


# -- what ends one


async def test_a_pull_to_which_nothing_comes_is_given_up(
    scripted: ScriptedFetch, operations: Operations, group: asyncio.TaskGroup
) -> None:
    pulls = Pulls(scripted, HOST, frozenset(), 0.05, operations, group)

    with pytest.raises(Cancelled, match=r"nothing has arrived for 0.05 seconds"):
        await pulls.pull(asking())

    assert scripted.cancelled == 1


async def test_a_timeout_of_somebody_else_is_not_ours(pulls: Pulls, scripted: ScriptedFetch) -> None:
    waiting = asyncio.ensure_future(pulls.pull(asking()))
    await scripted.called(1)

    scripted.calls[0].set_exception(TimeoutError("of a disk"))

    with pytest.raises(TimeoutError, match="of a disk"):
        await waiting


async def test_the_limit_holds_while_bytes_are_awaited_only(
    pulls: Pulls, scripted: ScriptedFetch, operations: Operations
) -> None:
    """Unpacking takes as long as it takes, and so does waiting for another pull that unpacks the same layer."""
    waiting = asyncio.ensure_future(pulls.pull(asking()))
    await scripted.called(1)
    [listener] = scripted.listeners
    limit: asyncio.Timeout = listener.limit  # type: ignore[attr-defined]
    some = Descriptor("type", ID, 10)

    async def tell(event: str, name: str = "layer-1") -> float | None:
        before = asyncio.get_running_loop().time()
        await listener.send(Report(event, name, progress=1, descriptor=some))
        when = limit.when()
        assert when is None or when >= before + PATIENCE
        return when

    assert limit.when() is not None  # the registry is to answer
    await listener.send(Report("Resolving"))
    assert operations.running()[0].stage == "Resolving"
    assert await tell("waiting")
    assert await tell("downloading")
    assert await tell("waiting", "layer-2")
    assert await tell("complete")
    assert await tell("extracting") is None
    assert await tell("downloading", "layer-2") is None
    assert await tell("extracted")
    assert await tell("complete", "layer-2") is None
    scripted.calls[0].set_result(ID)
    await waiting


# -- what the kubelet is told


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotFound("x"), NotFound),
        (Unauthenticated(f"{DENIED}: server message: no"), Unauthenticated),
        (PermissionDenied(f"{DENIED}: server message: no"), PermissionDenied),
        (DataLoss("wrong bytes"), DataLoss),
        (InvalidArgument("bad manifest"), InvalidArgument),
    ],
)
async def test_errors_keep_their_class_and_name_the_image(
    pulls: Pulls, scripted: ScriptedFetch, error: ApiError, expected: type[ApiError]
) -> None:
    waiting = asyncio.ensure_future(pulls.pull(asking()))
    await scripted.called(1)
    scripted.calls[0].set_exception(error)

    with pytest.raises(expected) as caught:
        await waiting
    assert str(caught.value) == f'failed to pull image "registry.example/one:v1": {error}'


@pytest.mark.parametrize("refusal", [Unauthenticated("wrong password"), PermissionDenied("not for you")])
async def test_whoever_refuses_access_it_is_told_the_same(
    pulls: Pulls, scripted: ScriptedFetch, refusal: ApiError
) -> None:
    waiting = asyncio.ensure_future(pulls.pull(asking()))
    await scripted.called(1)
    scripted.calls[0].set_exception(refusal)

    with pytest.raises(type(refusal)) as caught:
        await waiting
    assert str(caught.value) == (
        'failed to pull image "registry.example/one:v1": pull access denied, repository does not exist or may '
        f"require authorization: {refusal}"
    )


async def test_kubelets_know_a_registry_that_is_out_of_reach(pulls: Pulls, scripted: ScriptedFetch) -> None:
    """By the beginning of the text, which it looks at under code Unknown only."""
    waiting = asyncio.ensure_future(pulls.pull(asking()))
    await scripted.called(1)
    scripted.calls[0].set_exception(Unavailable("connection refused"))

    with pytest.raises(UnknownError) as caught:
        await waiting
    assert type(caught.value) is UnknownError
    assert str(caught.value).startswith("RegistryUnavailable: failed to pull image")


# -- what there is afterwards


@pytest.fixture
def pull(node: Node, group: asyncio.TaskGroup, operations: Operations) -> Callable[[str], Awaitable[str]]:
    pinned = frozenset({"registry.example/pinned"})
    pulls = Pulls(node.transfers.fetch, HOST, pinned, PATIENCE, operations, group)
    return lambda text: pulls.pull(asking(text))


async def test_by_tag_there_are_three_records(
    node: Node, images_of: Images, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(ONE)

    assert await pull("registry.example/one") == ID

    assert {one.name: one.labels for one in node.store.list(NAMESPACE)} == {
        ID: LABELS,
        "registry.example/one:latest": LABELS,
        f"registry.example/one@{ONE.digest}": LABELS,
    }
    [found] = await images_of.list()
    assert not found.pinned
    assert node.snapshots.named("native").stat(NAMESPACE, found.chain_id)
    await node.offload.run(node.collector.collect)
    assert node.blobs() == set(ONE.blobs)


async def test_by_digest_there_are_two(node: Node, pull: Callable[[str], Awaitable[str]]) -> None:
    node.repository.add(ONE)

    await pull(f"registry.example/one:v1@{ONE.digest}")

    assert node.names() == [f"registry.example/one@{ONE.digest}", ID]


async def test_a_tag_that_moved_leaves_the_old_image_without_it(
    node: Node, images_of: Images, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(ONE)
    await pull("registry.example/one:v1")
    two = image({"a": b"2"})
    node.repository.add(two)

    assert await pull("registry.example/one:v1") == digest_of(two.config)

    by_id = {found.id: found for found in await images_of.list()}
    assert by_id[ID].tags == ()
    assert by_id[ID].digests == (f"registry.example/one@{ONE.digest}",)
    assert by_id[digest_of(two.config)].tags == ("registry.example/one:v1",)


async def test_labels_of_others_stay_and_nothing_is_written_twice(
    node: Node, images_of: Images, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(ONE)
    await pull("registry.example/one:v1")
    target = node.store.get(NAMESPACE, ID).target
    node.store.update(NAMESPACE, Image(ID, target, {PINNED_LABEL: PINNED}), (f"labels.{PINNED_LABEL}",))
    before = node.store.list(NAMESPACE)

    await pull("registry.example/one:v1")

    assert node.store.list(NAMESPACE) == before
    assert (await images_of.resolve(ID)).pinned


async def test_what_is_removed_while_it_is_named_is_named_anew(
    node: Node, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(ONE)
    await pull("registry.example/one:v1")
    node.repository.add(image({"a": b"2"}))
    update = node.store.update

    def removed_meanwhile(ns: str, one: Image, *rest: Any, **more: Any) -> Image:
        node.store.delete(ns, one.name)
        return update(ns, one, *rest, **more)

    node.store.update = removed_meanwhile  # type: ignore[method-assign, assignment]
    assert await pull("registry.example/one:v1") != ID

    assert "registry.example/one:v1" in node.names()


async def test_configured_images_are_pinned(
    node: Node, images_of: Images, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(ONE)

    await pull("registry.example/pinned:latest")

    assert (await images_of.resolve(ID)).pinned
    assert {one.labels.get(PINNED_LABEL) for one in node.store.list(NAMESPACE)} == {PINNED}


async def test_of_an_index_only_our_platform_is_fetched(
    node: Node, images_of: Images, pull: Callable[[str], Awaitable[str]]
) -> None:
    arm = image({"a": b"arm"}, architecture="arm64")
    node.repository.add_index(index((arm, "arm64"), (ONE, "amd64")), ONE)

    assert await pull("registry.example/multi:v1") == ID

    assert not node.blobs() & set(arm.blobs)
    assert (await images_of.resolve("registry.example/multi:v1")).id == ID


@pytest.mark.parametrize("as_index", [False, True])
async def test_an_image_for_another_platform_gets_no_name(
    node: Node, pull: Callable[[str], Awaitable[str]], as_index: bool
) -> None:
    arm = image({"a": b"arm"}, architecture="arm64")
    if as_index:
        node.repository.add_index(index((arm, "arm64")), arm)
    else:
        node.repository.add(arm)

    with pytest.raises(NotFound, match="no match for platform"):
        await pull("registry.example/arm:v1")

    assert node.names() == []
    await node.offload.run(node.collector.collect)
    assert node.blobs() == set()


async def test_labels_in_an_image_stay_in_the_image(
    node: Node, images_of: Images, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(
        image(config={"Labels": {PINNED_LABEL: PINNED, "containerd.io/gc.expire": "2001-01-01T00:00:00Z"}})
    )

    await pull("registry.example/attack:v1")

    assert {tuple(one.labels.items()) for one in node.store.list(NAMESPACE)} == {((MANAGED_LABEL, MANAGED),)}
    [found] = await images_of.list()
    assert not found.pinned


async def test_a_pull_that_fails_while_unpacking_leaves_no_name_and_no_lease(
    node: Node, pull: Callable[[str], Awaitable[str]]
) -> None:
    node.repository.add(ONE)
    node.differ.failures = [InvalidArgument("bad layer")]

    with pytest.raises(InvalidArgument, match="bad layer"):
        await pull("registry.example/one:v1")

    assert node.names() == []
    assert node.leases.list(NAMESPACE) == []
