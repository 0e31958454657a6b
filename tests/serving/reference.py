"""``docs/reference/http.md``, made of the OpenAPI document: ``python -m tests.serving.reference`` writes it."""

import tempfile
from pathlib import Path

from embridge.serving.app import create_app
from embridge.serving.options import ServeOptions
from tests.serving.world import World

HEAD = """# HTTP

What [`embridge serve`](../guides/serve.md) answers to. This page is made of the OpenAPI document that the service has at
`/openapi.json`. With an API key every route but `/`, `/healthz`, `/readyz` and `/openapi.json` needs the header
`Authorization: Bearer KEY`, and answers 401 without it. Every answer has the header `X-Request-ID`: that of the request, or
a new one.
"""


def page_of(document):
    """The page, in Markdown."""
    parts = [HEAD]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(method.upper(), path, operation))
    schemas = document["components"]["schemas"]
    parts.append("## Objects\n")
    parts += [_object(name, schema) for name, schema in sorted(schemas.items())]
    return "\n".join(parts)


def _operation(method, path, operation):
    lines = [f"## {method} {path}", "", operation["description"], ""]
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | type | |", "|---|---|---|---|"]
        lines += [f"| `{p['name']}` | {p['in']} | {_type(p['schema'])} | {p.get('description', '')} |" for p in parameters]
        lines.append("")
    if body := operation.get("requestBody"):
        lines += ["Body: " + ", ".join(f"`{kind}` ({_type(one['schema'])})" for kind, one in body["content"].items()) + ".", ""]
    lines += ["| status | answer |", "|---|---|"]
    for status, answer in sorted(operation["responses"].items()):
        kinds = answer.get("content", {})
        shown = ", ".join(f"`{kind}` ({_type(one.get('schema', {}))})" for kind, one in kinds.items()) if status == "200" else ""
        description = "" if answer["description"] == "Successful Response" else answer["description"]
        lines.append(f"| {status} | {' '.join(filter(None, (shown, _line(description))))} |")
    return "\n".join([*lines, ""])


def _object(name, schema):
    lines = [f"### {name}", "", _line(schema.get("description", "")), ""]
    if properties := schema.get("properties"):
        required = schema.get("required", [])
        lines += ["| field | type | |", "|---|---|---|"]
        for field, one in properties.items():
            notes = _line(one.get("description", "")) + ("" if field in required else " Optional.")
            lines.append(f"| `{field}` | {_type(one)} | {notes.strip()} |")
        lines.append("")
    return "\n".join(lines)


def _type(schema):
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("format") == "binary":
        return "bytes"
    return schema.get("type", "any")


def _line(text):
    return " ".join(text.split())


def main():
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        gate = create_app(ServeOptions(maps=(world.path("queries.safetensors"),)))
    page = Path(__file__).parents[2] / "docs/reference/http.md"
    page.write_text(page_of(gate.application.openapi()))


if __name__ == "__main__":
    main()
