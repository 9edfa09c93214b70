"""What `kubectl kustomize FOLDER` prints, as far as deploy/kubernetes uses it, for machines without kubectl.

It knows resources, namespace, images, strategic merge patches and JSON patches (RFC 6902: add and replace), and refuses
anything else. Where there is a kubectl, a test holds that both say the same.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "resources", "namespace", "images", "patches"}
# The lists that a strategic merge patch merges by a key, as the API's types say (x-kubernetes-patch-merge-key).
_MERGED_BY = {
    **dict.fromkeys(("containers", "initContainers", "env", "volumes"), "name"),
    "volumeMounts": "mountPath",
    "topologySpreadConstraints": "topologyKey",
}
_OF_THE_CLUSTER = ("Namespace",)


def built(folder: Path) -> list[Manifest]:
    """The manifests of this folder with everything that it builds on."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := set(said) - _KNOWN:
        raise NotImplementedError(f"{folder}: {', '.join(sorted(unknown))}")
    found: list[Manifest] = []
    for each in said.get("resources", []):
        path = folder / each
        text = "" if path.is_dir() else path.read_text(encoding="utf-8")
        found += built(path.resolve()) if path.is_dir() else [each for each in yaml.safe_load_all(text) if each]
    for patch in said.get("patches", []):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text(encoding="utf-8")
        _apply(found, yaml.safe_load(text), patch.get("target"))
    for manifest in found:
        if "namespace" in said and manifest["kind"] not in _OF_THE_CLUSTER:
            manifest["metadata"]["namespace"] = said["namespace"]
        for container in containers(manifest):
            for image in said.get("images", []):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    """Those of its pods, the first ones first."""
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {}) if manifest["kind"] in WORKLOADS else {}
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


WORKLOADS = ("Deployment", "StatefulSet", "Job")


def _apply(found: list[Manifest], patch: Any, target: dict[str, str] | None) -> None:
    wanted = target or {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    chosen = [
        number
        for number, each in enumerate(found)
        if all(
            re.fullmatch(wanted.get(part, ".*"), value)
            for part, value in (("kind", each["kind"]), ("name", each["metadata"]["name"]))
        )
    ]
    if not chosen:
        raise LookupError(f"a patch is about {wanted}, which is not there")
    for number in chosen:
        if isinstance(patch, list):
            for step in patch:
                _step(found[number], copy.deepcopy(step))
        else:
            found[number] = merged(found[number], patch)


def _step(manifest: Manifest, step: dict[str, Any]) -> None:
    *way, last = step["path"].strip("/").split("/")
    place: Any = manifest
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    match step["op"], place:
        case "add", list() if last == "-":
            place.append(step["value"])
        case "replace", list():
            place[int(last)] = step["value"]
        case "add", dict():
            place[last] = step["value"]
        case "replace", dict() if last in place:
            place[last] = step["value"]
        case _:
            raise LookupError(f"{step['op']} {step['path']}")


def merged(old: Any, new: Any, name: str = "") -> Any:
    """What a strategic merge patch makes of it; what the patch adds to a list stands first, as kustomize has it."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old.get(key), value, key) for key, value in new.items()}
    if not (isinstance(old, list) and isinstance(new, list) and name in _MERGED_BY):
        return copy.deepcopy(new)
    key = _MERGED_BY[name]
    by_key = {each[key]: each for each in new}
    kept = [merged(each, by_key[each[key]]) if each[key] in by_key else each for each in old]
    there = {each[key] for each in old}
    return [*(copy.deepcopy(each) for each in new if each[key] not in there), *kept]
