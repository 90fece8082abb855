"""The ttrpc codec: whatever the cuts, the same frames come out; limits and errors keep their shape."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_wire import ttrpc
from pyctr_wire.errors import ApiError, InvalidArgument, NotFound, ResourceExhausted, UnknownError

_FRAMES = st.lists(
    st.tuples(
        st.integers(0, 2**32 - 1),
        st.sampled_from(ttrpc.FrameType),
        st.binary(max_size=300),
        st.sampled_from(list(ttrpc.FrameFlag)),
    ),
    max_size=8,
)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(frames=_FRAMES, cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(
    frames: list[tuple[int, ttrpc.FrameType, bytes, ttrpc.FrameFlag]], cuts: list[int]
) -> None:
    stream = b"".join(ttrpc.encode_frame(*frame) for frame in frames)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    decoder = ttrpc.FrameDecoder()

    decoded = [frame for start, end in itertools.pairwise(edges) for frame in decoder.feed(stream[start:end])]

    assert decoded == [ttrpc.Frame(stream_id, kind, flags, data) for stream_id, kind, data, flags in frames]
    assert decoder.idle


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_at_all_are_decoded_without_an_error(chunks: list[bytes]) -> None:
    decoder = ttrpc.FrameDecoder()
    for chunk in chunks:
        decoder.feed(chunk)


@pytest.mark.parametrize("step", [7, 4096, 1 << 20, 8 << 20])
def test_an_oversized_frame_is_reported_and_skipped_and_the_next_one_is_read(step: int) -> None:
    length = ttrpc.MAX_DATA + (100 if step > 4096 else 1)
    stream = length.to_bytes(4, "big") + (7).to_bytes(4, "big") + b"\x01\x00"
    following = ttrpc.encode_frame(9, ttrpc.FrameType.REQUEST, b"next")
    decoder = ttrpc.FrameDecoder()

    frames = decoder.feed(stream[:step]) + decoder.feed(stream[step:])
    body = bytes(length) + following
    step = max(step, 4096)
    for start in range(0, len(body), step):
        frames += decoder.feed(body[start : start + step])

    assert frames == [ttrpc.Oversized(7, 1, length), ttrpc.Frame(9, 1, 0, b"next")]


def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_is_refused() -> None:
    data = bytes(ttrpc.MAX_DATA)
    assert ttrpc.FrameDecoder().feed(ttrpc.encode_frame(1, ttrpc.FrameType.DATA, data))
    with pytest.raises(ResourceExhausted):
        ttrpc.encode_frame(1, ttrpc.FrameType.DATA, data + b"x")


def test_a_stream_that_ends_inside_a_frame_is_not_idle() -> None:
    decoder = ttrpc.FrameDecoder()
    decoder.feed(ttrpc.encode_frame(1, ttrpc.FrameType.DATA, b"abc")[:-1])
    assert not decoder.idle


@given(
    st.builds(
        ttrpc.Request,
        service=_TEXT,
        method=_TEXT,
        payload=st.binary(max_size=100),
        timeout_nano=st.integers(0, 2**63 - 1),
        metadata=st.dictionaries(st.from_regex(r"[a-z-]{1,10}", fullmatch=True), _TEXT, max_size=4),
    )
)
def test_a_request_survives_the_wire(request: ttrpc.Request) -> None:
    assert ttrpc.decode_request(ttrpc.encode_request(request)) == request


def test_metadata_keys_are_compared_without_regard_to_case() -> None:
    request = ttrpc.Request("s", "m", b"", 0, {"Containerd-Namespace-TTRPC": "k8s.io"})
    assert ttrpc.decode_request(ttrpc.encode_request(request)).metadata == {"containerd-namespace-ttrpc": "k8s.io"}


@given(st.binary(max_size=200))
def test_a_response_survives_the_wire(payload: bytes) -> None:
    assert ttrpc.decode_response(ttrpc.encode_response(payload)) == payload


@pytest.mark.parametrize(
    ("error", "kind"),
    [(NotFound("process x"), NotFound), (UnknownError("cannot delete a running process"), UnknownError)],
)
def test_an_error_keeps_its_class_and_its_text(error: ApiError, kind: type[ApiError]) -> None:
    with pytest.raises(kind) as caught:
        ttrpc.decode_response(ttrpc.encode_error(error))
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("decode", [ttrpc.decode_request, ttrpc.decode_response])
def test_garbage_is_refused_as_an_invalid_argument(decode: object) -> None:
    with pytest.raises(InvalidArgument):
        decode(b"\xff\xff\xff")  # type: ignore[operator]
