"""What OCI's image-spec demands of an index, a manifest and a layout, as JSON schemas."""

from __future__ import annotations

MEDIA_TYPE = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(;.*)?$",
}
DIGEST = {"type": "string", "pattern": r"^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]{32,}$"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
DESCRIPTOR = {
    "type": "object",
    "required": ["mediaType", "digest", "size"],
    "properties": {
        "mediaType": MEDIA_TYPE,
        "digest": DIGEST,
        "size": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        "urls": {"type": "array", "items": {"type": "string", "format": "uri"}},
        "data": {"type": "string"},
        "artifactType": MEDIA_TYPE,
        "annotations": STRINGS,
        "platform": {
            "type": "object",
            "required": ["architecture", "os"],
            "properties": {key: {"type": "string"} for key in ("architecture", "os", "os.version", "variant")}
            | {"os.features": {"type": "array", "items": {"type": "string"}}},
        },
    },
}
COMMON = {
    "schemaVersion": {"const": 2},
    "mediaType": MEDIA_TYPE,
    "artifactType": MEDIA_TYPE,
    "subject": DESCRIPTOR,
    "annotations": STRINGS,
}
INDEX = {
    "type": "object",
    "required": ["schemaVersion", "manifests"],
    "properties": COMMON | {"manifests": {"type": "array", "items": DESCRIPTOR}},
}
MANIFEST = {
    "type": "object",
    "required": ["schemaVersion", "config", "layers"],
    "properties": COMMON
    | {"config": DESCRIPTOR, "layers": {"type": "array", "items": DESCRIPTOR, "minItems": 1}},
}
LAYOUT = {
    "type": "object",
    "required": ["imageLayoutVersion"],
    "properties": {"imageLayoutVersion": {"const": "1.0.0"}},
}
DOCKER_MANIFEST_JSON = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["Config", "RepoTags", "Layers"],
        "additionalProperties": False,
        "properties": {
            "Config": {"type": "string"},
            "RepoTags": {"type": ["array", "null"], "items": {"type": "string"}},
            "Layers": {"type": ["array", "null"], "items": {"type": "string"}},
        },
    },
}
