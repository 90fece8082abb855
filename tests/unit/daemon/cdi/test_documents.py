"""What a CDI file may say, and which version it must be of for that."""

import copy
from typing import Any

import pytest

from pyctr_wire.errors import InvalidArgument
from pyctrd.cdi import names
from pyctrd.cdi.documents import DocumentError, parse

FULL: dict[str, Any] = {
    "cdiVersion": "1.1.0",
    "kind": "vendor.com/net.card",
    "annotations": {"vendor.com/made": "by hand"},
    "containerEdits": {"env": ["DRIVER=7"], "additionalGids": [44]},
    "devices": [
        {
            "name": "0",
            "annotations": {"slot": "3"},
            "containerEdits": {
                "env": ["CARD=0"],
                "deviceNodes": [
                    {"path": "/dev/card", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3,
                     "fileMode": 438, "permissions": "rw", "uid": 1, "gid": 2},
                ],
                "mounts": [{"hostPath": "/lib", "containerPath": "/lib", "type": "bind", "options": ["ro", "bind"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"], "env": ["A=1"],
                           "timeout": 3}],
                "netDevices": [{"hostInterfaceName": "eth7", "name": "net0"}],
                "intelRdt": {"closID": "group", "schemata": ["L3:0=f"], "enableMonitoring": True},
            },
        },
    ],
}  # fmt: skip


def without(version: str, *paths: str) -> dict[str, Any]:
    """Return the document above as one of `version` that has nothing of what `paths` are."""
    document = copy.deepcopy(FULL)
    document["cdiVersion"] = version
    device = document["devices"][0]
    for path in paths:
        match path:
            case "annotations":
                del document["annotations"], device["annotations"]
            case "dot":
                document["kind"] = "vendor.com/card"
            case "digit":
                device["name"] = "first"
            case "gids":
                del document["containerEdits"]["additionalGids"]
            case "monitoring":
                device["containerEdits"]["intelRdt"] = {"closID": "group", "enableCMT": True}
            case "hostPath" | "type":
                edits = device["containerEdits"]
                del edits["deviceNodes" if path == "hostPath" else "mounts"][0][path]
            case _:
                del device["containerEdits"][path]
    return document


def test_a_document_with_everything_is_understood() -> None:
    found = parse(FULL)
    assert (found.kind, list(found.devices)) == ("vendor.com/net.card", ["0"])
    assert found.edits["env"] == ["DRIVER=7"]
    assert found.devices["0"]["mounts"][0]["hostPath"] == "/lib"


SINCE_11, SINCE_07 = ("netDevices", "monitoring"), ("intelRdt", "gids")
SINCE_06, SINCE_05 = ("annotations", "dot"), ("digit", "hostPath")


@pytest.mark.parametrize(
    ("version", "removed", "complaint"),
    [
        ("1.0.0", SINCE_11, ""),
        ("v0.7.0", SINCE_11, ""),
        ("0.6.0", (*SINCE_11[:1], *SINCE_07), ""),
        ("0.5.0", (*SINCE_11[:1], *SINCE_07, *SINCE_06), ""),
        ("0.4.0", (*SINCE_11[:1], *SINCE_07, *SINCE_06, *SINCE_05), ""),
        ("0.3.0", (*SINCE_11[:1], *SINCE_07, *SINCE_06, *SINCE_05, "type"), ""),
        ("1.0.0", ("monitoring",), "netDevices is of version 1.1.0"),
        ("1.0.0", ("netDevices",), "intelRdt.schemata is of version 1.1.0"),
        ("0.6.0", (*SINCE_11, "gids"), "intelRdt is of version 0.7.0"),
        ("0.6.0", (*SINCE_11[:1], "intelRdt"), "additionalGids is of version 0.7.0"),
        ("0.5.0", (*SINCE_11[:1], *SINCE_07, "annotations"), "a dot in the class of a kind is of version 0.6.0"),
        ("0.5.0", (*SINCE_11[:1], *SINCE_07, "dot"), "annotations is of version 0.6.0"),
        ("0.4.0", (*SINCE_11[:1], *SINCE_07, *SINCE_06, "digit"), "hostPath of a device node is of version 0.5.0"),
        ("0.4.0", (*SINCE_11[:1], *SINCE_07, *SINCE_06, "hostPath"), "begins with a digit is of version 0.5.0"),
        ("0.3.0", (*SINCE_11[:1], *SINCE_07, *SINCE_06, *SINCE_05), "type of a mount is of version 0.4.0"),
        ("0.2.0", (), "'0.2.0' is not known: 0.3.0 to 1.1.0 are"),
        ("one", (), "'one' is not known"),
    ],
)
def test_what_a_version_had_not_is_refused_in_it(version: str, removed: tuple[str, ...], complaint: str) -> None:
    document = without(version, *removed)
    if not complaint:
        assert parse(document).devices
        return
    with pytest.raises(DocumentError, match=complaint):
        parse(document)


def changed(*path: str | int, to: Any) -> Any:
    """Return the full document with another value, or none, at a place."""
    document: Any = copy.deepcopy(FULL)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return document


EDITS = ("devices", 0, "containerEdits")


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "the document: it must be an object"),
        ({}, "cdiVersion is missing"),
        (changed("kind", to="vendor.com"), "kind 'vendor.com' is not VENDOR/CLASS"),
        (changed("kind", to="1vendor/class"), "is not VENDOR/CLASS"),
        (changed("colour", to="red"), "colour is not known"),
        (changed("devices", to=[]), "devices: there is none"),
        (changed("devices", to={}), "devices: it must be a list"),
        (changed("devices", 0, "name", to="-x"), r"devices\[0\].name: '-x' is not a device's name"),
        (changed("devices", 0, "containerEdits", to={"env": []}), "device '0' has no edits"),
        (changed("devices", to=FULL["devices"] * 2), "device '0' is there twice"),
        (changed("annotations", to={"a": 1}), "annotations: .* is not an object of texts"),
        (changed(*EDITS, "env", to=["NOTHING"]), r"containerEdits.env\[0\]: 'NOTHING' is not NAME=VALUE"),
        (changed(*EDITS, "deviceNodes", 0, "path", to=""), r"deviceNodes\[0\].path is missing"),
        (changed(*EDITS, "deviceNodes", 0, "path", to="dev/x"), "is not a full path"),
        (changed(*EDITS, "deviceNodes", 0, "type", to="d"), "'d' is not one of b, c, u, p"),
        (changed(*EDITS, "deviceNodes", 0, "permissions", to="rwx"), "'rwx' is not letters of rwm"),
        (changed(*EDITS, "deviceNodes", 0, "major", to=True), "'True' is not a number from 0 to"),
        (changed(*EDITS, "mounts", 0, "hostPath", to=None), r"mounts\[0\].hostPath is missing"),
        (changed(*EDITS, "hooks", 0, "hookName", to="before"), "'before' is not one of prestart, "),
        (changed(*EDITS, "hooks", 0, "timeout", to=0), "timeout: '0' is not a number"),
        (changed(*EDITS, "intelRdt", "closID", to="../.."), "is not the name of a group"),
        (changed(*EDITS, "intelRdt", "schemata", to=["a\nb"]), "is not a line of text"),
        (changed(*EDITS, "additionalGids", to=[-1]), r"additionalGids\[0\]: '-1' is not a number"),
        (changed(*EDITS, "netDevices", 0, "name", to=""), r"netDevices\[0\].name is missing"),
    ],
)
def test_what_is_wrong_is_named(document: Any, complaint: str) -> None:
    with pytest.raises(DocumentError, match=complaint):
        parse(document)


def test_devices_are_asked_for_by_name_and_by_annotation_each_once() -> None:
    annotations = {"cdi.k8s.io/plugin_a": "v.com/c=1,v.com/c=2", "example.com/cdi.k8s.io": "nothing"}
    found = names.wanted(["v.com/c=2", "w/c=x:y"], annotations)
    assert list(map(str, found)) == ["v.com/c=2", "w/c=x:y", "v.com/c=1"]


@pytest.mark.parametrize(
    ("fields", "annotations", "complaint"),
    [
        (["/dev/null"], {}, "CDI_devices: '/dev/null' is not the name of a CDI device: VENDOR/CLASS=NAME"),
        (["v/c="], {}, "'v/c=' is not"),
        (["v/c/d=x"], {}, "'v/c/d=x' is not"),
        ([], {"cdi.k8s.io/a": "v/c=x,"}, "annotation cdi.k8s.io/a: '' is not"),
        ([], {"cdi.k8s.io/": "v/c=x"}, "what follows cdi.k8s.io/ is no key"),
        ([], {"cdi.k8s.io/" + 64 * "a": "v/c=x"}, "is no key"),
    ],
)
def test_names_that_are_none_are_refused_with_their_place(
    fields: list[str], annotations: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        names.wanted(fields, annotations)
