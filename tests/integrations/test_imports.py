"""A framework that is not installed, and what imports load; each test is one process for all frameworks."""

import os
import subprocess
import sys

MODULES = {"langchain": "langchain_core", "llamaindex": "llama_index", "haystack": "haystack"}


def in_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_a_framework_the_error_names_the_extra():
    """Maps can be registered in DuckDB without any of them."""
    shown = in_python(
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({list(MODULES.values())}))\n"
        "import embridge\n"
        "embridge.register\n"
        f"for name in {list(MODULES)}:\n"
        "    try:\n        importlib.import_module(f'embridge.integrations.{name}')\n"
        "    except ImportError as e:\n        print(type(e).__name__, e)\n"
    )
    for extra, line in zip(MODULES, shown, strict=True):
        assert line.startswith("MissingDependencyError")
        assert line.endswith(f"which is not installed. Hint: pip install 'embridge[{extra}]'.")


def test_no_connection_is_made_at_import(tmp_path):
    """Not even with Haystack's statistics switched on, which is its default."""
    code = (
        "import importlib, socket\n"
        "def refuse(*given, **named): raise SystemExit(f'a connection to {given}')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"for name in {list(MODULES)}: importlib.import_module(f'embridge.integrations.{{name}}')\n"
        "print('done')\n"
    )
    assert in_python(code, HAYSTACK_TELEMETRY_ENABLED="True", HOME=str(tmp_path)) == ["done"]
