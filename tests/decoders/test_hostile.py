"""Decoder files that are damaged, foreign, or made to run code: none is opened, and none leaves a trace."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier

import embridge as eb
from embridge.decoders.torch_audit import is_plain_shape
from embridge.errors import DecoderError, MissingFileError, SpaceMismatchError, UnreadableFileError
from tests.decoders.support import SPACE, Bomb, Net, P, edited, exported, labeled, onnx_of, packed, rows


@pytest.mark.parametrize("name", ["d.skops", "d.pt2", "d.pkl", "d.joblib"])
@pytest.mark.parametrize("pack", [lambda b: b, __import__("zlib").compress, __import__("gzip").compress])
def test_a_pickle_by_any_name_is_refused(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(pickle.dumps(Bomb(tmp_path / "boom"))))
    with pytest.raises(DecoderError, match="is a pickle, which can run any code when it is opened, so it was not opened"):
        eb.open_decoder(tmp_path / name, space=SPACE)
    assert not (tmp_path / "boom").exists()


def test_a_skops_file_with_a_foreign_type_is_refused_by_its_name(tmp_path):
    import skops.io

    skops.io.dump(FunctionTransformer(os.system), tmp_path / "f.skops")
    with pytest.raises(DecoderError, match=r"types that are not trusted: (posix|nt)\.system\. It was not loaded"):
        eb.open_decoder(tmp_path / "f.skops", space=SPACE)
    x, y = labeled()
    skops.io.dump(DecisionTreeClassifier().fit(x, y), tmp_path / "t.skops")
    with pytest.raises(DecoderError, match=r"--trust sklearn\.tree\._tree\.Tree"):
        eb.open_decoder(tmp_path / "t.skops", space=SPACE)
    tree = eb.open_decoder(tmp_path / "t.skops", space=SPACE, trusted=["sklearn.tree._tree.Tree"])
    assert tree.decode(x).prediction.tolist() == y.tolist()


def test_damaged_and_foreign_files_are_reported(tmp_path):
    x, y = labeled()
    model = LogisticRegression().fit(x, y)
    eb.save_decoder(model, tmp_path / "a.skops", SPACE)
    eb.save_decoder(model, tmp_path / "a.safetensors", SPACE)
    eb.save_decoder(exported(Net()), tmp_path / "a.pt2", SPACE)
    onnx_of(model, tmp_path / "a.onnx")
    for name in ("a.skops", "a.safetensors", "a.pt2", "a.onnx"):
        whole = (tmp_path / name).read_bytes()
        other = tmp_path / f"cut-{name}"
        for size in (0, 3, 100, len(whole) // 2, len(whole) - 30):
            other.write_bytes(whole[:size])
            with pytest.raises((UnreadableFileError, DecoderError)):
                eb.open_decoder(other, space=SPACE)
        other.write_bytes(b"%PDF-1.7 no decoder" * 20)
        with pytest.raises(UnreadableFileError, match=name):
            eb.open_decoder(other, space=SPACE)
    with pytest.raises(MissingFileError):
        eb.open_decoder(tmp_path / "none.skops")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DecoderError, match=r"Formats: \.safetensors"):
        eb.open_decoder(tmp_path / "a.txt")


def test_a_head_that_was_altered_is_refused(tmp_path):
    path = tmp_path / "h.safetensors"
    eb.LinearHead(rows(2), [0, 0], SPACE, "output").save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="altered"):
        eb.open_decoder(path)


def test_a_map_is_no_head(tmp_path):
    eb.LinearMap(np.eye(3), np.zeros(3), eb.Space("a", 3), eb.Space("b", 3)).save(tmp_path / "map.safetensors")
    with pytest.raises(UnreadableFileError, match="not a linear head of embridge"):
        eb.open_decoder(tmp_path / "map.safetensors")


def test_an_onnx_of_a_wrong_width_is_refused(tmp_path):
    x, y = labeled()
    model = LogisticRegression().fit(x, y)
    wide = eb.Space("taught", P + 2)
    with pytest.raises(SpaceMismatchError, match=f"dim {P + 2}, but .* dim {P}"):
        eb.open_decoder(onnx_of(model, tmp_path / "a.onnx"), space=wide)
    with pytest.raises(SpaceMismatchError):
        eb.open_decoder(onnx_of(model, tmp_path / "b.onnx", space=json.dumps(wide.to_dict())))
    with pytest.raises(UnreadableFileError, match="declaration of embridge"):
        eb.open_decoder(onnx_of(model, tmp_path / "c.onnx", space="{}"))


# torch.export.load runs what its file says; each way of saying so is closed


def attempt(parts, tmp_path, changed, message):
    with pytest.raises(DecoderError, match=message):
        eb.open_decoder(packed(parts, tmp_path / "evil.pt2", **changed), space=SPACE)
    assert not (tmp_path / "boom").exists()


def test_the_repacked_program_is_good_as_it_stands(parts, tmp_path):
    assert eb.open_decoder(packed(parts, tmp_path / "good.pt2"), space=SPACE).decode(rows(3)).output.shape == (3, 3)


def test_pickles_in_a_program(parts, tmp_path):
    buffer = io.BytesIO()
    torch.save((Bomb(tmp_path / "boom"),), buffer)
    attempt(parts, tmp_path, {"data/sample_inputs/model.pt": buffer.getvalue()}, "sample inputs that are more than tensors")
    config = "data/weights/model_weights_config.json"
    named = edited(parts, lambda c: next(iter(c["config"].values())).update(use_pickle=True), config)
    attempt(parts, tmp_path, named | {"data/weights/weight_0": buffer.getvalue()}, "pickled tensors")
    for prefix in ("custom_obj_0", "opaque_obj_0"):
        entry = {"x": {"path_name": prefix, "is_param": False, "use_pickle": False, "tensor_meta": None}}
        constants = {"data/constants/model_constants_config.json": json.dumps({"config": entry}).encode()}
        attempt(parts, tmp_path, constants, "pickled tensors or objects")
        attempt(parts, tmp_path, {f"data/constants/{prefix}": buffer.getvalue()}, "unexpected part")


def test_compiled_code_and_older_layouts_in_a_program(parts, tmp_path):
    attempt(parts, tmp_path, {"data/aotinductor/model/x.so": b"\x7fELF"}, "unexpected part 'data/aotinductor")
    attempt(parts, tmp_path, {"data/weights/model.pt": b"x"}, "unexpected part")
    attempt(parts, tmp_path, {"models/other.json": b"{}"}, "unexpected part")


def test_functions_text_and_names_in_a_program(parts, tmp_path):
    evil = f"__import__('os').mkdir({str(tmp_path / 'boom')!r})"

    def node(program):
        return program["graph_module"]["graph"]["nodes"][0]

    def first_expression(program):
        stack = [program]
        while stack:
            found = stack.pop()
            if isinstance(found, dict):
                if "expr_str" in found:
                    return found
                stack += found.values()
            elif isinstance(found, list):
                stack += found
        raise AssertionError

    for target in ("torch.os.system", "torch.hub.load", "torch.ops.aten.from_file.default", "_operator.methodcaller", "#mine"):
        attempt(parts, tmp_path, edited(parts, lambda p, t=target: node(p).update(target=t)), "not trusted: " + target)
    for text in (evil, f"Symbol({evil!r})", f"sympify({evil!r})", "Symbol.__class__", "(lambda: 1)()", "[x for x in (1,)]"):
        attempt(parts, tmp_path, edited(parts, lambda p, t=text: first_expression(p).update(expr_str=t)), "the expression")
        attempt(parts, tmp_path, edited(parts, lambda p, t=text: p.update(guards_code=[t])), "conditions on the sizes")
    attempt(parts, tmp_path, edited(parts, lambda p: node(p).update(name=f"x\n{evil}")), "the name")
    spec = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'

    def signature(program):
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    attempt(parts, tmp_path, edited(parts, signature), "custom classes")
    attempt(
        parts, tmp_path, edited(parts, lambda p: node(p)["inputs"][0].update(arg={"as_operator": "torch.os.system"})), "as_operator"
    )


@pytest.mark.parametrize("text", ["Max(1, 2*Symbol('s77', positive=True, integer=True))", "Pow(s0, Integer(2)) - 3", "u0 // 2"])
def test_shapes_of_numbers_and_symbols_pass(text):
    assert is_plain_shape(text)


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "2**s0", "((2**8)**8)**8 + s0**2", "Pow(2, Pow(9, 9))", "s0.func", "s0[0]", "Symbol(*s0)", "Symbol(**s0)",
     "__import__('os')", "s0 if s1 else s2", "f'{s0}'", "s0\n+s1", "s0#", "lambda: 0", "Symbol", "eval('1')", "1" * 1001, "", None],
)  # fmt: skip
def test_shapes_of_anything_else_do_not(text):
    assert not is_plain_shape(text)


def test_without_the_extra_the_errors_name_it(tmp_path):
    x, y = labeled()
    onnx_of(LogisticRegression().fit(x, y), tmp_path / "a.onnx")
    eb.save_decoder(LogisticRegression().fit(x, y), tmp_path / "a.skops", SPACE)
    code = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['skops'] = None\n"
        "import embridge as eb\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        eb.open_decoder(name, space='taught')\n"
        "    except eb.EmbridgeError as e:\n        print(type(e).__name__, e)\n"
    )
    names = [str(tmp_path / "a.onnx"), str(tmp_path / "a.skops")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("MissingDependencyError") and "pip install 'embridge[decoders]'" in line for line in lines)
