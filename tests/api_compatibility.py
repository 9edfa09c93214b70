"""What of an OpenAPI document its callers rely on, and whether another document still keeps it.

An addition is no break: a new path, an optional parameter, a field or a value in an answer, another error.
"""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
LOWER, UPPER = (
    ("minimum", "exclusiveMinimum", "minLength", "minItems"),
    (*("maximum", "exclusiveMaximum", "maxLength", "maxItems"),),
)
OPAQUE = ("pattern", "format", "const", "not", "anyOf", "oneOf", "multipleOf", "uniqueItems")
"""What is either the same or another: nobody compares two patterns."""


def breaking(old: Json, new: Json) -> list[str]:
    """What callers of `old` would stumble over in `new`, in words."""
    return list(_Comparison(old, new).all())


def may_break(old_version: str, new_version: str) -> bool:
    """Whether the step announces a break (https://semver.org): by the first number, or before 1.0 by the second."""
    before, after = ([int(part) for part in version.split(".")[:2]] for version in (old_version, new_version))
    return after[0] > before[0] or (before[0] == after[0] == 0 and after[1] > before[1])


class _Comparison:
    def __init__(self, old: Json, new: Json) -> None:
        self._old = old
        self._new = new

    def all(self) -> Iterator[str]:
        if self._old.get("servers") != self._new.get("servers"):
            yield "the servers changed"
        yield from self._schemes()
        yield from self._codes()
        for path, item in self._old["paths"].items():
            if path not in self._new["paths"]:
                yield f"{path} is gone"
                continue
            for method in METHODS:
                if method not in item:
                    continue
                where = f"{method.upper()} {path}"
                if method not in self._new["paths"][path]:
                    yield f"{where} is gone"
                else:
                    yield from self._operation(where, item[method], self._new["paths"][path][method])

    def _schemes(self) -> Iterator[str]:
        for name, scheme in self._old["components"].get("securitySchemes", {}).items():
            now = self._new["components"].get("securitySchemes", {}).get(name, {})
            if any(scheme.get(key) != now.get(key) for key in ("type", "in", "name", "scheme")):
                yield f"the security scheme {name} is gone or changed"

    def _codes(self) -> Iterator[str]:
        """A problem's `code` is promised; the examples name them all."""
        for name, response in self._old["components"].get("responses", {}).items():
            now = self._new["components"].get("responses", {}).get(name, {})
            for code in sorted(_codes(response) - _codes(now)):
                yield f"the code {code} of {name} is gone"

    def _operation(self, where: str, old: Json, new: Json) -> Iterator[str]:
        if old.get("operationId") != new.get("operationId"):
            yield f"{where}: the operationId changed, and with it the names in generated clients"
        yield from self._security(where, old, new)
        yield from self._parameters(where, old, new)
        yield from self._body(where, old.get("requestBody"), new.get("requestBody"))
        for status, answer in old["responses"].items():
            if status not in new["responses"]:
                if status.startswith(("2", "3")):
                    yield f"{where}: the status {status} is gone"
                continue
            now = _resolved(self._new, new["responses"][status])
            yield from self._answer(f"{where} {status}", _resolved(self._old, answer), now)

    def _security(self, where: str, old: Json, new: Json) -> Iterator[str]:
        before, after = (
            {
                name: set(scopes)
                for each in operation.get("security", document.get("security", []))
                for name, scopes in each.items()
            }
            for operation, document in ((old, self._old), (new, self._new))
        )
        if not before and after:
            yield f"{where}: needs credentials now"
        for name, scopes in before.items():
            if after and name not in after:
                yield f"{where}: {name} is no longer taken"
            for scope in sorted(after.get(name, set()) - scopes):
                yield f"{where}: needs the scope {scope} now"

    def _parameters(self, where: str, old: Json, new: Json) -> Iterator[str]:
        before, after = self._by_name(self._old, old), self._by_name(self._new, new)
        for key, parameter in before.items():
            at = f"{where}: the {key[0]} parameter {key[1]}"
            if key not in after:
                yield f"{at} is gone, and would be refused"
                continue
            if after[key].get("required") and not parameter.get("required"):
                yield f"{at} is required now"
            yield from self._taken(at, parameter.get("schema", {}), after[key].get("schema", {}))
        for key, parameter in after.items():
            if key not in before and parameter.get("required"):
                yield f"{where}: the {key[0]} parameter {key[1]} is new and required"

    def _by_name(self, document: Json, operation: Json) -> dict[tuple[str, str], Json]:
        resolved = [_resolved(document, each) for each in operation.get("parameters", [])]
        return {(each["in"], each["name"]): each for each in resolved}

    def _body(self, where: str, old: Json | None, new: Json | None) -> Iterator[str]:
        if old is None:
            if new is not None and new.get("required"):
                yield f"{where}: needs a body now"
            return
        if new is None:
            yield f"{where}: takes no body any more"
            return
        if new.get("required") and not old.get("required"):
            yield f"{where}: the body is required now"
        for kind, media in old["content"].items():
            if kind not in new["content"]:
                yield f"{where}: takes no {kind} any more"
            else:
                yield from self._taken(f"{where}: body", media["schema"], new["content"][kind]["schema"])

    def _answer(self, where: str, old: Json, new: Json) -> Iterator[str]:
        for header in old.get("headers", {}):
            if header not in new.get("headers", {}):
                yield f"{where}: the header {header} is gone"
        for kind, media in old.get("content", {}).items():
            if kind not in new.get("content", {}):
                yield f"{where}: {kind} is gone"
            else:
                yield from self._given(where, media.get("schema", {}), new["content"][kind].get("schema", {}))

    def _taken(self, where: str, old: Json, new: Json) -> Iterator[str]:
        """What callers send: everything that was right has to stay right."""
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if gone := _types(old) - _types(new):
            yield f"{where}: is no longer taken as {', '.join(sorted(gone))}"
        yield from _values(where, old, new, added=False)
        for key, low in ((key, new[key]) for key in LOWER if key in new):
            if key not in old or low > old[key]:
                yield f"{where}: {key} rose from {old.get(key, 'none')} to {low}"
        for key, high in ((key, new[key]) for key in UPPER if key in new):
            if key not in old or high < old[key]:
                yield f"{where}: {key} fell from {old.get(key, 'none')} to {high}"
        for key in OPAQUE:
            if key in new and new[key] != old.get(key):
                yield f"{where}: {key} is new or changed"
        for name in sorted(set(new.get("required", [])) - set(old.get("required", []))):
            yield f"{where}.{name}: is required now"
        if new.get("additionalProperties") is False and old.get("additionalProperties") is not False:
            yield f"{where}: takes no other fields any more"
        for name, schema in old.get("properties", {}).items():
            if name in new.get("properties", {}):
                yield from self._taken(f"{where}.{name}", schema, new["properties"][name])
            elif new.get("additionalProperties") is False:
                yield f"{where}.{name}: is gone, and would be refused"
        if isinstance(old.get("items"), dict):
            yield from self._taken(f"{where}[]", old["items"], new.get("items", {}))

    def _given(self, where: str, old: Json, new: Json) -> Iterator[str]:
        """What callers read: everything that was there has to stay there, as it was."""
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if _types(old) and (other := (_types(new) or {"anything"}) - _types(old)):
            yield f"{where}: may be {', '.join(sorted(other))} now"
        yield from _values(where, old, new, added=True)
        for key in ("format", "const"):
            if key in old and new.get(key) != old[key]:
                yield f"{where}: {key} is gone or changed"
        for name, schema in old.get("properties", {}).items():
            if name not in new.get("properties", {}):
                yield f"{where}.{name}: is gone"
                continue
            if name in old.get("required", []) and name not in new.get("required", []):
                yield f"{where}.{name}: may be absent now"
            yield from self._given(f"{where}.{name}", schema, new["properties"][name])
        for key in ("items", "additionalProperties"):
            if isinstance(old.get(key), dict):
                now = new.get(key)
                yield from self._given(f"{where}[]", old[key], now if isinstance(now, dict) else {})


def _values(where: str, old: Json, new: Json, *, added: bool) -> Iterator[str]:
    """`added`: whether a document that says nothing of values may begin to."""
    if "enum" in old:
        for value in [each for each in old["enum"] if each not in new.get("enum", [] if added else old["enum"])]:
            yield f"{where}: the value {value!r} is gone"
    elif "enum" in new and not added:
        yield f"{where}: takes only some values now"


def _types(schema: Json) -> set[str]:
    """The JSON types that may come; an integer is a number."""
    choices = schema.get("anyOf", []) or schema.get("oneOf", [])
    if choices:
        return set().union(*(_types(each) for each in choices))
    said = schema.get("type", [])
    return {said} if isinstance(said, str) else set(said)


def _codes(response: Json) -> set[str]:
    return {code for media in response.get("content", {}).values() for code in media.get("examples", {})}


def _resolved(document: Json, node: Json) -> Json:
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = {**found, **{key: value for key, value in node.items() if key != "$ref"}}
    return node
