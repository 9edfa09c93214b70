"""The reference of gRPC, made from the protos and the comments in them. Needs `pip install '.[test]'`."""

import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

PROTOS = Path(__file__).resolve().parents[1] / "protos"
# The numbers of these fields in descriptor.proto: a comment's place is a path of them.
_MESSAGES, _ENUMS, _SERVICES, _FIELDS, _VALUES, _METHODS = 4, 5, 6, 2, 2, 2
_SECTIONS = {"product.proto": "Product Service", "order.proto": "Order Service"}


def calls() -> str:
    """The services, their calls, and every message of them."""
    parts = []
    for file in sorted(_compiled().file, key=lambda each: each.name, reverse=True):
        name = Path(file.name).name
        if name in _SECTIONS:
            parts += [f"## {_SECTIONS[name]}", f"`{file.name}`", *_Comments(file).sections(file)]
    return "\n\n".join(parts)


def _compiled() -> FileDescriptorSet:
    """The protos with their comments; raises SystemExit when the compiler refuses them."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "protos")
        well_known = str(resources.files("grpc_tools") / "_proto")
        flags = [f"-I{PROTOS}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *flags, *sources]) != 0:
            raise SystemExit("protoc refused the protos, see above")
        return FileDescriptorSet.FromString(output.read_bytes())


class _Comments:
    """What stands above each declaration of one file."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._above = {
            tuple(each.path): " ".join(each.leading_comments.split()) for each in file.source_code_info.location
        }

    def of(self, *path: int) -> str:
        return self._above.get(path, "").replace("|", "\\|")

    def sections(self, file: FileDescriptorProto) -> Iterator[str]:
        for index, service in enumerate(file.service):
            yield f"{self.of(_SERVICES, index)}"
            yield self._calls(service, index)
        for index, enum in enumerate(file.enum_type):
            yield from self._enum(enum, index)
        for index, message in enumerate(file.message_type):
            yield from self._message(message, index)

    def _calls(self, service: ServiceDescriptorProto, index: int) -> str:
        rows = ["| call | answer | |", "|---|---|---|"]
        for at, each in enumerate(service.method):
            stream = "stream of " if each.server_streaming else ""
            said = self.of(_SERVICES, index, _METHODS, at)
            call = f"`{service.name}.{each.name}`({_linked(each.input_type)})"
            rows.append(f"| {call} | {stream}{_linked(each.output_type)} | {said} |")
        return "\n".join(rows)

    def _enum(self, enum: EnumDescriptorProto, index: int) -> Sequence[str]:
        values = ", ".join(f"`{each.name}` = {each.number}" for each in enum.value)
        return [f"### {enum.name}", *filter(None, [self.of(_ENUMS, index)]), values]

    def _message(self, message: DescriptorProto, index: int) -> Sequence[str]:
        said = [f"### {message.name}", *filter(None, [self.of(_MESSAGES, index)])]
        if not message.field:
            return [*said, "Empty."]
        rows = ["| | field | type | |", "|---|---|---|---|"]
        for at, each in enumerate(message.field):
            one_of = ""
            if each.HasField("oneof_index") and not each.proto3_optional:
                one_of = f"One of `{message.oneof_decl[each.oneof_index].name}`. "
            comment = self.of(_MESSAGES, index, _FIELDS, at)
            rows.append(f"| {each.number} | `{each.name}` | {_type(message, each)} | {one_of}{comment} |")
        return [*said, "\n".join(rows)]


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = (_type(nested, each) for each in nested.field)
            return f"map of {key} to {value}"
    name = _linked(field.type_name) or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _linked(type_name: str) -> str:
    """A message of ours as a link to it, any other by its name."""
    package, _, name = type_name.rpartition(".")
    return f"[{name}](#{name.lower()})" if package == ".ordersys.core.v1" else type_name.removeprefix(".")
